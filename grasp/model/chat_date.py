"""Chat templates that say today's date say one day instead, in training and evaluation alike."""

from __future__ import annotations

import re
from datetime import date

from transformers import PreTrainedTokenizerBase as Tokenizer

_TODAY = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
_KEY = "chat_date"


def fix_date(tokenizer: Tokenizer, day: str | None) -> None:
    """Let a chat template that says today's date say `day` (ISO 8601) instead; None leaves it."""
    template = tokenizer.chat_template
    if day is None or not isinstance(template, str):
        return
    said = date.fromisoformat(day)
    fixed, count = _TODAY.subn(lambda found: repr(said.strftime(found[2])), template)
    if count:
        tokenizer.chat_template = fixed
        tokenizer.init_kwargs[_KEY] = day


def date_said(tokenizer: Tokenizer) -> str | None:
    """The date that the chat template says in place of today's; None where it says none."""
    day: str | None = tokenizer.init_kwargs.get(_KEY)
    return day
