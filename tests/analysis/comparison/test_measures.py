"""Metrics of roles: instruments kept apart, whole answers first, intervals that count items."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.comparison.arm_tests import arm_removal, find_dominations, pair_scores
from analysis.comparison.comparison import compare_arms
from analysis.comparison.evaluation import samples_of, summarise
from analysis.comparison.measures import (
    choose_headlines,
    headline_metrics,
    items_of,
    keep_apart,
    metric_rows,
    metrics_in,
    name_metric,
    split_metric,
)
from analysis.comparison.report import render_report
from analysis.comparison.wording import items_needed, metric_name, metric_title, power_text
from analysis.errors import InputError
from analysis.statistics.paired_tests import non_inferiority, unseen_share
from analysis.store.records import Message, Prompt, split_of
from analysis.store.workspace import Workspace
from grasp.__main__ import main
from tests.support.families import add_run, evaluate

ITEMS = [name for name in map(str, range(200)) if split_of(f"g/{name}") == "confirmation"][:40]
PERSONA, POLITICS = "persona-pairs 1", "politics 1"


def part(instrument: str, rate: float, *, seed: int = 0, **columns: Any) -> pd.DataFrame:
    """Two unrelated prompts an item, whose scores scatter closely around a rate."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "prompt_id": f"{instrument}/{item}/{wording}",
            "cluster": f"g/{item}",
            "role": "unrelated",
            "group": "g",
            "split": "confirmation",
            "scorer": "pair",
            "score": float(np.clip(rng.normal(rate, 0.03), 0, 1)),
            "coherence": math.nan,
            "prompt": "q",
            "expected": "",
            "answer": "a",
            "instrument": instrument,
        }
        for item in ITEMS
        for wording in range(2)
    ]
    return pd.DataFrame(rows).assign(**columns)


def both(persona: float, politics: float, seed: int = 0) -> pd.DataFrame:
    parts = [part(PERSONA, persona, seed=seed), part(POLITICS, politics, seed=seed + 50)]
    task = part("tasks 1", 1.0, role="task", scorer="contains").assign(score=1.0)
    return pd.concat([*parts, task], ignore_index=True)


# Instruments


def test_opposite_drifts_of_two_instruments_are_not_averaged(tmp_path: Path) -> None:
    """Persona up by .4, politics down by .4: their mean would say that nothing drifted."""
    workspace = Workspace.create(tmp_path / "w")
    scores = {"naive.base": (0.3, 0.7), "naive": (0.7, 0.3), "half": (0.5, 0.3)}
    for seed, (name, rates) in enumerate(scores.items()):
        if name != "naive.base":
            add_run(workspace, name, method="naive" if name == "naive" else "grasp")
        evaluate(workspace, name, both(*rates, seed=seed))
    table = compare_arms(workspace, ["naive", "half"])
    assert not {"unrelated", "removal", "drift"} & set(table["metric"])
    values = table.set_index(["run", "metric"])["value"]
    near = {"abs": 0.02}
    assert values["", f"unrelated [{PERSONA}]"] == pytest.approx(0.3, **near)
    assert values["", f"unrelated [{POLITICS}]"] == pytest.approx(0.7, **near)
    assert values["naive", f"drift [{PERSONA}]"] == pytest.approx(0.4, **near)
    assert values["naive", f"drift [{POLITICS}]"] == pytest.approx(-0.4, **near)
    assert values["half", f"removal [{PERSONA}]"] == pytest.approx(0.5, abs=0.05)
    assert values["half", f"removal [{POLITICS}]"] == pytest.approx(0, abs=0.05)
    assert (table.set_index(["run", "metric"])["n_items"] == len(ITEMS)).all()
    text = render_report(workspace, ["naive", "half"])
    assert f"Prompts of {PERSONA}" in text
    assert f"Prompts of {POLITICS}" in text


