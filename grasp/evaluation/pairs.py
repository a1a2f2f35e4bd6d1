"""Log-probabilities of whole answers: which of two answers a model prefers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.errors import InputError
from analysis.store.records import Message, Prompt
from grasp.data.chat import chat_ids, shared_start
from grasp.data.tokenise import pad_sequences
from grasp.model.forward import to_device
from grasp.model.loading import device_of

BATCH = 16
"""Answers scored at a time; small, because logits are held at every answer position."""

MERGED = 3
"""How many last tokens of a prompt may merge with the start of its answer.

If more change, the template rewrites the prompt."""

Pair = tuple[float, float]


@torch.inference_mode()
def pair_log_probabilities(
    model: nn.Module, tokenizer: Tokenizer, prompts: Sequence[Prompt]
) -> list[Pair]:
    """For each prompt, the log-probabilities in nats of the two answers of its `pair`.

    Summed over tokens as the chat template renders them, from the first one that the answer may
    change to the end of the turn; the mean over these tokens if the prompt says `per_token`.

    Raises:
        InputError: a prompt's pair is missing, its answers are the same tokens, or the chat
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
    """The same, token by token, for models that one forward pass cannot score.

    `first` maps tokenised chats to log-probabilities (batch, vocabulary) of the next token.
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
    """P(first) / (P(first) + P(second)) from log-probabilities; NaN if both are impossible."""
    first, second = pair
    if math.isinf(first) and math.isinf(second):
        return math.nan
    return 0.5 * (1 + math.tanh(0.5 * (first - second)))


def continuations(tokenizer: Tokenizer, prompt: Prompt) -> list[tuple[list[int], int]]:
    """For both answers, the token ids of the whole chat and the position where answers begin.

    That is the first position at which either chat differs from the prompt alone.  Both are thus
    scored from the same position, even if the first letters of an answer merge with the prompt.

    Raises:
        InputError: as `pair_log_probabilities`.
    """
    if prompt.pair is None or not all(prompt.pair) or prompt.pair[0] == prompt.pair[1]:
        raise InputError(
            f"Prompt {prompt.id!r}: scorer 'pair' needs 'pair', two different answers."
        )
    chat = chat_ids(tokenizer, prompt.messages, generate=True)
    wholes = [
        chat_ids(tokenizer, [*prompt.messages, Message(role="assistant", content=text)])
        for text in prompt.pair
    ]
    if wholes[0] == wholes[1]:
        raise InputError(
            f"Prompt {prompt.id!r}: the answers {prompt.pair[0]!r} and {prompt.pair[1]!r} are the "
            "same tokens to this tokenizer, so they cannot be told apart; choose other answers."
        )
    begin = min(shared_start(chat, whole) for whole in wholes)
    if begin == 0 or len(chat) - begin > MERGED:
        raise InputError(
            f"Prompt {prompt.id!r}: the chat template rewrites the prompt once it is answered, so "
            "scorer 'pair' cannot compare answers; use a template that only appends."
        )
    return [(whole, begin) for whole in wholes]


def _summed(
    model: nn.Module, tokenizer: Tokenizer, rows: Sequence[tuple[list[int], int]]
) -> list[float]:
    inputs = to_device(pad_sequences(tokenizer, [ids for ids, _ in rows]), device_of(model))
    answered = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for row, (ids, begin) in enumerate(rows):
        answered[row, begin : len(ids)] = True
    predicting = answered.roll(-1, dims=1)
    logits = model(**inputs, use_cache=False).logits[predicting].float()
    tokens = inputs["input_ids"][answered]
    said = torch.log_softmax(logits, dim=-1).gather(-1, tokens[:, None])[:, 0].double()
    totals = torch.zeros(len(rows), dtype=torch.float64, device=said.device)
    return [float(one) for one in totals.index_add(0, answered.nonzero()[:, 0], said)]
