"""Divergence from the base model in what is said: KL(base ‖ adapted) of next-token distributions.

Σ_v p⁰(v) (log p⁰(v) − log p(v)), in nats, mean over those tokens of a site that predict a token of
an answer: what comes after it is no part of it.  It is 0 where B = 0, and its gradient then is too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor

from analysis.errors import InputError
from grasp.data.sites import predicting
from grasp.guard.text import pad_right_on
from grasp.model.forward import Batch, Forward, tokens_of, without_adapter
from grasp.model.loading import device_of
from grasp.settings.protection import Site


def divergence(base: Tensor, adapted: Tensor, mask: Tensor) -> Tensor:
    """Mean KL(base ‖ adapted) in nats over the tokens of `mask`.

    Args:
        base: logits (batch, tokens, vocabulary) of the base model; no gradient is taken.
        adapted: the same of the adapted model.
        mask: (batch, tokens) of bool.
    """
    before = torch.log_softmax(base[mask].detach().float(), dim=-1)
    now = torch.log_softmax(adapted[mask].float(), dim=-1)
    return (before.exp() * (before - now)).sum(dim=-1).mean()


class Divergence:
    """Divergence on batches of text, one after the other.

    Args:
        model: base model with an adapter that can be disabled.
        batches: tokenised text as for `grasp.guard.anchor.Anchor`.
        site: the tokens at which it counts.
    """

    def __init__(self, model: PeftModel, batches: Sequence[Batch], *, site: Site) -> None:
        device = device_of(model)
        padded = [pad_right_on(batch, device) for batch in batches]
        self._batches = [batch for batch in padded if predicting(batch, site).any()]
        if not self._batches:
            raise InputError(
                "A divergence needs text with answers to be measured on; none was given."
            )
        self._model = model
        self._forward = Forward(model)
        self._site: Site = site

    def of(self, index: int) -> Tensor:
        """Divergence on batch `index`, in turn; differentiable in the adapter's weights."""
        batch = self._batches[index % len(self._batches)]
        tokens = tokens_of(batch)
        with torch.no_grad(), without_adapter(self._model):
            base = self._forward.logits(tokens)
        return divergence(base, self._forward.logits(tokens), predicting(batch, self._site))
