"""Intervals: known cases, oracles, coverage, and what stays unknown."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from analysis.errors import InputError
from analysis.statistics.intervals import (
    Interval,
    auc,
    bootstrap_difference,
    bootstrap_mean,
    explain_no_removal,
    negate,
    rate,
    removal,
    wilson,
)
from analysis.statistics.resampling import expanded_tail

numbers = st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=20)
FEW = 400


def holds(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


@given(n=st.integers(1, 500), data=st.data(), confidence=st.floats(0.5, 0.999))
def test_wilson_solves_its_equation_within_the_unit_interval(n, data, confidence) -> None:
    successes = data.draw(st.integers(0, n))
    found = wilson(successes, n, confidence=confidence)
    assert 0 <= found.low <= found.value <= found.high <= 1
    z = scipy.stats.norm.ppf((1 + confidence) / 2)
    for bound in (found.low, found.high):
        assert n * (found.value - bound) ** 2 == pytest.approx(z**2 * bound * (1 - bound), abs=1e-6)


def test_wilson_of_nothing_is_unknown() -> None:
    found = wilson(0, 0)
    assert np.isnan([found.value, found.low, found.high]).all()
    assert found.n == 0


def test_the_bootstrap_is_that_of_scipy() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=120)
    ours = bootstrap_mean(values, n_resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    spread = values.std() / np.sqrt(values.size)  # bounds of a t with 119 df: 2 % further out
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.08 * spread)
    assert ours.high == pytest.approx(theirs.high, abs=0.08 * spread)


def test_the_bootstrap_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    plain = [
        holds(bootstrap_mean(rng.normal(size=60), seed=i, n_resamples=FEW), 0) for i in range(200)
    ]
    assert 0.89 <= np.mean(plain) <= 0.99


def test_clusters_widen_the_interval_to_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(40), 5)
    clustered, naive = [], []
    for i in range(150):
        values = np.repeat(rng.normal(size=40), 5) + 0.3 * rng.normal(size=200)
        clustered.append(
            holds(bootstrap_mean(values, clusters=clusters, seed=i, n_resamples=FEW), 0)
        )
        naive.append(holds(bootstrap_mean(values, seed=i, n_resamples=FEW), 0))
    assert 0.87 <= np.mean(clustered) <= 0.99
    assert np.mean(naive) < 0.75


def test_crossed_seeds_and_prompts_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    prompts, seeds = (grid.ravel() for grid in np.meshgrid(range(30), range(12)))
    crossed, prompts_only = [], []
    for i in range(120):
        values = rng.normal(size=30)[prompts] + rng.normal(size=12)[seeds]
        both = bootstrap_mean(values, clusters=prompts, crossed=seeds, seed=i, n_resamples=FEW)
        crossed.append(holds(both, 0))
        one = bootstrap_mean(values, clusters=prompts, seed=i, n_resamples=FEW)
        prompts_only.append(holds(one, 0))
    assert 0.85 <= np.mean(crossed) <= 1.0
    assert np.mean(prompts_only) < 0.85


@pytest.mark.parametrize(("groups", "least"), [(5, 0.88), (8, 0.92), (15, 0.92)])
def test_few_clusters_cover_the_truth(groups: int, least: float) -> None:
    """Plain percentiles cover .84, .89 and .91."""
    rng = np.random.default_rng(2)
    hits = [
        holds(bootstrap_mean(rng.normal(size=groups), seed=i, n_resamples=FEW), 0)
        for i in range(400)
    ]
    assert least <= np.mean(hits) <= 0.985


def test_seeds_that_differ_are_covered_by_five_of_them() -> None:
    rng = np.random.default_rng(3)
    prompts, seeds = (grid.ravel() for grid in np.meshgrid(range(20), range(5)))
    hits = []
    for i in range(200):
        values = 0.1 * rng.normal(size=20)[prompts] + rng.normal(size=5)[seeds]
        found = bootstrap_mean(values, clusters=prompts, crossed=seeds, seed=i, n_resamples=FEW)
        hits.append(holds(found, 0))
    assert 0.88 <= np.mean(hits) <= 0.99


@given(tail=st.floats(0.005, 0.2), groups=st.integers(5, 400))
def test_expanded_tails_are_those_of_t_and_shrink_to_the_plain_ones(tail, groups) -> None:
    found = expanded_tail(tail, groups=groups)
    z, t = scipy.stats.norm.ppf(found), scipy.stats.t.ppf(tail, groups - 1)
    assert z * np.sqrt((groups - 1) / groups) == pytest.approx(t, rel=1e-6)
    assert found < expanded_tail(tail, groups=groups + 1) < tail
    assert 0 <= expanded_tail(tail, groups=2) <= expanded_tail(tail, groups=3)
    assert expanded_tail(tail, groups=10**6) == pytest.approx(tail, rel=1e-4)


def test_repeating_every_value_in_its_cluster_changes_nothing() -> None:
    values = np.random.default_rng(0).normal(size=50)
    once = bootstrap_mean(values)
    thrice = bootstrap_mean(np.repeat(values, 3), clusters=np.repeat(np.arange(50), 3))
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    assert thrice.n == 150


@given(values=numbers, shift=st.floats(-10, 10), seed=st.integers(0, 99))
def test_the_interval_moves_with_the_values_and_repeats_with_the_seed(values, shift, seed) -> None:
    first = bootstrap_mean(values, seed=seed, n_resamples=100)
    moved = bootstrap_mean(np.array(values) + shift, seed=seed, n_resamples=100)
    assert (moved.value, moved.low, moved.high) == pytest.approx(
        (first.value + shift, first.low + shift, first.high + shift), abs=1e-9
    )
    assert first == bootstrap_mean(values, seed=seed, n_resamples=100)
    assert min(values) - 1e-9 <= first.low <= first.high <= max(values) + 1e-9


def test_labels_may_be_text_and_in_any_order() -> None:
    values = np.random.default_rng(0).normal(size=6)
    by_text = bootstrap_mean(values, clusters=["b", "a", "b", "c", "a", "c"])
    by_number = bootstrap_mean(values, clusters=[7, 3, 7, 5, 3, 5])
    assert by_text == by_number


def test_one_cluster_has_a_mean_but_no_interval() -> None:
    found = bootstrap_mean([1.0, 2.0], clusters=["a", "a"])
    assert found.value == 1.5
    assert np.isnan([found.low, found.high]).all()
    assert np.isnan(bootstrap_mean([]).value)
    assert np.isnan(bootstrap_mean([1.0, 2.0], crossed=["s", "s"]).low)


def test_rate_chooses_by_the_kind_of_values() -> None:
    binary = np.array([1.0, 0, 0, 1, 1, 0, 1, 1])
    pairs = np.repeat(np.arange(4), 2)
    assert rate(binary) == wilson(5, 8)
    assert rate(binary, pairs).method == "clustered bootstrap"
    assert rate(binary / 2).method == "bootstrap"
    assert np.isnan(rate([]).value)


def test_a_rate_of_zero_in_clusters_still_has_a_width() -> None:
    found = rate(np.zeros(40), np.repeat(np.arange(10), 4))
    assert (found.value, found.low, found.n) == (0, 0, 40)
    assert found.high == pytest.approx(wilson(0, 10).high)
    full = rate(np.ones(40), np.repeat(np.arange(10), 4), crossed=np.tile(np.arange(4), 10))
    assert (full.value, full.high) == (1, 1)
    assert full.low == pytest.approx(wilson(4, 4).low)


def test_a_paired_difference_is_sharper_than_its_parts() -> None:
    rng = np.random.default_rng(0)
    easy = rng.normal(size=100)
    a, b = easy + 0.1 * rng.normal(size=100) + 0.2, easy + 0.1 * rng.normal(size=100)
    found = bootstrap_difference(a, b)
    assert found.value == pytest.approx((a - b).mean())
    assert 0.1 < found.low < 0.2 < found.high < 0.3
    swapped = bootstrap_difference(b, a)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low), abs=0.01)


def brute_auc(positive, negative) -> float:
    return float(np.mean([(p > q) + 0.5 * (p == q) for p in positive for q in negative]))


@given(positive=numbers, negative=numbers)
def test_auc_counts_pairs_and_is_symmetric(positive, negative) -> None:
    found = auc(positive, negative)
    assert found.value == pytest.approx(brute_auc(positive, negative))
    assert 0 <= found.low <= found.value <= found.high <= 1
    for mirrored in (auc(negative, positive), auc(-np.array(positive), -np.array(negative))):
        assert (mirrored.value, mirrored.low, mirrored.high) == pytest.approx(
            (1 - found.value, 1 - found.high, 1 - found.low), abs=1e-9
        )


def test_auc_covers_the_truth_of_two_normals() -> None:
    rng = np.random.default_rng(0)
    truth = scipy.stats.norm.cdf(1 / np.sqrt(2))
    hits = [holds(auc(rng.normal(1, 1, 30), rng.normal(0, 1, 40)), truth) for _ in range(400)]
    assert 0.92 <= np.mean(hits) <= 0.98


def test_auc_variance_is_delongs() -> None:
    rng = np.random.default_rng(1)
    positive, negative = rng.normal(0.7, 1, 12), rng.normal(0, 1, 9)
    wins = np.array([[(p > q) + 0.5 * (p == q) for q in negative] for p in positive])
    variance = wins.mean(axis=1).var(ddof=1) / 12 + wins.mean(axis=0).var(ddof=1) / 9
    found = auc(positive, negative)
    area = wins.mean()
    half = 1.959964 * np.sqrt(variance) / (area * (1 - area))
    logit = np.log(found.high / (1 - found.high)) - np.log(area / (1 - area))
    assert logit == pytest.approx(half, rel=1e-5)


def test_auc_at_its_edges() -> None:
    apart = auc([3.0, 4, 5], [0.0, 1, 2, 1])
    assert (apart.value, apart.high) == (1, 1)
    assert apart.low == pytest.approx(wilson(3, 3).low)
    tied = auc([1.0, 1, 1], [1.0, 1, 1, 1])
    assert tied.value == 0.5
    assert tied.low == pytest.approx(1 - tied.high)
    assert np.isnan(auc([], [1.0]).value)
    alone = auc([1.0], [0.0, 2.0])
    assert alone.value == 0.5
    assert np.isnan(alone.low)


def drifting(seed: int, share: float, n: int = 400):
    rng = np.random.default_rng(seed)
    base, naive = (rng.random(n) < 0.2) * 1.0, (rng.random(n) < 0.9) * 1.0
    return base, naive, (rng.random(n) < 0.2 + 0.7 * (1 - share)) * 1.0


def test_removal_by_hand() -> None:
    base, naive, arm = np.zeros(8), np.ones(8), np.array([1.0, 0, 0, 0, 1, 0, 0, 0])
    found = removal(base, naive, arm)
    assert found.value == 0.75
    assert 0.25 <= found.low < 0.75 < found.high <= 1
    assert removal(base, naive, base).value == 1
    assert removal(base, naive, naive).value == 0
    # A drift downwards is removed just the same.
    assert removal(1 - base, 1 - naive, 1 - arm).value == 0.75


def test_removal_covers_the_truth() -> None:
    hits = [
        holds(removal(*drifting(seed, 0.8, n=150), seed=seed, n_resamples=FEW), 0.8)
        for seed in range(150)
    ]
    assert 0.88 <= np.mean(hits) <= 0.99


def test_removal_is_unknown_without_drift() -> None:
    rng = np.random.default_rng(0)
    base, naive, arm = ((rng.random(60) < 0.5) * 1.0 for _ in range(3))
    for clusters in (None, np.arange(60) // 3, np.zeros(60)):
        found = removal(base, naive, arm, clusters=clusters)
        assert np.isnan([found.value, found.low, found.high]).all()
    assert np.isnan(removal(base, base, arm).value)
    assert np.isnan(removal([], [], []).value)


def test_why_removal_is_unknown_is_said() -> None:
    rng = np.random.default_rng(0)
    base, naive = ((rng.random(60) < 0.5) * 1.0 for _ in range(2))
    assert "the naive run shows no drift on these prompts" in explain_no_removal(
        bootstrap_difference(naive, base)
    )
    alone = bootstrap_difference(naive, base, clusters=np.zeros(60))
    assert "too few items to tell whether the naive run drifts" in explain_no_removal(alone)
    for sign in (1, -1):
        drift = bootstrap_difference(sign * (base + 0.3), sign * base)
        assert explain_no_removal(drift) == ""
        assert explain_no_removal(negate(drift)) == ""


@given(values=numbers)
def test_a_negated_interval_is_that_of_minus_the_values(values) -> None:
    found, back = bootstrap_mean(values), negate(negate(bootstrap_mean(values)))
    assert back == found
    mirrored = negate(found)
    assert (mirrored.low, mirrored.value, mirrored.high) == (-found.high, -found.value, -found.low)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson(3, 2), "Got 3 successes of 2"),
        (lambda: wilson(1, 2, confidence=95), "Got confidence 95; expected a share"),
        (lambda: auc([1.0], [1.0], confidence=0), "Got confidence 0"),
        (lambda: rate([0.0, np.nan]), "NaN or infinite; leave such samples out"),
        (lambda: bootstrap_mean([[1.0]]), r"shapes \(1, 1\); expected \(n,\)"),
        (lambda: bootstrap_mean([1.0, 2.0], clusters=[1]), "Got 1 cluster labels for 2 values"),
        (lambda: bootstrap_mean([1.0, 2.0], clusters=["a", None]), "cluster label is missing"),
        (lambda: bootstrap_difference([1.0], [1.0, 2.0]), r"shapes \(1,\), \(2,\); expected"),
        (lambda: removal([1.0], [1.0], [1.0, 0.0]), "the same n for all"),
    ],
)
def test_statistics_refuse(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_paired_auc_rests_on_units_and_its_interval_covers() -> None:
    """Before and after of one unit go up and down together, which a count of both forgets."""
    rng = np.random.default_rng(4)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        unit = rng.standard_normal(n)
        return unit + 0.3 + 0.3 * rng.standard_normal(n), unit

    found = auc(*draw(60), paired=True)
    assert (found.n, found.items) == (60, 60)
    truth = auc(*draw(200_000)).value
    intervals = [auc(*draw(60), paired=True) for _ in range(300)]
    covered = np.mean([one.low <= truth <= one.high for one in intervals])
    assert 0.92 <= covered <= 0.98
    alone = auc(*draw(60))
    assert alone.n == 120
    assert alone.high - alone.low > 2 * (found.high - found.low)
    with pytest.raises(InputError, match="expected pairs"):
        auc([1.0, 2.0], [0.0], paired=True)
