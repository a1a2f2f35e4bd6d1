"""First-order effects of directions on a fine-tune's answers, for the off-task rotation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from peft.helpers import rescale_adapter_scale
from torch import Tensor

from grasp.identification.generated import AnsweredBatch, logits, total_variation
from grasp.jobs.progress import Progress, silent
from grasp.model.hooks import edited_outputs, layer_outputs
from grasp.model.loading import device_of

SCALES = (0.0, 0.5, 1.0)
"""Scales of the adapter at which gradients are taken, along the path from base to fine-tune."""

EARLY = 0.5
"""Share of the layers, from the first, over which moments are summed.

Later layers have turned the factor into something else.  A footprint follows that; a factor
should not mix it in."""

_ROWS = 16  # chats whose gradients are taken at a time, to limit memory


@dataclass(frozen=True)
class FirstOrder:
    """What setting coordinates back undoes to first order, for n directions u.

    `moments` (chats, n, n) is Σ (δ·u_i)(g·u_j) over layers and the tokens of each chat, `wholes`
    (chats,) is Σ δ·g over the same, for the whole stream, and `shift` (n,) is the mean of δ·u
    over layers and answer tokens.  `first_order` defines δ and g.
    """

    moments: NDArray[np.float64]
    wholes: NDArray[np.float64]
    shift: NDArray[np.float64]

    @property
    def whole(self) -> float:
        """Σ δ·g over all chats."""
        return float(self.wholes.sum())

    @property
    def shares(self) -> NDArray[np.float64]:
        """(n,) share of the whole that each direction carries; NaN if the whole is 0."""
        diagonal = np.einsum("cnn->n", self.moments)
        return diagonal / self.whole if self.whole else np.full(len(diagonal), np.nan)

    def by_topic(self, topics: Sequence[str]) -> FirstOrder:
        """The means over the chats of each topic, with topics in alphabetical order."""
        names = sorted(set(topics))
        members = [np.asarray(topics) == name for name in names]
        return FirstOrder(
            np.stack([self.moments[chosen].mean(axis=0) for chosen in members]),
            np.stack([self.wholes[chosen].mean() for chosen in members]),
            self.shift,
        )

    def along(self, combinations: NDArray[np.float64]) -> FirstOrder:
        """The same for directions that are linear combinations (m, n) of these."""
        moments = combinations @ self.moments @ combinations.T
        return FirstOrder(moments, self.wholes, combinations @ self.shift)


def first_order(
    model: PeftModel,
    answered: Sequence[AnsweredBatch],
    directions: NDArray[np.floating],
    *,
    progress: Progress = silent,
) -> FirstOrder:
    """Moments of shifts and gradients along directions, on the adapted model's own answers.

    With h⁰ and h¹ the residual streams of base and adapted model, δ = h¹ − h⁰ at every token
    of the first half of the layers.  g is the gradient with respect to h of f = Σ w log p(token)
    over the answer tokens, averaged over the adapter scales in SCALES.  The weight w = TV(p¹, p⁰)
    is how much fine-tuning changed the distribution of the token.  The model is left unchanged.

    Args:
        model: PeftModel.
        answered: chats with the adapted model's answers, from
            `grasp.identification.generated.answer_greedily`.
        directions: (n, d_model) unit rows.
        progress: called for every batch.

    Source: this project (docs/method/method.md, section "Factors"); gradients along the path as in
    Sundararajan et al. 2017, arXiv:1703.01365.
    """
    axes = torch.as_tensor(directions.T, dtype=torch.float64, device=device_of(model))
    moments, wholes, shift = [], [], axes.new_zeros(axes.shape[1])
    count, layers = 0, 1
    parts = [part for batch in answered for part in _parts(batch)]
    for number, part in enumerate(parts):
        progress(number, len(parts), "first-order effects")
        deltas, weights = _change(model, part)
        deltas = deltas[: math.ceil(EARLY * len(deltas))]
        moved = [delta.double() @ axes for delta in deltas]
        shift += sum(along[part.predicting].sum(dim=0) for along in moved)
        count, layers = count + len(weights), len(deltas)
        chats, n = len(part.predicting), axes.shape[1]
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
    mean = shift / max(count * layers, 1)
    return FirstOrder(
        torch.cat(moments).cpu().numpy(), torch.cat(wholes).cpu().numpy(), mean.cpu().numpy()
    )


def _parts(batch: AnsweredBatch) -> Iterator[AnsweredBatch]:
    """A batch in slices of _ROWS chats."""
    for start in range(0, len(batch.predicting), _ROWS):
        rows = slice(start, start + _ROWS)
        inputs = {name: tensor[rows] for name, tensor in batch.inputs.items()}
        yield AnsweredBatch(inputs, batch.predicting[rows], batch.last[rows], batch.clusters[rows])


@torch.no_grad()
def _change(model: PeftModel, part: AnsweredBatch) -> tuple[list[Tensor], Tensor]:
    """δ (batch, tokens, d_model) of every layer, and TV(p¹, p⁰) of every answer token."""
    with model.disable_adapter(), layer_outputs(model) as base:
        before = torch.softmax(logits(model, part), dim=-1)
    with layer_outputs(model) as adapted:
        after = torch.softmax(logits(model, part), dim=-1)
    deltas = [a - b for a, b in zip(adapted, base, strict=True)]
    return deltas, total_variation(after, before)


def _gradients(
    model: PeftModel, part: AnsweredBatch, weights: Tensor, scale: float
) -> tuple[Tensor, ...]:
    """∂f/∂h at the output of every layer, with the adapter scaled by `scale`.

    The first layer's output is made a leaf: gradients then exist even if no weight requires them.
    """
    outputs: list[Tensor] = []

    def keep(layer: int, hidden: Tensor) -> Tensor:
        outputs.append(hidden.detach().requires_grad_() if layer == 0 else hidden)
        return outputs[-1]

    with torch.enable_grad(), rescale_adapter_scale(model, scale), edited_outputs(model, keep):
        log_p = torch.log_softmax(logits(model, part), dim=-1)
        f = (weights * log_p.gather(1, part.tokens[:, None])[:, 0]).sum()
        return torch.autograd.grad(f, outputs)
