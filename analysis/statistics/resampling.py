"""Draw whole clusters, and crossed groupings, with replacement."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.errors import InputError

Float64Array = NDArray[np.float64]
Labels = Sequence[Hashable] | NDArray[np.generic]

_CHUNK = 1 << 22  # resampled counts held in memory at a time


@dataclass(frozen=True)
class Resampling:
    """How values are resampled: whole clusters, and independently a crossed grouping."""

    clusters: Labels | None
    crossed: Labels | None
    seed: int
    n_resamples: int

    def codes(self, n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Group numbers (n,) of the clusters and of the crossed grouping.

        If None, each value is its own cluster, and all values are in one crossed group.

        Raises:
            InputError: a label is missing, or there are not n labels.
        """
        first = np.arange(n) if self.clusters is None else group_codes(self.clusters, n)
        second = np.zeros(n, np.intp) if self.crossed is None else group_codes(self.crossed, n)
        return first, second

    def totals(self, sums: Float64Array) -> Float64Array:
        """(n_resamples, m) totals of (C, S, m) cell sums, with both groupings resampled.

        The last column must be the number of values; a resample without values is NaN.
        """
        first, second, columns = sums.shape
        rng = np.random.default_rng(self.seed)
        step = max(1, _CHUNK // max(first, second))
        totals = []
        for start in range(0, self.n_resamples, step):
            rows = min(step, self.n_resamples - start)
            drawn = _counts(rng, rows, first) @ sums.reshape(first, -1)
            weights = _counts(rng, rows, second) if second > 1 else np.ones((rows, 1))
            totals.append(np.einsum("rsm,rs->rm", drawn.reshape(rows, second, columns), weights))
        combined = np.concatenate(totals)
        return np.asarray(np.where(combined[:, -1:] > 0, combined, np.nan))


def group_codes(labels: Labels, n: int) -> NDArray[np.intp]:
    """(n,) labels as numbers from 0, in order of first appearance.

    Raises:
        InputError: there are not n labels, or one is missing.
    """
    if len(labels) != n:
        raise InputError(f"Got {len(labels)} cluster labels for {n} values; expected one each.")
    codes = np.asarray(pd.factorize(np.asarray(labels))[0], dtype=np.intp)
    if (codes < 0).any():
        raise InputError("A cluster label is missing; expected one for every value.")
    return codes


def group_sums(
    columns: Sequence[Float64Array], first: NDArray[np.intp], second: NDArray[np.intp]
) -> Float64Array:
    """(C, S, m) sums of m columns (n,) over the cells of two groupings."""
    shape = int(first.max()) + 1, int(second.max()) + 1
    cell = first * shape[1] + second
    size = shape[0] * shape[1]
    sums = [np.bincount(cell, weights=column, minlength=size) for column in columns]
    return np.asarray(np.stack(sums, axis=-1).reshape(*shape, len(columns)), dtype=np.float64)


def expanded_tail(tail: float, *, groups: int) -> float:
    """Share of resamples to cut off at one end for a tail of `tail`, with `groups` ≥ 2 groups.

    Φ(t √(G / (G − 1))) with t the `tail` quantile of Student's t with G − 1 degrees of freedom;
    close to `tail` for many groups.

    Source: Hesterberg 2015, The American Statistician 69.
    """
    from scipy.special import stdtrit  # scipy.stats has it too, but takes a second to import

    t = float(stdtrit(groups - 1, tail))
    return NormalDist().cdf(t * math.sqrt(groups / (groups - 1)))


def _counts(rng: np.random.Generator, rows: int, n: int) -> Float64Array:
    """(rows, n) how often each of n labels comes up in n draws with replacement."""
    drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
    return np.asarray(counts, dtype=np.float64)
