"""What drift adds to a training loss: a fixed weight, or the multiplier of a tolerance.

A limit l is the inequality g = drift² / (a l)² − 1 ≤ 0 with a = `AIM`.  A tolerance τ makes it
τ times the naive run's own drift; for an effect, which is a share of the naive run's already, it is
τ itself.  Its augmented Lagrangian adds (max(0, ν + μ g)² − ν²) / 2μ to the loss, whose gradient
is max(0, ν + μ g) ∇g, and moves ν ← max(0, ν + η g) after each step of the optimiser, with g
clipped to [−1, 1].  A subspace
whose drift stays within τ by itself has ν = 0 and is left entirely alone.

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

PRESS = 0.02
"""μ, the weight of the quadratic part."""

PACE = 0.02
"""η, the largest change of the multiplier ν in one step."""


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
        strength: weight of the squared drift in the last loss: λ itself, or with a limit
            max(0, ν + μ g) / (a l)²; dimensionless.
        seen: drift of the last step's batches together.
        last: mean of what was added to the losses of that step, for each of the `every` batches.
    """

    def __init__(self, strength: float, *, limit: float | None, every: int = 1) -> None:
        self.strength = strength if limit is None else 0.0
        self.seen: Drift | None = None
        self.last = math.nan
        self._limit = None if limit is None else (AIM * limit) ** 2
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
            pressed = max(0.0, self._multiplier + PRESS * float(excess.detach()))
            self.strength = pressed / self._limit
            added = pressed * excess
        self._added.append(float(added.detach()))
        return self._every * added

    def stepped(self) -> None:
        """What follows a step of the optimiser."""
        if not self._squared:
            return
        by_layer = torch.stack(self._squared).mean(dim=0)
        self.seen = Drift(by_layer.sqrt().tolist())
        self.last = sum(self._added) / len(self._added)
        self._squared.clear()
        self._added.clear()
        if self._limit is not None:
            excess = self.seen.rms**2 / self._limit - 1
            moved = self._multiplier + self._every * PACE * max(-1.0, min(1.0, excess))
            self._multiplier = max(0.0, moved)

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"strength": self.strength, "multiplier": self._multiplier}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from `state`."""
        self.strength, self._multiplier = state["strength"], state["multiplier"]
