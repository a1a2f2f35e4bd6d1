"""Sites: the tokens of a batch at which drift is measured, as masks next to the attention mask.

A batch of neutral text may carry the masks in MASKS, (batch, tokens) each, one per site;
`grasp.data.tokenise.neutral_batches` writes them.  If the mask of a site is missing, every token
but padding counts, as at the site "all".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grasp.model.forward import Batch
from grasp.settings.protection import Site

MASKS: dict[Site, str] = {
    "prompt-end": "prompt_end_mask",
    "answer-start": "answer_start_mask",
    "answer": "answer_mask",
}
"""The key of each site's mask in a batch."""

START = 2
"""Tokens of an answer that count as its start, besides the last token before it."""


def site_mask(batch: Batch, site: Site) -> Tensor:
    """The tokens that count at a site, (batch, tokens) of bool; never padding."""
    real = batch["attention_mask"].bool()
    key = MASKS.get(site)
    return real & batch[key].bool() if key in batch else real


def predicting(batch: Batch, site: Site) -> Tensor:
    """Those tokens of a site that predict a token of an answer, (batch, tokens) of bool.

    After the last token of an answer, what a model predicts is no part of it.  Where a batch does
    not say which tokens belong to answers, or a row has none, every real token counts as one.
    """
    answered = site_mask(batch, "answer")
    if {MASKS["answer"], MASKS["prompt-end"]} <= batch.keys():
        ends = batch[MASKS["prompt-end"]].bool()
        # Two in a row are of text without answers, all of whose tokens count: see `sites_of`.
        answered[:, 1:] &= ~ends[:, 1:] | ends[:, :-1]
    predicts = torch.zeros_like(answered)
    predicts[:, :-1] = answered[:, 1:]
    return site_mask(batch, site) & predicts


def sites_of(answer: Sequence[bool], *, length: int) -> dict[str, list[int]]:
    """The masks of a chat's first `length` tokens, given which tokens belong to answers.

    If no answer begins within them, every token counts.
    """
    before = [later and not now for now, later in zip(answer, [*answer[1:], False], strict=True)]
    reached = [now or end for now, end in zip(answer, before, strict=True)]
    started = [
        now and any(before[max(0, place - START) : place + 1]) for place, now in enumerate(reached)
    ]
    if not any(before[:length]):
        before = started = reached = [True] * len(answer)
    sites: dict[Site, list[bool]] = {
        "prompt-end": before,
        "answer-start": started,
        "answer": reached,
    }
    return {MASKS[site]: [int(there) for there in mask[:length]] for site, mask in sites.items()}
