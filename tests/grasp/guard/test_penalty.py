"""The augmented Lagrangian on toy problems whose constrained optimum is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grasp.guard.penalty import AIM, MOST, PACE, PRESS, Penalty


def solve(target: float, *, tolerance: float, steps: int = 8000) -> tuple[float, Penalty]:
    """min ½ (x − target)² with drift |x| held to the tolerance; x, and the penalty at the end."""
    x = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.01)
    penalty = Penalty(1.0, tolerance=tolerance)
    for _ in range(steps):
        loss = 0.5 * (x - target).square().sum() + penalty.of(x.square())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        penalty.stepped()
    return float(x.detach()), penalty


def test_a_constraint_that_binds_ends_at_the_constrained_optimum() -> None:
    """At x = a l < 1 the task pulls by 1 − x, which the multiplier's 2λx / (a l)² balances."""
    x, penalty = solve(1.0, tolerance=0.5)
    edge = AIM * 0.5
    assert x == pytest.approx(edge, rel=1e-2)
    assert 2 * penalty.strength * x == pytest.approx(1 - edge, rel=3e-2)
    assert penalty.seen.rms == pytest.approx(edge, rel=1e-2)


def test_a_slack_constraint_is_left_alone() -> None:
    x, penalty = solve(0.3, tolerance=0.5, steps=2000)
    assert x == pytest.approx(0.3, rel=1e-3)
    assert penalty.strength == penalty.last == penalty.state()["multiplier"] == 0


def test_the_multiplier_vanishes_again_when_the_task_no_longer_pulls() -> None:
    penalty = Penalty(1.0, tolerance=0.5)
    for drift in [1.0] * 20 + [0.1] * 60:
        penalty.of(torch.tensor([drift**2]))
        penalty.stepped()
        assert 0 <= penalty.state()["multiplier"] <= 20 * PACE + 1e-9
    assert penalty.state()["multiplier"] == 0


@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=4), st.floats(0.05, 2.0))
def test_the_gradient_is_that_of_the_augmented_lagrangian(
    drifts: list[float], tolerance: float
) -> None:
    """Oracle: autograd of (max(0, ν + μ g)² − ν²) / 2μ, written out, and of its tangent beyond."""
    by_layer = torch.tensor(drifts, dtype=torch.float64, requires_grad=True)
    penalty = Penalty(1.0, tolerance=tolerance)
    penalty.restore({"strength": 0.0, "multiplier": 0.05})
    (found,) = torch.autograd.grad(penalty.of(by_layer), by_layer)
    limit = (AIM * tolerance) ** 2
    g = by_layer.mean() / limit - 1
    pressed = 0.05 + PRESS * g
    inside = (pressed.clamp(0, MOST).square() - 0.05**2) / (2 * PRESS)
    beyond = MOST * (pressed - MOST).clamp_min(0) / PRESS
    lagrangian = limit * (inside + beyond)
    (expected,) = torch.autograd.grad(lagrangian, by_layer)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_pressure_has_a_limit_however_long_and_far_a_model_drifts() -> None:
    penalty = Penalty(1.0, tolerance=0.1, unit=2.0)
    for _ in range(50):
        penalty.of(torch.tensor([(50 * 2.0) ** 2]))
        assert penalty.strength <= MOST / 2.0**2
        penalty.stepped()
    assert penalty.state()["multiplier"] == MOST


def test_a_fixed_weight_is_the_weighted_mean_of_all_layers() -> None:
    penalty = Penalty(3.0, tolerance=None)
    assert float(penalty.of(torch.tensor([1.0, 4.0]))) == 7.5
    assert math.isnan(penalty.last)
    penalty.stepped()
    assert (penalty.strength, penalty.last) == (3.0, 7.5)
    assert penalty.seen.by_layer == [1.0, 2.0]


def test_a_penalty_on_one_batch_in_four_is_over_four_what_one_on_each_is() -> None:
    drifts = [0.7, 0.6, 0.9]
    each, rare = Penalty(1.0, tolerance=0.5), Penalty(1.0, tolerance=0.5, every=4)
    for drift in drifts:
        squared = torch.tensor([drift**2], requires_grad=True)
        once = rare.of(squared)
        (gradient,) = torch.autograd.grad(once, squared)
        together = torch.zeros(1)
        for penalty in [each] * 4:
            (one,) = torch.autograd.grad(penalty.of(squared), squared)
            together += one
        assert float(gradient) == pytest.approx(float(together))
        for _ in range(4):  # what follows the four steps of the optimiser
            if not each._squared:
                each.of(torch.tensor([drift**2]))
            each.stepped()
            rare.stepped()
    assert rare.state()["multiplier"] == pytest.approx(each.state()["multiplier"])
    assert rare.last == pytest.approx(float(once.detach()) / 4)
    assert rare.seen == each.seen
