"""A GRASP step compared with a plain PEFT step on the same model and data, part by part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from statistics import median

import torch
from peft import PeftModel

from analysis.spectra.subspace import random_subspace
from analysis.values import Json
from grasp.bench.speed.figure import Figure, value_and_spread
from grasp.bench.speed.model import Size, attach_adapter, random_model
from grasp.bench.speed.timing import Action, Times, time_in_turn
from grasp.data.sites import START
from grasp.guard.context import hold
from grasp.guard.guard import Guard
from grasp.guard.naive import follow_naive
from grasp.guard.plan import GuardPlan
from grasp.model.forward import Batch
from grasp.settings.methods import find_method
from grasp.settings.protection import Protection
from grasp.training.trainer import measure_drift

EVERY = (1, 2, 4, 8)
"""1 / ρ, where ρ is the number of neutral tokens per task token."""

SHARE = 0.25
"""ρ as a share of the rows of a neutral batch."""

K = 4
"""Directions protected at each layer: the most a footprint has."""

LOGGED = 5
"""Steps between logged lines: `grasp train` logs 40 lines, here for 200 steps."""

HOOKS, COMPUTED, KEPT, NEUTRAL = 1.05, 1.40, 1.10, 1.1

_PLAIN, _NEW, _OLD = "plain", "task-computed", "task-kept"
_SUBSPACE, _EFFECT = "preset", "effect"
_NEUTRAL, _SHARED = "neutral", "neutral-rows"
_AGAINST = "a plain PEFT step"


class _Arm:
    """A model with its own adapter, protected in one way, and its optimiser."""

    def __init__(
        self, stack: ExitStack, model: PeftModel, plan: GuardPlan | None, *, size: Size
    ) -> None:
        self._model = model.train()
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=1e-4)
        self._guard: Guard | None = None
        if plan is not None:
            directions = random_subspace(size.d_model, K, seed=0).T
            plan = replace(plan, directions=directions, naive_drift={"anchored": 1.0})
            if plan.protection.effect:
                # A step costs the same whatever the factors do; they do nothing here.
                plan = follow_naive(plan, model.eval(), seed=0)
            self._guard = stack.enter_context(hold(model, plan, optimizer=self._optimizer))
            model.train()

    def step(self, batch: Batch) -> None:
        """One step, with the parts in the order of `grasp.training.trainer.GraspMixin`."""
        penalty = self._guard.penalty() if self._guard else None
        if penalty is not None and penalty.requires_grad:
            penalty.backward()
        loss = self._model(**batch).loss
        added = self._guard.task_penalty() if self._guard else None
        (loss if added is None else loss + added).backward()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def log(self) -> None:
        """What a logged line adds to a step."""
        assert self._guard is not None
        measure_drift(self._guard, every=LOGGED)


def training_figures(size: Size, *, rounds: int) -> list[Figure]:
    """The time of a step with each part of GRASP, over that of a plain step."""
    base = random_model(size)
    everywhere, sited = size.batch(seed=100), _sited(size.batch(seed=100))
    everywhere.pop("labels")
    with ExitStack() as stack:
        arms = {}
        for name, protection in {_PLAIN: None, **_protections()}.items():
            neutral = sited if name in (_SUBSPACE, _EFFECT) else everywhere
            plan = None
            if protection is not None:
                texts = [neutral]
                plan = GuardPlan(protection, neutral=texts, dressed=texts, held_back=texts)
            arms[name] = _Arm(stack, attach_adapter(base, size), plan, size=size)
        times = _timed(arms, size, rounds)
    told = {
        "parameters": sum(weight.numel() for weight in base.parameters()),
        "tokens a step": size.rows * size.tokens,
        "directions a layer": K,
        "plain step, s": median(times.of(_PLAIN)),
    }
    made = _Made(times, told)
    return [
        *_held(made),
        *_on_task(made),
        *(_on_neutral(made, every) for every in EVERY),
        made.figure(
            _SHARED,
            f"Anchor on neutral text, every token, ρ = {SHARE:g} by `neutral_share`",
            target=1 + NEUTRAL * SHARE,
            why="a pass on few tokens reads all weights, as one on many does",
        ),
        made.figure(
            _SUBSPACE,
            "`grasp-subspace` with its defaults, neutral text whose answers begin halfway",
            target=1 + NEUTRAL,
            why="ρ counts all neutral tokens; what follows the site is not run",
        ),
        made.figure(
            _EFFECT,
            "`grasp` with its defaults, neutral text whose answers begin halfway",
            target=1 + NEUTRAL,
            why="forward and backward pass on as many tokens as the task's, with unembedding",
        ),
        _monitor(made),
    ]


def _protections() -> dict[str, Protection]:
    task = Protection(anchor_task=True, strength=1.0, site="answer")
    return {
        "write": Protection(write_constraint=True),
        "projection": Protection(gradient_projection=True),
        _NEW: task,
        _OLD: task,
        _NEUTRAL: Protection(anchor=True, site="all"),
        _SHARED: Protection(anchor=True, site="all", neutral_share=SHARE),
        # A step costs what the directions held cost, wherever they were measured.
        _SUBSPACE: (find_method("grasp-subspace").protection or Protection()).model_copy(
            update={"footprint": 0}
        ),
        _EFFECT: find_method("grasp").protection or Protection(),
    }


def _timed(arms: dict[str, _Arm], size: Size, rounds: int) -> Times:
    """Time the arms; all reuse one batch, except the one for which rows must be new each time."""
    batch = size.batch(seed=1)
    fresh = iter(size.batch(seed=seed) for seed in range(1000, 1001 + rounds))
    actions: dict[str, Action] = {
        name: partial(_stepped, arm, fresh if name == _NEW else repeat(batch))
        for name, arm in arms.items()
    }
    return time_in_turn(actions | {"log": arms[_SUBSPACE].log}, rounds=rounds)


def _stepped(arm: _Arm, batches: Iterator[Batch]) -> None:
    arm.step(next(batches))


@dataclass(frozen=True)
class _Made:
    """Figures from the times of arms."""

    times: Times
    told: Json

    def processor(self, arm: str) -> float:
        """Processor time of an arm's step over that of the plain step."""
        return median(self.times.processor_ratio(arm, _PLAIN))

    def figure(self, arm: str, what: str, *, target: float, why: str) -> Figure:
        """The figure of an arm: its step over the plain step."""
        return Figure(
            id=f"training.{arm}",
            group="training",
            what=what,
            against=_AGAINST,
            unit="×",
            target=target,
            **value_and_spread(self.times.ratio(arm, _PLAIN)),
            detail=self.told | {"why": why, "by processor time, ×": self.processor(arm)},
        )


