"""Residual-stream factors: directions that the updates of many modules write to or read from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg
import scipy.linalg.blas
import scipy.sparse.linalg
from numpy.typing import NDArray

from analysis.adapters.load import LoraModule
from analysis.errors import InputError
from analysis.spectra.spectrum import fix_signs, triangle
from analysis.spectra.subspace import orthonormal_basis, unit_rows

FloatArray = NDArray[np.floating]
Float64Array = NDArray[np.float64]
ResidualSide = Literal["write", "read"]

# Above this size a thin SVD takes many seconds; Lanczos iterations on the Gram matrix then find
# only the leading k.
_DENSE_LIMIT = 1536


def is_large(columns: FloatArray, k: int) -> bool:
    """Whether Lanczos is faster than a full SVD for the leading k factors of these columns."""
    small = min(columns.shape)
    return bool(small > _DENSE_LIMIT and k <= small // 8)


@dataclass(frozen=True)
class ResidualFactors:
    """Factors of one side, strongest first.

    `directions` (k, d_model) are orthonormal rows with a positive largest-magnitude entry;
    `singular_values` (k,) are in the units of W; `energy` (k,) is the share of Σσ² over
    all factors, including those not returned.  `modules` and `method` say how they were found.
    """

    directions: Float64Array
    singular_values: Float64Array
    energy: Float64Array
    side: ResidualSide
    max_layer: int | None
    modules: tuple[str, ...]
    method: Literal["svd", "lanczos"]


def residual_factors(
    modules: Sequence[LoraModule],
    *,
    side: ResidualSide,
    max_layer: int | None = None,
    k: int | None = None,
) -> ResidualFactors:
    """Left singular vectors of [ΔW_1, ΔW_2, …] over all writing modules, without forming it.

    For the write side ΔW_m ΔW_mᵀ = C_m C_mᵀ with C_m = s_m B_m R_mᵀ and R_mᵀR_m =
    A_m A_mᵀ, so the (d_model, Σr) matrix [C_1, C_2, …] has the same left singular vectors and
    singular values.  The read side is the same with every ΔW_mᵀ.  Modules are read one at a time.

    Args:
        modules: updates; those of the other side are ignored.
        side: "write" for directions the updates write to, "read" for those they read from.
        max_layer: only modules of layers 0 … max_layer, and embeddings, which write before
            them.  The unembedding, which reads after them, is then left out.
        k: the number of factors; None for all.  Fewer are returned if the updates have a lower
            rank, and none for an untrained adapter.

    Raises:
        InputError: no module is on this side, or their residual dimensions differ.

    Source: docs/method/method.md, section "Factors", after arXiv:2605.27676, whose recipe is not
        public.
    """
    chosen = modules_on_side(modules, side, max_layer)
    if k is not None and k < 1:
        raise InputError(f"Got k = {k} factors; expected at least 1.")
    columns = _columns(chosen, side)
    wanted = min(columns.shape) if k is None else min(k, *columns.shape)
    lanczos = is_large(columns, wanted)
    left, values = _leading(columns, wanted) if lanczos else _thin(columns)
    rank = int((values > values.max(initial=0.0) * _noise(columns)).sum())
    left, values = fix_signs(left[:, : min(wanted, rank)])[0], values[: min(wanted, rank)]
    return ResidualFactors(
        directions=left.T.copy(),
        singular_values=values,
        energy=values**2 / max(float(np.vdot(columns, columns)), np.finfo(float).tiny),
        side=side,
        max_layer=max_layer,
        modules=tuple(module.name for module in chosen),
        method="lanczos" if lanczos else "svd",
    )


def update_columns(
    modules: Sequence[LoraModule], *, side: ResidualSide, max_layer: int | None = None
) -> Float64Array:
    """C (d_model, Σr) with C Cᵀ = Σ ΔW ΔWᵀ over writing modules, or Σ ΔWᵀ ΔW over reading ones.

    ‖uᵀC‖ is how strongly the updates write or read along u; if u is a factor, it is the
    factor's singular value.

    Raises:
        InputError: as `residual_factors`.
    """
    return _columns(modules_on_side(modules, side, max_layer), side)


def stability(directions: FloatArray, others: Sequence[FloatArray]) -> Float64Array:
    """How well other runs span each direction: the mean of ‖Q_oᵀ u‖ over them, from 0 to 1.

    Args:
        directions: (k, d) directions u of one run.
        others: leading directions (k_o, d) of other seeds or checkpoints; Q_o is an
            orthonormal basis of their span.  A random span gives √(k_o / d).

    Returns:
        (k,); NaN if there is no other run.

    Raises:
        InputError: dimensions differ, or the directions of a run are linearly dependent.
    """
    rows = unit_rows(directions)
    norms = [
        np.linalg.norm(rows @ _same_dimension(orthonormal_basis(o), rows), axis=1) for o in others
    ]
    if not norms:
        return np.full(len(rows), np.nan)
    return np.asarray(np.minimum(np.mean(norms, axis=0), 1.0))


def _same_dimension(basis: Float64Array, rows: Float64Array) -> Float64Array:
    if basis.shape[0] != rows.shape[1]:
        raise InputError(
            f"Got directions of {rows.shape[1]} and {basis.shape[0]} dimensions; "
            "expected runs of one base model."
        )
    return basis


def modules_on_side(
    modules: Sequence[LoraModule], side: ResidualSide, max_layer: int | None
) -> list[LoraModule]:
    """The modules that write (or read) the residual stream, up to `max_layer` if one is given.

    Raises:
        InputError: there are none, or their residual dimensions differ.
    """
    chosen = [module for module in modules if module.side == side]
    if max_layer is not None:
        chosen = [m for m in chosen if _by_layer(m, max_layer)]
    if not chosen:
        where = "" if max_layer is None else f" up to layer {max_layer}"
        raise InputError(
            f"No module{where} {side}s the residual stream; expected LoRA on at least one, "
            "such as o_proj or down_proj (write), q_proj or up_proj (read)."
        )
    sizes = [module.shape[0 if side == "write" else 1] for module in chosen]
    d_model = Counter(sizes).most_common(1)[0][0]
    for module, size in zip(chosen, sizes, strict=True):
        if size != d_model:
            raise InputError(
                f"{module.name} {side}s {size} dimensions, the other modules {d_model}; "
                "expected a single residual stream. List it under `inner` in a file for --sides."
            )
    return chosen


def _by_layer(module: LoraModule, max_layer: int) -> bool:
    """Whether a module acts in layers up to `max_layer`; a writer outside the layers does."""
    return module.side == "write" if module.layer is None else module.layer <= max_layer


def split_halves(module: LoraModule, side: ResidualSide) -> tuple[Float64Array, Float64Array]:
    """The scaled half on the stream's side (d_model, r), and the other half (d_other, r)."""
    A, B = module.lora_A.astype(np.float64), module.lora_B.astype(np.float64)
    if side == "write":
        return module.scaling * B, A.T
    return module.scaling * A.T, B


