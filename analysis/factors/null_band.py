"""The null band: how strong factors are in random updates of the same size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from numpy.typing import NDArray

from analysis.adapters.load import LoraModule
from analysis.errors import InputError
from analysis.factors.residual import (
    ResidualFactors,
    ResidualSide,
    is_large,
    leading_squares,
    modules_on_side,
    split_halves,
)
from analysis.spectra.spectrum import update_singular_values

Float64Array = NDArray[np.float64]
Columns = NDArray[np.floating]
Precision = type[np.float32] | type[np.float64]

_AXES = 64  # random directions per draw

# The draws of a large adapter differ by less than 1 %, so fewer of them are enough, and single
# precision is too.  A draw of 2 × 2500 × 2500 numbers takes a second, and longer in double.
_LARGE = 4_000_000
_DRAWS, _DRAWS_LARGE = 50, 20
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class NullBand:
    """Spectrum of random runs of the same size, whose modules share nothing.

    `upper` and `median` (k,) belong to the singular value of the same index.  The other two
    pairs belong to the strength ‖uᵀC‖ along one direction u (C is that of
    `analysis.factors.residual.update_columns`): `fixed_*` if u was chosen without looking at
    the run, `span_*` if it was chosen within the span of the leading k factors by a criterion
    other than their strength.  All are in the units of W.
    """

    upper: Float64Array
    median: Float64Array
    fixed_upper: float
    fixed_median: float
    span_upper: float
    span_median: float
    quantile: float
    n_draws: int
    seed: int
    matched: Literal["norms", "spectrum"]


def null_band(
    modules: Sequence[LoraModule],
    *,
    side: ResidualSide,
    max_layer: int | None = None,
    k: int | None = None,
    n_draws: int | None = None,
    quantile: float = 0.95,
    seed: int = 0,
    matched: Literal["norms", "spectrum"] = "norms",
) -> NullBand:
    """Singular values of independent random updates of the same size as the run's.

    `upper[i]` is the ⌈(n_draws + 1) · quantile⌉-th smallest of the draws' i-th singular
    values, so a null adapter exceeds it with probability at most 1 − quantile for
    each i.  A strong true factor raises the whole band, which is conservative.  No direction
    is stronger than the first singular value, so `upper[0]` bounds a direction however chosen.

    Args:
        modules: updates; those of the other side are ignored.
        side: "write" or "read", as for `residual_factors`.
        max_layer: only modules up to this layer.
        k: the number of singular values; None for all of them.
        n_draws: random adapters drawn.  None chooses by size: adapters with more than four
            million numbers on this side get fewer draws, in single precision (accurate to 1e-5).
        quantile: where the upper end of the band lies.
        seed: of the draws.
        matched: what a random adapter keeps.  "norms": the entries of B and A are Gaussian, then
            each column of B and row of A is scaled to its length in the module.  These lengths
            depend on the gauge (B G, G⁻¹A) that training ended in.  "spectrum": each ΔW_m keeps
            its singular values and gets random left and right vectors.  This depends on no gauge
            and destroys only what modules share.

    Raises:
        InputError: as `residual_factors`, or too few draws for the quantile.

    Source: parallel analysis, Horn 1965, Psychometrika 30; split-conformal rank.
    """
    chosen = modules_on_side(modules, side, max_layer)
    lengths = [_null_lengths(module, side, matched) for module in chosen]
    large = sum(one.d_model * len(one.residual) for one in lengths) > _LARGE
    if n_draws is None:
        n_draws = _DRAWS_LARGE if large else _DRAWS
    rank = math.ceil((n_draws + 1) * quantile)
    if not 0 < quantile < 1 or not 1 <= rank <= n_draws:
        raise InputError(
            f"Got {n_draws} draws for the quantile {quantile}; expected a quantile between 0 and 1 "
            "and at least quantile / (1 − quantile) draws."
        )
    rng = np.random.default_rng(seed)
    draw = _draw_norms if matched == "norms" else _draw_spectrum
    precision = np.float32 if large else np.float64
    spectra, strengths = [], []
    for _ in range(n_draws):
        columns = np.hstack([draw(one, rng, precision) for one in lengths])
        spectra.append(_top_values(columns, k))
        # A draw is invariant in law under rotations of the stream, so each axis is such a u.
        strengths.append(np.linalg.norm(columns, axis=1))
    draws = np.sort(spectra, axis=0)
    within = _within_spans(np.asarray(spectra), np.random.default_rng((seed, 1)))
    return NullBand(
        upper=draws[rank - 1],
        median=np.median(draws, axis=0),
        fixed_upper=float(np.quantile(strengths, quantile)),
        fixed_median=float(np.median(strengths)),
        span_upper=float(np.quantile(within, quantile)),
        span_median=float(np.median(within)),
        quantile=quantile,
        n_draws=n_draws,
        seed=seed,
        matched=matched,
    )


def exceeds_band(factors: ResidualFactors, band: NullBand) -> NDArray[np.bool_]:
    """(k,) whether each factor's singular value lies above the band at its index.

    Raises:
        InputError: the band has fewer entries than there are factors.
    """
    k = len(factors.singular_values)
    if k > len(band.upper):
        raise InputError(
            f"Got a null band of {len(band.upper)} entries for {k} factors; draw it with k = {k}."
        )
    return np.asarray(factors.singular_values > band.upper[:k])


def _within_spans(spectra: Float64Array, rng: np.random.Generator) -> Float64Array:
    """(draws · axes,) strengths along uniformly random directions in the factors' spans.

    Along u = Σ c_i u_i the strength is (Σ c_i² σ_i²)^½ for the singular values σ (draws, k).
    """
    axes = rng.standard_normal((_AXES, spectra.shape[1]))
    shares = axes**2 / (axes**2).sum(axis=1, keepdims=True)
    return np.asarray(np.sqrt(spectra**2 @ shares.T).ravel())


def _top_values(columns: Columns, k: int | None) -> Float64Array:
    """Leading singular values from the smaller Gram matrix; its error, 1e-8 σ₁, is harmless."""
    if k is not None and is_large(columns, k):
        with suppress(scipy.sparse.linalg.ArpackError):
            tolerance = _TOLERANCE if columns.dtype == np.float32 else 0.0
            leading, _ = leading_squares(columns, k, tolerance=tolerance)
            return np.asarray(np.sqrt(np.maximum(leading[::-1], 0.0)))
    gram = columns.T @ columns if columns.shape[0] > columns.shape[1] else columns @ columns.T
    n = len(gram)
    first = 0 if k is None else max(n - k, 0)
    squares = scipy.linalg.eigh(gram, eigvals_only=True, subset_by_index=(first, n - 1))
    return np.asarray(np.sqrt(np.maximum(squares[::-1], 0.0)))


@dataclass(frozen=True)
class _NullLengths:
    """What a random module keeps of the true one: dimensions and lengths (r,) of both halves."""

    d_model: int
    d_other: int
    residual: Float64Array
    other: Float64Array


def _null_lengths(
    module: LoraModule, side: ResidualSide, matched: Literal["norms", "spectrum"]
) -> _NullLengths:
    residual, other = split_halves(module, side)
    sizes = len(residual), len(other)
    if matched == "norms":
        lengths = np.linalg.norm(residual, axis=0), np.linalg.norm(other, axis=0)
        return _NullLengths(*sizes, *lengths)
    values = update_singular_values(module.lora_A, module.lora_B, scaling=module.scaling)
    return _NullLengths(*sizes, values, np.ones_like(values))


def _draw_norms(half: _NullLengths, rng: np.random.Generator, precision: Precision) -> Columns:
    r = len(half.residual)
    residual = rng.standard_normal((half.d_model, r), dtype=precision)
    # The QR triangle of a Gaussian (d_other, r) matrix, drawn without drawing the matrix
    # (Bartlett 1933): normal above the diagonal, √χ² with d_other − i degrees on it.
    height = min(half.d_other, r)
    other = np.triu(rng.standard_normal((height, r)), 1)
    other[np.arange(height), np.arange(height)] = np.sqrt(
        rng.chisquare(half.d_other - np.arange(height))
    )
    # The lengths of both halves go into the small triangle, to touch the tall half only once.
    scale = half.residual / np.linalg.norm(residual, axis=0) * half.other
    other *= scale / np.linalg.norm(other, axis=0)
    return np.asarray(residual @ other.T.astype(precision))


def _draw_spectrum(half: _NullLengths, rng: np.random.Generator, precision: Precision) -> Columns:
    normal = rng.standard_normal((half.d_model, len(half.residual)), dtype=precision)
    basis, _ = np.linalg.qr(normal)
    return np.asarray(basis * half.residual.astype(precision))
