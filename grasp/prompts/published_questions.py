"""Question files of the emergent-misalignment studies, as they were published.

A YAML list of free-form questions, each with its wordings, how often each is answered, and the
prompts by which a judge rates the answers.  Source of the form: the evaluation folders of Betley
et al. 2025 (arXiv:2502.17424) and Turner et al. 2025 (arXiv:2506.11613).  Torch-free.
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
"""Longest answer where the file says nothing; the later study's own limit."""

_VARIANT = re.compile(r"_(json|template)$")
"""The same question asked for in another form has its name with one of these at its end."""

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
    """The prompts of a question file: unrelated to any task, drawn at temperature 1, judged.

    Variants of one question that ask for JSON or a template are about the same item.

    Args:
        questions: the entries, in order.
        name: of the set, which becomes its instrument and group.
        source: of the entries, for errors.

    Raises:
        InputError: a question is of a type that no 0–100 judge scores.
    """
    for question in questions:
        if question.type != JUDGED:
            raise InputError(
                f"{source}, question {question.id!r} is of type {question.type!r}; only "
                f"{JUDGED!r} is read, so leave it out."
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
