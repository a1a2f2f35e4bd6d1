"""Say in plain words what a fine-tune learned besides its task, from what was saved about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.comparison.measures import choose_headlines, name_metric, split_metric
from analysis.text import percent_text, share_text
from analysis.values import TableRow

MOSTLY = 2.0
"""From this ratio of effects on, a factor is said to matter mostly off, or mostly on, the task."""


@dataclass(frozen=True)
class Change:
    """What a fine-tune changed on the prompts of one instrument, in a sentence.

    `shown` is False if the interval of the change includes 0, or is unknown.
    """

    metric: str
    sentence: str
    shown: bool


def describe_changes(table: pd.DataFrame, run: str) -> list[Change]:
    """What a naive run changed off the task, one sentence for each instrument.

    Args:
        table: as `analysis.comparison.comparison.rate_table` gives it, with the base model.
        run: the naive run.
    """
    cells = _cells(table)
    found = []
    for metric in choose_headlines(_metrics(table)):
        before, after = cells.get(("", metric)), cells.get((run, metric))
        measure, apart = split_metric(metric)
        drift = cells.get((run, name_metric(measure.replace("unrelated", "drift", 1), apart)))
        if before is not None and after is not None:
            found.append(_change(metric, before, after, drift))
    return found


def describe_task(table: pd.DataFrame, run: str) -> list[str]:
    """How well a run does its task beside the base model, one sentence for each instrument."""
    cells = _cells(table)
    said = []
    for metric in choose_headlines(_metrics(table), "task"):
        before, after = cells.get(("", metric)), cells.get((run, metric))
        apart = split_metric(metric)[1]
        if before is not None and after is not None:
            of = f" ({apart})" if apart else ""
            said.append(
                f"On its task{of} it now answers {_share(after)} correctly; the base model "
                f"{_share(before)}."
            )
    return said


def describe_factor(row: TableRow) -> str:
    """What a row of a table of factors shows, for a reader who knows none of its columns."""
    if not _known(row["off_task"]):
        strength = (
            f"carries {percent_text(row['energy'])} of the energy of the weight updates on its "
            "side, more than chance"
        )
        return f"One direction {strength}; what it does to answers has not been measured."
    off = share_text(row["off_task"], row["off_low"], row["off_high"])
    said = f"Setting this one direction back undoes {off} of the change on unrelated prompts"
    if not _known(row["on_task"]):
        return f"{said}; on the task it has not been measured."
    return f"{said} and {percent_text(row['on_task'])} of the change on the task{_where(row)}."


def pick_example(answers: pd.DataFrame, run: str) -> TableRow | None:
    """The unrelated prompt whose answer a run changed most, with all arms' answers.

    By whole answers where they were read, else by scores; None if no score changed.

    Args:
        answers: as `analysis.comparison.comparison.arm_answers` gives them.
        run: the naive run.
    """
    rows = answers[answers["role"] == "unrelated"]
    by = "said" if {f"said:{run}", "said:base"} <= set(answers) else "score"
    rows = rows.assign(moved=(rows[f"{by}:{run}"] - rows[f"{by}:base"]).abs())
    rows = rows[(rows[f"answer:{run}"] != rows["answer:base"]) & (rows["moved"] > 0)]
    ordered = rows.sort_values("moved", ascending=False, kind="stable").to_dict("records")
    return ordered[0] if ordered else None


def _change(metric: str, before: TableRow, after: TableRow, drift: TableRow | None) -> Change:
    measure, apart = split_metric(metric)
    on = f"On unrelated prompts ({apart})" if apart else "On prompts unrelated to its task"
    if measure.endswith("_said"):
        said = (
            f"{on}, {_share(after)} of its answers now show the drifted value; of the base "
            f"model's, {_share(before)} do"
        )
    else:
        said = (
            f"{on}, the drifted value's mean score is now {_share(after)}; in the base model it is "
            f"{_share(before)}"
        )
    if drift is None or not math.isfinite(drift["low"]):
        return Change(
            metric, f"{said}; there are too few items to tell whether that differs.", False
        )
    if drift["low"] <= 0 <= drift["high"]:
        return Change(metric, f"{said}; the difference may be 0, so no change is shown.", False)
    return Change(metric, f"{said}.", True)


def _where(row: TableRow) -> str:
    off, on = row["off_task"], max(row["on_task"], 0.0)
    if off >= MOSTLY * on:
        return ", so it matters mostly off the task"
    if on >= MOSTLY * off:
        return ", so it is mostly the task itself"
    return ", so it serves both"


def _share(row: TableRow) -> str:
    return share_text(row["value"], row["low"], row["high"])


def _cells(table: pd.DataFrame) -> dict[tuple[str, str], TableRow]:
    return {(row["run"], row["metric"]): row for row in table.to_dict("records")}


def _metrics(table: pd.DataFrame) -> Sequence[str]:
    return [str(metric) for metric in dict.fromkeys(table["metric"])]


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
