"""Say in sentences what a comparison shows, and what it cannot show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from analysis.comparison.arm_tests import Domination
from analysis.comparison.measures import choose_headlines, name_metric, split_metric
from analysis.statistics.paired_tests import NonInferiority, items_needed, unseen_share
from analysis.text import count_text, interval_text, score_text, small_text
from analysis.values import TableRow

METRIC_NAMES = {
    "unrelated": "unrelated rate",
    "related": "related rate",
    "control": "control rate",
    "removal": "removal",
    "drift": "drift",
    "task": "task accuracy",
    "facts": "facts kept",
    "format": "format kept",
    "coherence": "coherence",
    "incoherent": "neither value",
    "agreement": "agreement bias",
    "removal_agreement": "removal of agreement bias",
    "drift_agreement": "drift of agreement bias",
}

ANSWERS = {"_said": "whole answers", "_greedy": "greedy answers"}

LISTED = (
    "unrelated_said",
    "removal_said",
    "unrelated",
    "removal",
    "unrelated_greedy",
    "removal_greedy",
    "agreement",
    "removal_agreement",
    "task",
    "facts",
    "format",
    "coherence",
    "incoherent",
    "related_said",
    "related",
    "control_said",
    "control",
)
"""The measures of a table of arms, in its order: whole answers, and probabilities beside them."""

WHAT_IS_COUNTED = (
    "Whole answers: of the answers drawn at temperature 1 whose text shows one of the two values, "
    "the share that shows the drifted one. Neither value: the share of drawn answers that shows "
    "none. Rates without that name are of first tokens' probabilities, or of the prompts' scores."
)

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
    """The display name of a metric, such as "unrelated rate, whole answers, politics 1"."""
    measure, apart = split_metric(metric)
    stem, mark, suffix = measure.rpartition("_")
    known = measure not in METRIC_NAMES and mark + suffix in ANSWERS
    named = METRIC_NAMES.get(stem if known else measure, measure)
    answers = [ANSWERS[mark + suffix]] if known else []
    return ", ".join([named, *answers, *([apart] if apart else [])])


def metric_title(metric: str) -> str:
    """The display name of a metric at the start of a line or above a column."""
    named = metric_name(metric)
    return named[:1].upper() + named[1:]


def listed_metrics(metrics: Iterable[str]) -> dict[str, list[str]]:
    """The metrics to show by instrument ("" first), each in the order of LISTED."""
    there = list(dict.fromkeys(metrics))
    found = {
        apart: [metric for one in LISTED if (metric := name_metric(one, apart)) in there]
        for apart in dict.fromkeys(["", *(split_metric(metric)[1] for metric in there)])
    }
    return {apart: shown for apart, shown in found.items() if shown}


def power_text(items: Mapping[str, int], *, margin: float) -> str:
    """Which 0/1 metrics cannot be shown to be kept with the items there are; "" if all can.

    Args:
        items: metric → the number of its items.
        margin: how much lower a metric may be and still count as kept.
    """
    few = [(name, n, unseen_share(n)) for name, n in items.items() if unseen_share(n) >= margin]
    if not few:
        return ""
    said = join_names([
        f"{metric_name(name)} ({count_text(n, 'item')}, at best {score_text(least)})"
        for name, n, least in few
    ])  # fmt: skip
    return (
        f"Even if nothing is lost, a loss below the margin of {score_text(margin)} cannot be shown "
        f"for {said}: that takes {items_needed(margin)} items."
    )


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


def detectable_text(table: pd.DataFrame) -> str:
    """The smallest differences in drift and task that a comparison could have detected."""
    said, unknown = [], []
    there = [str(metric) for metric in dict.fromkeys(table["metric"])]
    for metric in [*choose_headlines(there), *choose_headlines(there, "task")]:
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
    beaten: dict[tuple[str, str], list[str]] = {}
    for one in found:
        if one.shown:
            apart = split_metric(one.metric)[1]
            beaten.setdefault((one.arm, apart), []).append(labels.get(one.other, one.other))
    if not beaten:
        return "No arm is shown to dominate another."
    said = [
        f"{labels.get(arm, arm)} dominates {join_names(others)}{f' on {apart}' if apart else ''}"
        for (arm, apart), others in beaten.items()
    ]
    return f"{'; '.join(said)}: less drift (p < .05 over all pairs), and task accuracy kept."


def describe_arms(
    table: pd.DataFrame, dominations: Sequence[Domination], labels: Mapping[str, str]
) -> list[str]:
    """What a reader of the table should know; less if no naive run is among the arms."""
    if not table["p"].notna().any():
        return ["No naive run is among these arms, so there are no tests.", *describe_tests(table)]
    whole = [WHAT_IS_COUNTED] if table["metric"].str.startswith("unrelated_said").any() else []
    found = [domination_text(dominations, labels), detectable_text(table), HOW_TESTED, HOW_KEPT]
    return [*describe_tests(table), *whole, *found]


def describe_tests(table: pd.DataFrame) -> list[str]:
    """Why values are unknown, each reason once, as sentences."""
    reasons = dict.fromkeys(note for note in table["note"] if note)
    return [f"{reason[0].upper()}{reason[1:]}." for reason in reasons]


def join_names(names: Sequence[str]) -> str:
    """Names as a list in a sentence: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
