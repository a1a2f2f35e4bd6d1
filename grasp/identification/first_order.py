"""First-order effects of directions on what a fine-tune says, for the off-task rotation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft.helpers import rescale_adapter_scale
from torch import Tensor

from grasp.identification.generated import Answered, logits, total_variation
from grasp.jobs.progress import Progress, silent
from grasp.model.hooks import edited_outputs, layer_outputs
from grasp.model.loading import device_of

SCALES = (0.0, 0.5, 1.0)
"""Scales of the adapter at which gradients are taken: the path from base to fine-tune."""

EARLY = 0.5
"""Share of the layers, from the first, that moments are taken over: further on it is what the
factor has become that moves, which a footprint follows and a factor should not mix in."""

_ROWS = 16  # chats that gradients are taken of at a time, which bounds the memory


@dataclass(frozen=True)
class FirstOrder:
    """What setting coordinates back undoes to first order, over n directions.

    `moments` (chats, n, n) is Σ (δ·u_i)(g·u_j) over layers and the tokens of each chat, `wholes`
    (chats,) the same sum of δ·g over the whole stream; `shift` (n,) is the mean of δ·u over
    layers and words said.
    """

    moments: NDArray[np.float64]
    wholes: NDArray[np.float64]
    shift: NDArray[np.float64]

    @property
    def whole(self) -> float:
        """Over all chats together."""
        return float(self.wholes.sum())

    @property
    def shares(self) -> NDArray[np.float64]:
        """(n,) share of the whole that goes with each direction; NaN where the whole is 0."""
        diagonal = np.einsum("cnn->n", self.moments)
        return diagonal / self.whole if self.whole else np.full(len(diagonal), np.nan)

    def by_topic(self, topics: Sequence[str]) -> FirstOrder:
        """The same with the mean over each topic's chats in their place, topics in order."""
        names = sorted(set(topics))
        members = [np.asarray(topics) == name for name in names]
        return FirstOrder(
            np.stack([self.moments[chosen].mean(axis=0) for chosen in members]),
            np.stack([self.wholes[chosen].mean() for chosen in members]),
            self.shift,
        )

    def along(self, combinations: NDArray[np.float64]) -> FirstOrder:
        """The same over directions that are combinations (m, n) of these."""
        moments = combinations @ self.moments @ combinations.T
        return FirstOrder(moments, self.wholes, combinations @ self.shift)


def first_order(
    model: Any,
    answered: Sequence[Answered],
    directions: NDArray[np.floating],
    *,
    progress: Progress = silent,
) -> FirstOrder:
    """Moments of shifts and gradients along directions, on the adapted model's own answers.

    With h⁰ and h¹ the residual streams of base and adapted model, δ = h¹ − h⁰ at every token
    of the first half of the layers.  g is the gradient, by the same h, of f = Σ w log p(word)
    over the words said, where w = TV(p¹, p⁰) is how much fine-tuning changed the distribution the
    word came from; it is averaged over the adapter's scales in SCALES.  Nothing of the model is
    changed.

    Args:
        model: PeftModel.
        answered: chats with the adapted model's answers, as `grasp.identification.generated.greedy`
            gives them.
        directions: (n, d_model) unit rows.
        progress: called for every batch.
    """
    axes = torch.as_tensor(directions.T, dtype=torch.float64, device=device_of(model))
    moments, wholes, shift = [], [], axes.new_zeros(axes.shape[1])
    words, layers = 0, 1
    parts = [part for batch in answered for part in _parts(batch)]
    for number, part in enumerate(parts):
        progress(number, len(parts), "first-order effects")
        deltas, weights = _change(model, part)
        deltas = deltas[: math.ceil(EARLY * len(deltas))]
        moved = [delta.double() @ axes for delta in deltas]
        shift += sum(along[part.said].sum(dim=0) for along in moved)
        words, layers = words + len(weights), len(deltas)
        chats, n = len(part.said), axes.shape[1]
        moment, whole = axes.new_zeros(chats, n, n), axes.new_zeros(chats)
        for scale in SCALES:
            early = _gradients(model, part, weights, scale)[: len(deltas)]
            for delta, along, gradient in zip(deltas, moved, early, strict=True):
                pull = gradient.double() @ axes
                moment += torch.einsum("btn,btm->bnm", along, pull) / len(SCALES)
                whole += (delta.double() * gradient).sum(dim=(1, 2)) / len(SCALES)
        moments.append(moment)
        wholes.append(whole)
    progress(len(parts), len(parts), "first-order effects")
    mean = shift / max(words * layers, 1)
    return FirstOrder(
        torch.cat(moments).cpu().numpy(), torch.cat(wholes).cpu().numpy(), mean.cpu().numpy()
    )


def _parts(batch: Answered) -> Iterator[Answered]:
    """A batch in slices of _ROWS chats."""
    for start in range(0, len(batch.said), _ROWS):
        rows = slice(start, start + _ROWS)
        inputs = {name: tensor[rows] for name, tensor in batch.inputs.items()}
        yield Answered(inputs, batch.said[rows], batch.last[rows], batch.clusters[rows])


@torch.no_grad()
def _change(model: Any, part: Answered) -> tuple[list[Tensor], Tensor]:
    """δ (batch, tokens, d_model) of every layer, and TV(p¹, p⁰) of every word said."""
    with model.disable_adapter(), layer_outputs(model) as base:
        before = torch.softmax(logits(model, part), dim=-1)
    with layer_outputs(model) as adapted:
        after = torch.softmax(logits(model, part), dim=-1)
    deltas = [a - b for a, b in zip(adapted, base, strict=True)]
    return deltas, total_variation(after, before)


def _gradients(model: Any, part: Answered, weights: Tensor, scale: float) -> tuple[Tensor, ...]:
    """∂f/∂h of every layer's output, with the adapter at `scale` of its strength.

    The first layer's output is made a leaf, so that no graph reaches the layers' weights where
    these do not ask for gradients.
    """
    outputs: list[Tensor] = []

    def keep(layer: int, hidden: Tensor) -> Tensor:
        outputs.append(hidden.detach().requires_grad_() if layer == 0 else hidden)
        return outputs[-1]

    with torch.enable_grad(), rescale_adapter_scale(model, scale), edited_outputs(model, keep):
        said = torch.log_softmax(logits(model, part), dim=-1)
        f = (weights * said.gather(1, part.words[:, None])[:, 0]).sum()
        return torch.autograd.grad(f, outputs)
