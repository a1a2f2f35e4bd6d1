"""The anchor: how far an adapted model's coordinates along a subspace are from its base's.

Coordinates are c_ℓ = Q_ℓᵀ h_ℓ (k_ℓ numbers a token).  Base coordinates of the neutral text are
computed once, before training, and kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn

from analysis.errors import InputError
from grasp.hooks import layer_outputs
from grasp.models import decoder_layers, device_of

Batch = dict[str, Tensor]

_FLOOR = 1e-4
"""Smallest variance of a coordinate, as a share of the largest: a coordinate that the neutral
text never moves would otherwise be weighted without bound."""


@dataclass(frozen=True)
class Drift:
    """RMS of Λ_ℓ^(−1/2) (c_ℓ − c⁰_ℓ), in standard deviations of the base's own coordinates."""

    by_layer: list[float]

    @property
    def rms(self) -> float:
        """Over all layers together."""
        return math.sqrt(sum(value**2 for value in self.by_layer) / len(self.by_layer))


class Anchor:
    """Neutral batches with the base model's coordinates on them.

    Args:
        model: base model with an adapter that can be disabled.
        bases: Q_ℓ (d_model, k_ℓ), orthonormal columns, one for each decoder layer.
        batches: tokenised neutral text: `input_ids` and `attention_mask` (batch, tokens).
    """

    def __init__(self, model: PeftModel, bases: Sequence[Tensor], batches: Sequence[Batch]) -> None:
        if not batches:
            raise InputError("The anchor needs neutral text; none was given.")
        self.bases = [basis.to(device_of(model)) for basis in bases]
        self.batches = [_on(batch, device_of(model)) for batch in batches]
        self._model = model
        self._base = [self._base_coordinates(batch) for batch in self.batches]
        self._scale = self._spread()

    def drift_squared(self, index: int) -> Tensor:
        """Mean over tokens of ‖Λ_ℓ^(−1/2)(c_ℓ − c⁰_ℓ)‖² / k_ℓ on batch `index`: (layers,).

        Differentiable in the adapter's weights.
        """
        index %= len(self.batches)
        now, before = self._coordinates(self.batches[index]), self._base[index]
        moved = zip(now, before, self._scale, strict=True)
        return torch.stack([((c - c0).square() / scale).mean() for c, c0, scale in moved])

    @torch.no_grad()
    def drift(self, batches: int | None = None) -> Drift:
        """Drift over the first `batches` neutral batches, or over all of them."""
        chosen = range(len(self.batches) if batches is None else min(batches, len(self.batches)))
        weights = [len(self._base[i][0]) for i in chosen]
        squares = [self.drift_squared(i) * w for i, w in zip(chosen, weights, strict=True)]
        return Drift((torch.stack(squares).sum(0) / sum(weights)).sqrt().tolist())

    @torch.no_grad()
    def _base_coordinates(self, batch: Batch) -> list[Tensor]:
        with self._model.disable_adapter():
            return self._coordinates(batch)

    def _coordinates(self, batch: Batch) -> list[Tensor]:
        """c_ℓ (real tokens of the batch, k_ℓ) of every layer, in float32."""
        real = batch["attention_mask"].bool()
        with _without_dropout(self._model), layer_outputs(self._model) as outputs:
            self._model(**batch, use_cache=False)
        return [h[real].float() @ q.float() for h, q in zip(outputs, self.bases, strict=True)]

    def _spread(self) -> list[Tensor]:
        """Λ_ℓ: variance of the base's coordinates over all neutral tokens, (k_ℓ,) each."""
        variances = [torch.cat(layer).var(dim=0) for layer in zip(*self._base, strict=True)]
        floor = _FLOOR * max(float(variance.max()) for variance in variances)
        return [variance.clamp_min(floor) for variance in variances]


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, since dropout would be a drift that no training can undo.

    Decoder layers themselves keep their mode: theirs only says whether activations are
    checkpointed, and the penalty's backward pass needs that memory as the loss's does.
    """
    layers = set(decoder_layers(model))
    training = [m for m in model.modules() if m.training and m not in layers]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _on(batch: Batch, device: torch.device) -> Batch:
    return {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
