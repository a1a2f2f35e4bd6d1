"""The guard: what protects a model step by step, while `grasp.protect` holds its hooks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from grasp.guard.anchor import Anchor
from grasp.guard.constraint import WriteConstraint
from grasp.guard.divergence import Divergence
from grasp.guard.effect import EffectAnchor
from grasp.guard.own_step import OwnStep
from grasp.guard.penalty import Drift, Penalty
from grasp.guard.task_tokens import TaskText
from grasp.guard.text import Text
from grasp.settings.protection import Protection


class Guard:
    """What protects a model step by step; `grasp.protect` makes it.

    A training loop adds `penalty`, and `task_penalty` where the protection looks at the task's own
    tokens, to each loss.  `stepped` follows each step of the optimiser; `grasp.protect` sees to
    that where it is given the optimiser.  Drift is in standard deviations of the base model's own
    coordinates, effects are shares of the naive run's, penalties are in the units of the loss.

    Example:
        >>> with grasp.protect(
        ...     model,
        ...     directions,
        ...     protection=grasp.Protection(write_constraint=True, anchor=True, strength=30.0),
        ...     neutral=batches,
        ...     optimizer=optimizer,
        ... ) as guard:
        ...     for batch in loader:
        ...         (model(**batch).loss + guard.penalty()).backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        >>> guard.leakage() < 1e-5
        True

    Attributes:
        last_penalty: what was added to the losses of the last step that had a penalty; NaN before.

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
        effect: EffectAnchor | None = None,
        reference: Divergence | None = None,
        naive_drift: Mapping[Text, float] | None = None,
    ) -> None:
        self.bases = bases
        self.protection = protection
        self.anchor = anchor
        self.effect = effect
        self.naive_drift: Mapping[Text, float] = naive_drift or {}
        self._constraint = constraint
        self._task = task
        self._reference = reference
        self._own_step: OwnStep | None = None
        self._kept: Mapping[str, Tensor] = {}
        strength, tolerance = protection.strength, protection.tolerance
        unit = self.naive_drift.get("anchored", 1.0)
        self._every = protection.neutral_every
        self._held: list[Text] = ["anchored", "dressed"] if protection.dressed else ["anchored"]
        self._penalties: dict[str, Penalty] = {
            "neutral": Penalty(strength, tolerance=tolerance, unit=unit, every=self._every),
            "task": Penalty(strength, tolerance=None),
            # Plain and dressed text take turns, and each has a limit of its own.
            **{
                text: Penalty(strength, tolerance=tolerance, every=self._every * len(self._held))
                for text in self._held
            },
        }
        self._parts = self._on_neutral()
        self._step = 0
        self.last_penalty = math.nan

    @property
    def strength(self) -> float:
        """Weight of the squared drift, or of the divergence, in the last loss."""
        return max(penalty.strength for penalty in self._used())

    def penalty(self) -> Tensor | None:
        """What the next batch of neutral text, or of the base's own answers, adds to the loss.

        See `grasp.guard.penalty`.  None where the protection asks for nothing on such text; 0 on a
        batch of the task that it passes over (`Protection.neutral_every`).  It has a graph of its
        own, so it may go backward apart from the loss; with a step of its own
        (`Protection.own_step`) it has been there already, and is a plain number.  Under gradient
        accumulation there are several between two steps of the optimiser.
        """
        if not self._parts:
            return None
        turn, rest = divmod(self._step, self._every)
        self._step += 1
        if rest:
            if self._own_step is not None:
                self._own_step.skip()
            return torch.zeros((), requires_grad=self._own_step is None)
        total = torch.stack([part(turn) for part in self._parts]).sum()
        return total if self._own_step is None else self._own_step.take(total)

    def _on_neutral(self) -> list[Callable[[int], Tensor]]:
        """What each part adds on neutral text, or on the base's own answers, at a turn."""
        anchor, effect, reference = self.anchor, self.effect, self._reference
        neutral = self._penalties["neutral"]
        parts: list[Callable[[int], Tensor]] = []
        if anchor is not None and self.protection.anchor:
            parts.append(lambda turn: neutral.of(anchor.drift_squared(turn)))
        if effect is not None and self.protection.effect:
            parts.append(lambda turn: self._of_effect(effect, turn))
        if reference is not None:
            parts.append(lambda turn: neutral.of(reference.of(turn)[None]))
        return parts

    def _of_effect(self, effect: EffectAnchor, turn: int) -> Tensor:
        index, text = divmod(turn, len(self._held))
        squared = effect.share_squared(index, text=self._held[text])
        return self._penalties[self._held[text]].of(squared[None])

    def task_penalty(self) -> Tensor | None:
        """What the loss's own forward passes, those that took gradients, add to the loss.

        Each counts once.  None where the protection asks for nothing on the task's tokens, or none
        of them is at its site.  It is part of the loss's graph, so they go backward together.

        Raises:
            InputError: no such pass was seen since the last call, so that nothing would be held.
        """
        if self._task is None:
            return None
        if self.protection.anchor_task and self.anchor is not None:
            by_layer = self._task.drift_squared(self.anchor.scale)
        elif self.protection.divergence == "task":
            found = self._task.divergence()
            by_layer = None if found is None else found[None]
        else:
            self._task.take()
            return None
        return None if by_layer is None else self._penalties["task"].of(by_layer)

    def label(self, labels: Tensor | None) -> None:
        """Say where the answers of the next loss are, if its trainer keeps that from the model."""
        if self._task is not None:
            self._task.label(labels)

    @contextmanager
    def follow(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Call `stepped` after every step of `optimizer`; the penalty's own steps come there."""
        own = OwnStep(optimizer) if self.protection.own_step else None
        with ExitStack() as stack:
            if own is not None:
                before = optimizer.register_step_pre_hook(lambda *_: own.before())
                stack.callback(before.remove)
            after = optimizer.register_step_post_hook(lambda *_: self.stepped())
            stack.callback(after.remove)
            if own is not None and self._kept:
                own.restore(self._kept)
            self._own_step = own
            try:
                yield
            finally:
                self._own_step = None

    def stepped(self) -> None:
        """What follows a step of the optimiser: the penalty's own, the write constraint, and that
        of a tolerance.

        A tolerance is held to the drift of all penalties since the last step together.
        """
        if self._own_step is not None:
            self._own_step.after()
        if self.protection.write_constraint:
            self.constrain()
        taken = [penalty.last for penalty in self._penalties.values() if penalty.stepped()]
        if taken:
            self.last_penalty = sum(taken)
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

    def effect_share(self, pieces: int | None = None, *, text: Text = "anchored") -> float | None:
        """The effect as a share of the naive run's; None where none is held, or without text."""
        return None if self.effect is None else self.effect.share(pieces, text=text)

    def recent_effect(self) -> float | None:
        """The effect as the last penalty on plain text saw it; None where none is held."""
        seen = self._penalties["anchored"].seen
        return seen.rms if seen is not None else self.effect_share(1)

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps: the penalties' own state, and the number of batches so far."""
        found = {
            f"{text}_{name}": value
            for text, penalty in self._penalties.items()
            for name, value in penalty.state().items()
        }
        return found | {"step": self._step}

    def moments(self) -> dict[str, Tensor]:
        """What a checkpoint keeps besides: the moments of the penalty's own step."""
        return {} if self._own_step is None else self._own_step.state()

    def restore(
        self, state: Mapping[str, float], moments: Mapping[str, Tensor] | None = None
    ) -> None:
        """Go on from `state`, and from the moments of the penalty's own step."""
        for text, penalty in self._penalties.items():
            penalty.restore({name: state[f"{text}_{name}"] for name in penalty.state()})
        self._step = int(state["step"])
        self._kept = moments or {}
        if self._own_step is not None and self._kept:
            self._own_step.restore(self._kept)

    def _used(self) -> list[Penalty]:
        protection = self.protection
        used: dict[str, bool] = {
            "neutral": protection.anchor or protection.divergence in ("neutral", "own"),
            **dict.fromkeys(self._held, protection.effect),
            "task": protection.anchor_task or protection.divergence == "task",
        }
        return [self._penalties[t] for t, on in used.items() if on] or [self._penalties["neutral"]]
