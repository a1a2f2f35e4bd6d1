"""The linear world against its closed forms: simulations agree within Monte-Carlo error.

Limits are those of growing dimensions.  `agrees` therefore allows, beside four standard errors
of the mean over worlds, a stated finite-size term.  Over 200 to 1000 worlds of the sizes used,
the gap was at most 0.018 where 0.02 is allowed, 0.008 where 0.01 or 1/80 is, 0.002 where 0.003 is.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.errors import InputError
from analysis.spectra.subspace import random_subspace
from grasp.bench.linear import model as lm
from grasp.bench.linear import theory

unit = st.floats(0.05, 0.95)
strength = st.floats(0.1, 5.0)


def world(seed: int = 0, *, d_out: int = 20, d_in: int = 30, **changes: float) -> lm.LinearWorld:
    return lm.plant(
        d_out, d_in, seed=seed, **{"task_strength": 2.0, "spurious_strength": 1.0, **changes}
    )


def agrees(draws: list[np.ndarray], limit: np.ndarray | float, *, finite: float = 0.0) -> None:
    """The mean over draws lies within 4 standard errors, plus a finite-size term, of the limit."""
    values = np.asarray(draws)
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    gap = np.abs(values.mean(axis=0) - limit)
    assert (gap <= 4 * error + finite).all(), f"gap {gap}, standard error {error}"


@pytest.fixture(scope="module", name="sample")
def _sample() -> lm.Sample:
    return lm.sample(world(correlation=0.6), 300, seed=1)


# The fits


def descend(data: lm.Sample, keep: np.ndarray) -> np.ndarray:
    """ΔW = BA of rank 2 by gradient descent from B = 0, where the loss sees keep · outputs."""
    rows, d_in = data.inputs.shape
    moment = data.inputs.T @ data.inputs / rows
    cross = data.changes.T @ data.inputs / rows
    A = 0.1 * np.random.default_rng(0).standard_normal((2, d_in))
    B = np.zeros((len(keep), 2))
    for _ in range(4000):
        gradient = keep @ (B @ A @ moment - cross)
        A, B = A - 0.1 * B.T @ gradient, B - 0.1 * gradient @ A.T
    return B @ A


def test_gradient_descent_from_zero_ends_at_the_low_rank_fit() -> None:
    small = world(d_out=6, d_in=8, correlation=0.5, spurious_strength=1.5)
    data = lm.sample(small, 200, seed=0)
    fitted = np.matmul(*lm.fit_low_rank(data.inputs, data.changes, r=2))
    np.testing.assert_allclose(descend(data, np.eye(6)), fitted, atol=1e-6)


def test_ablation_in_training_alone_is_protection_in_one_layer() -> None:
    small = world(d_out=6, d_in=8, correlation=0.5, spurious_strength=1.5)
    data = lm.sample(small, 200, seed=0)
    Q = small.spurious[:, None]
    held = np.matmul(*lm.fit_protected(data.inputs, data.changes, Q=Q, r=2))
    np.testing.assert_allclose(descend(data, np.eye(6) - Q @ Q.T), held, atol=1e-6)


def test_the_full_rank_fit_is_lstsq_and_the_low_rank_one_at_full_rank(sample: lm.Sample) -> None:
    update = lm.fit_least_squares(sample.inputs, sample.changes)
    np.testing.assert_allclose(
        update, np.linalg.lstsq(sample.inputs, sample.changes, rcond=None)[0].T, atol=1e-10
    )
    np.testing.assert_allclose(
        np.matmul(*lm.fit_low_rank(sample.inputs, sample.changes, r=20)), update, atol=1e-10
    )


def test_response_factors_are_the_principal_directions_of_the_changes(sample: lm.Sample) -> None:
    update = lm.fit_least_squares(sample.inputs, sample.changes)
    outputs = sample.inputs @ update.T
    leading = np.linalg.eigh(outputs.T @ outputs)[1][:, ::-1][:, :2]
    cosines = lm.response_factors(update, sample.inputs, k=2).T @ leading
    np.testing.assert_allclose(np.abs(cosines), np.eye(2), atol=1e-8)


# Closed forms against algebra in full dimensions


def moments(planted: lm.LinearWorld) -> tuple[np.ndarray, np.ndarray]:
    """E[x xᵀ] and E[change xᵀ], from the definition of the world."""
    R = np.array([[1, planted.correlation], [planted.correlation, 1]])
    inputs = planted.cues @ R @ planted.cues.T
    inputs += planted.input_noise**2 * np.eye(len(planted.cues))
    strengths = np.diag([planted.task_strength, planted.spurious_strength])
    return inputs, planted.writes @ strengths @ R @ planted.cues.T


@given(tau=strength, beta=strength, rho=unit, blur=unit, overlap=unit)
@settings(max_examples=30)
def test_population_factors_match_dense_decompositions(tau, beta, rho, blur, overlap) -> None:
    planted = world(
        d_out=5, d_in=6, task_strength=tau, spurious_strength=beta, correlation=rho,
        input_noise=blur, overlap=overlap,
    )  # fmt: skip
    covariance, cross = moments(planted)
    update = cross @ np.linalg.inv(covariance)
    np.testing.assert_allclose(theory.population_update(planted), update, atol=1e-9)

    off = blur**2 * np.eye(6) + np.outer(planted.cues[:, 1], planted.cues[:, 1])
    for route, weighting in (("weights", np.eye(6)), ("on-task", covariance), ("off-task", off)):
        dense, vectors = np.linalg.eigh(update @ weighting @ update.T)
        ours = theory.route_moment(planted, route)
        np.testing.assert_allclose(
            np.linalg.eigvalsh(ours), dense[-2:], rtol=1e-6, atol=1e-9 * dense[-1]
        )
        if dense[-2] > 1e-3 * dense[-1] and dense[-1] > 1.01 * dense[-2]:
            expected = (vectors[:, :-3:-1].T @ planted.spurious) ** 2
            found = theory.spurious_cosines(planted, route)
            np.testing.assert_allclose(found, expected, atol=1e-6)


@given(tau=strength, beta=strength, rho=unit, blur=unit)
def test_the_angle_between_weight_factors_and_planted_directions(tau, beta, rho, blur) -> None:
    plus, minus = ((1 + s * rho) / (1 + s * rho + blur**2) for s in (1, -1))
    alpha, eta = (plus + minus) / 2, (plus - minus) / 2
    angle = 0.5 * np.arctan2(4 * alpha * eta * tau * beta, (alpha**2 + eta**2) * (tau**2 - beta**2))
    planted = world(
        task_strength=tau, spurious_strength=beta, correlation=rho, input_noise=blur
    )  # fmt: skip
    np.testing.assert_allclose(
        theory.spurious_cosines(planted, "weights"),
        [np.sin(angle) ** 2, np.cos(angle) ** 2],
        atol=1e-6,
    )


def test_sharp_cues_off_the_task_show_the_spurious_direction_alone() -> None:
    planted = world(spurious_strength=0.3, correlation=0.9, input_noise=1e-4)
    first, _ = theory.spurious_cosines(planted, "off-task", task_cue_variance=0.0)
    assert first == pytest.approx(1.0, abs=1e-6)


# (a) Recovery and its transition


@given(theta=st.floats(0.0, 30.0), aspect=st.floats(0.05, 20.0))
def test_transposing_swaps_left_and_right(theta, aspect) -> None:
    ours, other = (
        theory.spike_limits(theta, aspect),
        theory.spike_limits(theta / aspect, 1 / aspect),
    )
    assert ours.left == pytest.approx(other.right, abs=1e-9)
    assert ours.right == pytest.approx(other.left, abs=1e-9)
    assert ours.value == pytest.approx(other.value * np.sqrt(aspect))
    assert 0 <= ours.left < 1
    assert ours.value >= 1 + np.sqrt(aspect) - 1e-9


@pytest.mark.parametrize(("rows", "columns"), [(80, 160), (160, 80)])
def test_a_spike_in_white_noise_behaves_as_published(rows: int, columns: int) -> None:
    theta_squared = 2.5
    expected = theory.spike_limits(theta_squared, rows / columns)
    draws = []
    for seed in range(40):
        noise = np.random.default_rng(seed).standard_normal((rows, columns)) / np.sqrt(columns)
        noise[0, 0] += np.sqrt(theta_squared)
        left, values, right = np.linalg.svd(noise, full_matrices=False)
        draws.append([left[0, 0] ** 2, right[0, 0] ** 2, values[0]])
    agrees(draws, [expected.left, expected.right, expected.value], finite=1 / 80)


def fine_tunes(rows: int, *, worlds: int = 30, **changes: float) -> list[tuple]:
    """World, leading factors (60, 2), their update in full, and that of fresh rows."""
    found = []
    for seed in range(worlds):
        planted = world(seed, d_out=60, d_in=90, **changes)
        data, fresh = lm.sample(planted, rows, seed=seed), lm.sample(planted, rows, seed=seed + 999)
        factors, _ = lm.fit_low_rank(data.inputs, data.changes, r=2)
        updates = (lm.fit_least_squares(d.inputs, d.changes) for d in (data, fresh))
        found.append((planted, factors, *updates))
    return found


@pytest.mark.parametrize(
    ("beta", "rho", "blur", "rows"),
    [(0.7, 0.0, 0.5, 600), (1.5, 0.0, 0.5, 600), (1.5, 0.8, 0.5, 600), (3.0, 0.5, 0.5, 600),
     (1.2, 0.0, 1.0, 180)],
)  # fmt: skip
def test_recovery_and_removal_agree_with_theory(beta, rho, blur, rows) -> None:
    runs = fine_tunes(rows, spurious_strength=beta, correlation=rho, input_noise=blur)
    planted = runs[0][0]
    agrees(
        [(factors.T @ w.spurious) ** 2 for w, factors, *_ in runs],
        theory.recovery(planted, rows).spurious,
        finite=0.02,
    )
    own = theory.reliance(planted)[1, 1]
    for place, same_rows in ((2, True), (3, False)):
        removal = [
            (run[1].T @ run[0].spurious) * (run[1].T @ run[place] @ run[0].cues[:, 1]) / own
            for run in runs
        ]
        agrees(removal, theory.predicted_removal(planted, rows, same_rows=same_rows), finite=0.02)


def test_below_the_transition_the_factor_is_noise() -> None:
    critical = theory.critical_strength(world(d_out=60, d_in=90), 600)
    runs = fine_tunes(600, spurious_strength=0.5 * critical)
    cosines = [(factors[:, 1] @ w.spurious) ** 2 for w, factors, *_ in runs]
    # A direction drawn at random would have 1/60; none of the limit's weight is left.
    assert np.mean(cosines) < 0.08


@given(tau=strength, blur=unit, rows=st.integers(100, 5000))
def test_the_critical_strength_is_where_recovery_begins(tau, blur, rows) -> None:
    planted = world(task_strength=tau, input_noise=blur)
    critical = theory.critical_strength(planted, rows)
    for factor, seen in ((0.99, False), (1.01, True)):
        near = dataclasses.replace(planted, spurious_strength=factor * critical)
        found = theory.recovery(near, rows)
        weaker = 1 if critical < tau else 0
        assert (found.spurious.sum() > 1e-9) == (found.retained[weaker] > 0) == seen
        assert found.retained.min() >= 0


# (b) Rotation within the span


def cosines_by_route(planted: lm.LinearWorld, seed: int) -> dict[str, np.ndarray]:
    data = lm.sample(planted, 4000, seed=seed)
    neutral = lm.off_task_inputs(planted, 4000, seed=seed + 1)
    update = np.matmul(*lm.fit_low_rank(data.inputs, data.changes, r=2))
    routes = {
        "weights": lm.leading_factors(update, k=2),
        "on-task": lm.response_factors(update, data.inputs, k=2),
        "off-task": lm.response_factors(update, neutral, k=2),
    }
    effects = lm.measure_effects(update, routes["weights"], inputs=data.inputs, neutral=neutral)
    cosines = {route: (found.T @ planted.spurious) ** 2 for route, found in routes.items()}
    return {**cosines, "effects": np.array(effects)}


@pytest.mark.parametrize("beta", [0.7, 1.0, 1.5])
def test_every_route_turns_as_predicted(beta: float) -> None:
    planted = [
        world(
            seed, task_strength=1.0, spurious_strength=beta, correlation=0.5, label_noise=0.3
        )
        for seed in range(15)
    ]  # fmt: skip
    draws = [cosines_by_route(w, seed) for seed, w in enumerate(planted)]
    for route in ("weights", "on-task", "off-task"):
        # Sampling noise turns factors by O(σ²/n) times dimensions over the gap of eigenvalues.
        agrees([d[route] for d in draws], theory.spurious_cosines(planted[0], route), finite=0.01)

    _, directions = theory.eigen(theory.route_moment(planted[0], "weights"))
    expected = np.transpose(
        [theory.expected_effects(planted[0], direction) for direction in directions]
    )
    agrees([d["effects"] for d in draws], expected, finite=0.01)
    if beta != 1.0:
        spurious = int(theory.spurious_cosines(planted[0], "weights").argmax())
        for on, off in (d["effects"] for d in draws):
            assert (off / on).argmax() == spurious


def test_equal_strengths_without_correlation_leave_any_rotation_until_off_task_inputs_decide() -> (
    None
):
    draws = [
        cosines_by_route(world(seed, task_strength=1.0, label_noise=0.3), seed)
        for seed in range(20)
    ]
    by_weights = np.array([d["weights"][0] for d in draws])
    assert by_weights.min() < 0.2
    assert by_weights.max() > 0.8
    assert min(d["off-task"][0] for d in draws) > 0.98


# (c) Protection


def test_protecting_s_on_slanted_data_is_the_fine_tune_on_clean_data() -> None:
    planted = world(correlation=0.8, pretrained=2.0)
    data = lm.sample(planted, 400, seed=3)
    Q = planted.spurious[:, None]
    slant = np.outer(planted.spurious_strength * data.latents[:, 1], planted.spurious)
    slanted, clean = (
        np.matmul(*lm.fit_protected(data.inputs, changes, Q=Q, r=4))
        for changes in (data.changes, data.changes - slant)
    )
    np.testing.assert_allclose(slanted, clean, atol=1e-10)
    np.testing.assert_allclose(Q.T @ slanted, 0, atol=1e-12)
    np.testing.assert_allclose(Q.T @ (planted.base + slanted), Q.T @ planted.base, atol=1e-12)
    naive = np.matmul(*lm.fit_low_rank(data.inputs, data.changes, r=4))
    assert planted.spurious @ naive @ planted.cues[:, 1] > 0.5


@pytest.mark.parametrize("overlap", [0.0, 0.4, 0.9])
def test_the_task_pays_its_overlap_with_what_is_protected(overlap: float) -> None:
    planted = world(correlation=0.5, overlap=overlap)
    data = lm.sample(planted, 400, seed=4)
    wanted = np.outer(planted.task_strength * data.latents[:, 0], planted.task)
    Q = planted.spurious[:, None]

    def gain(update: np.ndarray) -> float:
        return (wanted**2).sum() - ((wanted - data.inputs @ update.T) ** 2).sum()

    free = lm.fit_least_squares(data.inputs, wanted)
    held = np.matmul(*lm.fit_protected(data.inputs, wanted, Q=Q, r=20))
    assert gain(held) / gain(free) == pytest.approx(theory.task_share(planted, Q), abs=1e-10)
    assert theory.task_share(planted, Q) == pytest.approx(1 - overlap**2)


def test_ablation_takes_the_pretrained_part_and_protection_does_not() -> None:
    planted = world(pretrained=2.0)
    Q = np.column_stack([planted.spurious, random_subspace(20, 1, seed=5)])
    Q = np.linalg.qr(Q)[0]
    inputs = lm.off_task_inputs(planted, 20000, seed=6)
    before = inputs @ planted.base.T
    lost = ((before @ Q) ** 2).sum(axis=1)
    agrees(lost, theory.ablation_loss(planted, Q))
    assert theory.ablation_loss(planted, Q) > 4

    data = lm.sample(planted, 400, seed=7)
    after = before + inputs @ np.matmul(*lm.fit_protected(data.inputs, data.changes, Q=Q, r=4)).T
    np.testing.assert_allclose(after @ Q, before @ Q, atol=1e-10)


@pytest.mark.parametrize("task_cue_variance", [None, 0.0])
@pytest.mark.parametrize("weight", [0.0, 1.0, 30.0, 1e5])
def test_an_anchor_on_neutral_inputs_leaves_what_theory_says(weight, task_cue_variance) -> None:
    draws = []
    for seed in range(20):
        planted = world(seed, correlation=0.7, overlap=0.2)
        data = lm.sample(planted, 2000, seed=seed)
        neutral = lm.off_task_inputs(
            planted, 2000, task_cue_variance=task_cue_variance, seed=seed + 500
        )
        update = lm.fit_anchored(
            data.inputs, data.changes, Q=planted.spurious[:, None], neutral=neutral, weight=weight
        )
        draws.append(planted.spurious @ update @ planted.cues)
    expected = theory.anchored_reliance(planted, weight=weight, task_cue_variance=task_cue_variance)
    agrees(draws, expected, finite=0.003)
    if weight > 1e4:
        left = 0.0 if task_cue_variance is None else (0.7 * 1.0 + 2.0 * 0.2) / 1.25
        np.testing.assert_allclose(expected, [left, 0.0], atol=1e-3)


# (d) Random control


@pytest.mark.parametrize("k", [1, 3])
def test_a_random_subspace_removes_its_share_of_dimensions(k: int) -> None:
    planted = world(correlation=0.5)
    naive = theory.population_update(planted)
    effect = planted.spurious @ naive @ planted.cues[:, 1]
    mean, spread = theory.random_share(20, k)
    draws, shares = [], []
    for seed in range(2000):
        Q = random_subspace(20, k, seed=seed)
        draws.append(planted.spurious @ Q @ Q.T @ naive @ planted.cues[:, 1] / effect)
        shares.append(((Q.T @ planted.spurious) ** 2).sum())
    agrees(draws, mean)
    agrees(shares, mean)
    assert np.std(shares) == pytest.approx(spread, rel=0.1)


# Refusals


def test_the_world_refuses_what_has_no_meaning() -> None:
    for changes, message in (
        ({"correlation": 1.0}, "Got correlation 1.0; expected a number between -1 and 1"),
        ({"overlap": -1.5}, "Got overlap -1.5; expected a number between"),
        ({"input_noise": 0.0}, "Got input noise 0.0; expected a standard deviation above 0"),
        ({"label_noise": -1.0}, "Got label noise -1.0"),
        ({"spurious_strength": -1.0}, "Got strengths 2.0 and -1.0; expected at least 0"),
        ({"d_in": 1}, "Got 20 × 1 dimensions; expected at least 2 × 2"),
    ):
        with pytest.raises(InputError, match=message):
            world(**changes)


def test_the_fits_and_theory_refuse_what_has_no_solution(sample: lm.Sample) -> None:
    with pytest.raises(
        InputError, match="Got 10 rows in 30 dimensions, for which least squares has no"
    ):
        lm.fit_least_squares(sample.inputs[:10], sample.changes[:10])
    with pytest.raises(InputError, match="Got 300 inputs for 299 changes; expected one each"):
        lm.fit_least_squares(sample.inputs, sample.changes[1:])
    with pytest.raises(
        InputError, match=r"Got rank 21 for an update of shape \(20, 30\); expected 1 to 20"
    ):
        lm.fit_low_rank(sample.inputs, sample.changes, r=21)
    with pytest.raises(InputError, match=r"Got θ² = -1\.0, c = 0\.5"):
        theory.spike_limits(-1.0, 0.5)
