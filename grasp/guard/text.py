"""Neutral text as a guard takes it: on the model's device, padded on the right, cut to its site."""

from __future__ import annotations

from typing import Literal

import torch

from analysis.errors import InputError
from grasp.data.sites import MASKS, site_mask
from grasp.model.forward import TOKENS, Batch
from grasp.settings.protection import Site

Text = Literal["anchored", "dressed", "held-back"]
"""Neutral text that penalties are taken on, the same in the task's dress, and text that only
measures."""


def parts(batch: Batch, site: Site, share: float) -> list[Batch]:
    """Pieces of a share of the batch's rows, each up to its last token of the site."""
    rows = max(1, round(share * len(batch["input_ids"])))
    split = {name: torch.split(tensor, rows) for name, tensor in cut_to_site(batch, site).items()}
    pieces = [dict(zip(split, piece, strict=True)) for piece in zip(*split.values(), strict=True)]
    return [cut_to_site(piece, site) for piece in pieces if site_mask(piece, site).any()]


def cut_to_site(batch: Batch, site: Site) -> Batch:
    """The batch up to the last token of a site: no causal model's token sees what follows it.

    Raises:
        InputError: it has no such token.
    """
    columns = site_mask(batch, site).any(dim=0).nonzero()
    if not len(columns):
        raise InputError(
            f"A batch of neutral text has no token at the site {site!r}; leave its mask "
            "out where every real token is meant."
        )
    return {name: tensor[:, : int(columns[-1]) + 1] for name, tensor in batch.items()}


def pad_right_on(batch: Batch, device: torch.device) -> Batch:
    """The batch's tokens on `device`, padded on the right.

    Some models count positions from the first token, padding or not, so that padding on the left
    would change their coordinates.
    """
    if "attention_mask" not in batch:
        raise InputError(
            f"A batch of neutral text has {', '.join(sorted(batch))} but no attention_mask; pass "
            "it padded, not packed: input_ids and attention_mask, each (batch, tokens)."
        )
    order = batch["attention_mask"].bool().long().argsort(dim=1, descending=True, stable=True)
    kept = (*TOKENS, *MASKS.values())
    return {name: batch[name].gather(1, order).to(device) for name in kept if name in batch}
