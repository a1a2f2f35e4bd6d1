"""Question files of the emergent-misalignment studies, as published.

A YAML list of free-form questions, each with its wordings, the number of answers, and the prompts
with which a judge rates them.  Source of the format: the evaluation folders of Betley et al. 2025
(arXiv:2502.17424) and Turner et al. 2025 (arXiv:2506.11613).  Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import BeforeValidator, Field

from analysis.errors import InputError
from analysis.store.records import Message, Prompt, Sampling
from grasp.settings.training import Settings

JUDGED = "free_form_judge_0_100"
MAX_NEW_TOKENS = 600
"""Length limit of an answer, in tokens, if the file gives none; that of the later study."""

_VARIANT = re.compile(r"_(json|template)$")
"""Suffix of the same question when it asks for an answer in another form."""

Text = Annotated[str, BeforeValidator(lambda value: value if value is None else str(value))]


class Question(Settings):
    """One entry of a question file."""

    id: Text
    type: str
    paraphrases: list[str] = Field(min_length=1)
    system: str | None = None
    context: list[Message] = Field(default_factory=list)
    samples_per_paraphrase: int = Field(1, ge=1)
    temperature: float = Field(1.0, ge=0)
    max_tokens: int | None = Field(None, ge=1)
    judge: str | None = None
    judge_prompts: dict[str, str] | None = None


def question_prompts(questions: Sequence[Question], *, name: str, source: str) -> list[Prompt]:
    """The prompts of a question file: unrelated to any task, sampled at temperature 1, judged.

    Variants of a question that ask for JSON or a template belong to the same item.

    Args:
        questions: the entries, in order.
        name: the name of the set, which becomes its instrument and group.
        source: where the entries are from, for error messages.

    Raises:
        InputError: a question is of a type that a 0–100 judge cannot score.
    """
    for question in questions:
        if question.type != JUDGED:
            raise InputError(
                f"{source}, question {question.id!r} is of type {question.type!r}, but only "
                f"{JUDGED!r} can be read; remove the question."
            )
    return [
        Prompt(
            id=f"{name}/{question.id}/{number}",
            messages=_chat(question, text),
            group=name,
            item=_VARIANT.sub("", question.id),
            role="unrelated",
            scorer="judge",
            judge_prompts=question.judge_prompts,
            judge_model=question.judge,
            sampling=_sampling(question),
            instrument=f"{name} as published",
            paraphrase=number,
            end="misaligned",
        )
        for question in questions
        for number, text in enumerate(question.paraphrases)
    ]


def _chat(question: Question, text: str) -> list[Message]:
    system = [] if question.system is None else [Message(role="system", content=question.system)]
    return [*system, *question.context, Message(role="user", content=text)]


def _sampling(question: Question) -> Sampling:
    samples = question.samples_per_paraphrase if question.temperature > 0 else 1
    return Sampling(
        samples=samples,
        temperature=question.temperature,
        max_new_tokens=question.max_tokens or MAX_NEW_TOKENS,
    )
