"""Effects of setting factors back to the base model's coordinate, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.errors import InputError
from analysis.statistics.resampling import Resampling, expanded_tail, group_sums

Float64Array = NDArray[np.float64]

_CONFIDENCE = 0.95
_RESAMPLES = 2000


@dataclass(frozen=True)
class SetBack:
    """What setting back each of k directions does to the tokens of n answers.

    Let d = TV(p, p⁰) be how far fine-tuning moved the distribution of a token, and
    d_q = TV(p, p_q) how far setting back the coordinate along q moves it.  `carried` (k, n) is
    Σ d d_q over the tokens of an answer, `changed` (n,) is Σ d², and `largest` (k, n) is the
    largest d_q, 0 for an empty answer.  `clusters` (n,) says what each prompt is about.
    """

    carried: Float64Array
    changed: Float64Array
    largest: Float64Array
    clusters: tuple[str, ...]

    @property
    def shares(self) -> Float64Array:
        """(k,) Σ d d_q / Σ d²: the slope of d_q on d, so tokens count by how much they changed.

        0 if setting q back changes nothing, 1 if it does as much as removing the adapter;
        NaN if fine-tuning changed nothing.
        """
        return _ratio(self.carried.sum(axis=1), self.changed.sum())

    @property
    def effects(self) -> Float64Array:
        """(k,) mean over answers of the largest d_q, from 0 to 1.

        A mean over tokens would be diluted by the tokens that no change to the model affects.
        """
        return np.asarray(self.largest.mean(axis=1))


@dataclass(frozen=True)
class Bounds:
    """95 % intervals (k,) of `SetBack.shares` and `SetBack.effects`; NaN with one cluster."""

    share_low: Float64Array
    share_high: Float64Array
    effect_low: Float64Array
    effect_high: Float64Array


def effect_bounds(found: SetBack, *, seed: int = 0) -> Bounds:
    """Percentile bootstrap over clusters of prompts, widened as a t interval for few clusters.

    Raises:
        InputError: the arrays do not match in shape.

    Source: Hesterberg 2015, The American Statistician 69; ratios of sums as in Efron &
    Tibshirani 1993, chapter 10.
    """
    k, n = found.carried.shape
    if found.largest.shape != (k, n) or found.changed.shape != (n,):
        raise InputError(
            f"Got arrays {found.carried.shape}, {found.changed.shape} and {found.largest.shape}; "
            "expected (k, n), (n,) and (k, n)."
        )
    plan = Resampling(found.clusters, None, seed, _RESAMPLES)
    columns = [*found.carried, *found.largest, found.changed, np.ones(n)]
    sums = group_sums(columns, *plan.codes(n))
    if len(sums) < 2:
        return Bounds(*(np.full(k, np.nan) for _ in range(4)))
    totals = plan.totals(sums)
    drawn = [
        _ratio(totals[:, :k], totals[:, -2:-1]),
        _ratio(totals[:, k : 2 * k], totals[:, -1:]),
    ]
    tail = 100 * expanded_tail((1 - _CONFIDENCE) / 2, groups=len(sums))
    share, effect = (np.percentile(values, [tail, 100 - tail], axis=0) for values in drawn)
    return Bounds(share[0], share[1], effect[0], effect[1])


def _ratio(above: Float64Array, below: Float64Array | float) -> Float64Array:
    whole = np.asarray(below, dtype=np.float64)
    return np.asarray(above / np.where(whole > 0, whole, np.nan))
