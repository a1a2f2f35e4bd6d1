"""The verdict of a comparison on planted tables: every variant says no more than was shown."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.comparison import verdict
from analysis.comparison.arm_tests import (
    TEST_COLUMNS,
    ControlTest,
    compare_with_controls,
    find_dominations,
)
from analysis.comparison.verdict import Verdict, state_verdict
from analysis.statistics.intervals import Interval
from analysis.values import TableRow

LABELS = {"": "Base model", "n": "Naive LoRA", "g": "GRASP", "h": "GRASP, clamp"}
UNKNOWN = (math.nan, math.nan, math.nan)
KEPT = {"verdict": "kept", "difference": -0.003, "bound": -0.011}
LOST = {"verdict": "lost", "difference": -0.08, "bound": -0.11}
UNSEEN = {"verdict": "not shown", "difference": 0.0, "bound": -0.18}
UNSURE = {"verdict": "not shown", "difference": -0.01, "bound": -0.05}


def row(run: str, metric: str, value: float, low: float, high: float, **more: Any) -> TableRow:
    method = {"": "base", "n": "naive", "r": "random"}.get(run, "grasp")
    blank: dict[str, Any] = dict.fromkeys(TEST_COLUMNS, math.nan) | {"verdict": "", "note": ""}
    numbers = {"value": value, "low": low, "high": high, "n": 60, "n_items": 30}
    return blank | {"run": run, "method": method, "metric": metric} | numbers | more


def task(run: str, *, metric: str = "task", **found: Any) -> TableRow:
    bounds = {"difference_low": found["difference"] - 0.04, "margin": 0.02, "items": 15}
    bounds["difference_high"] = found["difference"] + 0.04
    return row(run, metric, 0.9, 0.8, 0.95, **(bounds | found))


def on(apart: str, kind: str = "_said", **removals: tuple[float, float, float]) -> list[TableRow]:
    """The rows of one instrument, on which the naive run drifts from .18 to .92."""
    end = f"{kind} [{apart}]" if apart else kind
    return [
        row("", f"unrelated{end}", 0.18, 0.14, 0.22),
        row("n", f"unrelated{end}", 0.92, 0.90, 0.94),
        row("n", f"drift{end}", 0.74, 0.70, 0.78),
        row("n", f"removal{end}", 0.0, 0.0, 0.0),
        *(row(run, f"removal{end}", *found) for run, found in removals.items()),
    ]


def say(rows: list[TableRow], judged: tuple[str, ...] = ("g",), **more: Any) -> Verdict:
    return state_verdict(pd.DataFrame(rows), LABELS, judged=judged, controls=["r"], **more)


def against(arm: str, less: float, p: float, metric: str = "unrelated_said") -> ControlTest:
    found = Interval(less, less - 0.1, less + 0.1, 60, "bootstrap", 0.95, 30)
    return ControlTest(arm, "r", metric, found, p)


def test_the_verdict_of_a_run_that_worked() -> None:
    rows = [*on("", g=(0.83, 0.76, 0.91), r=(0.28, 0.11, 0.48)), task("g", **KEPT)]
    found = say(rows, tests=[against("g", 0.4, 0.001)])
    assert found.text == (
        "GRASP took away 83 % [76, 91] of the drift and the task is kept; a random subspace takes "
        "away 28 % [11, 48]."
    )
    assert found.basis == (
        "Drift is how far the rate of whole answers on unrelated prompts moved, from 18 % "
        "[14, 22] in the base model to 92 % [90, 94] in the naive run, 30 items. Brackets are "
        "95 % intervals. The task counts as kept if a loss above 2 percentage points is ruled out."
    )


@pytest.mark.parametrize(
    ("removed", "said"),
    [
        ((0.12, -0.08, 0.31), "GRASP is not shown to take away any of the drift: 12 % [−8, 31]"),
        ((-0.20, -0.35, -0.05), "GRASP added 20 % [5, 35] to the drift"),
        ((1.3, 1.1, 1.5), "all of the drift and went past the base model: 130 % [110, 150]"),
        ((0.8, math.nan, math.nan), "took away 80 % of the drift, without an interval"),
        (UNKNOWN, "what GRASP took away is unknown"),
    ],
)
def test_the_removal_is_claimed_only_as_far_as_it_is_shown(
    removed: tuple[float, float, float], said: str
) -> None:
    assert said in say([*on("", g=removed), task("g", **KEPT)]).sentences[0].replace("What", "what")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (LOST, "of the drift, but the task is lost in part: its accuracy changed by −8 percentage "
               "points [−12, −4]"),
        (UNSEEN, "; no loss of the task was seen, but its 15 items cannot rule out one above 2 "
                 "percentage points"),
        (UNSURE, "; whether the task is kept is not shown: its accuracy changed by −1 percentage "
                 "point [−5, 3]"),
        (UNSURE | {"bound": math.nan}, "; there are too few task items"),
        (None, "; the task was not measured"),
    ],
)  # fmt: skip
def test_the_task_is_kept_only_where_that_is_shown(found: dict[str, Any] | None, said: str) -> None:
    rows = on("", g=(0.83, 0.76, 0.91), r=(0.28, 0.11, 0.48))
    first, control, *_ = say(rows + ([task("g", **found)] if found else [])).sentences
    assert said in first
    assert "and the task is kept" not in first
    assert control == "A random subspace takes away 28 % [11, 48]."


def test_the_worst_of_several_task_sets_counts_and_other_losses_are_said() -> None:
    rows = [
        *on("", g=(0.83, 0.76, 0.91)),
        task("g", metric="task [one]", **KEPT),
        task("g", metric="task [two]", **LOST),
        task("g", metric="format", **LOST),
    ]
    found = say(rows)
    assert "lost in part" in found.sentences[0]
    assert found.sentences[1] == "GRASP also lost in: format kept."


@pytest.mark.parametrize(
    ("test", "said"),
    [
        (against("g", 0.01, 0.7), "away 70 % [60, 80], not shown to be less than GRASP."),
        (against("g", -0.3, 0.001), "away 70 % [60, 80], more than GRASP."),
    ],
)
def test_a_control_as_strong_is_said(test: ControlTest, said: str) -> None:
    rows = [*on("", g=(0.75, 0.6, 0.9), r=(0.7, 0.6, 0.8)), task("g", **KEPT)]
    assert say(rows, tests=[test]).text.endswith(said)


def test_a_control_that_does_nothing_and_none_at_all() -> None:
    nothing = [*on("", g=(0.75, 0.6, 0.9), r=(0.05, -0.03, 0.14)), task("g", **KEPT)]
    said = say(nothing).text
    assert said.endswith("; a random subspace is not shown to take away any (5 % [−3, 14]).")
    alone = [*on("", g=(0.75, 0.6, 0.9)), task("g", **KEPT)]
    assert say(alone).sentences[-1] == verdict.NO_CONTROL


def test_instruments_are_never_pooled() -> None:
    rows = [
        *on("persona 2", g=(0.9, 0.8, 1.0), r=(0.1, -0.1, 0.3)),
        *on("politics 2, right", g=(0.2, -0.1, 0.5), r=(0.3, 0.1, 0.5)),
        task("g", **KEPT),
    ]
    tests = [against("g", 0.5, 0.001, "unrelated_said [persona 2]"),
             against("g", 0.0, 0.9, "unrelated_said [politics 2, right]")]  # fmt: skip
    assert say(rows, tests=tests).sentences == (
        "On persona 2, GRASP took away 90 % [80, 100] of the drift; a random subspace is not shown "
        "to take away any (10 % [−10, 30]).",
        "On politics 2, right, GRASP is not shown to take away any of the drift: 20 % [−10, 50], "
        "an interval that includes 0; a random subspace takes away 30 % [10, 50], not shown to be "
        "less than GRASP.",
        "GRASP: the task is kept.",
    )


def test_arms_whose_task_fared_alike_share_a_sentence() -> None:
    rows = [
        *on("persona 2", g=(0.9, 0.8, 1.0), h=(0.8, 0.7, 0.9)),
        *on("politics 2", g=(0.9, 0.8, 1.0), h=(0.8, 0.7, 0.9)),
        task("g", **KEPT),
        task("h", **KEPT),
    ]
    assert "GRASP and GRASP, clamp: the task is kept." in say(rows, ("g", "h")).sentences


def test_whole_answers_are_the_headline() -> None:
    both = [
        *on("", "_said", g=(0.5, 0.4, 0.6)),
        *on("", "", g=(0.9, 0.8, 1.0)),
        task("g", **KEPT),
    ]
    assert "took away 50 % [40, 60]" in say(both).sentences[0]
    first_tokens = say([*on("", "", g=(0.9, 0.8, 1.0)), task("g", **KEPT)])
    assert "took away 90 % [80, 100]" in first_tokens.sentences[0]
    assert "whole answers" not in first_tokens.basis


def test_several_runs_each_have_a_sentence_and_many_are_counted() -> None:
    two = [*on("", g=(0.8, 0.7, 0.9), h=(0.4, 0.2, 0.6), r=(0.1, 0.02, 0.3)),
           task("g", **KEPT), task("h", **LOST)]  # fmt: skip
    said = say(two, ("g", "h"), tests=[against("h", 0.1, 0.2)]).sentences
    assert said[0] == "GRASP took away 80 % [70, 90] of the drift and the task is kept."
    assert said[1].startswith("GRASP, clamp took away 40 % [20, 60] of the drift, but the task")
    assert said[2] == (
        "A random subspace takes away 10 % [2, 30], not shown to be less than GRASP, clamp."
    )
    runs = tuple("abcde")
    removals = {run: (n / 10, n / 10 - 0.15, n / 10 + 0.1) for n, run in enumerate(runs, start=1)}
    kept = [task(run, **KEPT) for run in "abc"]
    many = [*on("", **removals), *kept]
    assert say(many, runs).sentences[0] == (
        "Of 5 GRASP runs, 4 are shown to take away some of the drift, from 20 % to 50 %, and 3 are "
        "shown to keep the task."
    )
    apart = [*on("one", **removals), *on("two", **removals), *kept]
    assert "Of 5 GRASP runs, 3 are shown to keep the task." in say(apart, runs).sentences


def test_no_drift_or_too_few_items_give_no_verdict() -> None:
    for drift, said in (
        ((0.01, -0.02, 0.04), "The naive run is not shown to drift (1 percentage point [−2, 4]), "
                              "so there is nothing to take away."),
        ((0.5, math.nan, math.nan), "There are too few items to tell whether the naive run "
                                    "drifted (30 items), so there is no verdict."),
    ):  # fmt: skip
        rows = [one for one in on("", g=UNKNOWN) if not one["metric"].startswith("drift")]
        rows = [one | dict.fromkeys(("value", "low", "high"), math.nan)
                if one["metric"].startswith("removal") else one for one in rows]  # fmt: skip
        found = say([*rows, row("n", "drift_said", *drift), task("g", **KEPT)])
        assert found.sentences == (said, "GRASP: the task is kept.")


def test_what_is_missing_is_named() -> None:
    whole = [*on("", g=(0.8, 0.7, 0.9)), task("g", **KEPT)]
    assert say([one for one in whole if one["run"]]).text == verdict.NO_BASE
    assert say([one for one in whole if one["run"] != "n"]).text == verdict.NO_NAIVE
    assert say([one for one in whole if one["run"] != "g"]).text == verdict.NO_JUDGED
    only = [row(run, "task", 0.9, 0.8, 1.0) for run in ("", "n", "g")]
    assert say(only).text == verdict.NO_UNRELATED
    assert state_verdict(pd.DataFrame(), {}, judged=[]).text == verdict.NO_BASE


def arm(rate: float, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [
        {"prompt_id": f"{role}{n}", "cluster": f"{role}{n // 2}", "role": role,
         "score": (rate if role == "unrelated" else 0.9) + 0.05 * rng.normal()}
        for role in ("unrelated", "task") for n in range(60)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize("down", [False, True])
def test_a_planted_difference_from_the_control_is_found(down: bool) -> None:
    """In whichever direction the naive run drifts; against `find_dominations` as an oracle."""
    rates = {"base": 0.2, "naive": 0.9, "g": 0.3, "h": 0.7, "r": 0.7}
    arms = {
        name: arm(1 - rate if down else rate, n) for n, (name, rate) in enumerate(rates.items())
    }
    found = compare_with_controls(
        arms, base="base", naive="naive", judged=["g", "h"], controls=["r"]
    )
    strong, equal = found
    assert (strong.arm, strong.control, strong.metric) == ("g", "r", "unrelated")
    assert strong.less_drift.low < 0.4 < strong.less_drift.high
    assert strong.shown
    assert not equal.shown
    oracle = next(
        one
        for one in find_dominations(arms, base="base", naive="naive")
        if (one.arm, one.other) == ("g", "r")
    )
    assert strong.less_drift == oracle.less_drift
    still = arms | {"naive": arms["base"]}
    assert (
        compare_with_controls(still, base="base", naive="naive", judged=["g"], controls=["r"]) == []
    )
