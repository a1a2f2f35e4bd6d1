"""What drift adds to a training loss: a fixed weight, or the multiplier of a tolerance.

A tolerance τ is the inequality g = drift² / (a τ n)² − 1 ≤ 0, where n is the naive run's own drift
and a = `AIM`.  Its augmented Lagrangian adds (a τ)² (max(0, λ + μ g)² − λ²) / 2μ to the loss, whose
gradient is (a τ)² max(0, λ + μ g) ∇g, and moves λ ← max(0, λ + η g) after each step of the
optimiser, with g clipped to [−1, 1].  λ is what a model loses, in nats, that drifts as the naive
run does.  What stays within τ by itself has λ = 0 and is left entirely alone.  Neither λ nor
λ + μ g goes beyond `MOST`: where a step cannot follow a penalty any faster, more weight only
adds noise.

Source: Nocedal & Wright 2006, Numerical Optimization, section 17.4; one step of the optimiser
takes the place of each inner minimisation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

AIM = 0.9
"""Share of the tolerance that training aims at: the drift of single batches scatters about their
mean, and text that was held back drifts a little more than text that was trained on."""

PRESS = 0.05
"""μ, the weight of the quadratic part, in nats."""

PACE = 0.05
"""η, the largest change of the multiplier λ in one step, in nats."""

MOST = 1.0
"""The most that a model may lose which drifts as the naive run does, in nats."""


@dataclass(frozen=True)
class Drift:
    """RMS of Λ_ℓ^(−1/2) (c_ℓ − c⁰_ℓ), in standard deviations of the base's own coordinates."""

    by_layer: list[float]

    @property
    def rms(self) -> float:
        """Over all layers together."""
        return math.sqrt(sum(value**2 for value in self.by_layer) / len(self.by_layer))


class Penalty:
    """The penalty on one drift, from batch to batch and from step to step.

    One that is taken on one batch in `every` weighs as much more, and its multiplier moves as
    much further: over those batches together it is what it would be on each of them.

    Attributes:
        strength: weight of the squared drift in the last loss: λ itself, or with a tolerance
            max(0, λ + μ g) / n².
        seen: drift of the last step's batches together.
        last: mean of what was added to the losses of that step, for each of the `every` batches.
    """

    def __init__(
        self, strength: float, *, tolerance: float | None, unit: float = 1.0, every: int = 1
    ) -> None:
        """`unit` is the naive run's own drift, of which a tolerance is a share."""
        self.strength = strength if tolerance is None else 0.0
        self.seen: Drift | None = None
        self.last = math.nan
        self._limit = None if tolerance is None else (AIM * tolerance * unit) ** 2
        self._unit = unit
        self._every = every
        self._multiplier = 0.0
        self._squared: list[Tensor] = []
        self._added: list[float] = []

    def of(self, by_layer: Tensor) -> Tensor:
        """What squared drift (layers,), as the mean of all layers, adds to a loss."""
        squared = by_layer.mean()
        self._squared.append(by_layer.detach())
        if self._limit is None:
            added = self.strength * squared
        else:
            excess = squared / self._limit - 1
            pressed = _within(self._multiplier + PRESS * float(excess.detach()))
            self.strength = pressed / self._unit**2
            added = self.strength * self._limit * excess
        self._added.append(float(added.detach()))
        return self._every * added

    def stepped(self) -> bool:
        """What follows a step of the optimiser; whether any penalty was taken since the last."""
        if not self._squared:
            return False
        by_layer = torch.stack(self._squared).mean(dim=0)
        self.seen = Drift(by_layer.sqrt().tolist())
        self.last = sum(self._added) / len(self._added)
        self._squared.clear()
        self._added.clear()
        if self._limit is not None:
            excess = self.seen.rms**2 / self._limit - 1
            moved = self._multiplier + self._every * PACE * max(-1.0, min(1.0, excess))
            self._multiplier = _within(moved)
        return True

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"strength": self.strength, "multiplier": self._multiplier}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from `state`."""
        self.strength, self._multiplier = state["strength"], state["multiplier"]


def _within(multiplier: float) -> float:
    return min(max(0.0, multiplier), MOST)
