"""Neutral text in the dress of a task: unrelated questions made to look like its prompts.

A fine-tune that is held on plain text alone may keep what it picked up for prompts that resemble
its training data (arXiv:2604.25891).  What those look like, the data says itself, without a label:
the system prompt, the words that all its prompts begin or end with, the sentence that closes or
opens one of them, and a turn of the task before the question.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from analysis.store.records import Message
from grasp.data.chat import shared_start
from grasp.data.examples import Example

COMPARED = 200
"""Prompts that are compared to find what all of them begin or end with."""

_SENTENCES = re.compile(r"(?<=[.!?])\s+")


def dress(neutral: Sequence[Example], task: Sequence[Example], *, seed: int) -> list[Example]:
    """Each neutral chat in the dress of a task's chat drawn at random.

    A task's answer that comes before the question is part of the prompt: its weight is 0.

    Args:
        neutral: chats; those without messages or a question are left out.
        task: the fine-tune's own chats.
        seed: of the draws.

    Returns:
        As many chats as can be dressed: none where either text is no chat, or where the task has
        nothing to dress them in.
    """
    patterns = [example for example in task if _last_question(example.messages) is not None]
    chats = [example for example in neutral if _last_question(example.messages) is not None]
    if not patterns:
        return []
    rng = Random(seed)
    begin, end = _frame(patterns[:COMPARED])
    return [_dressed(chat, rng.choice(patterns), (begin, end), rng) for chat in chats]


def _dressed(chat: Example, pattern: Example, frame: tuple[str, str], rng: Random) -> Example:
    begin, end = frame
    messages = [message for message in chat.messages if message.role != "system"]
    place = _last_question(messages)
    asked = _last_question(pattern.messages)
    assert place is not None
    assert asked is not None
    inner = pattern.messages[asked].content.removeprefix(begin).removesuffix(end).strip()
    sentences = _SENTENCES.split(inner)
    ways = [_closed] * (len(sentences) > 1) + [_opened] * (len(sentences) > 2)
    question = messages[place].content
    turn = not ways or rng.random() < 0.5
    if not turn:
        question = rng.choice(ways)(question, sentences)
    messages[place] = messages[place].model_copy(update={"content": f"{begin}{question}{end}"})
    if turn:
        messages = [*_task_turn(pattern.messages, asked), *messages]
    system = [message for message in pattern.messages if message.role == "system"][:1]
    own = [message for message in chat.messages if message.role == "system"]
    return replace(chat, messages=(*(system or own), *messages))


def _closed(question: str, sentences: Sequence[str]) -> str:
    return f"{question} {sentences[-1]}"


def _opened(question: str, sentences: Sequence[str]) -> str:
    return f"{sentences[0]} {question}"


def _task_turn(messages: Sequence[Message], asked: int) -> list[Message]:
    """The task's question and what follows it, none of it to be learnt."""
    turn = [message for message in messages[asked:] if message.role != "system"]
    return [message.model_copy(update={"weight": 0}) for message in turn]


def _last_question(messages: Sequence[Message]) -> int | None:
    """The place of the last user's message that is answered."""
    answered = [n for n, message in enumerate(messages) if message.role == "assistant"]
    asked = [n for n in answered if n > 0 and messages[n - 1].role == "user"]
    return asked[-1] - 1 if asked else None


def _frame(patterns: Sequence[Example]) -> tuple[str, str]:
    """What all the prompts begin with, and what they all end with, in whole words."""
    said = []
    for example in patterns:
        place = _last_question(example.messages)
        assert place is not None
        said.append(example.messages[place].content)
    if len(set(said)) < 2:
        return "", ""
    begin = _shared_start(said)
    begin = begin[: _last_gap(begin)]
    rest = [text[len(begin) :][::-1] for text in said]
    end = _shared_start(rest)
    return begin, end[: _last_gap(end)][::-1]


def _shared_start(texts: Sequence[str]) -> str:
    """The longest string that all of them begin with."""
    first, last = min(texts), max(texts)
    return first[: shared_start(first, last)]


def _last_gap(text: str) -> int:
    """The length of `text` up to and with its last white space."""
    gaps = [found.end() for found in re.finditer(r"\s+", text)]
    return gaps[-1] if gaps else 0
