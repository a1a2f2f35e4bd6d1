"""The plan of a guard: what is held while a model trains, by which parts, and on which text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from analysis.errors import InputError
from grasp.guard.effect import Effects
from grasp.guard.text import Text
from grasp.model.forward import Batch
from grasp.settings.protection import Protection

Directions = NDArray[np.floating] | Sequence[NDArray[np.floating]]
"""Factors (k, d_model) for all layers, or one such array for each decoder layer."""


@dataclass(frozen=True)
class GuardPlan:
    """All that a guard is made from, carried as one value from a command to the hooks.

    `neutral` text may be trained on, `dressed` is the same in the task's dress, and text that is
    `held_back` only measures.  `own_answers` are the base model's own, for a divergence on them.
    `naive` is the folder of the naive fine-tune's adapter, for parts that follow it; `steering`
    (layers, d_model), `effects` and `naive_drift`, in standard deviations of the base model's
    coordinates, are measured there.  In the folder `keep`, effects are kept for the next plan.
    """

    protection: Protection = field(default_factory=Protection)
    directions: Directions | None = None
    neutral: Sequence[Batch] = ()
    dressed: Sequence[Batch] = ()
    held_back: Sequence[Batch] = ()
    own_answers: Sequence[Batch] = ()
    steering: Tensor | None = None
    naive: Path | None = None
    keep: Path | None = None
    effects: Mapping[Text, Effects] | None = None
    naive_drift: Mapping[Text, float] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to hold and nothing to measure drift along."""
        return self.directions is None and self.protection == Protection()

    @property
    def factors(self) -> NDArray[np.floating] | None:
        """The factors (k, d_model), where the directions are the same for all layers."""
        return self.directions if isinstance(self.directions, np.ndarray) else None

    @property
    def follows_naive(self) -> bool:
        """Whether a part still has to be measured on the naive fine-tune."""
        part = self.protection
        if (part.effect and self.effects is None) or (self.relative and self.naive_drift is None):
            return True
        steers = part.steering > 0 and self.steering is None
        return (part.footprint > 0 or steers) and self.factors is not None

    @property
    def anchored(self) -> list[Batch]:
        """The text that penalties are taken on, plain and dressed in turn."""
        if not self.protection.dressed:
            return list(self.neutral)
        pairs = zip_longest(self.neutral, self.dressed)
        return [batch for pair in pairs for batch in pair if batch is not None]

    @property
    def relative(self) -> bool:
        """Whether an anchor's limit is a share of the naive run's drift."""
        return self.protection.anchor and self.protection.tolerance is not None

    def check(self) -> None:
        """Refuse a protection that lacks what it needs.

        Raises:
            InputError: it lacks directions, neutral text, steering vectors or the naive adapter.
        """
        protection = self.protection
        subspace = ("gradient_projection", "write_constraint", "anchor", "anchor_task", "clamp")
        asking = [n for n in (*subspace, "effect", "ablation") if getattr(protection, n)]
        if asking and self.directions is None and not protection.all_directions:
            raise InputError(
                f"The protection has {asking[0]} on, but there are no directions to hold."
            )
        if (protection.anchor or protection.anchor_task) and not self.neutral:
            raise InputError("The anchor is on but there is no neutral text; name a file of it.")
        if protection.effect and not self.neutral:
            raise InputError("Effects are held on neutral text, but there is none; name a file.")
        if protection.dressed and not self.dressed:
            raise InputError(
                "The protection holds dressed text, but there is none: give dressed=, the neutral "
                "text as grasp.dress makes it, or a protection with dressed=False."
            )
        if protection.interleaved:
            raise InputError(
                "The protection mixes neutral text into the training rows, which only `grasp "
                "retrain` does: mix them yourself, and give a protection with interleaved=0."
            )
        if self.follows_naive and self.naive is None:
            raise InputError(_lacks_naive(protection))
        if protection.steering and self.steering is None and not self.follows_naive:
            raise InputError("The protection steers while training, but got no steering vectors.")


def _lacks_naive(protection: Protection) -> str:
    if protection.effect:
        return (
            "The protection holds what the factors do in the naive fine-tune: give its adapter as "
            "naive=FOLDER, or a protection with effect=False."
        )
    if protection.footprint:
        return (
            f"The protection holds what the factors become at each layer (footprint "
            f"{protection.footprint}), which is measured on the naive fine-tune: give its adapter "
            "as naive=FOLDER, or directions for each layer, or a protection with footprint=0."
        )
    if protection.steering:
        return (
            "The protection steers along the naive fine-tune's drift: give its adapter as "
            "naive=FOLDER, or steering vectors."
        )
    return (
        "A tolerance is a share of what the naive fine-tune does: give its adapter as "
        "naive=FOLDER, or a strength in place of the tolerance."
    )
