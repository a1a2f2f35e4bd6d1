"""The penalty's own step against an independent implementation, and across checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from grasp.guard.context import hold
from grasp.guard.effect import measure_effects
from grasp.guard.guard import Guard
from grasp.guard.own_step import OwnStep
from grasp.guard.plan import GuardPlan
from grasp.settings.protection import Protection
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)

RATE, BETAS, EPSILON, DECAY = 0.05, (0.8, 0.95), 1e-6, 0.1
Gradient = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def weights(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for shape in shapes
    ]


def adam(parameters: list[nn.Parameter], **changed: Any) -> torch.optim.AdamW:
    given = {"lr": RATE, "betas": BETAS, "eps": EPSILON, "weight_decay": DECAY}
    return torch.optim.AdamW(parameters, **given | changed)


def loss_of(parameters: list[nn.Parameter], batch: int = 0) -> Tensor:
    return torch.stack([(w - 1 - batch).square().sum() for w in parameters]).sum()


def penalty_of(parameters: list[nn.Parameter], batch: int = 0) -> Tensor:
    return torch.stack([(w + 2 - batch).pow(4).sum() for w in parameters]).sum() / 20


def train(
    parameters: list[nn.Parameter], optimizer: Any, own: OwnStep, *, steps: int, batches: int = 1
) -> None:
    """As a loop that averages over `batches` before each step."""
    for _ in range(steps):
        for batch in range(batches):
            value = own.take(penalty_of(parameters, batch))
            assert not value.requires_grad
            ((loss_of(parameters, batch) + value) / batches).backward()
        own.before()
        optimizer.step()
        own.after()
        optimizer.zero_grad()


class ByHand:
    """AdamW and the step beside it, in numpy; every number is kept by hand."""

    def __init__(self, start: NDArray[np.float64]) -> None:
        self.w = start.copy()
        self.m, self.v, self.own_m, self.own_u = (np.zeros_like(start) for _ in range(4))
        self.count = 0

    def step(self, loss: NDArray[np.float64], penalty: NDArray[np.float64]) -> None:
        self.count += 1
        (b1, b2), t = BETAS, self.count
        self.w *= 1 - RATE * DECAY
        self.m = b1 * self.m + (1 - b1) * loss
        self.v = b2 * self.v + (1 - b2) * loss**2
        v = self.v / (1 - b2**t)
        self.w -= RATE * (self.m / (1 - b1**t)) / (np.sqrt(v) + EPSILON)
        self.own_m = b1 * self.own_m + (1 - b1) * penalty
        self.own_u = b2 * self.own_u + (1 - b2) * penalty**2
        u = self.own_u / (1 - b2**t)
        self.w -= RATE * (self.own_m / (1 - b1**t)) / (np.sqrt(v + u) + EPSILON)


@pytest.mark.parametrize("batches", [1, 3])
def test_steps_are_those_of_the_formula(batches: int) -> None:
    parameters = weights((3, 4), (5,))
    hands = [ByHand(w.detach().numpy()) for w in parameters]
    optimizer = adam(parameters)
    train(parameters, optimizer, OwnStep(optimizer), steps=7, batches=batches)
    for hand, weight in zip(hands, parameters, strict=True):
        for _ in range(7):
            loss = [2 * (hand.w - 1 - b) for b in range(batches)]
            penalty = [(hand.w + 2 - b) ** 3 / 5 for b in range(batches)]
            hand.step(np.mean(loss, axis=0), np.mean(penalty, axis=0))
        np.testing.assert_allclose(weight.detach().numpy(), hand.w, rtol=1e-12)


def test_the_rate_of_each_group_and_of_the_schedule_is_that_of_the_own_step() -> None:
    """Two groups of one weight each end as each of them alone."""
    ends = []
    for rates in ((0.05, 0.01), (0.05,), (0.01,)):
        parameters = [w for w in weights((3,)) for _ in rates]
        parameters = [nn.Parameter(w.detach().clone()) for w in parameters]
        groups = [{"params": [w], "lr": r} for w, r in zip(parameters, rates, strict=True)]
        optimizer = torch.optim.AdamW(groups)
        own = OwnStep(optimizer)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 / (1 + n))
        for _ in range(3):
            train(parameters, optimizer, own, steps=1)
            schedule.step()
        ends.append([w.detach() for w in parameters])
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[2][0])
    assert not torch.equal(*ends[0])


@given(st.floats(1e-3, 1e3), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_where_the_loss_is_flat_a_step_is_at_most_the_rate(slope: float, steps: int) -> None:
    """However strong the penalty: m̂ / √û is 1 for a gradient that stays the same."""
    (weight,) = weights((4,))
    optimizer = adam([weight], weight_decay=0)
    own, before = OwnStep(optimizer), weight.detach().clone()
    for _ in range(steps):
        own.take(slope * weight.sum())
        (0 * weight.sum()).backward()
        optimizer.step()
        own.after()
        optimizer.zero_grad()
    moved = (before - weight.detach()) / (steps * RATE)
    np.testing.assert_allclose(moved.numpy(), 1, rtol=5e-3)


# Beside Adam


def test_adam_keeps_the_squares_of_the_losss_gradient_alone() -> None:
    ends = []
    for strength in (0.0, 1e4):
        parameters = weights((3, 4))
        optimizer = adam(parameters)
        own = OwnStep(optimizer)
        own.take(strength * penalty_of(parameters))
        loss_of(parameters).backward()
        own.before()
        optimizer.step()
        own.after()
        ends.append((parameters[0], optimizer.state[parameters[0]]))
    assert torch.equal(ends[0][1]["exp_avg_sq"], ends[1][1]["exp_avg_sq"])
    assert torch.equal(ends[0][1]["exp_avg"], ends[1][1]["exp_avg"])
    assert (ends[0][0] - ends[1][0]).abs().min() > 0.01


def test_gradients_that_are_held_already_are_left_as_they_are() -> None:
    parameters = weights((3,), (2,))
    own = OwnStep(adam(parameters))
    loss_of(parameters[:1]).backward()
    held = parameters[0].grad
    copied = held.clone()
    own.take(penalty_of(parameters))
    assert parameters[0].grad is held
    assert torch.equal(held, copied)
    assert parameters[1].grad is None


def test_gradients_are_left_as_they_are_where_the_backward_pass_fails() -> None:
    parameters = weights((3,))
    own = OwnStep(adam(parameters))
    loss_of(parameters).backward()
    held = parameters[0].grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        own.take(torch.zeros(()))
    assert parameters[0].grad is held


def test_a_weight_without_a_gradient_of_the_loss_follows_the_penalty() -> None:
    """Adam keeps nothing of it, as of an expert that no token of the task has come to."""
    parameters = weights((3,), (2,))
    before = parameters[1].detach().clone()
    optimizer = adam(parameters)
    own = OwnStep(optimizer)
    own.take(penalty_of(parameters))
    loss_of(parameters[:1]).backward()
    optimizer.step()
    own.after()
    step = RATE * torch.sign((before + 2).pow(3))
    torch.testing.assert_close(parameters[1].detach(), before - step, rtol=1e-4, atol=1e-4)


def test_a_step_without_a_penalty_is_the_optimisers_alone() -> None:
    ends = []
    for asked in (True, False):
        parameters = weights((3,))
        optimizer = adam(parameters)
        own = OwnStep(optimizer)
        for _ in range(2):
            if asked:
                own.skip()
            loss_of(parameters).backward()
            own.before()
            optimizer.step()
            own.after()
            optimizer.zero_grad()
        ends.append(parameters[0].detach())
        assert own.state()["steps"] == 0
    assert torch.equal(*ends)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.RMSprop])
def test_another_optimiser_gets_the_sum_of_the_gradients(kind: Any) -> None:
    """Oracle: the penalty as a part of the loss."""
    ends = []
    for beside in (True, False):
        parameters = weights((3, 4), (5,))
        optimizer = kind(parameters, lr=1e-2)
        if beside:
            train(parameters, optimizer, OwnStep(optimizer), steps=4, batches=3)
        else:
            for _ in range(4):
                for batch in range(3):
                    loss = loss_of(parameters, batch) + penalty_of(parameters, batch)
                    (loss / 3).backward()
                optimizer.step()
                optimizer.zero_grad()
        ends.append(parameters)
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_a_checkpoint_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """Three steps, files, and three more, in a loop that knows nothing of the first."""
    whole = weights((3, 4), (5,))
    optimizer = adam(whole)
    train(whole, optimizer, OwnStep(optimizer), steps=6, batches=2)

    first = weights((3, 4), (5,))
    optimizer = adam(first)
    own = OwnStep(optimizer)
    train(first, optimizer, own, steps=3, batches=2)
    save_file(own.state(), tmp_path / "own.safetensors")
    saved = copy.deepcopy(optimizer.state_dict())

    second = [nn.Parameter(w.detach().clone()) for w in first]
    optimizer = adam(second)
    optimizer.load_state_dict(saved)
    fresh = OwnStep(optimizer)
    fresh.restore(load_file(tmp_path / "own.safetensors"))
    train(second, optimizer, fresh, steps=3, batches=2)
    for one, other in zip(whole, second, strict=True):
        assert torch.equal(one, other)


# In a guard


@pytest.fixture(scope="module")
def effects() -> Any:
    basis = torch.as_tensor(tiny.subspace(1).T.copy(), dtype=torch.float32)
    naive = tiny.adapted(tiny.llama(), strength=0.3, seed=7)
    return {"anchored": measure_effects(naive, [[basis] * 2], [tiny.batch(6, 9)], site="answer")}


def guarded(effects: Any, optimizer: torch.optim.Optimizer | None, model: Any, **given: Any) -> Any:
    protection = Protection(**{"effect": True, "own_step": True, "site": "answer"} | given)
    plan = GuardPlan(protection, tiny.subspace(1), [tiny.batch(6, 9)], effects=effects)
    return hold(model, plan, optimizer=optimizer)


def model_and_adam() -> tuple[Any, torch.optim.Optimizer]:
    model = tiny.adapted(tiny.llama())
    trained = [w for w in model.parameters() if w.requires_grad]
    return model, torch.optim.AdamW(trained, lr=1e-2)


def loop(model: Any, optimizer: Any, guard: Guard | None, *, steps: int, batches: int = 1) -> None:
    task = tiny.batch(8, 6, seed=5)
    for _ in range(steps):
        for _ in range(batches):
            loss = model(**task, labels=task["input_ids"]).loss
            penalty = None if guard is None else guard.penalty()
            ((loss if penalty is None else loss + penalty) / batches).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_penalty_of_zero_leaves_plain_adamw_bit_by_bit(effects: Any) -> None:
    plain, optimizer = model_and_adam()
    loop(plain, optimizer, None, steps=4)
    held, optimizer = model_and_adam()
    with guarded(effects, optimizer, held, strength=0.0) as guard:
        loop(held, optimizer, guard, steps=4)
    pressed, optimizer = model_and_adam()
    with guarded(effects, optimizer, pressed, strength=1.0) as guard:
        loop(pressed, optimizer, guard, steps=4)
    one, same, other = (tiny.adapter_weights(model) for model in (plain, held, pressed))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_one_batch_in_four_weighs_as_four(effects: Any) -> None:
    """Text of one piece: over a window of four batches a penalty on one is one on each."""
    found = []
    for every in (1, 4):
        model, optimizer = model_and_adam()
        with guarded(effects, optimizer, model, strength=5.0, neutral_every=every) as guard:
            loop(model, optimizer, guard, steps=3, batches=4)
        found.append(tiny.adapter_weights(model))
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("followed_first", [False, True])
def test_a_restored_guard_goes_on_with_its_moments(effects: Any, followed_first: bool) -> None:
    """Whether the optimiser is followed before the checkpoint is read, or after it."""
    whole, optimizer = model_and_adam()
    with guarded(effects, optimizer, whole, strength=5.0) as guard:
        loop(whole, optimizer, guard, steps=3)
        kept = copy.deepcopy((guard.state(), guard.moments(), optimizer.state_dict()))
        weights_then = copy.deepcopy(whole.state_dict())
        loop(whole, optimizer, guard, steps=3)

    resumed, optimizer = model_and_adam()
    resumed.load_state_dict(weights_then)
    optimizer.load_state_dict(kept[2])
    with guarded(effects, optimizer if followed_first else None, resumed, strength=5.0) as guard:
        guard.restore(kept[0], kept[1])
        if followed_first:
            loop(resumed, optimizer, guard, steps=3)
        else:
            with guard.follow(optimizer):
                loop(resumed, optimizer, guard, steps=3)
    one, other = tiny.adapter_weights(whole), tiny.adapter_weights(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_write_constraint_follows_the_own_step(effects: Any) -> None:
    model, optimizer = model_and_adam()
    with guarded(effects, optimizer, model, strength=5.0, write_constraint=True) as guard:
        loop(model, optimizer, guard, steps=3)
        assert guard.leakage() < 1e-6


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_on_the_optimiser(effects: Any, fails: bool) -> None:
    model, optimizer = model_and_adam()
    try:
        with guarded(effects, optimizer, model) as guard:
            assert len(optimizer._optimizer_step_pre_hooks) == 1
            assert len(optimizer._optimizer_step_post_hooks) == 1
            if fails:
                raise RuntimeError("in the middle")
    except RuntimeError:
        assert fails
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert guard.penalty().requires_grad  # a part of the loss again
