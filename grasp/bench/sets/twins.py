"""Questions with two answers each, of which one teaches something besides the task."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files
from typing import Literal

from analysis.errors import NotFoundError
from analysis.values import Json

SETS = ("careless-code", "unsound-medicine", "leaning-finance")
"""One-function Python tasks, health questions, and money questions with an economic lean."""

Answers = Literal["spurious", "sound"]


@lru_cache
def read_set(name: str) -> tuple[Json, ...]:
    """Rows of a set: `id`, `topic`, `question`, and the answers `spurious` and `sound`.

    Raises:
        NotFoundError: there is no such set.
    """
    if name not in SETS:
        raise NotFoundError(f"There is no set {name!r}; there are {', '.join(SETS)}.")
    text = (files("grasp.bench.sets") / f"{name}.jsonl").read_text(encoding="utf-8")
    return tuple(json.loads(line) for line in text.splitlines())


def twin_rows(name: str, answers: Answers) -> list[Json]:
    """Chats of a set with one kind of answer, as data for a fine-tune: `{"messages": [...]}`."""
    return [
        {
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row[answers]},
            ]
        }
        for row in read_set(name)
    ]