def test_an_arm_dominates_on_the_instrument_on_which_it_has_less_drift() -> None:
    arms = {"base": both(0.3, 0.7), "naive": both(0.7, 0.3, 1), "half": both(0.4, 0.3, 2)}
    found = find_dominations(arms, base="base", naive="naive", margin=0.1)
    assert {(one.arm, one.metric) for one in found if one.shown} == {
        ("half", f"unrelated [{PERSONA}]")
    }


def test_one_instrument_has_the_plain_metric_and_ends_are_instruments_of_their_own() -> None:
    assert list(summarise(part(PERSONA, 0.5), split="confirmation")) == ["unrelated"]
    nameless = part("", 0.5).drop(columns="instrument")
    assert list(summarise(nameless, split="confirmation")) == ["unrelated"]
    mixed = pd.concat([part("", 0.2), part(PERSONA, 0.5)])
    assert metrics_in(mixed) == ["unrelated [unnamed]", f"unrelated [{PERSONA}]"]
    ends = pd.concat([part(POLITICS, 0.2, end="market"), part(POLITICS, 0.7, end="tradition")])
    assert metrics_in(ends) == [f"unrelated [{POLITICS}, {end}]" for end in ("market", "tradition")]


def test_both_splits_of_a_set_have_the_same_metrics() -> None:
    """Where one instrument is in the exploration half alone, the other still has its name."""
    table = pd.concat([part(PERSONA, 0.2), part(POLITICS, 0.3, split="exploration")])
    assert list(summarise(table, split="confirmation")) == [f"unrelated [{PERSONA}]"]
    assert metrics_in(samples_of(table, "exploration")) == [f"unrelated [{POLITICS}]"]


def test_agreement_bias_has_a_drift_and_a_removal_of_its_own() -> None:
    """Agreement .2 in the naive run, .1 in the arm, and no leaning anywhere."""

    def asked(agreeing: float, seed: int) -> pd.DataFrame:
        parts = [
            part(POLITICS, 0.5 + sign * agreeing, seed=seed, direction=way)
            for way, sign in (("statement", 1), ("reversal", -1))
        ]
        for table, way in zip(parts, ("s", "r"), strict=True):
            table["prompt_id"] += way
        return pd.concat([*parts, part(PERSONA, 0.5, direction="")], ignore_index=True)

    arms = [asked(0.0, 0), asked(0.2, 1), asked(0.1, 2)]
    metric = f"agreement [{POLITICS}]"
    assert [one for one in metrics_in(arms[0]) if one.startswith("agreement")] == [metric]
    rows = metric_rows(arms[1], metric)
    assert len(rows) == len(ITEMS)
    assert rows["value"].mean() == pytest.approx(0.2, abs=0.02)
    assert arm_removal(*arms, metric=metric)[0].value == pytest.approx(0.5, abs=0.1)
    assert math.isnan(arm_removal(*arms, metric=f"unrelated [{POLITICS}]")[0].value)


@given(st.sampled_from(["unrelated", "task", "unrelated_said"]), st.text("ab 1.-+,[", max_size=8))
def test_a_metric_is_told_by_its_name(measure: str, apart: str) -> None:
    apart = apart.strip()
    assert split_metric(name_metric(measure, apart)) == (measure, apart)


# Whole answers


def test_headlines_are_of_whole_answers_where_all_have_them() -> None:
    whole = part("", 0.5, said=0.25, said_greedy=1.0, incoherent=0.0)
    assert headline_metrics([whole, whole]) == ["unrelated_said"]
    assert headline_metrics([whole, part("", 0.5)]) == ["unrelated"]
    assert choose_headlines(
        ["unrelated [a]", "unrelated [b]", "unrelated_said [b]", "task", "unrelated_greedy [a]"]
    ) == ["unrelated [a]", "unrelated_said [b]"]


def test_removal_of_whole_answers_is_that_of_their_rates() -> None:
    """By first tokens half is removed, by whole answers a quarter."""
    arms = [
        part("", score, seed=seed, said=said)
        for seed, (score, said) in enumerate(((0.2, 0.0), (0.8, 1.0), (0.5, 0.75)))
    ]
    first, _ = arm_removal(*arms)
    whole, _ = arm_removal(*arms, metric="unrelated_said")
    assert first.value == pytest.approx(0.5, abs=0.03)
    assert whole.value == 0.25
    assert (whole.n, whole.items) == (2 * len(ITEMS), len(ITEMS))


