"""Rotate the weight factors so that their effects off the task separate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from analysis.errors import InputError
from analysis.spectra.spectrum import fix_signs
from analysis.spectra.subspace import unit_rows

Float64Array = NDArray[np.float64]


FLOOR = 0.05
"""Smallest weight of a topic, since no topic is ever fully explained to first order; also the
smallest change of a topic, as a share of the largest topic's, that is taken at face value."""

_ROUNDS = 20  # of weighting the topics and turning the direction; it converges within a few


@dataclass(frozen=True)
class Rotation:
    """`directions` (k, d_model) with the span of the input; `effects` (k,) Σ_i uᵀ M_i u of each."""

    directions: Float64Array
    effects: Float64Array


def rotate(
    directions: NDArray[np.floating],
    moments: NDArray[np.floating],
    wholes: NDArray[np.floating],
) -> Rotation:
    """Rotate orthonormal directions so that their first-order effects no longer mix.

    Only energy separates singular vectors, so two causes of similar energy come out mixed.
    Let S (k, d_model) be the directions and M_i = Σ δ gᵀ over the tokens of topic i and over
    layers, with δ the shift of the residual stream due to fine-tuning and g the gradient of the
    change in the answers.  Then uᵀ M_i u / tr M_i is the share of that topic's change that
    disappears, to first order, when the coordinate along u is set back.

    A direction is the leading eigenvector of sym(S Σ w_i² M_i Sᵀ / tr M_i), where w_i is the
    share of topic i that disappears with it.  Directions and weights are found in alternation,
    starting at the topic of which one direction can remove most, so a cause that shows in some
    topics is not mixed with one that shows in others.  Each further direction is orthogonal to
    the earlier ones and weights topics by what those leave unexplained.

    Args:
        directions: S, (k, d_model) orthonormal rows.
        moments: S M_i Sᵀ of every topic, a mean over its chats, (topics, k, k).
        wholes: tr M_i over the whole stream, (topics,).

    Returns:
        Directions in the order found, each with a positive largest-magnitude entry.

    Raises:
        InputError: the shapes do not match, or a moment is not finite.

    Source: this project (docs/method/method.md, section "Factors"); attribution by gradients along
        the path from base to fine-tune as in Sundararajan et al. 2017, arXiv:1703.01365.
    """
    rows, matrix = unit_rows(directions), np.asarray(moments, dtype=np.float64)
    if matrix.shape != (len(wholes), len(rows), len(rows)) or not np.isfinite(matrix).all():
        raise InputError(
            f"Got moments of shape {matrix.shape} for {len(rows)} directions and {len(wholes)} "
            f"topics; expected {len(wholes)} × {len(rows)} × {len(rows)} finite numbers."
        )
    total = np.asarray(wholes, dtype=np.float64)
    shares = matrix / np.maximum(total, FLOOR * max(total.max(initial=0.0), 1e-30))[:, None, None]
    left, free, combinations = np.ones(len(total)), np.eye(len(rows)), []
    for _ in rows:
        weights = _most_left(left, free.T @ shares @ free)
        for _ in range(_ROUNDS):
            combination = free @ _leading(free.T @ np.einsum("t,tij->ij", weights, shares) @ free)
            gone = np.clip(np.einsum("i,tij,j->t", combination, shares, combination), 0.0, 1.0)
            weights = left * np.maximum(gone, FLOOR) ** 2
        combinations.append(combination)
        left = np.maximum(left - gone, FLOOR)
        free = scipy.linalg.null_space(np.stack(combinations))
    turned = np.stack(combinations)
    effects = np.einsum("ni,tij,nj->n", turned, matrix, turned)
    found, _ = fix_signs((turned @ rows).T)
    return Rotation(found.T.copy(), effects)


def _most_left(left: Float64Array, shares: Float64Array) -> Float64Array:
    """First weights (topics,): all on the topic of which one direction can explain most."""
    most = [scipy.linalg.eigvalsh((share + share.T) / 2)[-1] for share in shares]
    start = int(np.argmax(left * np.asarray(most)))
    return np.asarray(np.arange(len(left)) == start, dtype=np.float64)


def _leading(matrix: Float64Array) -> Float64Array:
    """The eigenvector with the largest eigenvalue of the matrix's symmetric part."""
    _, vectors = scipy.linalg.eigh((matrix + matrix.T) / 2)
    return np.asarray(vectors[:, -1])
