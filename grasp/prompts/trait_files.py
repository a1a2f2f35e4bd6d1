"""Trait files of the persona-vectors study, which hold neither rows nor scored prompts."""

from __future__ import annotations

import json
from pathlib import Path

from analysis.errors import InputError


def check_no_trait_file(path: Path) -> None:
    """Refuse a trait file; whatever else a file is, its own reader says.

    Raises:
        InputError: it is one.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    refuse_trait_file(found, path)


def refuse_trait_file(found: object, path: Path) -> None:
    """Refuse what was read of a file, if it is a trait file, with what can be made of it.

    Raises:
        InputError: it is one.

    Source: Chen et al. 2025, arXiv:2507.21509, whose files have `instruction` (a list of `pos` and
    `neg`), `questions` and `eval_prompt`.
    """
    if isinstance(found, dict) and {"instruction", "questions"} <= found.keys():
        raise InputError(
            f"{path} is a trait file of the persona-vectors study: questions and instructions "
            "without answers, so it is neither data to train on nor prompts with a scorer. To ask "
            "its questions, copy them into a prompt set as `items` (docs/how-to/prompts.md). To "
            "contrast its instructions, let a model answer each question under a `pos` and a `neg` "
            "one, and give the chats, one per line with `variant`: pos or neg, to `grasp factors "
            "--contrast FILE --variants pos,neg`."
        )
