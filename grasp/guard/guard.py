"""The guard: what protects a model step by step, while `grasp.protect` holds its hooks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from grasp.guard.anchor import Anchor, Text
from grasp.guard.constraint import WriteConstraint
from grasp.guard.divergence import Divergence
from grasp.guard.penalty import Drift, Penalty
from grasp.guard.task_tokens import TaskText
from grasp.settings.protection import Protection


class Guard:
    """What protects a model step by step; `grasp.protect` makes it.

    A training loop adds `penalty`, and `task_penalty` where the protection looks at the task's own
    tokens, to each loss.  `stepped` follows each step of the optimiser; `grasp.protect` sees to
    that where it is given the optimiser.  Drift is in standard deviations of the base model's own
    coordinates, penalties are in the units of the loss.

    Example:
        >>> with grasp.protect(
        ...     model,
        ...     directions,
        ...     protection=grasp.Protection(write_constraint=True, anchor=True, tolerance=0.3),
        ...     neutral=batches,
        ...     optimizer=optimizer,
        ... ) as guard:
        ...     for batch in loader:
        ...         (model(**batch).loss + guard.penalty()).backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        >>> guard.leakage() < 1e-5
        True

    Source: the augmented Lagrangian is that of `grasp.guard.penalty`; see docs/method/method.md.
    """

    def __init__(
        self,
        bases: Sequence[Tensor],
        protection: Protection,
        *,
        constraint: WriteConstraint | None = None,
        anchor: Anchor | None = None,
        task: TaskText | None = None,
        reference: Divergence | None = None,
    ) -> None:
        self.bases = bases
        self.protection = protection
        self.anchor = anchor
        self._constraint = constraint
        self._task = task
        self._reference = reference
        strength, tolerance = protection.strength, protection.tolerance
        self._every = protection.neutral_every
        self._penalties = {
            "neutral": Penalty(strength, tolerance=tolerance, every=self._every),
            "task": Penalty(strength, tolerance=tolerance),
        }
        self._step = 0

    @property
    def strength(self) -> float:
        """Weight of the squared drift, or of the divergence, in the last loss."""
        return max(penalty.strength for penalty in self._used())

    @property
    def last_penalty(self) -> float:
        """What the last step's losses got on top; NaN before the first."""
        return sum(penalty.last for penalty in self._used())

    def penalty(self) -> Tensor | None:
        """What the next batch of neutral text, or of the base's own answers, adds to the loss.

        See `grasp.guard.penalty`.  None where the protection asks for nothing on such text, or not
        on this batch of the task.  It has a graph of its own, so it may go backward apart from the
        loss.  Under gradient accumulation there are several between two steps of the optimiser.
        """
        turn, rest = divmod(self._step, self._every)
        self._step += 1
        if rest:
            return None
        if self.anchor is not None and self.protection.anchor:
            return self._penalties["neutral"].of(self.anchor.drift_squared(turn))
        if self._reference is not None:
            return self._penalties["neutral"].of(self._reference.of(turn)[None])
        return None

    def task_penalty(self) -> Tensor | None:
        """What the loss's own forward pass, the last one that took gradients, adds to the loss.

        None where the protection asks for nothing on the task's tokens.  It is part of the loss's
        graph, so they go backward together.
        """
        if self._task is None:
            return None
        if self.protection.anchor_task and self.anchor is not None:
            by_layer = self._task.drift_squared(self.anchor.scale)
        else:
            found = self._task.divergence()
            by_layer = None if found is None else found[None]
        return None if by_layer is None else self._penalties["task"].of(by_layer)

    def stepped(self) -> None:
        """What follows a step of the optimiser: the write constraint, and a tolerance's own step.

        A tolerance is held to the drift of all penalties since the last step together.
        """
        if self.protection.write_constraint:
            self.constrain()
        for penalty in self._penalties.values():
            penalty.stepped()
        if self._task is not None:
            self._task.forget()

    def constrain(self) -> None:
        """Take out of the adapter what the write constraint forbids."""
        if self._constraint is not None:
            self._constraint.apply()

    def leakage(self) -> float:
        """Share of the applied update that the write constraint forbids; NaN where unknown."""
        return math.nan if self._constraint is None else self._constraint.leakage()

    def drift(self, batches: int | None = None, *, text: Text = "anchored") -> Drift | None:
        """Drift on the neutral text or what was held back of it; None where none was given."""
        return self.anchor.drift(batches, text=text) if self.anchor is not None else None

    def task_drift(self) -> Drift | None:
        """Drift on the task's tokens in the last step; None where it is not anchored there."""
        return self._penalties["task"].seen if self.protection.anchor_task else None

    def recent_drift(self) -> Drift | None:
        """Drift for a monitor: as the last step's penalties saw it, else on one neutral batch."""
        seen = self._penalties["neutral"].seen if self.protection.anchor else None
        return seen or self.drift(1)

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps: the penalties' own state, and the number of batches so far."""
        task = {f"task_{name}": value for name, value in self._penalties["task"].state().items()}
        return self._penalties["neutral"].state() | task | {"step": self._step}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from `state`."""
        for prefix, text in (("", "neutral"), ("task_", "task")):
            penalty = self._penalties[text]
            penalty.restore({name: state[f"{prefix}{name}"] for name in penalty.state()})
        self._step = int(state["step"])

    def _used(self) -> list[Penalty]:
        on_task = self.protection.anchor_task or self.protection.divergence == "task"
        both = on_task and self.protection.anchor
        texts = ["neutral", "task"] if both else ["task"] if on_task else ["neutral"]
        return [self._penalties[text] for text in texts]


@contextmanager
def follow_steps(optimizer: torch.optim.Optimizer, guard: Guard) -> Iterator[None]:
    """Call `Guard.stepped` after every step of `optimizer`."""
    handle = optimizer.register_step_post_hook(lambda *_: guard.stepped())
    try:
        yield
    finally:
        handle.remove()