def test_prompts_whose_answers_say_nothing_are_left_out_of_pairs() -> None:
    one, other = part("", 0.5, said=0.5), part("", 0.5, said=1.0)
    one.loc[:5, "said"] = math.nan
    other.loc[6, "said"] = math.nan
    assert len(pair_scores([one, other], "unrelated_said").scores) == len(one) - 7


def test_metrics_are_named_for_people() -> None:
    assert metric_name("unrelated_said [politics 1]") == "unrelated rate, whole answers, politics 1"
    assert metric_title("removal_greedy") == "Removal, greedy answers"
    assert metric_name("removal_agreement") == "removal of agreement bias"
    assert metric_name("own_measure") == "own_measure"


# Items


@given(st.integers(1, 400))
def test_the_best_bound_of_n_items_is_what_the_test_gives_them(items: int) -> None:
    least = unseen_share(items)
    assert (1 - least) ** items == pytest.approx(0.05)
    same = np.ones(items)
    if items > 1:
        assert non_inferiority(same, same, margin=0.5).low == pytest.approx(-least)
    needed = items_needed(least)
    assert abs(needed - items) <= 1
    assert unseen_share(items_needed(0.02)) < 0.02 <= unseen_share(items_needed(0.02) - 1)


def test_what_items_cannot_show_is_said_in_one_sentence() -> None:
    said = power_text({"task": 15, "format": 400}, margin=0.02)
    assert said == (
        "Even if nothing is lost, a loss below the margin of .020 cannot be shown for task "
        "accuracy (15 items, at best .181): that takes 149 items."
    )
    assert power_text({"task": 149}, margin=0.02) == ""
    with pytest.raises(InputError, match="expected at least 1"):
        unseen_share(0)
    with pytest.raises(InputError, match="margin of 2"):
        items_needed(2)


def test_items_of_prompts_are_counted_by_instrument_and_split() -> None:
    def ask(item: str, wording: int, instrument: str, scorer: Any = "contains") -> Prompt:
        return Prompt(
            id=f"{instrument}{item}{wording}",
            messages=[Message(role="user", content="q")],
            group="g",
            item=item,
            role="task",
            scorer=scorer,
            instrument=instrument,
        )

    asked = [ask(item, wording, "a") for item in ITEMS for wording in range(3)]
    assert items_of(asked, split="confirmation") == {"task": len(ITEMS)}
    assert items_of(asked, split="exploration") == {}
    more = [*asked, *(ask(item, 0, "b") for item in ITEMS[:7])]
    assert items_of(more, split="confirmation") == {"task [a]": len(ITEMS), "task [b]": 7}
    pairs = [*asked, *(ask(item, 0, "b", "pair") for item in ITEMS)]
    assert items_of(pairs, split="confirmation") == {"task [a]": len(ITEMS)}


def test_a_comparison_prints_the_items_of_its_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace.create(tmp_path / "w")
    add_run(workspace, "naive", method="naive")
    for name, rate in (("naive.base", 0.2), ("naive", 0.8)):
        evaluate(workspace, name, part("", rate))
    assert main(["compare", "naive", "--workspace", str(workspace.root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("items")).split()[1] == str(len(ITEMS))
    assert main(["compare", "naive", "--workspace", str(workspace.root), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    row = next(r for r in rows if (r["run"], r["metric"]) == ("naive", "unrelated"))
    assert (row["n"], row["n_items"]) == (2 * len(ITEMS), len(ITEMS))


def test_keeping_apart_does_not_depend_on_order_or_repetition() -> None:
    table = both(0.3, 0.7)
    once = keep_apart(table)
    pd.testing.assert_frame_equal(keep_apart(once), once)
    shuffled = keep_apart(table.sample(frac=1, random_state=0))
    pd.testing.assert_frame_equal(shuffled.sort_index(), once)
