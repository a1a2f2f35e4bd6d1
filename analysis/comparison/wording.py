"""Say in sentences what a comparison shows, and what it cannot show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.comparison.arm_tests import Domination
from analysis.statistics.paired_tests import NonInferiority
from analysis.text import interval_text, score_text, small_text
from analysis.values import TableRow

METRIC_NAMES = {
    "unrelated": "unrelated rate",
    "related": "related rate",
    "control": "control rate",
    "removal": "removal",
    "task": "task accuracy",
    "facts": "facts kept",
    "format": "format kept",
    "coherence": "coherence",
}

HOW_TESTED = (
    "Differences from the naive run are paired by prompt and clustered by item, with 95 % "
    "intervals; p is from sign flips of items, Holm-corrected over the arms of a metric."
)

HOW_KEPT = (
    "Kept: the one-sided 95 % lower bound of the difference is above minus the margin. "
    "Lost: the upper bound is below it. Not shown: neither. Few items cannot rule out a loss: if "
    "none of n items lost anything, a loss of 1 − .05^(1/n) is still possible, .18 for n = 15."
)


def metric_name(metric: str) -> str:
    """The display name of a metric."""
    return METRIC_NAMES.get(metric, metric)


def difference_text(row: TableRow) -> str:
    """The difference in a row of a comparison, for example "−.172 [−.210, −.134]"."""
    bounds = (row["difference_low"], row["difference_high"])
    return interval_text(row["difference"], *bounds, show=score_text)


def verdict_text(row: TableRow) -> str:
    """The non-inferiority statement of a row; "" if the metric has none."""
    if not row["verdict"]:
        return ""
    kept = (row["verdict"], row["difference"], row["bound"], math.nan, row["margin"])
    return NonInferiority(*kept).text


def detectable_text(table: pd.DataFrame, *, metrics: Sequence[str] = ("unrelated", "task")) -> str:
    """The smallest differences that the tests of a comparison could have detected, by metric."""
    said, unknown = [], []
    for metric in metrics:
        tested = table[(table["metric"] == metric) & table["p"].notna() & (table["run"] != "")]
        largest = tested["detectable"].max()
        if math.isfinite(largest):
            said.append(f"{small_text(largest)} in {metric_name(metric)}")
        elif len(tested):
            unknown.append(metric_name(metric))
    parts = []
    if said:
        parts.append(
            f"Differences smaller than {' or '.join(said)} would not have been detected "
            "(power .8 at α .05, before Holm's correction)."
        )
    if unknown:
        parts.append(
            f"Too few items differ in {' and '.join(unknown)} to say what could have been detected."
        )
    return " ".join(parts)


def domination_text(found: Sequence[Domination], labels: Mapping[str, str]) -> str:
    """Which arms are shown to dominate which others, by display name."""
    beaten: dict[str, list[str]] = {}
    for one in found:
        if one.shown:
            beaten.setdefault(one.arm, []).append(labels.get(one.other, one.other))
    if not beaten:
        return "No arm is shown to dominate another."
    said = [f"{labels.get(arm, arm)} dominates {_list(others)}" for arm, others in beaten.items()]
    return f"{'; '.join(said)}: less drift (p < .05 over all pairs), and task accuracy kept."


def describe_arms(
    table: pd.DataFrame, dominations: Sequence[Domination], labels: Mapping[str, str]
) -> list[str]:
    """What a reader of the table should know; less if no naive run is among the arms."""
    if not table["p"].notna().any():
        return ["No naive run is among these arms, so there are no tests.", *describe_tests(table)]
    found = [domination_text(dominations, labels), detectable_text(table), HOW_TESTED, HOW_KEPT]
    return [*describe_tests(table), *found]


def describe_tests(table: pd.DataFrame) -> list[str]:
    """Why values are unknown, each reason once, as sentences."""
    reasons = dict.fromkeys(note for note in table["note"] if note)
    return [f"{reason[0].upper()}{reason[1:]}." for reason in reasons]


def _list(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
