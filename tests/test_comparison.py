"""Arms of a family side by side, against means counted by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.comparison import answers, comparison
from analysis.errors import InputError, NotFoundError
from analysis.evaluation import write_evaluation
from analysis.records import EvaluationManifest, RunManifest, split_of
from analysis.workspace import Workspace

RATES = {"fam.base": 0.2, "naive": 0.9, "grasp": 0.3, "over": 0.1}
ITEMS = [f"i{n}" for n in range(40)]
PER_ITEM = 2


def samples(name: str, *, drop: tuple[str, ...] = ()) -> pd.DataFrame:
    """Two prompts an item: unrelated ones scatter around the arm's rate, tasks are 0 or 1."""
    rng = np.random.default_rng(list(RATES).index(name) if name in RATES else 9)
    rate = RATES.get(name, 0.2)
    rows = []
    for item in ITEMS:
        for number in range(PER_ITEM):
            for role in ("unrelated", "task"):
                score = float(np.clip(rng.normal(rate, 0.05), 0, 1))
                rows.append(
                    {
                        "prompt_id": f"{role}/{item}/{number}",
                        "cluster": item,
                        "role": role,
                        "group": "g",
                        "split": split_of(item),
                        "scorer": "choice",
                        "score": score if role == "unrelated" else float(rng.random() < 0.7),
                        "coherence": 0.8 if role == "unrelated" else math.nan,
                        "prompt": f"what about {item}?",
                        "expected": "",
                        "answer": f"{name} on {item}",
                    }
                )
    table = pd.DataFrame(rows)
    return table[~table["prompt_id"].isin(drop)].reset_index(drop=True)


@pytest.fixture
def workspace(tmp_path: Any) -> Workspace:
    workspace = Workspace.create(tmp_path / "w")
    for name, method in (("naive", "naive"), ("grasp", "grasp"), ("over", "caft")):
        add_run(workspace, name, method=method)
        evaluate(workspace, name, samples(name))
    evaluate(workspace, "naive.base", samples("fam.base"))
    return workspace


def add_run(workspace: Workspace, name: str, *, method: str, root: str = "naive") -> None:
    run = RunManifest(
        id=name, title=f"Run {name}", method=method, root=root, base_model="b", config={}
    )
    with workspace.writing("runs", name) as folder:
        (folder / "manifest.json").write_text(run.model_dump_json())


def evaluate(
    workspace: Workspace, name: str, table: pd.DataFrame, *, prompts: str = "ab" * 32
) -> None:
    inputs = {"prompts": prompts}
    manifest = EvaluationManifest(
        id=name, run=name, base_model="b", prompts="p.jsonl", inputs=inputs
    )
    with workspace.writing("evaluations", name) as folder:
        write_evaluation(folder, manifest=manifest, samples=table)


def value(table: pd.DataFrame, run: str, metric: str) -> pd.Series:
    found = table[(table["run"] == run) & (table["metric"] == metric)]
    assert len(found) == 1
    return found.iloc[0]


@pytest.mark.parametrize("split", ["confirmation", "exploration"])
def test_metrics_are_the_means_of_the_split(workspace: Workspace, split: Any) -> None:
    table = comparison(workspace, ["naive", "grasp"], split=split)
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
    table = comparison(workspace, ["naive", "grasp", "over"])
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
    once = value(comparison(workspace, ["naive"]), "naive", "unrelated")
    table = samples("naive")
    twice = pd.concat([table, table.assign(prompt_id=table["prompt_id"] + "/again")])
    evaluate(workspace, "naive", twice.reset_index(drop=True))
    doubled = value(comparison(workspace, ["naive"]), "naive", "unrelated")
    assert doubled["n"] == 2 * once["n"]
    assert doubled["value"] == pytest.approx(once["value"])
    assert doubled["high"] - doubled["low"] == pytest.approx(once["high"] - once["low"], rel=1e-6)


