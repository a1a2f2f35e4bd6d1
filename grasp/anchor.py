"""The anchor: how far an adapted model's coordinates along a subspace are from its base's.

Coordinates are c_ℓ = Qᵀ h_ℓ (k numbers a token).  Base coordinates of the neutral text are
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
        basis: Q (d_model, k), orthonormal columns.
        batches: tokenised neutral text: `input_ids` and `attention_mask` (batch, tokens).
    """

    def __init__(self, model: PeftModel, basis: Tensor, batches: Sequence[Batch]) -> None:
        if not batches:
            raise InputError("The anchor needs neutral text; none was given.")
        self.basis = basis.to(device_of(model))
        self.batches = [_on(batch, device_of(model)) for batch in batches]
        self._model = model
        self._base = [self._base_coordinates(batch) for batch in self.batches]
        self._scale = self._spread()

    def drift_squared(self, index: int) -> Tensor:
        """Mean over tokens of ‖Λ^(−1/2)(c − c⁰)‖² / k on batch `index`, by layer (layers,).

        Differentiable in the adapter's weights.
        """
        batch = self.batches[index % len(self.batches)]
        moved = self._coordinates(batch) - self._base[index % len(self.batches)]
        return (moved.square() / self._scale).mean(dim=(1, 2))

    @torch.no_grad()
    def drift(self, batches: int | None = None) -> Drift:
        """Drift over the first `batches` neutral batches, or over all of them."""
        chosen = range(len(self.batches) if batches is None else min(batches, len(self.batches)))
        weights = [len(self._base[i][0]) for i in chosen]
        squares = [self.drift_squared(i) * w for i, w in zip(chosen, weights, strict=True)]
        return Drift((torch.stack(squares).sum(0) / sum(weights)).sqrt().tolist())

    @torch.no_grad()
    def _base_coordinates(self, batch: Batch) -> Tensor:
        with self._model.disable_adapter():
            return self._coordinates(batch)

    def _coordinates(self, batch: Batch) -> Tensor:
        """c (layers, real tokens of the batch, k) in float32."""
        real = batch["attention_mask"].bool()
        with _without_dropout(self._model), layer_outputs(self._model) as outputs:
            self._model(**batch, use_cache=False)
        return torch.stack([h[real].float() @ self.basis.float() for h in outputs])

    def _spread(self) -> Tensor:
        """Λ: variance of the base's coordinates over all neutral tokens, (layers, 1, k)."""
        variance = torch.cat(self._base, dim=1).var(dim=1, keepdim=True)
        return variance.clamp_min(_FLOOR * float(variance.max()))


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
