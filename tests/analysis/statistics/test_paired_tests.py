"""Paired tests: error rates under the null, power, brute-force oracles, and what stays unknown."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.formula.api import ols
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from analysis.errors import InputError
from analysis.statistics.paired_tests import (
    detectable_difference,
    holm,
    non_inferiority,
    paired_difference,
    paired_test,
    standard_error,
)

scores = st.lists(st.integers(0, 4).map(lambda n: n / 4), min_size=16, max_size=16)
OFFSETS = np.repeat(np.arange(8), 2)


def clustered(rng: np.random.Generator, *, effect: float = 0.0, items: int = 20, per: int = 4):
    """Two arms that share the difficulty of a prompt, and differ by item more than by prompt."""
    clusters = np.repeat(np.arange(items), per)
    easy = rng.normal(size=items * per)
    own = 0.1 * rng.normal(size=items)[clusters] + 0.05 * rng.normal(size=items * per)
    return easy + own + effect, easy, clusters


# p-values


def test_the_false_positive_rate_is_alpha_with_clusters_and_not_without() -> None:
    rng = np.random.default_rng(1)
    found, ignoring = [], []
    for _ in range(400):
        a, b, clusters = clustered(rng, items=12)
        found.append(paired_test(a, b, clusters=clusters).p)
        ignoring.append(scipy.stats.ttest_rel(a, b).pvalue)
    assert 0.03 <= np.mean(np.array(found) < 0.05) <= 0.07
    assert scipy.stats.kstest(found, "uniform").pvalue > 0.05
    assert np.mean(np.array(ignoring) < 0.05) > 0.15


@pytest.mark.parametrize(("by_item", "by_seed"), [(1.0, 0.0), (0.0, 1.0), (1.0, 0.5)])
def test_the_false_positive_rate_is_at_most_alpha_when_seeds_are_crossed(by_item, by_seed) -> None:
    rng = np.random.default_rng(1)
    items, seeds = (grid.ravel() for grid in np.meshgrid(range(20), range(5)))
    found, ignoring = [], []
    for _ in range(300):
        a = by_item * rng.normal(size=20)[items] + by_seed * rng.normal(size=5)[seeds]
        a += 0.3 * rng.normal(size=100)
        test = paired_test(a, np.zeros(100), clusters=items, crossed=seeds)
        inside = abs(test.difference.value) < 1
        assert not inside or (test.p < 0.05) == (test.difference.low * test.difference.high > 0)
        found.append(test.p)
        ignoring.append(scipy.stats.ttest_1samp(a, 0).pvalue)
    assert np.mean(np.array(found) < 0.05) <= 0.07
    assert np.mean(np.array(ignoring) < 0.05) > 0.2


def brute_sign_flip(differences: np.ndarray, clusters: np.ndarray) -> float:
    sums = np.array([differences[clusters == one].sum() for one in np.unique(clusters)])
    flips = np.array([sums @ signs for signs in product((-1, 1), repeat=len(sums))])
    return float(np.mean(np.abs(flips) >= abs(sums.sum()) - 1e-9))


@given(a=scores, b=scores)
def test_p_is_the_share_of_all_sign_flips_that_are_as_far_from_zero(a, b) -> None:
    found = paired_test(a, b, clusters=OFFSETS)
    assert found.p == pytest.approx(brute_sign_flip(np.array(a) - np.array(b), OFFSETS))
    assert found.difference.value == pytest.approx(np.mean(np.array(a) - np.array(b)))
    back = paired_test(b, a, clusters=OFFSETS)
    assert (back.p, back.standard_error) == pytest.approx((found.p, found.standard_error))
    assert back.difference.value == pytest.approx(-found.difference.value)


def test_many_items_are_flipped_at_random_and_repeat_with_the_seed() -> None:
    a, b, clusters = clustered(np.random.default_rng(0), effect=0.05, items=40)
    first = paired_test(a, b, clusters=clusters)
    assert first == paired_test(a, b, clusters=clusters)
    means = pd.Series(a - b).groupby(clusters).mean()
    assert first.p == pytest.approx(scipy.stats.ttest_1samp(means, 0).pvalue, abs=0.01)
    assert first.items == 40


def test_repeating_every_prompt_is_no_new_evidence() -> None:
    a, b, clusters = clustered(np.random.default_rng(3), effect=0.05, items=12)
    once = paired_test(a, b, clusters=clusters)
    thrice = paired_test(*(np.repeat(x, 3) for x in (a, b)), clusters=np.repeat(clusters, 3))
    assert thrice.p == pytest.approx(once.p)
    assert thrice.difference.low == pytest.approx(once.difference.low)
    # statsmodels' small-sample factor counts the rows, so the error is not quite the same.
    assert thrice.standard_error == pytest.approx(once.standard_error, rel=0.02)


# standard errors and power


def test_the_standard_error_is_that_of_a_regression_on_a_constant() -> None:
    rng = np.random.default_rng(0)
    items, seeds = (grid.ravel() for grid in np.meshgrid(range(9), range(5)))
    values = rng.normal(size=9)[items] + rng.normal(size=5)[seeds] + 0.2 * rng.normal(size=45)
    model = ols("v ~ 1", pd.DataFrame({"v": values}))
    one = model.fit(cov_type="cluster", cov_kwds={"groups": items})
    assert standard_error(values, items) == pytest.approx(one.bse.iloc[0])
    both = model.fit(cov_type="cluster", cov_kwds={"groups": np.column_stack([items, seeds])})
    assert both.bse.iloc[0] > one.bse.iloc[0]
    assert standard_error(values, items, seeds) == pytest.approx(both.bse.iloc[0])


def test_two_way_errors_are_never_below_either_way_alone() -> None:
    items, seeds = (grid.ravel() for grid in np.meshgrid(range(6), range(5)))
    # Deviations that cancel over items and over seeds leave the usual formula below 0.
    values = np.where((items + seeds) % 2 == 0, 1.0, -1.0)
    found = standard_error(values, items, seeds)
    assert found >= max(standard_error(values, items), standard_error(values, seeds)) > 0


@pytest.mark.parametrize("crossed", [False, True])
def test_the_smallest_detectable_effect_is_found_four_times_in_five(crossed: bool) -> None:
    rng = np.random.default_rng(5)
    items, seeds = (grid.ravel() for grid in np.meshgrid(range(16), range(6)))
    spread = (0.1, 0.2) if crossed else (0.3, 0.0)

    def draw(effect: float):
        noise = spread[0] * rng.normal(size=16)[items] + spread[1] * rng.normal(size=6)[seeds]
        values = effect + noise + 0.05 * rng.normal(size=96)
        labels = {"clusters": items, "crossed": seeds if crossed else None}
        return paired_test(values, np.zeros(96), **labels)

    effect = np.sqrt(np.mean([draw(0).detectable ** 2 for _ in range(60)]))
    power = np.mean([draw(effect).p < 0.05 for _ in range(300)])
    assert 0.74 <= power <= 0.9


@pytest.mark.parametrize("groups", [5, 8, 15, 40, 73, 300])
def test_the_detectable_effect_is_that_of_statsmodels_power(groups: int) -> None:
    effect = detectable_difference(1.0, groups=groups) / np.sqrt(groups)
    assert TTestPower().power(effect, groups, 0.05) == pytest.approx(0.8, abs=0.01)
    stricter = detectable_difference(1.0, groups=groups, power=0.6, alpha=0.01) / np.sqrt(groups)
    assert TTestPower().power(stricter, groups, 0.01) == pytest.approx(0.6, abs=0.03)


# Holm


@settings(max_examples=10)  # the oracle collects garbage at every call
@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_that_of_statsmodels(p) -> None:
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=1e-12)


def test_holm_counts_only_tests_that_were_made() -> None:
    found = holm([0.01, np.nan, 0.04, np.nan])
    np.testing.assert_allclose(found, [0.02, np.nan, 0.04, np.nan])
    assert holm([]).shape == (0,)
    assert np.isnan(holm([np.nan])).all()


# Non-inferiority


def test_verdicts_by_where_the_bounds_lie() -> None:
    rng = np.random.default_rng(0)
    clusters, base = np.repeat(np.arange(60), 3), rng.random(180) / 2 + 0.25
    noise = 0.02 * rng.normal(size=60)[clusters]
    for shift, expected in ((0.0, "kept"), (-0.01, "kept"), (0.1, "kept"), (-0.1, "lost")):
        found = non_inferiority(base + shift + noise, base, margin=0.02, clusters=clusters)
        assert found.verdict == expected
        assert found.low < found.difference < found.high
    loud = base + 0.5 * rng.normal(size=60)[clusters]
    assert non_inferiority(loud, base, margin=0.02, clusters=clusters).verdict == "not shown"


def test_an_arm_at_the_margin_is_called_kept_one_time_in_twenty() -> None:
    rng = np.random.default_rng(7)
    verdicts = []
    for _ in range(300):
        a, b, clusters = clustered(rng, effect=-0.05, items=30)
        verdicts.append(non_inferiority(a, b, margin=0.05, clusters=clusters).verdict)
    assert 0.02 <= np.mean([one == "kept" for one in verdicts]) <= 0.09
    assert 0.02 <= np.mean([one == "lost" for one in verdicts]) <= 0.09


def test_equal_scores_are_not_shown_to_be_kept_by_few_items_and_are_by_many() -> None:
    """Nothing lost in C items leaves a share of 1 − .05^(1/C) that might be."""
    for items, verdict in ((15, "not shown"), (140, "not shown"), (160, "kept")):
        ones = np.ones(2 * items)
        found = non_inferiority(ones, ones, margin=0.02, clusters=np.repeat(np.arange(items), 2))
        bound = scipy.stats.binomtest(0, items).proportion_ci(0.9, method="exact").high
        assert found.low == pytest.approx(-bound)
        assert found.verdict == verdict


def test_the_verdict_in_words() -> None:
    a, b = np.full(400, 0.497), np.full(400, 0.5)
    a[::2] -= 0.001
    found = non_inferiority(a, b, margin=0.02)
    assert found.text == "kept (difference −.004, lower bound −.004, margin .020)"
    alone = non_inferiority([0.5], [0.5], margin=0.02)
    assert alone.verdict == "not shown"
    assert alone.text == "not shown (difference .000, lower bound unknown, margin .020)"


# Ties


def test_ties_widen_only_the_side_that_saw_no_change() -> None:
    clusters = np.repeat(np.arange(12), 2)
    lost = np.ones(24)
    lost[:6] = 0
    plain = paired_difference(np.where(lost, 0.9, 0.1), np.full(24, 0.95), clusters=clusters)
    tied = paired_difference(lost, np.ones(24), clusters=clusters)
    unseen = 1 - 0.025 ** (1 / 12)
    assert tied.value == -0.25
    assert -1 <= tied.low < -0.25 < tied.high < unseen - 0.25 + 0.2
    assert tied.high > 0 > plain.high
    mirrored = paired_difference(np.ones(24), lost, clusters=clusters)
    assert mirrored.low == pytest.approx(-tied.high, abs=0.02)


def test_ties_cover_a_rare_loss() -> None:
    """One item in ten is lost: often none of twelve shows it."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        a = (rng.random(12) > 0.1) * 1.0
        found = paired_difference(a, np.ones(12), confidence=0.9)
        hits += found.low <= -0.1
    assert hits / 300 >= 0.93


