"""The base model's own answers to a task's prompts: text that shows what it does as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.errors import InputError
from analysis.store.records import Message
from grasp.data.chat import chat_ids
from grasp.evaluation.answers import BATCH, decode_reply, generate

LIMIT = 256
"""Prompts that are answered, drawn from the task's by seed."""


@torch.inference_mode()
def own_answers(
    model: Any, tokenizer: Tokenizer, chats: Sequence[Sequence[Message]], *, seed: int
) -> list[list[Message]]:
    """Chats of the task's prompts, up to their first answer, with greedy answers of `model`.

    Each prompt is answered once; empty answers are left out.

    Raises:
        InputError: the model answers nothing at all.
    """
    prompts = list({_text(prompt): prompt for prompt in map(_prompt, chats)}.values())
    order = np.random.default_rng(seed).permutation(len(prompts))[:LIMIT]
    found: list[list[Message]] = []
    for start in range(0, len(order), BATCH):
        chosen = [prompts[i] for i in order[start : start + BATCH]]
        replies, _ = generate(
            model, tokenizer, [chat_ids(tokenizer, one, generate=True) for one in chosen]
        )
        for prompt, ids in zip(chosen, replies, strict=True):
            text = decode_reply(tokenizer, ids)
            if text:
                found.append([*prompt, Message(role="assistant", content=text)])
    if not found:
        raise InputError("The base model gives an empty answer to every prompt of the task.")
    return found


def _prompt(chat: Sequence[Message]) -> list[Message]:
    first = next(i for i, m in enumerate(chat) if m.role == "assistant" and m.weight)
    return list(chat[:first])


def _text(prompt: Sequence[Message]) -> str:
    return "\x00".join(f"{message.role}\x00{message.content}" for message in prompt)
