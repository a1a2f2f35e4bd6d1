"""Residual-stream factors: directions that many modules' updates write to, or read from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.linalg
import scipy.linalg.blas
import scipy.sparse.linalg
from numpy.typing import NDArray

from analysis.adapters.load import LoraModule
from analysis.errors import InputError
from analysis.spectra.spectrum import fix_signs, triangle
from analysis.spectra.subspace import orthonormal, unit_rows

FloatArray = NDArray[np.floating[Any]]
Float64Array = NDArray[np.float64]
ResidualSide = Literal["write", "read"]

# Above this, a thin SVD takes many seconds, and the leading k alone are found by Lanczos
# iterations on the Gram matrix.
_DENSE_LIMIT = 1536


def is_large(columns: NDArray[Any], k: int) -> bool:
    """Whether the leading k factors of these columns are found by Lanczos."""
    small = min(columns.shape)
    return bool(small > _DENSE_LIMIT and k <= small // 8)


@dataclass(frozen=True)
class ResidualFactors:
    """Factors of one side, strongest first.

    `directions` (k, d_model) are orthonormal rows, largest-magnitude entry positive;
    `singular_values` (k,) are in the units of W; `energy` (k,) is the share of Σσ² over
    all factors, returned or not.  `modules` and `method` say how they were found.
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
    """Left singular vectors of [ΔW_1, ΔW_2, …] over all writing modules, never formed.

    For the write side ΔW_m ΔW_mᵀ = C_m C_mᵀ with C_m = s_m B_m R_mᵀ and R_mᵀR_m =
    A_m A_mᵀ, so that the (d_model, Σr) matrix [C_1, C_2, …] has the same left singular
    vectors and singular values.  The read side is the same with every ΔW_mᵀ.  Modules are
    read one at a time.

    Args:
        modules: updates; those of the other side are passed over.
        side: "write" gives directions that are written, "read" those that are read.
        max_layer: only modules of the layers 0 … max_layer, and embeddings, which write
            before them; an unembedding, which reads after them, is then left out.
        k: the number of factors wanted; all of them where None.  Fewer are returned
            where the updates have lower rank, and none for an untrained adapter.

    Raises:
        InputError: no module of this side, or their residual dimensions differ.

    Source: METHOD.md section 1, after arXiv:2605.27676, whose recipe is not public.
    """
    chosen = on_side(modules, side, max_layer)
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

    ‖uᵀC‖ is how strongly the updates write, or read, along u: the singular value, where u is
    a factor.

    Raises:
        InputError: as `residual_factors`.
    """
    return _columns(on_side(modules, side, max_layer), side)


def stability(directions: FloatArray, others: Sequence[FloatArray]) -> Float64Array:
    """How well other runs span each direction: mean of ‖Q_oᵀ u‖ over them, from 0 to 1.

    Args:
        directions: (k, d) directions u of one run.
        others: leading directions (k_o, d) of other seeds or checkpoints; Q_o is an
            orthonormal basis of their span.  A random span gives √(k_o / d).

    Returns:
        (k,), NaN where there is no other run.

    Raises:
        InputError: dimensions differ, or the directions of a run are dependent.
    """
    rows = unit_rows(directions)
    norms = [np.linalg.norm(rows @ _same_dimension(orthonormal(o), rows), axis=1) for o in others]
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


def on_side(
    modules: Sequence[LoraModule], side: ResidualSide, max_layer: int | None
) -> list[LoraModule]:
    """Those modules that write, or read, the residual stream, up to a layer where one is given.

    Raises:
        InputError: there is none, or their residual dimensions differ.
    """
    chosen = [module for module in modules if module.side == side]
    if max_layer is not None:
        chosen = [m for m in chosen if _by_layer(m, max_layer)]
    if not chosen:
        where = "" if max_layer is None else f" up to layer {max_layer}"
        raise InputError(
            f"No module{where} {side}s the residual stream; expected LoRA on one that does, "
            "such as o_proj or down_proj (write), q_proj or up_proj (read)."
        )
    sizes = [module.shape[0 if side == "write" else 1] for module in chosen]
    d_model = Counter(sizes).most_common(1)[0][0]
    for module, size in zip(chosen, sizes, strict=True):
        if size != d_model:
            raise InputError(
                f"{module.name} {side}s {size} dimensions where the other modules have {d_model}; "
                "expected one residual stream, so leave that module out."
            )
    return chosen


def _by_layer(module: LoraModule, max_layer: int) -> bool:
    """Whether a module acts up to a layer; what writes outside the layers does so before them."""
    return module.side == "write" if module.layer is None else module.layer <= max_layer


def halves(module: LoraModule, side: ResidualSide) -> tuple[Float64Array, Float64Array]:
    """(residual, other): (d_model, r) scaled half on the stream's side, (d_other, r) half."""
    A, B = module.lora_A.astype(np.float64), module.lora_B.astype(np.float64)
    if side == "write":
        return module.scaling * B, A.T
    return module.scaling * A.T, B


def _columns(modules: Sequence[LoraModule], side: ResidualSide) -> Float64Array:
    parts = (halves(module, side) for module in modules)
    return np.hstack([residual @ triangle(other).T for residual, other in parts])


def _noise(columns: Float64Array) -> float:
    return float(np.finfo(float).eps * max(columns.shape))


def _thin(columns: Float64Array) -> tuple[Float64Array, Float64Array]:
    left, values, _ = scipy.linalg.svd(columns, full_matrices=False)
    return left, values


def _leading(columns: Float64Array, k: int) -> tuple[Float64Array, Float64Array]:
    """Leading k left vectors and values to machine precision; dense if the iteration stalls.

    Lanczos on the smaller Gram matrix finds the span, and the SVD of the columns within it the
    vectors and values, which the squares alone would give to half the digits only.
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
    columns: NDArray[Any], k: int, *, tolerance: float = 0.0
) -> tuple[Float64Array, Float64Array]:
    """Leading k eigenvalues, ascending, and eigenvectors of the smaller Gram matrix, by Lanczos.

    In the columns' own precision; `tolerance` is relative, and 0 the machine's.

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
