"""The anchor: how far an adapted model's coordinates along a subspace are from its base's.

Coordinates are c_ℓ = Q_ℓᵀ h_ℓ (k_ℓ numbers a token).  Base coordinates of the neutral text are
computed once, before training, and kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor

from analysis.errors import InputError
from grasp.data.sites import site_mask
from grasp.guard.penalty import Drift
from grasp.guard.text import Text, cut_to_site, pad_right_on, parts
from grasp.model.coordinates import coordinates
from grasp.model.forward import Batch, Forward, tokens_of, without_adapter
from grasp.model.loading import device_of
from grasp.settings.protection import Site

_FLOOR = 1e-4
"""Smallest variance of a coordinate, as a share of the largest: a coordinate that the neutral
text never moves would otherwise be weighted without bound."""


class Anchor:
    """Neutral batches with the base model's coordinates on them.

    Args:
        model: base model with an adapter that can be disabled.
        bases: Q_ℓ (d_model, k_ℓ), orthonormal columns, one for each decoder layer.
        batches: tokenised neutral text: `input_ids` and `attention_mask` (batch, tokens), padded
            on either side, with the masks of `grasp.data.sites` where it has them.
        held_back: more of it, that no penalty is taken on.
        site: the tokens at which drift counts.  Its unit, the base's own spread, is over all
            real tokens of `batches`.
        share: of the rows of a batch that one penalty is taken on, at least one; every row still
            has its turn.

    Raises:
        InputError: there is no neutral text, or a batch does not say which tokens are padding, or
            has none that counts.
    """

    def __init__(
        self,
        model: PeftModel,
        bases: Sequence[Tensor],
        batches: Sequence[Batch],
        *,
        held_back: Sequence[Batch] = (),
        site: Site = "all",
        share: float = 1.0,
    ) -> None:
        if not batches:
            raise InputError("The anchor needs neutral text; none was given.")
        device = device_of(model)
        self.bases = [basis.to(device) for basis in bases]
        self._model = model
        self._site: Site = site
        self._forward = Forward(model)
        spread = _Spread()
        given = [pad_right_on(batch, device) for batch in batches]
        for batch in given:
            spread.add(self._base_coordinates(batch, site="all"))
        self._batches: dict[Text, list[Batch]] = {
            "anchored": [part for batch in given for part in parts(batch, site, share)],
            "held-back": [cut_to_site(pad_right_on(batch, device), site) for batch in held_back],
        }
        self._base = {
            text: [self._base_coordinates(batch, site=site) for batch in found]
            for text, found in self._batches.items()
        }
        self.scale = spread.variances()

    def drift_squared(self, index: int, *, text: Text = "anchored") -> Tensor:
        """Mean over tokens of ‖Λ_ℓ^(−1/2)(c_ℓ − c⁰_ℓ)‖² / k_ℓ on batch `index`: (layers,).

        Differentiable in the adapter's weights.
        """
        index %= len(self._batches[text])
        batch = self._batches[text][index]
        now = self._at(
            self._forward.residual_stream(tokens_of(batch)), site_mask(batch, self._site)
        )
        moved = zip(now, self._base[text][index], self.scale, strict=True)
        return torch.stack([((c - c0).square() / scale).mean() for c, c0, scale in moved])

    @torch.no_grad()
    def drift(self, batches: int | None = None, *, text: Text = "anchored") -> Drift | None:
        """Drift over the first `batches` batches of a text, or over all; None where it has none."""
        weights = [len(coordinates[0]) for coordinates in self._base[text]][:batches]
        if not weights:
            return None
        squares = [self.drift_squared(i, text=text) * w for i, w in enumerate(weights)]
        return Drift((torch.stack(squares).sum(0) / sum(weights)).sqrt().tolist())

    @torch.no_grad()
    def _base_coordinates(self, batch: Batch, *, site: Site) -> list[Tensor]:
        """c⁰_ℓ at a site's tokens."""
        with without_adapter(self._model):
            outputs = self._forward.residual_stream(tokens_of(batch))
        return self._at(outputs, site_mask(batch, site))

    def _at(self, outputs: Sequence[Tensor], mask: Tensor) -> list[Tensor]:
        """c_ℓ (tokens of `mask`, k_ℓ) of every layer, in float32."""
        return [coordinates(h, q, mask) for h, q in zip(outputs, self.bases, strict=True)]


class _Spread:
    """Λ_ℓ: variance of the base's coordinates over all tokens, (k_ℓ,) for each layer."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: list[Tensor] = []
        self._squares: list[Tensor] = []

    def add(self, coordinates: Sequence[Tensor]) -> None:
        wide = [layer.double() for layer in coordinates]
        sums, squares = [c.sum(0) for c in wide], [c.square().sum(0) for c in wide]
        first = not self._sums
        self._count += len(wide[0])
        self._sums = sums if first else _added(self._sums, sums)
        self._squares = squares if first else _added(self._squares, squares)

    def variances(self) -> list[Tensor]:
        n = self._count
        pairs = zip(self._sums, self._squares, strict=True)
        found = [(square - total.square() / n).clamp_min(0) / (n - 1) for total, square in pairs]
        floor = _FLOOR * max(float(variance.max()) for variance in found)
        return [variance.clamp_min(floor).float() for variance in found]


def _added(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    return [one + other for one, other in zip(a, b, strict=True)]
