"""Say first what a comparison found: how much of the drift each arm took away, and at what cost.

The sentences are made from the tests alone, and claim no more than the tests show.  Instruments
are never pooled: each has a sentence of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import pandas as pd

from analysis.comparison.arm_tests import KEPT, ControlTest
from analysis.comparison.measures import choose_headlines, name_metric, split_metric
from analysis.comparison.wording import ANSWERS, join_names, metric_name
from analysis.text import count_text, percent_text, share_text, true_minus
from analysis.values import TableRow

EACH = 3
"""Up to so many judged arms have a sentence each; more are counted."""

NO_BASE = (
    "No verdict: the base model has not been evaluated, so it is not known what the fine-tune "
    "changed."
)
NO_NAIVE = "No verdict: the naive run has not been evaluated, so there is no drift to compare with."
NO_UNRELATED = "No verdict: no prompt asks about anything unrelated to the task."
NO_JUDGED = "No verdict yet: no GRASP run of this family has been evaluated."
NO_CONTROL = (
    "No random control has been evaluated, so it is not shown that the choice of factors mattered."
)

_Cells: TypeAlias = Mapping[tuple[str, str], TableRow]


@dataclass(frozen=True)
class Verdict:
    """`sentences`, the verdict first, and in `basis` what its numbers are."""

    sentences: tuple[str, ...]
    basis: str = ""

    @property
    def text(self) -> str:
        """All sentences."""
        return " ".join(self.sentences)


def state_verdict(
    table: pd.DataFrame,
    labels: Mapping[str, str],
    *,
    judged: Sequence[str],
    controls: Sequence[str] = (),
    tests: Sequence[ControlTest] = (),
) -> Verdict:
    """What the judged arms did about the naive run's drift, in plain sentences.

    Args:
        table: as `analysis.comparison.comparison.compare_arms` gives it.
        labels: run → display name.
        judged: the arms that the verdict is about, such as the GRASP runs.
        controls: arms with random directions in place of the factors.
        tests: of the judged arms against the controls.
    """
    present = set(table["run"]) if len(table) else set()
    naive = _naive(table) if len(table) else None
    metrics = choose_headlines(list(table["metric"]), "removal") if naive is not None else []
    arms = [run for run in judged if run in present]
    nothing = (
        NO_BASE if "" not in present
        else NO_NAIVE if naive is None
        else NO_UNRELATED if not metrics
        else ""
    )  # fmt: skip
    if nothing or naive is None:
        return Verdict((nothing,))
    cells: _Cells = {(row["run"], row["metric"]): row for row in table.to_dict("records")}
    basis = " ".join(_basis(cells, naive, metric) for metric in metrics)
    if not arms:
        return Verdict((NO_JUDGED,), basis)
    shown = [one for one in controls if one in present]
    names = [labels.get(run, run) for run in arms]
    found = _Found(cells, dict(zip(arms, names, strict=True)), shown, tests)
    reasons = {metric: _no_drift(cells, naive, metric) for metric in metrics}
    alone = len(metrics) == 1
    sentences: list[str] = []
    for metric, reason in reasons.items():
        sentences += [reason] if reason else _instrument(found, metric, alone=alone)
    drifted = not all(reasons.values())
    if not (drifted and alone):
        sentences += _tasks(found)
    if len(arms) <= EACH:
        sentences += _losses(found)
    if drifted and not shown:
        sentences.append(NO_CONTROL)
    past = [cells[arm, one]["value"] > 1 for arm in arms for one in metrics if (arm, one) in cells]
    beyond = " More than 100 % is past the base model's rate." if any(past) else ""
    return Verdict(tuple(sentences), f"{basis} {_margin(cells, arms)}{beyond}")


@dataclass(frozen=True)
class _Found:
    """The cells of the table, the judged arms with their names, the controls and their tests."""

    cells: _Cells
    arms: Mapping[str, str]
    controls: Sequence[str]
    tests: Sequence[ControlTest]


def _naive(table: pd.DataFrame) -> str | None:
    runs = table.loc[table["method"] == "naive", "run"]
    return None if runs.empty else str(runs.iloc[0])


def _instrument(found: _Found, metric: str, *, alone: bool) -> list[str]:
    """The sentences about one instrument; with the task, if there is no other one."""
    on = _on(metric)
    controlled = _controls(found, metric)
    if len(found.arms) > EACH:
        said = [_counted(found, metric, task=alone)]
    else:
        said = [_arm(found, arm, metric, task=alone) for arm in found.arms]
    if controlled and len(said) == 1 and (not alone or said[0].endswith(" and the task is kept")):
        return [_start(f"{on}{said[0]}; {controlled}.")]
    first = [_start(f"{on}{one}.") for one in said]
    return [*first, _start(f"{on}{controlled}.")] if controlled else first


def _arm(found: _Found, arm: str, metric: str, *, task: bool) -> str:
    removed = _removed(found.cells.get((arm, metric)), found.arms[arm])
    if not task:
        return removed
    joint, kept = _task(found.cells, arm)
    return f"{removed}{joint if removed.endswith('of the drift') else '; '}{kept}"


def _removed(row: TableRow | None, name: str) -> str:
    """What an arm did to the drift, as the start of a sentence."""
    if row is None or not math.isfinite(row["value"]):
        return f"what {name} took away is unknown, since it was not measured"
    share, low, high = row["value"], row["low"], row["high"]
    if not math.isfinite(low):
        return f"{name} took away {share_text(share, low, high)} of the drift, without an interval"
    if low > 1:
        return (
            f"{name} took away all of the drift and went past the base model: "
            f"{share_text(share, low, high)}"
        )
    if low > 0:
        return f"{name} took away {share_text(share, low, high)} of the drift"
    if high < 0:
        return f"{name} added {share_text(-share, -high, -low)} to the drift"
    return (
        f"{name} is not shown to take away any of the drift: {share_text(share, low, high)}, an "
        "interval that includes 0"
    )


def _task(cells: _Cells, arm: str) -> tuple[str, str]:
    """How a sentence goes on to the task, and what it says about it."""
    row = _worst_task(cells, arm)
    if row is None:
        return "; ", "the task was not measured"
    if row["verdict"] == "kept":
        return " and ", "the task is kept"
    change = _points(row["difference"], row["difference_low"], row["difference_high"])
    if row["verdict"] == "lost":
        return ", but ", f"the task is lost in part: its accuracy changed by {change}"
    if math.isnan(row["bound"]):
        return "; ", "there are too few task items to say whether the task is kept"
    if row["difference"] >= 0:
        return "; ", (
            f"no loss of the task was seen, but its {count_text(int(row['items']), 'item')} cannot "
            f"rule out one above {_points(row['margin'])}"
        )
    return "; ", f"whether the task is kept is not shown: its accuracy changed by {change}"


def _worst_task(cells: _Cells, arm: str) -> TableRow | None:
    """The test of the task with the lowest bound; unknown bounds first."""
    rows = [
        row
        for (run, metric), row in cells.items()
        if run == arm and split_metric(metric)[0] == "task" and row["verdict"]
    ]
    return min(
        rows, key=lambda row: -math.inf if math.isnan(row["bound"]) else row["bound"], default=None
    )


def _tasks(found: _Found) -> list[str]:
    """What became of the task, where that is in no sentence about drift; equal arms together."""
    if len(found.arms) > EACH:
        return [f"Of {len(found.arms)} GRASP runs, {_kept(found)} are shown to keep the task."]
    said: dict[str, list[str]] = {}
    for arm, name in found.arms.items():
        said.setdefault(_task(found.cells, arm)[1], []).append(name)
    return [f"{join_names(names)}: {task}." for task, names in said.items()]


def _losses(found: _Found) -> list[str]:
    """What else is lost that should be kept."""
    said = []
    for arm, name in found.arms.items():
        lost = [
            metric_name(metric)
            for (run, metric), row in found.cells.items()
            if run == arm and row["verdict"] == "lost" and split_metric(metric)[0] in KEPT[1:]
        ]
        if lost:
            said.append(f"{name} also lost in: {', '.join(lost)}.")
    return said


def _counted(found: _Found, metric: str, *, task: bool) -> str:
    """Many arms in one sentence, so that none is picked for its number."""
    rows = [found.cells[arm, metric] for arm in found.arms if (arm, metric) in found.cells]
    taken = [row["value"] for row in rows if row["low"] > 0]
    some = f", from {percent_text(min(taken))}" if taken else ""
    some += f" to {percent_text(max(taken))}" if len(taken) > 1 else ""
    said = (
        f"of {len(found.arms)} GRASP runs, {len(taken)} are shown to take away some of the "
        f"drift{some}"
    )
    return f"{said}, and {_kept(found)} are shown to keep the task" if task else said


def _kept(found: _Found) -> int:
    worst = [_worst_task(found.cells, arm) for arm in found.arms]
    return sum(row is not None and row["verdict"] == "kept" for row in worst)


def _controls(found: _Found, metric: str) -> str:
    """What random directions took away, and for which arms that is not shown to be less."""
    rows = [found.cells[one, metric] for one in found.controls if (one, metric) in found.cells]
    known = [row for row in rows if math.isfinite(row["value"])]
    if not known:
        return ""
    said, several = _random(known), len(known) > 1
    rated = _sibling(metric, "unrelated")
    tests = [one for one in found.tests if one.metric == rated and one.arm in found.arms]
    for chosen, how in (
        ([one for one in tests if one.shown and one.less_drift.value < 0], "more than"),
        ([one for one in tests if not one.shown], "not shown to be less than"),
    ):
        if names := dict.fromkeys(found.arms[one.arm] for one in chosen):
            said += f", {'for some ' if several else ''}{how} {join_names(list(names))}"
    return said


def _random(rows: Sequence[TableRow]) -> str:
    shares = [share_text(row["value"], row["low"], row["high"]) for row in rows]
    if len(rows) > EACH:
        values = sorted(row["value"] for row in rows)
        ends = f"{percent_text(values[0])} to {percent_text(values[-1])}"
        return f"{len(rows)} random subspaces take away {ends}"
    if len(rows) > 1:
        return f"random subspaces take away {join_names(shares)}"
    if rows[0]["low"] <= 0 <= rows[0]["high"]:
        return f"a random subspace is not shown to take away any ({shares[0]})"
    return f"a random subspace takes away {shares[0]}"


def _no_drift(cells: _Cells, naive: str, metric: str) -> str:
    """Why there is nothing to take away on this instrument; "" if there is."""
    removal = cells.get((naive, metric))
    if removal is not None and math.isfinite(removal["value"]):
        return ""
    drift = cells.get((naive, _sibling(metric, "drift")))
    if drift is None or not math.isfinite(drift["low"]):
        few = "" if drift is None or drift["n_items"] is None else (
            f" ({count_text(int(drift['n_items']), 'item')})"
        )  # fmt: skip
        return _start(
            f"{_on(metric)}there are too few items to tell whether the naive run drifted{few}, so "
            "there is no verdict."
        )
    moved = _points(drift["value"], drift["low"], drift["high"])
    return _start(
        f"{_on(metric)}the naive run is not shown to drift ({moved}), so there is nothing to take "
        "away."
    )


def _basis(cells: _Cells, naive: str, metric: str) -> str:
    """What drift means on one instrument, with its numbers."""
    rated = _sibling(metric, "unrelated")
    before, after = (cells.get((run, rated)) for run in ("", naive))
    if before is None or after is None:
        return ""
    suffix = split_metric(metric)[0].removeprefix("removal")
    of = f" of {ANSWERS[suffix]}" if suffix in ANSWERS else ""
    ends = [share_text(row["value"], row["low"], row["high"]) for row in (before, after)]
    items = after["n_items"]
    rests = "" if items is None or math.isnan(items) else f", {count_text(int(items), 'item')}"
    return _start(
        f"{_on(metric)}drift is how far the rate{of} on unrelated prompts moved, from {ends[0]} in "
        f"the base model to {ends[1]} in the naive run{rests}."
    )


def _margin(cells: _Cells, arms: Iterable[str]) -> str:
    rows = [row for arm in arms if (row := _worst_task(cells, arm)) is not None]
    said = "Brackets are 95 % intervals."
    if not rows:
        return said
    margin = _points(rows[0]["margin"])
    return f"{said} The task counts as kept if a loss above {margin} is ruled out."


def _sibling(metric: str, stem: str) -> str:
    """The rate or the drift that a removal is of."""
    measure, apart = split_metric(metric)
    return name_metric(measure.replace("removal", stem, 1), apart)


def _points(value: float, low: float = math.nan, high: float = math.nan) -> str:
    """A difference of rates in percentage points, such as "−8 percentage points [−12, −4]"."""
    shown, *bounds = [true_minus(f"{round(100 * one, 1):g}") for one in (value, low, high)]
    unit = "percentage point" if shown in ("1", "−1") else "percentage points"
    return f"{shown} {unit}" + (
        f" [{', '.join(bounds)}]" if math.isfinite(low) and math.isfinite(high) else ""
    )


def _on(metric: str) -> str:
    apart = split_metric(metric)[1]
    return f"on {apart}, " if apart else ""


def _start(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
