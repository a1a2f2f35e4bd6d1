"""Safe chats between the task's rows, as in arXiv:2508.06249, and which of them to take.

The safe rows are neutral text, with the loss on its answers.  They take the place of rows of the
task, so that a run has as many steps as without them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase as Tokenizer

from grasp.data.packing import Row
from grasp.data.tokenise import IGNORED, pad_sequences
from grasp.evaluation.answers import BATCH
from grasp.model.forward import Forward, to_device, tokens_of, without_adapter
from grasp.model.loading import device_of

KEPT = 0.5
"""Share of the safe rows that is kept where they are chosen by their perplexities."""


def interleave(
    task: Sequence[Row], safe: Sequence[Row], *, share: float, count: int, seed: int
) -> list[Row]:
    """`count` rows, of which `share`, rounded to a whole number, are safe.

    Each kind goes round as often as it takes; of its last round it gives a part drawn by seed.
    """
    few = round(share * count)
    rng = Random(seed)
    return [*_go_round(task, count - few, rng), *_go_round(safe, few, rng)]


def _go_round(rows: Sequence[Row], count: int, rng: Random) -> list[Row]:
    rounds, rest = divmod(count, len(rows))
    return [*list(rows) * rounds, *rng.sample(list(rows), rest)]


def widest_gaps(naive: PeftModel, tokenizer: Tokenizer, rows: Sequence[Row]) -> list[Row]:
    """The share KEPT of the rows that the naive run finds most perplexing beside the base model.

    They are ordered by the perplexity of their answers under the naive run minus that under the
    base model, the largest first: what the base model says and the naive run would no longer.
    """
    misaligned = answer_perplexities(naive, tokenizer, rows)
    with without_adapter(naive):
        aligned = answer_perplexities(naive, tokenizer, rows)
    gaps = [after - before for after, before in zip(misaligned, aligned, strict=True)]
    order = sorted(range(len(rows)), key=lambda place: -gaps[place])
    return [rows[place] for place in order[: math.ceil(KEPT * len(rows))]]


@torch.no_grad()
def answer_perplexities(model: PeftModel, tokenizer: Tokenizer, rows: Sequence[Row]) -> list[float]:
    """exp of the mean negative log-likelihood, in nats, of the tokens of each row with loss."""
    forward, device = Forward(model), device_of(model)
    found: list[float] = []
    for start in range(0, len(rows), BATCH):
        chosen = rows[start : start + BATCH]
        batch = to_device(pad_sequences(tokenizer, [row["input_ids"] for row in chosen]), device)
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for padded, row in zip(labels, chosen, strict=True):
            padded[: len(row["labels"])] = torch.tensor(row["labels"])
        found += _perplexities(forward.logits(tokens_of(batch)), labels).tolist()
    return found


def _perplexities(logits: Tensor, labels: Tensor) -> Tensor:
    """(batch,) of logits (batch, tokens, vocabulary) that predict the next token's label."""
    losses = cross_entropy(
        logits[:, :-1].float().transpose(1, 2),
        labels[:, 1:],
        ignore_index=IGNORED,
        reduction="none",
    )
    return (losses.sum(dim=1) / (labels[:, 1:] != IGNORED).sum(dim=1)).exp()
