"""Test arms against each other on tables of samples, from one family or pooled over many.

A table of samples has the columns of `analysis.comparison.evaluation.COLUMNS`.  Pooled tables
also have some of the columns POOLED, which say where a row is from.  Every test is paired: both
arms answer the same prompt, in the same world, story and seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations, product

import numpy as np
import pandas as pd

from analysis.comparison.evaluation import average_by_prompt
from analysis.comparison.measures import (
    METRICS,
    POOLED,
    headline_metrics,
    metric_rows,
    shared_metrics,
    split_metric,
)
from analysis.errors import InputError
from analysis.statistics.intervals import (
    Interval,
    bootstrap_difference,
    explain_no_removal,
    negate,
    removal,
)
from analysis.statistics.paired_tests import (
    NonInferiority,
    PairedTest,
    holm,
    non_inferiority,
    paired_difference,
    paired_test,
)

MARGIN = 0.02
"""How much lower a metric such as task accuracy may be and still count as kept."""

KEPT = ("task", "facts", "format", "coherence")
"""Metrics that an arm should keep; the other metrics measure drift."""

TESTED = tuple(metric for metric in METRICS if not metric.endswith("_greedy"))
"""Measures that are tested; greedy answers are few and say the same as drawn ones."""

ALPHA = 0.05

Samples = pd.DataFrame


@dataclass(frozen=True)
class Pairs:
    """Scores of some arms on the n prompts that all of them answered.

    `scores` is (n, arms); `clusters` and `crossed` are (n,) labels for resampling.
    """

    scores: np.ndarray
    clusters: np.ndarray
    crossed: np.ndarray | None


@dataclass(frozen=True)
class ArmTest:
    """One arm compared with the reference on one metric; `kept` only for the metrics in KEPT."""

    arm: str
    metric: str
    test: PairedTest
    p_holm: float
    kept: NonInferiority | None


@dataclass(frozen=True)
class Domination:
    """Whether `arm` dominates `other`: it has less drift, and its task accuracy is not lower.

    `less_drift` is how much smaller the drift of `arm` is on `metric`, in units of the rate;
    `p_holm` is corrected for all pairs and instruments.  With several sets of task prompts, `task`
    is the verdict on the one with the lowest bound.
    """

    arm: str
    other: str
    less_drift: Interval
    p: float
    p_holm: float
    task: NonInferiority
    metric: str = "unrelated"

    @property
    def shown(self) -> bool:
        """Whether domination is shown: less drift at ALPHA, and task accuracy "kept"."""
        return self.less_drift.value > 0 and self.p_holm < ALPHA and self.task.verdict == "kept"


@dataclass(frozen=True)
class ControlTest:
    """How much less an arm drifts than a control on `metric`, in units of the rate.

    `p_holm` is corrected for all arms, controls and instruments.
    """

    arm: str
    control: str
    metric: str
    less_drift: Interval
    p_holm: float

    @property
    def shown(self) -> bool:
        """Whether it is shown, at ALPHA, that the two drift differently."""
        return self.p_holm < ALPHA


def pair_scores(tables: Mapping[str, Samples] | list[Samples], metric: str) -> Pairs:
    """Scores of one metric on the prompts that have a score in every table.

    Several answers to a prompt are averaged.  Metrics are those of `analysis.comparison.measures`.

    Raises:
        InputError: a prompt occurs twice in a table, so it cannot be paired.
    """
    frames = list(tables.values()) if isinstance(tables, Mapping) else tables
    keys = [name for name in ("prompt_id", *POOLED) if all(name in one for one in frames)]
    columns = []
    for frame in frames:
        rows = metric_rows(average_by_prompt(frame, keys), metric)
        if rows.duplicated(keys).any():
            raise InputError(
                f"A prompt occurs twice in one arm (by {', '.join(keys)}); add those of the "
                f"columns {', '.join(POOLED)} that tell its rows apart."
            )
        columns.append(rows.set_index(keys)[["value", "cluster"]])
    joined = pd.concat([one["value"] for one in columns], axis=1, join="inner")
    where = columns[0]["cluster"].loc[joined.index]
    places = joined.index.to_frame(index=False)
    return Pairs(
        joined.to_numpy(float),
        _joined(places.assign(cluster=where.to_numpy()), ("world", "cluster")),
        _joined(places, POOLED) if "seed" in keys else None,
    )


def compare_with_reference(
    arms: Mapping[str, Samples], *, reference: str, margin: float = MARGIN
) -> list[ArmTest]:
    """Test every other arm against `reference`, on every tested metric that both have.

    p-values are Holm-corrected within a metric, across arms.

    Args:
        arms: samples by name; the base model may be one of them.
        reference: the name of the arm that the others are compared with.
        margin: of the non-inferiority verdicts.

    Raises:
        InputError: `reference` is not an arm, the margin is not positive, or a prompt occurs twice.
    """
    if reference not in arms:
        raise InputError(
            f"There is no arm {reference!r} to compare with; give one of {', '.join(arms)}."
        )
    found: list[ArmTest] = []
    for metric in _tested(arms, reference):
        rows = []
        for name, samples in arms.items():
            paired = pair_scores([samples, arms[reference]], metric) if name != reference else None
            if paired is not None and len(paired.scores):
                rows.append((name, _test(paired), _kept(paired, metric, margin)))
        adjusted = holm([test.p for _, test, _ in rows])
        found += [
            ArmTest(name, metric, test, float(p), kept)
            for (name, test, kept), p in zip(rows, adjusted, strict=True)
        ]
    return found


def arm_drift(base: Samples, arm: Samples, *, metric: str = "unrelated") -> Interval:
    """Mean of the arm minus that of the base model, on the prompts that have a value in both."""
    paired = pair_scores([arm, base], metric)
    return paired_difference(*paired.scores.T, clusters=paired.clusters, crossed=paired.crossed)


def arm_removal(
    base: Samples, naive: Samples, arm: Samples, *, metric: str = "unrelated"
) -> tuple[Interval, str]:
    """Removal on the prompts that have a value in all three, and the reason if unknown, else ""."""
    paired = pair_scores([base, naive, arm], metric)
    first, second, third = paired.scores.T
    clusters, crossed = paired.clusters, paired.crossed
    reason = explain_no_removal(
        bootstrap_difference(second, first, clusters=clusters, crossed=crossed)
    )
    return removal(first, second, third, clusters=clusters, crossed=crossed), reason


def find_dominations(
    arms: Mapping[str, Samples], *, base: str, naive: str, margin: float = MARGIN
) -> list[Domination]:
    """Test for every ordered pair of arms whether one dominates the other.

    Removal has the same denominator for all arms, so it is higher if the drift is smaller, which
    can be tested without a ratio.  Drift is that of whole answers where all arms have them, and
    that of each instrument is tested by itself.  Holm's correction is over all pairs and
    instruments.

    Args:
        arms: samples by name.
        base: the name of the base model, which is not compared.
        naive: the name of the naive run, which is.
        margin: how much lower task accuracy may be.

    Returns:
        Both orders of every pair, for each instrument on which the naive run shows drift that
        could be removed.

    Raises:
        InputError: the margin is not positive, or a prompt occurs twice.
    """
    tested = []
    for metric in headline_metrics(list(arms.values())):
        towards = _direction(arms[naive], arms[base], metric)
        for name, other in combinations([name for name in arms if name != base], 2):
            both = pair_scores([arms[other], arms[name]], metric)
            tasks = _task_pairs(arms[name], arms[other])
            if towards and len(both.scores) and tasks:
                less = _test(replace(both, scores=towards * both.scores))
                tested.append((metric, name, other, less, tasks))
    adjusted = holm([less.p for _, _, _, less, _ in tested])
    found = []
    for (metric, name, other, less, tasks), p in zip(tested, adjusted.tolist(), strict=True):
        reverse = [replace(task, scores=task.scores[:, ::-1]) for task in tasks]
        gain = less.difference
        found += [
            Domination(name, other, gain, less.p, p, _worst(tasks, margin), metric),
            Domination(other, name, negate(gain), less.p, p, _worst(reverse, margin), metric),
        ]
    return found


def compare_with_controls(
    arms: Mapping[str, Samples],
    *,
    base: str,
    naive: str,
    judged: Sequence[str],
    controls: Sequence[str],
) -> list[ControlTest]:
    """Test whether arms drift less than controls, such as GRASP with random directions.

    All arms have the same denominator in their removal, so the one that drifts less removes more,
    which can be tested without a ratio.  Drift is that of whole answers where all arms have them.

    Args:
        arms: samples by name.
        base: the name of the base model.
        naive: the name of the naive run, whose drift is to be removed.
        judged: the arms that are tested.
        controls: the arms that they are tested against.

    Returns:
        One test for each instrument on which the naive run shows drift that could be removed.

    Raises:
        InputError: a prompt occurs twice.
    """
    tested = []
    for metric in headline_metrics(list(arms.values())):
        towards = _direction(arms[naive], arms[base], metric)
        for arm, control in product(judged, controls):
            both = pair_scores([arms[control], arms[arm]], metric)
            if towards and len(both.scores):
                less = _test(replace(both, scores=towards * both.scores))
                tested.append((arm, control, metric, less))
    adjusted = holm([less.p for *_, less in tested])
    return [
        ControlTest(arm, control, metric, less.difference, p)
        for (arm, control, metric, less), p in zip(tested, adjusted.tolist(), strict=True)
    ]


def _tested(arms: Mapping[str, Samples], reference: str) -> list[str]:
    """The tested metrics that the reference and another arm have."""
    others = [table for name, table in arms.items() if name != reference]
    shared = [shared_metrics([arms[reference], table], among=TESTED) for table in others]
    order = shared_metrics([arms[reference]], among=TESTED)
    return [metric for metric in order if any(metric in each for each in shared)]


def _direction(naive: Samples, base: Samples, metric: str) -> float:
    """The sign of the naive run's drift; 0 if it shows none."""
    drift = pair_scores([naive, base], metric)
    if not len(drift.scores):
        return 0.0
    change = bootstrap_difference(*drift.scores.T, clusters=drift.clusters, crossed=drift.crossed)
    return 0.0 if explain_no_removal(change) else float(np.sign(change.value))


