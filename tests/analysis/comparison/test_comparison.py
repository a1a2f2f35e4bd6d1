"""Arms of a family side by side, against means counted by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.comparison.arm_tests import TEST_COLUMNS
from analysis.comparison.comparison import (
    arm_answers,
    compare_arms,
    find_dominated_runs,
    find_flips,
)
from analysis.errors import InputError, NotFoundError
from analysis.store.workspace import Workspace
from tests.support.families import add_run, build, evaluate, samples


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return build(tmp_path / "w")


def value(table: pd.DataFrame, run: str, metric: str) -> pd.Series:
    found = table[(table["run"] == run) & (table["metric"] == metric)]
    assert len(found) == 1
    return found.iloc[0]


@pytest.mark.parametrize("split", ["confirmation", "exploration"])
def test_metrics_are_the_means_of_the_split(workspace: Workspace, split: Any) -> None:
    table = compare_arms(workspace, ["naive", "grasp"], split=split)
    assert list(dict.fromkeys(table["run"])) == ["", "naive", "grasp"]
    assert list(dict.fromkeys(table["label"])) == ["Base model", "Run naive", "Run grasp"]
    for run, name in (("", "fam.base"), ("naive", "naive"), ("grasp", "grasp")):
        mine = samples(name)
        mine = mine[mine["split"] == split]
        for role in ("unrelated", "task"):
            scores = mine[mine["role"] == role]["score"]
            found = value(table, run, role)
            assert found["value"] == pytest.approx(scores.mean())
            assert found["n"] == len(scores) > 20
            assert found["low"] < found["value"] < found["high"]
        assert value(table, run, "coherence")["value"] == pytest.approx(0.8)


def unrelated(name: str) -> pd.Series:
    table = samples(name).query("split == 'confirmation' and role == 'unrelated'")
    return table.set_index("prompt_id")["score"]


def test_removal_is_one_minus_the_ratio_of_drifts(workspace: Workspace) -> None:
    table = compare_arms(workspace, ["naive", "grasp", "over"])
    base, drift = unrelated("fam.base").mean(), {}
    for name in ("naive", "grasp", "over"):
        drift[name] = unrelated(name).mean() - base
        found = value(table, name, "removal")
        assert found["value"] == pytest.approx(1 - drift[name] / drift["naive"])
        assert found["low"] <= found["value"] <= found["high"]
    assert value(table, "naive", "removal")["value"] == 0
    assert 0.8 < value(table, "grasp", "removal")["value"] < 0.9
    assert value(table, "over", "removal")["value"] > 1
    assert "removal" not in set(table[table["run"] == ""]["metric"])


def test_intervals_are_clustered_by_item(workspace: Workspace) -> None:
    """Doubling every prompt of an item is no new evidence, so the interval stays."""
    once = value(compare_arms(workspace, ["naive"]), "naive", "unrelated")
    table = samples("naive")
    twice = pd.concat([table, table.assign(prompt_id=table["prompt_id"] + "/again")])
    evaluate(workspace, "naive", twice.reset_index(drop=True))
    doubled = value(compare_arms(workspace, ["naive"]), "naive", "unrelated")
    assert doubled["n"] == 2 * once["n"]
    assert doubled["value"] == pytest.approx(once["value"])
    assert doubled["high"] - doubled["low"] == pytest.approx(once["high"] - once["low"], rel=1e-6)


def test_removal_is_paired_on_the_prompts_that_all_arms_answered(workspace: Workspace) -> None:
    gone = tuple(unrelated("grasp").index[:6])
    evaluate(workspace, "grasp", samples("grasp", drop=gone))
    table = compare_arms(workspace, ["naive", "grasp"])
    base, naive, grasp = (
        unrelated(name).drop(list(gone)).mean() for name in ("fam.base", "naive", "grasp")
    )
    found = value(table, "grasp", "removal")
    assert found["value"] == pytest.approx(1 - (grasp - base) / (naive - base))
    assert found["n"] == len(unrelated("grasp")) - 6


def test_without_the_naive_run_there_is_no_removal(workspace: Workspace) -> None:
    table = compare_arms(workspace, ["grasp"])
    assert "removal" not in set(table["metric"])
    assert table[["p", "p_holm", "difference", "bound"]].isna().all(axis=None)
    assert set(table["verdict"]) == {""}
    assert find_dominated_runs(workspace, ["grasp"]) == []


def test_removal_of_a_drift_that_is_not_there_is_unknown(workspace: Workspace) -> None:
    evaluate(workspace, "naive", samples("fam.base"))
    table = compare_arms(workspace, ["naive", "grasp"])
    found = value(table, "grasp", "removal")
    assert math.isnan(found["value"])
    assert "the naive run shows no drift on these prompts, so removal is undefined" in found["note"]
    assert set(table[table["metric"] != "removal"]["note"]) == {""}
    assert find_dominated_runs(workspace, ["naive", "grasp"]) == []


def by_item(name: str, role: str) -> pd.Series:
    """Mean confirmation score of each item, oldest first."""
    table = samples(name).query(f"split == 'confirmation' and role == '{role}'")
    return table.groupby("cluster", sort=False)["score"].mean()


def test_arms_are_tested_against_naive_by_item(workspace: Workspace) -> None:
    table = compare_arms(workspace, ["naive", "grasp", "over"])
    assert list(table.columns[9:-1]) == list(TEST_COLUMNS)
    for run in ("grasp", "over"):
        for role in ("unrelated", "task"):
            found = value(table, run, role)
            gaps = by_item(run, role) - by_item("naive", role)
            assert found["difference"] == pytest.approx(gaps.mean())
            assert found["items"] == len(gaps)
            assert found["difference_low"] < found["difference"] < found["difference_high"]
            assert found["detectable"] == pytest.approx(2.9 * gaps.sem(), rel=0.1)
    drifts = table[(table["metric"] == "unrelated") & (table["run"] != "naive")]
    # Three tests, each at the least p of random flips, 2 / 10⁴: Holm's makes it three times that.
    assert (drifts["p"] < 0.001).all()
    assert (drifts["p_holm"] >= 3 * drifts["p"].min()).all()
    assert math.isnan(value(table, "naive", "unrelated")["p"])


def test_verdicts_are_there_for_what_should_be_kept(workspace: Workspace) -> None:
    lower = samples("naive")
    lower.loc[lower["role"] == "task", "score"] = 0.0
    evaluate(workspace, "over", lower)
    table = compare_arms(workspace, ["naive", "grasp", "over"])
    assert value(table, "over", "task")["verdict"] == "lost"
    assert value(table, "over", "coherence")["verdict"] == "not shown"  # ties, of few items
    assert value(table, "grasp", "unrelated")["verdict"] == ""
    assert (table[table["verdict"] != ""]["margin"] == 0.02).all()
    for row in table[table["verdict"] == "kept"].to_dict("records"):
        assert row["bound"] > -0.02


def test_domination_needs_less_drift_and_the_task_kept(workspace: Workspace) -> None:
    same = samples("naive")
    for run, better in (("grasp", 0.01), ("over", 0.005)):
        mine = samples(run)
        mine.loc[mine["role"] == "task", "score"] = same[same["role"] == "task"]["score"] + better
        evaluate(workspace, run, mine)
    found = {
        (one.arm, one.other) for one in find_dominated_runs(workspace, ["naive", "grasp", "over"])
    }
    assert found == {("grasp", "naive"), ("over", "naive"), ("over", "grasp")}
    broken = samples("over")
    broken.loc[broken["role"] == "task", "score"] = 0.0
    evaluate(workspace, "over", broken)
    found = {
        (one.arm, one.other) for one in find_dominated_runs(workspace, ["naive", "grasp", "over"])
    }
    assert found == {("grasp", "naive")}


def test_a_run_named_twice_is_one_arm(workspace: Workspace) -> None:
    table = compare_arms(workspace, ["grasp", "naive", "grasp"])
    assert list(dict.fromkeys(table["run"])) == ["", "grasp", "naive"]
    value(table, "grasp", "unrelated")


def test_answers_lie_side_by_side(workspace: Workspace) -> None:
    evaluate(workspace, "grasp", samples("grasp", drop=("task/i1/0",)))
    for split in ("confirmation", "exploration"):
        table = arm_answers(workspace, ["naive", "grasp"], split=split)
        wanted = samples("fam.base").query(f"split == '{split}'").set_index("prompt_id")
        assert list(table["prompt_id"]) == list(wanted.index)
        for column, name in (("base", "fam.base"), ("naive", "naive"), ("grasp", "grasp")):
            mine = samples(name).set_index("prompt_id").loc[wanted.index]
            kept = (table["prompt_id"] != "task/i1/0").to_numpy() | (column != "grasp")
            np.testing.assert_array_equal(table[f"score:{column}"][kept], mine["score"][kept])
            assert list(table[f"answer:{column}"][kept]) == list(mine["answer"][kept])
            assert table[f"score:{column}"][~kept].isna().all()


def test_flips_are_prompts_on_the_other_side(whole: Workspace) -> None:
    table = arm_answers(whole, ["code-naive", "code-grasp"])
    found = find_flips(table, arm="code-grasp", against="code-naive", threshold=0.5)
    assert len(found)
    assert ((found["score:code-naive"] > 0.5) != (found["score:code-grasp"] > 0.5)).all()
    size = (found["score:code-grasp"] - found["score:code-naive"]).abs().to_numpy()
    assert (np.diff(size) <= 0).all()
    same = find_flips(table, arm="code-naive", against="code-naive", threshold=0.5)
    assert same.empty


# Refusals


def test_runs_of_two_families_are_refused(workspace: Workspace) -> None:
    add_run(workspace, "other", method="naive", root="other")
    with pytest.raises(InputError, match=r"different families \(naive, other\), whose prompts"):
        compare_arms(workspace, ["naive", "other"])


def test_nothing_to_compare_is_refused(workspace: Workspace) -> None:
    with pytest.raises(InputError, match="There is no run to compare"):
        compare_arms(workspace, [])


def test_a_missing_run_or_evaluation_is_named_with_its_command(workspace: Workspace) -> None:
    with pytest.raises(NotFoundError, match="has no 'none'; it has: "):
        compare_arms(workspace, ["none"])
    add_run(workspace, "fresh", method="grasp")
    with pytest.raises(
        NotFoundError, match="no evaluation 'fresh' yet; run `grasp evaluate fresh`"
    ):
        compare_arms(workspace, ["naive", "fresh"])
    add_run(workspace, "lonely", method="naive", root="lonely")
    with pytest.raises(NotFoundError, match=r"'lonely\.base' yet; run `grasp evaluate lonely`"):
        compare_arms(workspace, ["lonely"])


def test_arms_of_other_prompts_are_refused(workspace: Workspace) -> None:
    """The prompt file was changed, and only some of the runs evaluated again."""
    evaluate(workspace, "grasp", samples("grasp"), prompts="cd" * 32)
    for table in (compare_arms, arm_answers):
        with pytest.raises(InputError, match=r"'grasp' was .* other prompts than the base model; "):
            table(workspace, ["naive", "grasp"])
