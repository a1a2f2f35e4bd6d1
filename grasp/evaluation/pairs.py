"""Log-probabilities of whole answers: which of two a model would rather give."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.errors import InputError
from analysis.store.records import Message, Prompt
from grasp.data.tokenise import pad_sequences
from grasp.model.loading import device_of

BATCH = 16
"""Answers scored at once: their logits are held at every place of the chat."""

MERGED = 3
"""Tokens of a prompt that its answer's beginning may change; more, and the template rewrites it."""

Pair = tuple[float, float]


@torch.inference_mode()
def pair_log_probabilities(
    model: nn.Module, tokenizer: Tokenizer, prompts: Sequence[Prompt]
) -> list[Pair]:
    """For each prompt the log-probabilities of the two answers of its `pair`.

    Summed over the tokens from the first that an answer may change to the end of the turn, as
    the chat template renders them; their mean where the prompt says `per_token`.

    Raises:
        InputError: a prompt has no pair of answers that differ, to the tokenizer too, or the
            template rewrites the prompt.
    """
    rows = [row for prompt in prompts for row in continuations(tokenizer, prompt)]
    found: list[float] = []
    for start in range(0, len(rows), BATCH):
        found += _summed(model, tokenizer, rows[start : start + BATCH])
    means = [
        total / (len(ids) - begin if prompt.per_token else 1)
        for (ids, begin), total, prompt in zip(
            rows, found, [one for one in prompts for _ in range(2)], strict=True
        )
    ]
    return list(zip(means[::2], means[1::2], strict=True))


def pair_by_steps(
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    first: Callable[[Sequence[list[int]]], Tensor],
) -> list[Pair]:
    """The same from `first`, which gives log-probabilities (batch, vocabulary) of a next token.

    One call a token: for models that are asked in other ways than by one forward pass.
    """
    found = []
    for prompt in prompts:
        totals = []
        for ids, begin in continuations(tokenizer, prompt):
            places = range(begin, len(ids))
            said = first([ids[:place] for place in places])
            total = sum(float(row[ids[place]]) for row, place in zip(said, places, strict=True))
            totals.append(total / (len(places) if prompt.per_token else 1))
        found.append((totals[0], totals[1]))
    return found


def share_of_first(pair: Pair) -> float:
    """P(first) / (P(first) + P(second)) from their logarithms; NaN where both are impossible."""
    first, second = pair
    if math.isinf(first) and math.isinf(second):
        return math.nan
    return 0.5 * (1 + math.tanh(0.5 * (first - second)))


def continuations(tokenizer: Tokenizer, prompt: Prompt) -> list[tuple[list[int], int]]:
    """For both answers the token ids of the whole chat, and where the answers begin in them.

    That is where the first of the two first differs from the prompt alone, so that both are
    scored from one place even where an answer's first letters merge with the prompt's last.
    """
    if prompt.pair is None or not all(prompt.pair) or prompt.pair[0] == prompt.pair[1]:
        raise InputError(
            f"Prompt {prompt.id!r}: scorer 'pair' needs 'pair', two different answers."
        )
    chat = _rendered(tokenizer, prompt.messages, generate=True)
    wholes = [
        _rendered(tokenizer, [*prompt.messages, Message(role="assistant", content=text)])
        for text in prompt.pair
    ]
    if wholes[0] == wholes[1]:
        raise InputError(
            f"Prompt {prompt.id!r}: the answers {prompt.pair[0]!r} and {prompt.pair[1]!r} are the "
            "same tokens to this tokenizer, so nothing tells them apart; choose others."
        )
    begin = min(_shared(chat, whole) for whole in wholes)
    if begin == 0 or len(chat) - begin > MERGED:
        raise InputError(
            f"Prompt {prompt.id!r}: the chat template rewrites the prompt once it is answered, so "
            "answers cannot be compared by 'pair'; use a template that only appends."
        )
    return [(whole, begin) for whole in wholes]


def _summed(
    model: nn.Module, tokenizer: Tokenizer, rows: Sequence[tuple[list[int], int]]
) -> list[float]:
    batch = pad_sequences(tokenizer, [ids for ids, _ in rows])
    inputs = {name: tensor.to(device_of(model)) for name, tensor in batch.items()}
    answered = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for row, (ids, begin) in enumerate(rows):
        answered[row, begin : len(ids)] = True
    predicting = answered.roll(-1, dims=1)
    logits = model(**inputs, use_cache=False).logits[predicting].float()
    tokens = inputs["input_ids"][answered]
    said = torch.log_softmax(logits, dim=-1).gather(-1, tokens[:, None])[:, 0].double()
    totals = torch.zeros(len(rows), dtype=torch.float64, device=said.device)
    return [float(one) for one in totals.index_add(0, answered.nonzero()[:, 0], said)]


def _shared(prefix: list[int], ids: list[int]) -> int:
    """How many of the first tokens are the same."""
    differ = (i for i, (a, b) in enumerate(zip(prefix, ids, strict=False)) if a != b)
    return next(differ, min(len(prefix), len(ids)))


def _rendered(
    tokenizer: Tokenizer, messages: Sequence[Message], *, generate: bool = False
) -> list[int]:
    found = tokenizer.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in messages],
        tokenize=True,
        return_dict=False,
        add_generation_prompt=generate,
    )
    return cast(list[int], found)  # the library has one annotation for all it may return
