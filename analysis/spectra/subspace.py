"""Compare subspaces and directions, whatever their sign, order and basis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.optimize
from numpy.typing import NDArray

from analysis.errors import InputError

FloatArray = NDArray[np.floating]
Float64Array = NDArray[np.float64]

# Directions (of unit length) count as dependent if the diagonal of R falls below this.
_DEPENDENT = 1e-6


@dataclass(frozen=True)
class Match:
    """Best one-to-one assignment of directions: `a[i]` matches `signs[i] * b[permutation[i]]`.

    `cosines` are |cos|, in the order of a.  If a has more directions than b, those left
    over have permutation −1, sign 0 and cosine NaN.
    """

    permutation: NDArray[np.intp]
    signs: Float64Array
    cosines: Float64Array


def orthonormal_basis(directions: FloatArray) -> Float64Array:
    """Orthonormal basis (d, k) of the span of directions (k, d); column 0 is direction 0.

    The first i + 1 columns have the span of the first i + 1 directions, and column i has a
    positive product with direction i (QR with a positive diagonal).

    Raises:
        InputError: directions are linearly dependent, not finite, or more than d.
    """
    rows = unit_rows(directions)
    k, d = rows.shape
    if k > d:
        raise InputError(f"Got {k} directions in {d} dimensions; expected at most {d}.")
    q, r = np.linalg.qr(rows.T)
    diagonal = np.diag(r)
    if (np.abs(diagonal) < _DEPENDENT).any():
        dependent = int(np.abs(diagonal).argmin())
        raise InputError(
            f"Direction {dependent} lies in the span of the directions before it; leave it out."
        )
    return q * np.sign(diagonal)


def unit_rows(directions: FloatArray) -> Float64Array:
    """Directions (k, d) in float64, each divided by its length.

    Raises:
        InputError: the input is not a matrix or not finite, or a direction has length zero.
    """
    rows = np.asarray(directions, dtype=np.float64)
    if rows.ndim != 2:
        raise InputError(f"Got directions of shape {rows.shape}; expected (k, d).")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise InputError("A direction is zero or not finite; expected a positive, finite length.")
    return np.asarray(rows / lengths, dtype=np.float64)


def principal_angles(P: FloatArray, Q: FloatArray) -> Float64Array:
    """Principal angles in radians between the spans of P (d, m) and Q (d, n), ascending.

    There are min(m, n) angles between 0 and π/2; small ones are accurate too.

    Raises:
        InputError: the two spans lie in spaces of different dimension.

    Source: Knyazev & Argentati 2002, as in `scipy.linalg.subspace_angles`.
    """
    if P.ndim != 2 or Q.ndim != 2 or P.shape[0] != Q.shape[0]:
        raise InputError(
            f"Got subspaces of shapes {P.shape} and {Q.shape}; expected (d, m) and (d, n)."
        )
    angles = scipy.linalg.subspace_angles(np.asarray(P, np.float64), np.asarray(Q, np.float64))
    return np.asarray(angles[::-1])


def match(directions_a: FloatArray, directions_b: FloatArray) -> Match:
    """Assign directions b (n, d) one-to-one to directions a (m, d), maximising Σ|cos|.

    Raises:
        InputError: the two sets differ in dimension, or a direction is zero.
    """
    a, b = unit_rows(directions_a), unit_rows(directions_b)
    if a.shape[1] != b.shape[1]:
        raise InputError(
            f"Got directions of {a.shape[1]} and {b.shape[1]} dimensions; expected the same."
        )
    cosines = a @ b.T
    rows, columns = scipy.optimize.linear_sum_assignment(np.abs(cosines), maximize=True)
    found = Match(np.full(len(a), -1), np.zeros(len(a)), np.full(len(a), np.nan))
    found.permutation[rows] = columns
    found.signs[rows] = np.where(cosines[rows, columns] < 0, -1.0, 1.0)
    found.cosines[rows] = np.minimum(np.abs(cosines[rows, columns]), 1.0)
    return found


def random_subspace(d: int, k: int, *, seed: int) -> Float64Array:
    """Orthonormal (d, k) basis of a uniformly (Haar) random k-dimensional subspace.

    Raises:
        InputError: not 1 ≤ k ≤ d.
    """
    if not 1 <= k <= d:
        raise InputError(f"Got k = {k} in d = {d} dimensions; expected 1 ≤ k ≤ d.")
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, k)))
    return q * np.sign(np.diag(r))


def find_dependent(directions: FloatArray) -> list[tuple[int, list[int]]]:
    """The directions (k, d) that lie in the span of those before them, with what they consist of.

    The second part has the earlier directions, strongest first, that carry a share of at least a
    tenth of the largest coefficient.  Without the first parts, `orthonormal_basis` takes the rest.

    Raises:
        InputError: as `unit_rows`.
    """
    rows = unit_rows(directions)
    kept: list[int] = []
    basis = np.zeros((0, rows.shape[1]))
    found = []
    for number, row in enumerate(rows):
        rest = row - basis.T @ (basis @ row)
        rest -= basis.T @ (basis @ rest)  # once more, for what rounding left
        length = float(np.linalg.norm(rest))
        # A margin, since a QR of all rows rounds differently.
        if length < 2 * _DEPENDENT:
            coefficients = np.abs(np.linalg.lstsq(rows[kept].T, row, rcond=None)[0])
            order = np.argsort(-coefficients, kind="stable")
            strong = coefficients >= 0.1 * coefficients.max()
            found.append((number, [kept[int(one)] for one in order if strong[one]]))
        else:
            kept.append(number)
            basis = np.vstack([basis, rest / length])
    return found