def _task_pairs(one: Samples, other: Samples) -> list[Pairs]:
    metrics = shared_metrics([one, other], among=["task"])
    found = [pair_scores([one, other], metric) for metric in metrics]
    return [paired for paired in found if len(paired.scores)]


def _worst(tasks: list[Pairs], margin: float) -> NonInferiority:
    return min((_verdict(task, margin) for task in tasks), key=lambda found: found.low)


def reference_table(found: list[ArmTest]) -> pd.DataFrame:
    """One row per test: columns arm, metric, and TEST_COLUMNS; NaN or "" if unknown."""
    rows = [{"arm": one.arm, "metric": one.metric} | _row(one) for one in found]
    return pd.DataFrame(rows, columns=["arm", "metric", *TEST_COLUMNS])


TEST_COLUMNS = (
    "difference",  # mean score minus the reference's, paired by prompt
    "difference_low",
    "difference_high",
    "p",
    "p_holm",  # corrected within the metric, across arms
    "detectable",  # smallest true difference found with power .8 at α .05
    "items",  # clusters
    "verdict",  # kept, not shown, lost; "" if the metric is not in KEPT
    "bound",  # one-sided 95 % lower bound of the difference
    "margin",
)


def _row(one: ArmTest) -> dict[str, object]:
    interval, kept = one.test.difference, one.kept
    return {
        "difference": interval.value,
        "difference_low": interval.low,
        "difference_high": interval.high,
        "p": one.test.p,
        "p_holm": one.p_holm,
        "detectable": one.test.detectable,
        "items": one.test.items,
        "verdict": kept.verdict if kept else "",
        "bound": kept.low if kept else np.nan,
        "margin": kept.margin if kept else np.nan,
    }


def _test(paired: Pairs) -> PairedTest:
    first, second = paired.scores.T
    return paired_test(first, second, clusters=paired.clusters, crossed=paired.crossed)


def _kept(paired: Pairs, metric: str, margin: float) -> NonInferiority | None:
    return _verdict(paired, margin) if split_metric(metric)[0] in KEPT else None


def _verdict(paired: Pairs, margin: float) -> NonInferiority:
    first, second = paired.scores.T
    return non_inferiority(
        first, second, margin=margin, clusters=paired.clusters, crossed=paired.crossed
    )


def _joined(table: pd.DataFrame, columns: tuple[str, ...]) -> np.ndarray:
    """The values of the present columns, joined to one label per row."""
    there = [table[name].astype(str) for name in columns if name in table]
    return reduce(lambda left, right: left + "/" + right, there).to_numpy(str)
