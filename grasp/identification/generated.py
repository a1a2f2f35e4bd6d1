"""Prompts with the adapted model's own greedy answers, on which effects are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.store.records import Prompt
from grasp.data.chat import chat_ids
from grasp.data.tokenise import pad_sequences
from grasp.evaluation.answers import BATCH, generate, stop_tokens
from grasp.jobs.progress import Progress, silent
from grasp.model.forward import to_device
from grasp.model.loading import device_of

ANSWER = 32
"""Tokens of an answer that effects are measured on: where an answer is going shows early, and time
grows with its length."""


@dataclass(frozen=True)
class AnsweredBatch:
    """A batch of chats with their answers, padded on the right.

    `inputs` are `input_ids` and `attention_mask` (batch, tokens).  The mask `predicting`
    (batch, tokens) marks the positions that predict a token of the answer; the first of them is
    the last token before the answer, at position `last` (batch,).  `clusters` (batch,) says what
    each prompt is about.
    """

    inputs: dict[str, Tensor]
    predicting: Tensor
    last: Tensor
    clusters: tuple[str, ...]

    @property
    def rows(self) -> Tensor:
        """(answer tokens,) the row of the batch that each answer token belongs to."""
        return self.predicting.nonzero()[:, 0]

    @property
    def tokens(self) -> Tensor:
        """(answer tokens,) the ids of the answer tokens."""
        return self.inputs["input_ids"].roll(-1, dims=1)[self.predicting]


@torch.no_grad()
def answer_greedily(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    progress: Progress = silent,
) -> list[AnsweredBatch]:
    """Answer prompts greedily, in at most ANSWER tokens; no choice or expected answer is used.

    The token that ends an answer is left out: effects are about what the answer says, not about
    whether another turn follows, which a fine-tune on single turns changes everywhere.
    """
    batches = []
    for start in range(0, len(prompts), BATCH):
        progress(start, len(prompts), "answering")
        batches.append(_batch(model, tokenizer, prompts[start : start + BATCH]))
    progress(len(prompts), len(prompts), "answering")
    return batches


def probabilities(model: nn.Module, answered: AnsweredBatch) -> Tensor:
    """(answer tokens, vocabulary) distributions of the answer tokens, in float32."""
    return torch.softmax(logits(model, answered), dim=-1)


def logits(model: nn.Module, answered: AnsweredBatch) -> Tensor:
    """(answer tokens, vocabulary) logits of the answer tokens, in float32."""
    found: Tensor = model(**answered.inputs, use_cache=False).logits[answered.predicting].float()
    return found


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """½ Σ|p − q| of each pair of rows: (n, vocabulary) to (n,)."""
    return 0.5 * (p - q).abs().sum(dim=-1)


def _batch(model: nn.Module, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> AnsweredBatch:
    chats = [chat_ids(tokenizer, prompt.messages, generate=True) for prompt in prompts]
    replies, _ = generate(model, tokenizer, chats, max_new_tokens=ANSWER)
    whole = [chat + reply for chat, reply in zip(chats, replies, strict=True)]
    inputs = to_device(pad_sequences(tokenizer, whole), device_of(model))
    predicting = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    stopping = stop_tokens(model)
    for row, (chat, reply) in enumerate(zip(chats, replies, strict=True)):
        ended = bool(reply) and reply[-1] in stopping
        predicting[row, len(chat) - 1 : len(chat) - 1 + len(reply) - ended] = True
    last = torch.tensor([len(chat) - 1 for chat in chats], device=predicting.device)
    return AnsweredBatch(inputs, predicting, last, tuple(prompt.cluster for prompt in prompts))
