"""The null band: how strong directions are in random updates of the same size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from numpy.typing import NDArray

from analysis.adapters.load import LoraModule
from analysis.errors import InputError
from analysis.factors.residual import (
    ResidualFactors,
    ResidualSide,
    halves,
    is_large,
    leading_squares,
    on_side,
)
from analysis.spectra.spectrum import update_singular_values

Float64Array = NDArray[np.float64]
Columns = NDArray[np.floating[Any]]
Precision = type[np.float32] | type[np.float64]

_AXES = 64  # random directions a draw

# The draws of large adapters differ by less than a hundredth, so fewer will do, and single
# precision too: entries of 2 × 2500 × 2500 take a second a draw, and more at full precision.
_LARGE = 4_000_000
_DRAWS, _DRAWS_LARGE = 50, 20
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class NullBand:
    """Spectrum of runs of the same size without shared structure: `upper`, `median` (k,).

    `fixed_upper` and `fixed_median` are of the strength ‖uᵀC‖ along one direction u that was
    chosen without a look at the run (`analysis.factors.residual.update_columns`); `span_upper` and
    `span_median` of that along one chosen within the span of the leading k factors by something
    else than their strength.
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
    """Singular values that independent random updates of the same size would give.

    "norms": entries of B and A are Gaussian, then every column of B and every row of A
    is scaled to the length it has in the module (one length per LoRA rank index).
    These lengths depend on the gauge (B G, G⁻¹A) that training ended in.
    "spectrum": each ΔW_m keeps its singular values exactly and gets random left and
    right vectors.  This needs no gauge and leaves only what modules share.

    `upper[i]` is the ⌈(n_draws + 1) · quantile⌉-th smallest of the draws' i-th singular
    values, so a null adapter exceeds it with probability at most 1 − quantile for
    each i.  A strong true factor raises the whole band, which is conservative.  No direction
    is stronger than the first singular value, so `upper[0]` bounds one that was chosen in any way.

    Where `n_draws` is None it is 50, and 20 for an adapter whose side has more than four million
    numbers, which is also drawn in single precision (its values are found to 1e-5).

    Raises:
        InputError: as `residual_factors`, or too few draws for the quantile.

    Source: parallel analysis, Horn 1965, Psychometrika 30; split-conformal rank.
    """
    chosen = on_side(modules, side, max_layer)
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
        # A draw's law is the same in every rotation of the stream, so each axis is one such u.
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


def significant(factors: ResidualFactors, band: NullBand) -> NDArray[np.bool_]:
    """(k,) whether each factor's singular value lies above the band at its own index.

    Raises:
        InputError: the band has fewer entries than there are factors.
    """
    k = len(factors.singular_values)
    if k > len(band.upper):
        raise InputError(f"Got a band of {len(band.upper)} for {k} factors; draw it with k = {k}.")
    return np.asarray(factors.singular_values > band.upper[:k])


def _within_spans(spectra: Float64Array, rng: np.random.Generator) -> Float64Array:
    """(draws · axes,) strengths along uniformly random directions in spans of factors.

    Along u = Σ c_i u_i the strength is (Σ c_i² σ_i²)^½ for the singular values σ (draws, k).
    """
    axes = rng.standard_normal((_AXES, spectra.shape[1]))
    shares = axes**2 / (axes**2).sum(axis=1, keepdims=True)
    return np.asarray(np.sqrt(spectra**2 @ shares.T).ravel())


def _top_values(columns: Columns, k: int | None) -> Float64Array:
    """Leading singular values from the smaller Gram matrix, whose error of 1e-8 σ₁ is harmless."""
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
    """What a random module keeps: dimensions and lengths (r,) on both sides."""

    d_model: int
    d_other: int
    residual: Float64Array
    other: Float64Array


def _null_lengths(
    module: LoraModule, side: ResidualSide, matched: Literal["norms", "spectrum"]
) -> _NullLengths:
    residual, other = halves(module, side)
    sizes = len(residual), len(other)
    if matched == "norms":
        lengths = np.linalg.norm(residual, axis=0), np.linalg.norm(other, axis=0)
        return _NullLengths(*sizes, *lengths)
    values = update_singular_values(module.lora_A, module.lora_B, scaling=module.scaling)
    return _NullLengths(*sizes, values, np.ones_like(values))


def _draw_norms(half: _NullLengths, rng: np.random.Generator, precision: Precision) -> Columns:
    r = len(half.residual)
    residual = rng.standard_normal((half.d_model, r), dtype=precision)
    # The triangle of a Gaussian (d_other, r) matrix, drawn without the matrix
    # (Bartlett 1933): normal above the diagonal, √χ² of d_other − i on it.
    height = min(half.d_other, r)
    other = np.triu(rng.standard_normal((height, r)), 1)
    other[np.arange(height), np.arange(height)] = np.sqrt(
        rng.chisquare(half.d_other - np.arange(height))
    )
    # Both halves' lengths go into the small triangle, so that the tall half is touched once.
    scale = half.residual / np.linalg.norm(residual, axis=0) * half.other
    other *= scale / np.linalg.norm(other, axis=0)
    return np.asarray(residual @ other.T.astype(precision))


def _draw_spectrum(half: _NullLengths, rng: np.random.Generator, precision: Precision) -> Columns:
    normal = rng.standard_normal((half.d_model, len(half.residual)), dtype=precision)
    basis, _ = np.linalg.qr(normal)
    return np.asarray(basis * half.residual.astype(precision))