def _held(made: _Made) -> list[Figure]:
    return [
        made.figure(
            "write",
            "Write constraint",
            target=HOOKS,
            why="after each step, r · d_out · k products for each module that writes",
        ),
        made.figure(
            "projection",
            "Gradient projection, by hooks",
            target=HOOKS,
            why="in the backward pass, 2 · d_model · k products a token and layer",
        ),
    ]


def _on_task(made: _Made) -> list[Figure]:
    return [
        made.figure(
            _NEW,
            "Anchor on the task's tokens, base coordinates computed",
            target=COMPUTED,
            why="one forward pass of the base without gradients and unembedding",
        ),
        made.figure(
            _OLD,
            "Anchor on the task's tokens, base coordinates kept",
            target=KEPT,
            why="coordinates of the loss's own pass, and their gradient",
        ),
    ]


def _on_neutral(made: _Made, every: int) -> Figure:
    """One step in `every` uses the neutral batch and the others are plain; their mean."""
    whole, processor = made.times.ratio(_NEUTRAL, _PLAIN), made.processor(_NEUTRAL)
    return Figure(
        id=f"training.neutral-{1 / every:g}",
        group="training",
        what=f"Anchor on neutral text, every token, ρ = {1 / every:g} by `neutral_every`",
        against=_AGAINST,
        unit="×",
        target=1 + NEUTRAL / every,
        **value_and_spread([1 + (ratio - 1) / every for ratio in whole]),
        detail=made.told
        | {
            "why": "forward and backward pass on ρ tokens a token of the task, no unembedding",
            "by processor time, ×": 1 + (processor - 1) / every,
        }
        | (
            {"from": f"the step that takes the batch, and {every - 1} plain ones"}
            if every > 1
            else {}
        ),
    )


def _monitor(made: _Made) -> Figure:
    """The cost of a logged line, spread over the steps between lines."""
    pairs = zip(made.times.of("log"), made.times.of(_PLAIN), strict=True)
    return Figure(
        id="training.monitor",
        group="training",
        what=f"Drift monitor, one line every {LOGGED} steps",
        against=_AGAINST,
        unit="×",
        **value_and_spread([1 + line / (LOGGED * step) for line, step in pairs]),
        detail=made.told | {"why": "one forward pass of a held-back batch a line"},
    )


def _sited(batch: Batch) -> Batch:
    """The batch as neutral text, in which answers begin where the labels do."""
    learned = (batch["labels"] != -100).long()
    begin = int(learned[0].argmax()) - 1
    ends = {"prompt_end_mask": begin + 1, "answer_start_mask": begin + START + 1}
    tokens = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for name, end in (ends | {"answer_mask": learned.shape[1]}).items():
        tokens[name] = torch.zeros_like(learned)
        tokens[name][:, begin:end] = 1
    return tokens