def _columns(modules: Sequence[LoraModule], side: ResidualSide) -> Float64Array:
    parts = (split_halves(module, side) for module in modules)
    return np.hstack([residual @ triangle(other).T for residual, other in parts])


def _noise(columns: Float64Array) -> float:
    return float(np.finfo(float).eps * max(columns.shape))


def _thin(columns: Float64Array) -> tuple[Float64Array, Float64Array]:
    left, values, _ = scipy.linalg.svd(columns, full_matrices=False)
    return left, values


def _leading(columns: Float64Array, k: int) -> tuple[Float64Array, Float64Array]:
    """Leading k left vectors and values to machine precision; dense if the iteration stalls.

    Lanczos on the smaller Gram matrix gives the span; the SVD of the columns within that span
    gives the vectors and values.  The Gram matrix alone would halve the number of digits.
    """
    wide = columns.shape[0] <= columns.shape[1]
    try:
        _, found = leading_squares(columns, k)
    except scipy.sparse.linalg.ArpackError:
        return _thin(columns)
    span, _ = np.linalg.qr(found if wide else columns @ found)
    left, values = _thin(span.T @ columns)
    return span @ left, values


def leading_squares(
    columns: FloatArray, k: int, *, tolerance: float = 0.0
) -> tuple[Float64Array, Float64Array]:
    """Leading k eigenvalues, ascending, and eigenvectors of the smaller Gram matrix, by Lanczos.

    Computed in the precision of the columns; `tolerance` is relative, 0 meaning machine precision.

    Raises:
        ArpackError: the iteration stalls.
    """
    wide = columns.shape[0] <= columns.shape[1]
    syrk, symv = scipy.linalg.blas.get_blas_funcs(("syrk", "symv"), (columns,))
    gram = syrk(1.0, columns.T, trans=wide, lower=True)
    product = scipy.sparse.linalg.LinearOperator(
        gram.shape, matvec=lambda x: symv(1.0, gram, x, lower=True), dtype=gram.dtype
    )
    start = np.random.default_rng(0).standard_normal(len(gram)).astype(gram.dtype)
    squares, vectors = scipy.sparse.linalg.eigsh(product, k=k, which="LA", v0=start, tol=tolerance)
    return squares.astype(np.float64), vectors
