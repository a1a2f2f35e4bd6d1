"""The effect of factors: what the naive fine-tune says differently because of them.

At a token of neutral text, with the probabilities p(y) of what comes next,

    v_j = p_naive − p_back,j        e_j = Σ_y v_j(y) (p_θ(y) − p_base(y)) / RMS(v_j)

p_back,j is the naive fine-tune with factor j set back to the base model's coordinates at every
layer, so v_j is the part of the naive run's change in output that the factor carries.  RMS(v_j) is
√(mean of ‖v_j‖² over all tokens): one scale for all of them, so that those tokens count at which
the factor does something.  e_j is what a model θ does along v_j.  Its mean square over tokens and
factors, as a share of the naive run's own, is 0 for the base model and 1 for the naive run,
whichever way round inside the model it comes about.  Everything else that the naive run learnt is
not in v_j, and is left alone.

Probabilities, not their logarithms: where both models are sure of what comes next, such as at the
end of a turn, log-ratios are so large that nothing else would count.

This is this project's own addition; see docs/method/method.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from peft import PeftModel
from torch import Tensor

from analysis.errors import InputError
from grasp.data.sites import predicting
from grasp.guard.text import Text, pad_right_on, parts
from grasp.model.forward import Batch, Forward, tokens_of, without_adapter
from grasp.model.hooks import clamp, edited_outputs
from grasp.model.loading import device_of
from grasp.settings.protection import Site

KEPT = 64
"""Tokens of the vocabulary that are kept at each place: those that base and naive run, taken
together, find likeliest."""

_CHOSEN = "chosen"


@dataclass(frozen=True)
class Piece:
    """What k factors do at the n tokens of one piece of text that predict an answer.

    Attributes:
        batch: the text, cut to its site.
        chosen: (batch, tokens) of bool; n of them.
        kept: (n, KEPT) ids of the vocabulary.
        directions: (k, n, KEPT) v_j.
        base: (n, KEPT) probabilities of the base model.
        naive: (k, n) Σ_y v_j(y) (p_naive(y) − p_base(y)).
    """

    batch: Batch
    chosen: Tensor
    kept: Tensor
    directions: Tensor
    base: Tensor
    naive: Tensor

    def moved(self, logits: Tensor) -> Tensor:
        """Σ_y v_j(y) (p_θ(y) − p_base(y)), (k, n), of logits (batch, tokens, vocabulary)."""
        return (self.directions * (self.probabilities(logits) - self.base)).sum(dim=-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """p(y) of the kept tokens, (n, KEPT)."""
        return logits[self.chosen].float().log_softmax(dim=-1).gather(1, self.kept).exp()


@dataclass(frozen=True)
class Effects:
    """The effects of factors on one text.

    Attributes:
        pieces: of the text, in the order in which penalties take them.
        unit: (k, 1) RMS of v_j over all tokens, in probability.
        own: mean square of the naive run's e_j over tokens and factors.
    """

    pieces: Sequence[Piece]
    unit: Tensor
    own: float

    def share_squared(self, index: int, logits: Tensor) -> Tensor:
        """The squared effect on piece `index`, as a share of the naive run's on the whole text."""
        return (self.pieces[index].moved(logits) / self.unit).square().mean() / self.own


class EffectAnchor:
    """The effects of a model that is being trained, on each text that they were measured on.

    It computes under the autocast that it is made under.  What that rounds in the base model is no
    effect.

    Args:
        model: base model with an adapter that is trained.
        effects: as `measure_effects` gives them, on the model's device.
    """

    def __init__(self, model: PeftModel, effects: Mapping[Text, Effects]) -> None:
        self._model = model
        self._forward = Forward(model)
        self._effects = effects
        if torch.is_autocast_enabled(device_of(model).type):
            self._effects = {
                text: replace(found, pieces=[self._rounded(piece) for piece in found.pieces])
                for text, found in effects.items()
            }

    def share_squared(self, index: int, *, text: Text = "anchored") -> Tensor:
        """The squared effect on a piece of text, in turn; differentiable in the adapter."""
        effects = self._effects[text]
        index %= len(effects.pieces)
        logits = self._forward.logits(tokens_of(effects.pieces[index].batch))
        return effects.share_squared(index, logits)

    @torch.no_grad()
    def share(self, pieces: int | None = None, *, text: Text = "anchored") -> float | None:
        """The effect as a share of the naive run's, on the first pieces of a text, or on all.

        None where there is no such text.
        """
        if text not in self._effects:
            return None
        weights = [piece.chosen.sum().item() for piece in self._effects[text].pieces[:pieces]]
        squares = [float(self.share_squared(i, text=text)) * w for i, w in enumerate(weights)]
        return math.sqrt(sum(squares) / sum(weights))

    @torch.no_grad()
    def _rounded(self, piece: Piece) -> Piece:
        with without_adapter(self._model):
            logits = self._forward.logits(tokens_of(piece.batch))
        return replace(piece, base=piece.probabilities(logits))


@torch.no_grad()
def measure_effects(
    naive: PeftModel,
    bases: Sequence[Sequence[Tensor]],
    batches: Sequence[Batch],
    *,
    site: Site,
    share: float = 1.0,
    unit: Tensor | None = None,
) -> Effects:
    """The effects of factors on a text.

    Args:
        naive: the naive fine-tune, in evaluation mode.
        bases: for each of k factors, Q_ℓ (d_model, 1 or more) of every decoder layer, orthonormal;
            they are set back together.
        batches: tokenised text, with the masks of `grasp.data.sites` where it has them.
        site: the tokens whose predictions count.
        share: of the rows of a batch that make one piece.
        unit: (k, 1) in place of the RMS of v_j.

    Raises:
        InputError: no token of the text predicts a token of an answer.
    """
    device = device_of(naive)
    found = []
    for batch in batches:
        whole = pad_right_on(batch, device)
        whole[_CHOSEN] = predicting(whole, site)  # before what they predict is cut off
        pieces = [_piece(naive, bases, part) for part in parts(whole, site, share)]
        found += [piece for piece in pieces if piece.chosen.any()]
    if not found:
        raise InputError(
            f"No token of the neutral text at the site {site!r} predicts a token of an answer; "
            "give text with answers, or a longer max_length."
        )
    if unit is None:
        count = sum(piece.directions.shape[1] for piece in found)
        squares = torch.stack([piece.directions.square().sum(dim=(1, 2)) for piece in found])
        rms = (squares.sum(dim=0) / count).sqrt()[:, None]
        unit = rms.clamp_min(torch.finfo(rms.dtype).tiny)
    own = torch.cat([piece.naive for piece in found], dim=1) / unit
    return Effects(found, unit, max(float(own.square().mean()), torch.finfo(own.dtype).tiny))


def _piece(naive: PeftModel, bases: Sequence[Sequence[Tensor]], batch: Batch) -> Piece:
    forward, tokens, chosen = Forward(naive), tokens_of(batch), batch[_CHOSEN]

    def probabilities() -> Tensor:
        return forward.logits(tokens)[chosen].float().softmax(dim=-1)

    with without_adapter(naive):
        reference = forward.residual_stream(tokens)
        base = probabilities()
    now = probabilities()
    kept = (base + now).topk(min(KEPT, base.shape[-1]), dim=-1).indices
    backs = []
    for layers in bases:
        with edited_outputs(naive, clamp(layers, reference)):
            backs.append(probabilities().gather(1, kept))
    before, after = base.gather(1, kept), now.gather(1, kept)
    directions = torch.stack([after - back for back in backs])
    return Piece(
        batch, chosen, kept, directions, before, (directions * (after - before)).sum(dim=-1)
    )
