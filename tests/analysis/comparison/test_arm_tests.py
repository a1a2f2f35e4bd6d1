"""Arms on pooled tables: how rows are paired, what is one cluster, who dominates whom."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.comparison.arm_tests import (
    TEST_COLUMNS,
    arm_removal,
    compare_with_reference,
    find_dominations,
    pair_scores,
    reference_table,
)
from analysis.errors import InputError
from analysis.statistics.intervals import removal
from analysis.statistics.paired_tests import paired_test

RATES = {"base": 0.2, "naive": 0.9, "grasp": 0.3, "caft": 0.6, "broken": 0.2}
SEEDS = range(5)


def arm(name: str, *, task: float = 0.9, down: bool = False, items: int = 30) -> pd.DataFrame:
    """Two prompts an item and role, in five seeds, around the arm's rate and task accuracy."""
    rng = np.random.default_rng(list(RATES).index(name))
    rate = 1 - RATES[name] if down else RATES[name]
    rows = []
    for seed in SEEDS:
        for item in range(items):
            for role, mean in (("unrelated", rate), ("task", task)):
                rows += [
                    {
                        "prompt_id": f"{role}/{item}/{n}",
                        "cluster": f"{role}/{item}",
                        "role": role,
                        "score": mean + 0.02 * rng.normal(),
                        "coherence": 0.9 + 0.01 * rng.normal() if role == "unrelated" else np.nan,
                        "seed": seed,
                    }
                    for n in range(2)
                ]
    return pd.DataFrame(rows)


@pytest.fixture
def arms() -> dict[str, pd.DataFrame]:
    return {name: arm(name, task=0.5 if name == "broken" else 0.9) for name in RATES}


def test_scores_are_paired_by_prompt_and_seed_whatever_the_order(arms) -> None:
    first, second = arms["grasp"], arms["naive"].sample(frac=1, random_state=0)
    second = second[~((second["prompt_id"] == "unrelated/3/0") & (second["seed"] == 2))]
    found = pair_scores([first, second], "unrelated")
    assert found.scores.shape == (30 * 2 * 5 - 1, 2)
    key = ["prompt_id", "seed"]
    merged = first[first["role"] == "unrelated"].merge(second, on=key, suffixes=("", "_b"))
    gaps = (merged["score"] - merged["score_b"]).to_numpy()
    np.testing.assert_allclose(np.sort(found.scores[:, 0] - found.scores[:, 1]), np.sort(gaps))
    assert len(set(found.clusters)) == 30
    assert set(found.crossed) == {str(seed) for seed in SEEDS}


def test_worlds_have_items_and_fine_tunes_of_their_own(arms) -> None:
    tables = []
    for name in ("grasp", "naive"):
        worlds = [arms[name].assign(world=world, story="s") for world in ("a", "b")]
        tables.append(pd.concat(worlds))
    found = pair_scores(tables, "unrelated")
    assert len(found.scores) == 2 * 30 * 2 * 5
    assert len(set(found.clusters)) == 60
    assert len(set(found.crossed)) == 10
    with pytest.raises(InputError, match=r"A prompt occurs twice in one arm .* world, story, seed"):
        pair_scores([table.drop(columns="world") for table in tables], "unrelated")


def test_without_seeds_nothing_is_crossed(arms) -> None:
    tables = [arms[name].query("seed == 0").drop(columns="seed") for name in ("grasp", "naive")]
    assert pair_scores(tables, "task").crossed is None


def test_every_arm_is_tested_on_every_metric_as_by_hand(arms) -> None:
    found = compare_with_reference(arms, reference="naive")
    assert {(one.arm, one.metric) for one in found} == {
        (name, metric)
        for name in RATES
        if name != "naive"
        for metric in ("unrelated", "task", "coherence")
    }
    by_name = {(one.arm, one.metric): one for one in found}
    paired = pair_scores([arms["caft"], arms["naive"]], "unrelated")
    direct = paired_test(*paired.scores.T, clusters=paired.clusters, crossed=paired.crossed)
    assert by_name["caft", "unrelated"].test == direct
    assert by_name["broken", "task"].kept.verdict == "lost"
    assert by_name["grasp", "task"].kept.verdict == "kept"
    assert by_name["grasp", "unrelated"].kept is None
    ps = sorted(one.test.p for one in found if one.metric == "coherence")
    adjusted = sorted(one.p_holm for one in found if one.metric == "coherence")
    assert adjusted[0] == pytest.approx(min(1, 4 * ps[0]))


def test_the_table_of_tests_has_its_columns_even_when_empty(arms) -> None:
    table = reference_table(compare_with_reference(arms, reference="naive"))
    assert list(table.columns) == ["arm", "metric", *TEST_COLUMNS]
    assert (table[table["metric"] == "unrelated"]["verdict"] == "").all()
    assert list(reference_table([]).columns) == list(table.columns)


def test_a_reference_that_is_no_arm_is_refused(arms) -> None:
    with pytest.raises(InputError, match="There is no arm 'nobody' to compare with"):
        compare_with_reference(arms, reference="nobody")


def test_removal_of_pooled_tables_is_the_ratio_by_seed_and_item(arms) -> None:
    found, reason = arm_removal(arms["base"], arms["naive"], arms["grasp"])
    assert found.value == pytest.approx(1 - 0.1 / 0.7, abs=0.01)
    assert reason == ""
    tables = [arms[name] for name in ("base", "naive", "grasp")]
    direct = removal(*(t[t["role"] == "unrelated"]["score"].to_numpy() for t in tables))
    assert found.value == pytest.approx(direct.value)
    nothing, why = arm_removal(arms["base"], arms["base"], arms["grasp"])
    assert np.isnan(nothing.value)
    assert "no drift" in why


@pytest.mark.parametrize("down", [False, True])
def test_domination_is_less_drift_with_the_task_kept(down: bool) -> None:
    """Whichever way the naive run drifts."""
    arms = {n: arm(n, down=down, task=0.5 if n == "broken" else 0.9) for n in RATES}
    found = find_dominations(arms, base="base", naive="naive")
    assert len(found) == 4 * 3
    assert {(one.arm, one.other) for one in found if one.shown} == {
        ("grasp", "naive"),
        ("grasp", "caft"),
        ("caft", "naive"),
    }
    by_pair = {(one.arm, one.other): one for one in found}
    there, back = by_pair["grasp", "caft"], by_pair["caft", "grasp"]
    assert there.less_drift.value == pytest.approx(0.3, abs=0.01)
    assert back.less_drift.low == -there.less_drift.high
    assert back.p_holm == there.p_holm >= there.p
    assert by_pair["broken", "grasp"].less_drift.value > 0
    assert by_pair["broken", "grasp"].task.verdict == "lost"


def test_nothing_dominates_where_naive_does_not_drift(arms) -> None:
    arms["naive"] = arms["base"]
    assert find_dominations(arms, base="base", naive="naive") == []
