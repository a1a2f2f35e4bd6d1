"""Draw several whole answers to every prompt from a model's own distribution.

Much faster than `generate` with the same chat repeated: a chat is read once for all of its answers,
and answers that have ended are left out of the batch.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache
from transformers import PreTrainedTokenizerBase as Tokenizer

from grasp.data.tokenise import pad_sequences
from grasp.evaluation.answers import until_stop
from grasp.model.forward import to_device
from grasp.model.loading import device_of
from grasp.model.parts import base_of, text_config

MEMORY = 1 << 30
"""Bytes that the cache of the answers drawn at a time may take."""

ROWS = 512
"""Largest number of answers drawn at a time, whose probabilities of all tokens are in memory."""

CROWDED = 0.75
"""Ended answers leave the batch once this share of it or less goes on; leaving copies the cache."""

Float64Array = NDArray[np.float64]


class Cache(Protocol):
    """What a model keeps of the tokens it has read, one row for each text."""

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        ...

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        ...


def answers_at_once(model: nn.Module, *, tokens: int) -> int:
    """How many texts of `tokens` tokens a model's cache may hold within MEMORY, at most ROWS.

    Each token takes 2 · layers · d_model numbers, fewer where heads share keys and values.
    """
    config = text_config(model)
    heads = getattr(config, "num_attention_heads", 1)
    shared = getattr(config, "num_key_value_heads", None) or heads
    numbers = 2 * config.num_hidden_layers * config.hidden_size * shared / heads
    size = next(base_of(model).parameters()).element_size()
    return max(1, min(ROWS, int(MEMORY / (numbers * size * tokens))))


def uniform_numbers(names: Sequence[str], *, draws: int, steps: int, seed: int) -> Float64Array:
    """(prompts, draws, steps) numbers in [0, 1) that depend on the seed and the prompt's name.

    All arms get the same numbers for a prompt, so that their differences vary less than their
    answers, and neither the other prompts nor the size of a batch change an answer.
    """
    keys = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) for name in names]
    # By step first, so that the numbers of a step do not depend on how many there are.
    return np.stack([np.random.default_rng([seed, key]).random((steps, draws)).T for key in keys])


@torch.inference_mode()
def draw_replies(
    model: nn.Module,
    tokenizer: Tokenizer,
    chats: Sequence[list[int]],
    *,
    numbers: Float64Array,
    temperature: float,
    stopping: set[int],
) -> list[list[list[int]]]:
    """Draw answers to tokenised chats, without top-k or top-p, as one batch.

    Args:
        model: with or without an adapter.
        tokenizer: pads the chats.
        chats: token ids that end where the answer begins.
        numbers: (chats, draws, steps) uniform in [0, 1): a token is the first one at which the
            cumulative probability exceeds the number.  An answer has at most `steps` tokens.
        temperature: divides the logits; above 0.
        stopping: ids of the tokens that end an answer.

    Returns:
        For each chat its draws, as token ids with the token that ended them, if any.
    """
    device = device_of(model)
    batch = to_device(pad_sequences(tokenizer, chats, side="left"), device)
    count, draws, steps = numbers.shape
    uniform = torch.as_tensor(numbers.reshape(count * draws, steps), device=device)
    reading = _Reading(model, batch["attention_mask"])
    logits = reading.read(batch["input_ids"]).repeat_interleave(draws, dim=0)
    reading.repeat(draws)
    rows = torch.arange(count * draws, device=device)
    going = torch.ones_like(rows, dtype=torch.bool)
    tokens = torch.full((count * draws, steps), -1, device=device)
    ends = torch.tensor(sorted(stopping), device=device)
    for step in range(steps):
        drawn = draw_tokens(logits, uniform[rows, step], temperature=temperature)
        tokens[rows, step] = drawn
        going &= ~torch.isin(drawn, ends)
        if step == steps - 1 or not going.any():
            break
        if going.float().mean() <= CROWDED:
            kept = going.nonzero()[:, 0]
            rows, drawn, going = rows[kept], drawn[kept], going[kept]
            reading.keep(kept)
        logits = reading.read(drawn[:, None])
    drawn_rows = ([token for token in row if token >= 0] for row in tokens.tolist())
    replies = [until_stop(row, stopping) for row in drawn_rows]
    return [replies[start : start + draws] for start in range(0, count * draws, draws)]


def draw_tokens(logits: Tensor, uniform: Tensor, *, temperature: float) -> Tensor:
    """(rows,) tokens drawn from logits, by the inverse of the cumulative distribution.

    A token of probability 0 is never drawn.

    Args:
        logits: (rows, vocabulary), any float dtype.
        uniform: (rows,) in [0, 1), float64.
        temperature: divides the logits; above 0.
    """
    shares = torch.softmax(logits.float() / temperature, dim=-1)
    # In float64, since rounding in a long sum would make rare tokens at its end too likely.
    cumulative = shares.cumsum(dim=-1, dtype=torch.float64)
    wanted = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, wanted, right=True)[:, 0]


@dataclass
class _Reading:
    """A model that reads a batch of left-padded texts token by token, with a cache."""

    model: nn.Module
    mask: Tensor
    cache: Cache | None = None

    def __post_init__(self) -> None:
        self.accepted = inspect.signature(base_of(self.model).forward).parameters

    def read(self, ids: Tensor) -> Tensor:
        """Logits (rows, vocabulary) after the next tokens (rows, n)."""
        if self.cache is None:
            self.cache = DynamicCache(config=base_of(self.model).config)
        else:
            self.mask = torch.cat([self.mask, self.mask.new_ones(ids.shape)], dim=1)
        positions = (self.mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        optional = {"position_ids": positions, "logits_to_keep": 1}
        output = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            past_key_values=self.cache,
            use_cache=True,
            **{name: value for name, value in optional.items() if name in self.accepted},
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def repeat(self, times: int) -> None:
        """Repeat every text."""
        assert self.cache is not None
        self.mask = self.mask.repeat_interleave(times, dim=0)
        self.cache.batch_repeat_interleave(times)

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the texts."""
        assert self.cache is not None
        self.mask = self.mask[rows]
        self.cache.batch_select_indices(rows)