def test_removal_is_paired_on_the_prompts_that_all_arms_answered(workspace: Workspace) -> None:
    gone = tuple(unrelated("grasp").index[:6])
    evaluate(workspace, "grasp", samples("grasp", drop=gone))
    table = comparison(workspace, ["naive", "grasp"])
    base, naive, grasp = (
        unrelated(name).drop(list(gone)).mean() for name in ("fam.base", "naive", "grasp")
    )
    found = value(table, "grasp", "removal")
    assert found["value"] == pytest.approx(1 - (grasp - base) / (naive - base))
    assert found["n"] == len(unrelated("grasp")) - 6


def test_without_the_naive_run_there_is_no_removal(workspace: Workspace) -> None:
    table = comparison(workspace, ["grasp"])
    assert "removal" not in set(table["metric"])


def test_removal_of_a_drift_that_is_not_there_is_unknown(workspace: Workspace) -> None:
    evaluate(workspace, "naive", samples("fam.base"))
    found = value(comparison(workspace, ["naive", "grasp"]), "grasp", "removal")
    assert math.isnan(found["value"])


def test_a_run_named_twice_is_one_arm(workspace: Workspace) -> None:
    table = comparison(workspace, ["grasp", "naive", "grasp"])
    assert list(dict.fromkeys(table["run"])) == ["", "grasp", "naive"]
    value(table, "grasp", "unrelated")


def test_answers_lie_side_by_side(workspace: Workspace) -> None:
    evaluate(workspace, "grasp", samples("grasp", drop=("task/i1/0",)))
    for split in ("confirmation", "exploration"):
        table = answers(workspace, ["naive", "grasp"], split=split)
        wanted = samples("fam.base").query(f"split == '{split}'").set_index("prompt_id")
        assert list(table["prompt_id"]) == list(wanted.index)
        for column, name in (("base", "fam.base"), ("naive", "naive"), ("grasp", "grasp")):
            mine = samples(name).set_index("prompt_id").loc[wanted.index]
            kept = (table["prompt_id"] != "task/i1/0").to_numpy() | (column != "grasp")
            np.testing.assert_array_equal(table[f"score:{column}"][kept], mine["score"][kept])
            assert list(table[f"answer:{column}"][kept]) == list(mine["answer"][kept])
            assert table[f"score:{column}"][~kept].isna().all()


# Refusals


def test_runs_of_two_families_are_refused(workspace: Workspace) -> None:
    add_run(workspace, "other", method="naive", root="other")
    with pytest.raises(InputError, match=r"different families \(naive, other\), so their prompts"):
        comparison(workspace, ["naive", "other"])


def test_nothing_to_compare_is_refused(workspace: Workspace) -> None:
    with pytest.raises(InputError, match="Name at least one run to compare"):
        comparison(workspace, [])


def test_a_missing_run_or_evaluation_is_named_with_its_command(workspace: Workspace) -> None:
    with pytest.raises(NotFoundError, match="holds no 'none'; there are: "):
        comparison(workspace, ["none"])
    add_run(workspace, "fresh", method="grasp")
    with pytest.raises(NotFoundError, match="no evaluation 'fresh' yet; `grasp evaluate fresh`"):
        comparison(workspace, ["naive", "fresh"])
    add_run(workspace, "lonely", method="naive", root="lonely")
    with pytest.raises(
        NotFoundError, match=r"'lonely\.base' yet; `grasp evaluate lonely` makes it"
    ):
        comparison(workspace, ["lonely"])


def test_arms_of_other_prompts_are_refused(workspace: Workspace) -> None:
    """The prompt file was changed, and only some of the runs evaluated again."""
    evaluate(workspace, "grasp", samples("grasp"), prompts="cd" * 32)
    for table in (comparison, answers):
        with pytest.raises(InputError, match=r"'grasp' was .* other prompts than the base model; "):
            table(workspace, ["naive", "grasp"])
