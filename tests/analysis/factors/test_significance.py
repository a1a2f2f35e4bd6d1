"""Effects with intervals, what they make significant, and the sentence about it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.errors import InputError
from analysis.factors.routes import fill_columns
from analysis.factors.set_back import SetBack, effect_bounds
from analysis.factors.significance import (
    MIN_EFFECT,
    Effects,
    add_effects,
    add_explanations,
    explain_factor,
)
from analysis.statistics.intervals import bootstrap_mean

NAN = float("nan")


def answers(
    effects: list[float], *, n: int = 40, spread: float = 0.02, seed: int = 0, items: int = 10
) -> SetBack:
    """`n` answers about `items` things; fine-tuning changed every word fully (d = 1)."""
    rng = np.random.default_rng(seed)
    largest = np.clip(
        np.asarray(effects)[:, None] + spread * rng.standard_normal((len(effects), n)), 0, 1
    )
    clusters = tuple(f"item {i % items}" for i in range(n))
    return SetBack(largest.copy(), np.ones(n), largest, clusters)


def rows(*energy: bool) -> pd.DataFrame:
    table = pd.DataFrame({"id": [f"w{i + 1}" for i in range(len(energy))]})
    return fill_columns(table.assign(significant_energy=energy, significant=energy))


# Shares, effects and intervals


def test_shares_and_effects_by_hand() -> None:
    found = SetBack(
        carried=np.array([[0.2, 0.1], [0.0, 0.3]]),
        changed=np.array([0.5, 0.1]),
        largest=np.array([[0.4, 0.2], [0.0, 0.6]]),
        clusters=("a", "b"),
    )
    np.testing.assert_allclose(found.shares, [0.5, 0.5])
    np.testing.assert_allclose(found.effects, [0.3, 0.3])
    unchanged = SetBack(np.zeros((1, 2)), np.zeros(2), np.zeros((1, 2)), ("a", "b"))
    assert np.isnan(unchanged.shares).all()
    assert np.isnan(effect_bounds(unchanged).share_low).all()
    assert effect_bounds(unchanged).effect_high == [0]


def test_intervals_of_a_mean_are_those_of_the_clustered_bootstrap() -> None:
    """Oracle: analysis.statistics.intervals, which has one column and no ratio."""
    found = answers([0.3, 0.6], spread=0.2)
    ends = effect_bounds(found, seed=3)
    for k in range(2):
        one = bootstrap_mean(found.largest[k], clusters=found.clusters, seed=3)
        assert (ends.effect_low[k], ends.effect_high[k]) == pytest.approx((one.low, one.high))
        # With d = 1 at every word a share is a mean too.
        assert (ends.share_low[k], ends.share_high[k]) == pytest.approx((one.low, one.high))


def test_answers_about_one_thing_count_as_one() -> None:
    wide, narrow = (
        effect_bounds(
            SetBack(values, np.ones(40), values, tuple(str(i // size) for i in range(40)))
        )
        for size in (10, 1)
        for values in [np.repeat([[0.1, 0.5, 0.3, 0.9]], 10, axis=1)]
    )
    assert wide.effect_high - wide.effect_low > 1.5 * (narrow.effect_high - narrow.effect_low)


def test_intervals_cover_the_truth_at_the_nominal_rate() -> None:
    hits = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        by_item = np.repeat(rng.uniform(0.1, 0.5, 24), 4)
        values = by_item[None] + 0.05 * rng.standard_normal((1, 96))
        names = tuple(str(i // 4) for i in range(96))
        ends = effect_bounds(SetBack(values, np.ones(96), values, names), seed=seed)
        hits.append(ends.effect_low[0] <= 0.3 <= ends.effect_high[0])
    # 95 % of 200; fewer than 180 or none missed has probability below 0.01.
    assert 180 <= sum(hits) < 200


def test_one_cluster_has_no_interval() -> None:
    ends = effect_bounds(answers([0.5], items=1))
    assert np.isnan([ends.share_low, ends.share_high, ends.effect_low, ends.effect_high]).all()


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"Got arrays \(1, 2\), \(3,\) and \(1, 2\)"):
        effect_bounds(SetBack(np.ones((1, 2)), np.ones(3), np.ones((1, 2)), ("a", "b")))


# Significance


def test_an_effect_is_significant_above_random_directions_and_the_floor() -> None:
    off = answers([0.4, 0.4, 0.09, 0.03])
    found = add_effects(
        rows(True, False, True, True, True),
        Effects([0, 1, 2, 3], off, answers([0.1] * 4), answers([0.1, 0.02], spread=0)),
    )
    # In this order: both, energy within the band, within random directions, not measured.
    assert found["significant_effect"].tolist()[:4] == [True, True, False, False]
    assert found["significant_effect"].isna().tolist() == [False] * 4 + [True]
    assert found["significant"].tolist() == [True, False, False, False, False]
    assert found["significant_energy"].tolist() == [True, False, True, True, True]
    assert found["effect_random"].iloc[0] == pytest.approx(0.1)
    np.testing.assert_allclose(found["off_task"][:4], off.shares)
    assert found.loc[4, ["off_task", "on_task", "effect", "effect_low"]].isna().all()
    assert (found["effect_low"][:4] < found["effect"][:4]).all()


@given(st.floats(0.001, 0.2))
def test_the_floor_holds_where_random_directions_do_nothing(effect: float) -> None:
    """Without spread the lower end is the effect itself."""
    found = add_effects(
        rows(True),
        Effects([0], answers([effect], spread=0), answers([0.1]), answers([0.0], spread=0)),
    )
    assert found["significant_effect"].iloc[0] == (found["effect_low"].iloc[0] > MIN_EFFECT)
    if abs(effect - MIN_EFFECT) > 1e-6:
        assert found["significant"].iloc[0] == (effect > MIN_EFFECT)


def test_an_effect_without_an_interval_is_not_significant() -> None:
    found = add_effects(
        rows(True),
        Effects([0], answers([0.9], items=1), answers([0.1]), answers([0.0])),
    )
    assert found["significant_effect"].tolist() == [False]


# Words


def row(**values: Any) -> dict[str, Any]:
    plain = fill_columns(pd.DataFrame({"id": ["e1"]})).to_dict("records")[0]
    known = {"singular_value": 0.88, "null_high": 0.5, "stability": 0.93, "first_order": 0.31}
    effects = {"off_task": 0.41, "off_low": 0.352, "off_high": 0.468, "on_task": 0.06}
    return plain | known | effects | {"significant_effect": True} | values


def test_a_factor_is_explained_in_one_sentence() -> None:
    assert explain_factor(row()) == (
        "Setting e1 back undoes 41 % [35, 47] of the change on unrelated prompts and 6 % on the "
        "task; stable (.93) over checkpoints and seeds; energy 3.1 × the null band."
    )
    assert "on the task, an effect that is not significant; stable" in explain_factor(
        row(significant_effect=False)
    )
    assert "partly stable (.70)" in explain_factor(row(stability=0.7))
    assert "not stable (.30)" in explain_factor(row(stability=0.3))
    assert "undoes 41 % of the change" in explain_factor(row(off_low=NAN, off_high=NAN))


def test_what_is_unknown_is_not_explained() -> None:
    unmeasured = row(off_task=NAN, on_task=NAN, off_low=NAN, significant_effect=pd.NA)
    assert explain_factor(unmeasured) == (
        "Its first-order share off the task is 31 %; its effect was not measured; stable (.93) "
        "over checkpoints and seeds; energy 3.1 × the null band."
    )
    weights = unmeasured | {"first_order": NAN, "stability": NAN}
    assert explain_factor(weights) == "Energy 3.1 × the null band."
    table = add_explanations(fill_columns(pd.DataFrame({"id": ["w1", "w2"]})))
    assert table["explanation"].tolist() == ["Nothing was measured."] * 2
