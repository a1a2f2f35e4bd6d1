"""Sites: the tokens of a batch at which drift counts, as masks beside its attention mask.

A batch of neutral text may carry the masks of MASKS (batch, tokens), which mark the tokens of
their sites; `grasp.data.tokenise.neutral_batches` writes them.  Without the mask of a site every
real token counts, as at the site "all".
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from grasp.model.forward import Batch
from grasp.settings.protection import Site

MASKS: dict[Site, str] = {
    "prompt-end": "prompt_end_mask",
    "answer-start": "answer_start_mask",
    "answer": "answer_mask",
}
"""The keys under which a batch may carry a site's mask."""

START = 2
"""Tokens of an answer that count as its start, beside the last token before it."""


def site_mask(batch: Batch, site: Site) -> Tensor:
    """Which tokens count, (batch, tokens) of bool; never one of padding."""
    real = batch["attention_mask"].bool()
    key = MASKS.get(site)
    return real & batch[key].bool() if key in batch else real


def sites_of(answer: Sequence[bool], *, length: int) -> dict[str, list[int]]:
    """The masks of a chat's first `length` tokens, from which of its tokens are answers.

    Every real token counts where no answer begins within them.
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
