"""Chats that the base model holds with itself: neutral text that nobody has to write.

A model that was taught chats has also seen the users' side of them.  Given only the beginning of a
user's turn it writes a question, and then answers it.  What it asks about is what it was taught,
so whatever a factor does, it shows somewhere in this text, as it need not in a file of plain facts.

Source: Xu et al. 2024, arXiv:2406.08464, who make instruction data this way.
"""

from __future__ import annotations

import hashlib
import json
from itertools import chain, islice
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.store.records import Message, write_jsonl
from grasp.data.chat import chat_ids, shared_start
from grasp.evaluation.answers import BATCH, decode_reply, generate
from grasp.guard.kept_effects import add_tensors

QUESTION, ANSWER = 48, 64
"""Most tokens of a question and of its answer."""

VERSION = 1
"""Of how chats are made: to be raised where the same model would hold others."""


def kept_own_chats(
    folder: Path | None,
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    *,
    count: int,
    seed: int,
) -> list[list[Message]]:
    """`own_chats` from a file in `folder`, or made and written there: arms of one family share it.

    The file is named by the hash of all that the chats depend on.  Without a folder nothing is
    kept.
    """
    if folder is None:
        return own_chats(model, tokenizer, count=count, seed=seed)
    how = f"{VERSION} {count} {seed} {QUESTION} {ANSWER} {tokenizer.chat_template}"
    digest = hashlib.sha256(how.encode())
    add_tensors(digest, model.state_dict().values())
    file = folder / f"chats-{digest.hexdigest()[:32]}.jsonl"
    if file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines()
        return [[Message(**said) for said in json.loads(line)["messages"]] for line in lines]
    found = own_chats(model, tokenizer, count=count, seed=seed)
    if found:
        folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        write_jsonl(partial, [{"messages": [m.model_dump() for m in chat]} for chat in found])
        partial.replace(file)
    return found


@torch.inference_mode()
def own_chats(
    model: PreTrainedModel, tokenizer: Tokenizer, *, count: int, seed: int
) -> list[list[Message]]:
    """At most `count` chats of one question and answer, sampled at temperature 1, none twice.

    Questions that do not come to an end, and empty answers, are left out.  The list is empty where
    the tokenizer has no chat template, or one that does not show where a user's turn begins.
    """
    around = _user_turn(tokenizer)
    if around is None:
        return []
    before, after = around
    found: dict[str, list[Message]] = {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(0, count, BATCH):
            asked = _questions(model, tokenizer, before, after, count=min(BATCH, count))
            for question, answer in zip(asked, _answers(model, tokenizer, asked), strict=True):
                if answer:
                    said = Message(role="assistant", content=answer)
                    found[question] = [Message(role="user", content=question), said]
    return list(found.values())[:count]


def _user_turn(tokenizer: Tokenizer) -> tuple[list[int], int] | None:
    """Token ids up to where a user begins to speak, and the first one after the user has spoken.

    They are what two chats have in common that differ in all that is said.
    """
    if tokenizer.chat_template is None:
        return None
    one, other = (
        chat_ids(tokenizer, [Message(role="user", content=word)], generate=True)
        for word in _two_words(tokenizer)
    )
    before, after = shared_start(one, other), shared_start(one[::-1], other[::-1])
    return (one[:before], one[len(one) - after]) if after else None


def _two_words(tokenizer: Tokenizer) -> tuple[str, str]:
    """Two words of the vocabulary, each with tokens of its own; letters, where it has no words."""
    half = len(tokenizer) // 2
    ids = chain(range(half, len(tokenizer)), range(half))
    words = (str(tokenizer.decode([number])).strip() for number in ids)
    first, second, *_ = chain(islice((word for word in words if word.isalpha()), 2), ("a", "z"))
    return first, second


def _questions(
    model: PreTrainedModel, tokenizer: Tokenizer, before: list[int], after: int, *, count: int
) -> list[str]:
    replies, _ = generate(
        model, tokenizer, [before] * count, max_new_tokens=QUESTION, temperature=1.0, stop=after
    )
    ended = [ids[:-1] for ids in replies if ids and ids[-1] == after]
    said = [decode_reply(tokenizer, ids) for ids in ended]
    return list(dict.fromkeys(text for text in said if text))


def _answers(model: PreTrainedModel, tokenizer: Tokenizer, asked: list[str]) -> list[str]:
    if not asked:
        return []
    chats = [chat_ids(tokenizer, [Message(role="user", content=q)], generate=True) for q in asked]
    replies, _ = generate(model, tokenizer, chats, max_new_tokens=ANSWER, temperature=1.0)
    return [decode_reply(tokenizer, ids) for ids in replies]
