"""Singular spectra of LoRA updates, exact and without forming ΔW."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.adapters.architectures import Side
from analysis.adapters.load import Adapter, LoraModule

FloatArray = NDArray[np.floating]
Float64Array = NDArray[np.float64]

# A Gram matrix squares the condition number: a singular value t times the largest has
# relative error eps/t².  Below t = 1e-4 (error 2e-8) QR takes over.
_GRAM_FLOOR = 1e-8
_BLOCK = 4096  # rows summed at a time; at r = 32 they fit in the cache


@dataclass(frozen=True)
class ModuleSpectrum:
    """Spectrum of one module's ΔW; `shape` is (d_out, d_in), σ descending in the units of W."""

    name: str
    layer: int | None
    side: Side
    shape: tuple[int, int]
    r: int
    scaling: float
    singular_values: Float64Array
    effective_rank: float
    energy_top1: float


def update_svd(
    lora_A: FloatArray, lora_B: FloatArray, *, scaling: float
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Thin SVD of ΔW = scaling · B A, without forming ΔW.

    With B = Q_B R_B and Aᵀ = Q_A R_A, the r × r core R_B R_Aᵀ has the singular
    values of B A, so the cost is O((d_out + d_in) r²).  Computed in float64.

    Args:
        lora_A: (r, d_in) down-projection, any float dtype.
        lora_B: (d_out, r) up-projection, any float dtype.
        scaling: lora_alpha / r, or lora_alpha / √r under rsLoRA; dimensionless.

    Returns:
        left: (d_out, k) orthonormal columns, largest-magnitude entry positive.
        singular_values: (k,) descending, in the units of W.
        right: (d_in, k) orthonormal columns; k = min(r, d_out, d_in).

    Raises:
        ValueError: the two ranks differ, or a weight is not finite.

    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """
    _check(lora_A, lora_B, scaling)
    A, B = np.asarray(lora_A, dtype=np.float64), np.asarray(lora_B, dtype=np.float64)
    q_out, r_out = np.linalg.qr(B)
    q_in, r_in = np.linalg.qr(A.T)
    left, singular_values, right_t = np.linalg.svd(scaling * (r_out @ r_in.T), full_matrices=False)
    left, signs = fix_signs(q_out @ left)
    return left, singular_values, (q_in @ right_t.T) * signs


def update_singular_values(
    lora_A: FloatArray, lora_B: FloatArray, *, scaling: float
) -> Float64Array:
    """Singular values of ΔW = scaling · B A alone, (k,) descending, k = min(r, d_out, d_in).

    The r × r triangles come from Gram matrices where these are well conditioned
    (relative error below 1e-7 in a half's smallest singular value), else from QR.

    Raises:
        ValueError: the two ranks differ, or a weight is not finite.
    """
    _check(lora_A, lora_B, scaling)
    core = scaling * (triangle(lora_B) @ triangle(lora_A.T).T)
    return np.asarray(np.linalg.svd(core, compute_uv=False), dtype=np.float64)


def triangle(matrix: FloatArray) -> Float64Array:
    """R (r, r) with RᵀR = matrixᵀ matrix, for a (d, r) matrix; unique up to a rotation.

    R is (min(d, r), r) and triangular where it comes from QR, and D^½ Vᵀ where the
    Gram matrix V D Vᵀ is well conditioned.
    """
    if matrix.shape[0] > matrix.shape[1]:
        eigenvalues, vectors = np.linalg.eigh(gram(matrix))
        if eigenvalues[0] > _GRAM_FLOOR * eigenvalues[-1]:
            return np.asarray(np.sqrt(eigenvalues)[:, None] * vectors.T, dtype=np.float64)
    return np.asarray(np.linalg.qr(matrix.astype(np.float64), mode="r"), dtype=np.float64)


def gram(matrix: FloatArray) -> Float64Array:
    """matrixᵀ matrix (r, r) in float64 of a (d, r) matrix, without copying it to float64."""
    total = np.zeros((matrix.shape[1], matrix.shape[1]))
    for start in range(0, matrix.shape[0], _BLOCK):
        block = matrix[start : start + _BLOCK].astype(np.float64)
        total += block.T @ block
    return total


def fix_signs(columns: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Flip columns (d, k) so that each one's largest-magnitude entry is positive.

    Returns:
        The flipped columns and the signs (k,), 1 or −1, they were multiplied by.
    """
    if columns.shape[1] == 0:
        return columns, np.ones(0)
    peaks = np.abs(columns).argmax(axis=0)
    signs = np.where(columns[peaks, np.arange(columns.shape[1])] < 0, -1.0, 1.0)
    return columns * signs, signs


def energy(singular_values: FloatArray) -> Float64Array:
    """Share σ²/Σσ² of each singular value (k,), summing to 1; NaN if all are zero."""
    squares = _relative(singular_values) ** 2
    return np.asarray(squares / squares.sum(), dtype=np.float64)


def effective_rank(singular_values: FloatArray) -> float:
    """exp(−Σ p ln p) with p = σ/Σσ: between 1 and k; NaN if all σ are zero.

    Source: Roy & Vetterli 2007, "The effective rank: a measure of effective
    dimensionality", EUSIPCO, section 2 (the entropy is of σ, not of σ²).
    """
    values = _relative(singular_values)
    shares = values / values.sum()
    if np.isnan(shares).any() or not shares.size:
        return float("nan")
    positive = shares[shares > 0]
    return float(np.exp(-(positive * np.log(positive)).sum()))


def module_spectra(adapter: Adapter) -> list[ModuleSpectrum]:
    """Spectrum of every module, in the adapter's order; one module is read at a time.

    The energy and effective rank of a module that was never updated (B = 0) are NaN.
    """
    return [_module_spectrum(module) for module in adapter.modules]


def _module_spectrum(module: LoraModule) -> ModuleSpectrum:
    values = update_singular_values(module.lora_A, module.lora_B, scaling=module.scaling)
    return ModuleSpectrum(
        name=module.name,
        layer=module.layer,
        side=module.side,
        shape=module.shape,
        r=module.r,
        scaling=module.scaling,
        singular_values=values,
        effective_rank=effective_rank(values),
        energy_top1=float(energy(values)[0]),
    )


def _relative(singular_values: FloatArray) -> Float64Array:
    """σ over the largest σ, so that squares neither overflow nor underflow; NaN if all are 0."""
    values = np.asarray(singular_values, dtype=np.float64)
    largest = values.max(initial=0.0)
    return values / largest if largest > 0 else np.full_like(values, np.nan)


def _check(lora_A: FloatArray, lora_B: FloatArray, scaling: float) -> None:
    if lora_A.ndim != 2 or lora_B.ndim != 2 or lora_A.shape[0] != lora_B.shape[1]:
        raise ValueError(
            f"lora_A {lora_A.shape} and lora_B {lora_B.shape} do not match; "
            "expected (r, d_in) and (d_out, r) with the same rank r."
        )
    if not (np.isfinite(lora_A).all() and np.isfinite(lora_B).all() and np.isfinite(scaling)):
        raise ValueError("lora_A, lora_B and scaling must be finite; got NaN or infinite values.")