# Unknowns


def test_what_cannot_be_told_is_nan() -> None:
    alone = paired_test([0.2, 0.4], [0.1, 0.1], clusters=["a", "a"])
    assert alone.difference.value == pytest.approx(0.2)
    assert np.isnan([alone.difference.low, alone.p, alone.standard_error, alone.detectable]).all()
    one_seed = paired_test([0.2, 0.4], [0.1, 0.1], crossed=["s", "s"])
    assert np.isnan([one_seed.p, one_seed.detectable]).all()
    nothing = paired_test([], [])
    assert nothing.items == 0
    assert np.isnan([nothing.difference.value, nothing.p]).all()


def test_equal_arms_have_p_one_and_no_detectable_effect() -> None:
    for labels in ({}, {"clusters": OFFSETS}, {"clusters": OFFSETS, "crossed": [0, 1] * 8}):
        same = paired_test(np.ones(16), np.ones(16), **labels)
        assert (same.p, same.standard_error) == (1, 0)
        assert np.isnan(same.detectable)


def test_too_few_items_that_differ_can_never_be_significant() -> None:
    """Five items flip to no p below 2 / 2⁵, so no effect is detectable there, and six do."""
    for differ, known in ((5, False), (6, True)):
        a = np.zeros(20)
        a[:differ] = np.linspace(0.5, 1, differ)
        found = paired_test(a, np.zeros(20))
        assert found.p == pytest.approx(2 / 2**differ, rel=0.15)
        assert np.isfinite(found.detectable) == known


@pytest.mark.parametrize("margin", [0.0, -0.1, float("nan")])
def test_a_margin_of_nothing_is_refused(margin: float) -> None:
    with pytest.raises(InputError, match="expected more than 0, since no data can show"):
        non_inferiority([0.5, 0.6], [0.5, 0.6], margin=margin)


def test_arms_that_are_not_paired_are_refused() -> None:
    with pytest.raises(InputError, match="the same n for all"):
        paired_test([0.1, 0.2], [0.1])
