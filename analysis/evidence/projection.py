"""Project activations onto directions: coordinates, extreme prompts, maps and separation."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.errors import InputError
from analysis.spectra.spectrum import fix_signs
from analysis.spectra.subspace import unit_rows
from analysis.statistics.intervals import Interval, auc
from analysis.statistics.resampling import Labels

FloatArray = NDArray[np.floating]
Float64Array = NDArray[np.float64]

_BLOCK = 8192  # activations cast to float64 at a time


@dataclass(frozen=True)
class ExtremePrompt:
    """One prompt: its score, and the projections (n_tokens,) of its tokens in order."""

    prompt_id: str | int
    score: float
    token_values: Float64Array


@dataclass(frozen=True)
class Extremes:
    """Prompts at the two ends of a direction, most extreme first."""

    high: tuple[ExtremePrompt, ...]
    low: tuple[ExtremePrompt, ...]


@dataclass(frozen=True)
class PointMap:
    """Low-dimensional coordinates (n, c) of points; `explained` (c,) is each axis's variance share.

    UMAP explains no variance, so its `explained` is None.
    """

    coordinates: Float64Array
    explained: Float64Array | None
    method: Literal["pca", "umap"]


def project(activations: FloatArray, directions: FloatArray) -> Float64Array:
    """Scalar coordinates h · u (…, k) of activations (…, d) along directions (k, d).

    Directions are normalised first, so coordinates are in the units of the activations.

    Raises:
        InputError: dimensions differ, or a direction is zero or not finite.
    """
    units = unit_rows(directions)
    h = np.asarray(activations)
    if h.ndim == 0 or h.shape[-1] != units.shape[1]:
        raise InputError(
            f"Got activations {h.shape} and directions {units.shape}; "
            "expected the same last dimension."
        )
    rows = h.reshape(-1, h.shape[-1])
    found = np.empty((len(rows), len(units)))
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        found[block] = rows[block].astype(np.float64) @ units.T
    return found.reshape(*h.shape[:-1], len(units))


def standardise(projections: FloatArray, reference: FloatArray) -> Float64Array:
    """(p − mean) / standard deviation, both of the base model's projections, per direction.

    Args:
        projections: (…, k) coordinates p.
        reference: (n, k) the base model's coordinates on reference tokens, n ≥ 2.

    Returns:
        (…, k), dimensionless; NaN for a direction along which the base model is constant.

    Raises:
        InputError: the number of directions differs, or there are fewer than two references.
    """
    p, base = np.asarray(projections, np.float64), np.asarray(reference, np.float64)
    if base.ndim != 2 or len(base) < 2 or p.ndim == 0 or p.shape[-1] != base.shape[1]:
        raise InputError(
            f"Got projections {p.shape} and reference {base.shape}; "
            "expected (…, k) and (n, k) with n ≥ 2."
        )
    spread = base.std(axis=0, ddof=1)
    return np.asarray((p - base.mean(axis=0)) / np.where(spread > 0, spread, np.nan))


def find_strongest(
    projections: FloatArray,
    prompt_ids: Labels,
    *,
    how: Literal["max", "mean"],
    n: int,
) -> Extremes:
    """The n prompts furthest towards each end of one direction, with their tokens' projections.

    Args:
        projections: (n_tokens,) coordinates on one direction.
        prompt_ids: (n_tokens,) the prompt of each token.
        how: "max" scores a prompt by its most extreme token at that end (the largest
            for high, the smallest for low), "mean" by the mean of its tokens.
        n: prompts at each end, if there are so many.

    Raises:
        InputError: lengths differ, a projection is not finite, a prompt id is missing, or n < 1.
    """
    values = np.asarray(projections, np.float64)
    if values.ndim != 1 or len(prompt_ids) != values.size:
        raise InputError(
            f"Got projections {values.shape} for {len(prompt_ids)} prompt ids; expected one each."
        )
    codes, prompts = pd.factorize(np.asarray(prompt_ids))
    if n < 1 or not np.isfinite(values).all() or (codes < 0).any():
        raise InputError("Expected n ≥ 1, finite projections and a prompt id for every token.")
    groups = pd.Series(values).groupby(codes)
    tops, bottoms = (groups.mean(),) * 2 if how == "mean" else (groups.max(), groups.min())

    def examples(scores: Float64Array, sign: int) -> tuple[ExtremePrompt, ...]:
        order = np.argsort(-sign * scores, kind="stable")[:n]
        return tuple(
            ExtremePrompt(prompts[i], float(scores[i]), values[codes == i].copy()) for i in order
        )

    return Extremes(examples(np.asarray(tops), 1), examples(np.asarray(bottoms), -1))


def pca_map(points: FloatArray, *, n_components: int = 2) -> PointMap:
    """Coordinates of points (n, d) on their leading principal axes, with signs fixed.

    Raises:
        InputError: points are not (n, d) and finite, or n or d is less than n_components.
    """
    data = _points(points, n_components)
    from sklearn.decomposition import PCA  # slow to import; only this function needs it

    if n_components > data.shape[1]:
        raise InputError(
            f"Got {n_components} axes for {data.shape[1]} dimensions; "
            "expected at most one per dimension."
        )
    model = PCA(n_components=n_components, svd_solver="full")
    with np.errstate(invalid="ignore"):  # if all points coincide, the shares are 0/0, so NaN
        coordinates = model.fit_transform(data)
    _, signs = fix_signs(model.components_.T)
    return PointMap(coordinates * signs, np.asarray(model.explained_variance_ratio_), "pca")


def umap_map(
    points: FloatArray, *, n_components: int = 2, n_neighbors: int = 15, seed: int = 0
) -> PointMap:
    """UMAP coordinates of points (n, d); takes seconds to minutes, so only jobs call it.

    Neighbourhoods are meaningful; distances between distant groups are not.

    Raises:
        InputError: points are not (n, d) and finite, or n < n_neighbors + 2.

    Source: McInnes et al. 2018, arXiv:1802.03426.
    """
    data = _points(points, n_neighbors + 2)
    with warnings.catch_warnings():
        # On import umap warns that TensorFlow, which is not used here, is missing.
        warnings.simplefilter("ignore", ImportWarning)
        import umap  # takes seconds

    model = umap.UMAP(
        n_components=n_components, n_neighbors=n_neighbors, random_state=seed, n_jobs=1
    )
    return PointMap(np.asarray(model.fit_transform(data), np.float64), None, "umap")


def group_separation(
    values: FloatArray, groups: Labels, *, confidence: float = 0.95
) -> dict[Hashable, Interval]:
    """AUC of each group against all others, in order of first appearance.

    0.5 is no separation; below 0.5 the group lies at the low end.  Values without a group
    (None or NaN) are ignored.

    Raises:
        InputError: lengths differ, or a value is not finite.
    """
    data = np.asarray(values, np.float64)
    if data.ndim != 1 or len(groups) != data.size:
        raise InputError(f"Got values {data.shape} for {len(groups)} groups; expected one each.")
    codes, names = pd.factorize(np.asarray(groups))
    return {
        name: auc(data[codes == i], data[(codes != i) & (codes >= 0)], confidence=confidence)
        for i, name in enumerate(names)
    }


def _points(points: FloatArray, least: int) -> Float64Array:
    data = np.asarray(points, np.float64)
    if data.ndim != 2 or len(data) < max(least, 2) or not np.isfinite(data).all():
        raise InputError(
            f"Got points of shape {data.shape}; "
            f"expected at least {max(least, 2)} rows (n, d), all finite."
        )
    return data
