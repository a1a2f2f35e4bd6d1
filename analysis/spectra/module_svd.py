"""Singular values and vectors of a whole adapter, streamed module by module.

`analysis.spectra.spectrum.update_svd` takes the QR of both halves in float64.  Stored weights have
float32 precision at most, so here the triangles come from Gram matrices, summed in float64,
wherever these are well enough conditioned to keep that precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.adapters.architectures import Side
from analysis.adapters.load import LoraModule
from analysis.spectra.spectrum import gram, update_svd

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]

# With c the condition number of a half, a Gram matrix in float64 gives orthonormal vectors and
# relative singular values to 2e-16 c², and vectors multiplied out in float32 are off by 6e-8 c.
_FINE = 1e-3  # smallest over largest eigenvalue, c⁻²; above this the error is 2e-6 in float32 …
_ENOUGH = 1e-8  # … and above this 2e-8, if multiplied out in float64; below this, QR


@dataclass(frozen=True, eq=False)
class ModuleSvd:
    """Thin SVD of one module's ΔW = left · diag(σ) · rightᵀ.

    `left` (d_out, k) and `right` (d_in, k) are float32 with orthonormal columns; the
    largest-magnitude entry of each left column is positive.  `singular_values` (k,) are float64,
    descending, in the units of W; k = min(r, d_out, d_in).
    """

    name: str
    layer: int | None
    side: Side
    left: Float32Array
    singular_values: Float64Array
    right: Float32Array


def module_svds(modules: Iterable[LoraModule]) -> Iterator[ModuleSvd]:
    """SVD of every module in turn; holds one module at a time.

    Raises:
        AdapterError: a module's values are not finite or cannot be read.
    """
    for module in modules:
        left, values, right = stored_svd(module.lora_A, module.lora_B, scaling=module.scaling)
        yield ModuleSvd(module.name, module.layer, module.side, left, values, right)


def stored_svd(
    lora_A: Float32Array, lora_B: Float32Array, *, scaling: float
) -> tuple[Float32Array, Float64Array, Float32Array]:
    """Like `analysis.spectra.spectrum.update_svd`, faster, to the precision of float32 vectors.

    With BᵀB = V D Vᵀ, R = D^½ Vᵀ satisfies RᵀR = BᵀB, so the SVD U S Wᵀ of the r × r core
    scaling · R_B R_Aᵀ gives the left vectors B V D^−½ U, and the right ones in the same way.

    Args:
        lora_A: (r, d_in), finite.
        lora_B: (d_out, r), finite.
        scaling: lora_alpha / r, or lora_alpha / √r under rsLoRA; dimensionless.

    Returns:
        left (d_out, k) float32, singular_values (k,) float64, right (d_in, k) float32.
    """
    outer, inner = _triangle(lora_B), _triangle(lora_A.T)
    if outer is None or inner is None:
        exact = update_svd(lora_A, lora_B, scaling=scaling)
        return exact[0].astype(np.float32), exact[1], exact[2].astype(np.float32)
    u, values, wt = np.linalg.svd(scaling * (outer.R @ inner.R.T), full_matrices=False)
    left = outer.columns(lora_B, u)
    signs = np.where(-left.min(axis=0) > left.max(axis=0), np.float32(-1), np.float32(1))
    left *= signs
    return left, values, inner.columns(lora_A.T, wt.T * signs)


@dataclass(frozen=True, eq=False)
class _Triangle:
    """R with RᵀR = XᵀX for a half X (d, r), and its inverse, from D and V of XᵀX = V D Vᵀ."""

    eigenvalues: Float64Array
    vectors: Float64Array

    @property
    def R(self) -> Float64Array:
        return np.sqrt(self.eigenvalues)[:, None] * self.vectors.T

    def columns(self, half: Float32Array, core: Float64Array) -> Float32Array:
        """X R⁻¹ core (d, k): orthonormal if the columns of the core are."""
        mixed = (self.vectors / np.sqrt(self.eigenvalues)) @ core
        if self.eigenvalues[0] > _FINE * self.eigenvalues[-1]:
            return half @ mixed.astype(np.float32)
        return (half.astype(np.float64) @ mixed).astype(np.float32)


def _triangle(half: Float32Array) -> _Triangle | None:
    """The triangle from the Gram matrix of a half (d, r); None if that would lose precision."""
    d, r = half.shape
    if d <= r:
        return None
    eigenvalues, vectors = np.linalg.eigh(gram(half))
    if not eigenvalues[0] > _ENOUGH * eigenvalues[-1]:
        return None
    return _Triangle(eigenvalues, vectors)
