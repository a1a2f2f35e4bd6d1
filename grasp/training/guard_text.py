"""The texts of a guard: those that are given, those of the base model, and all of them dressed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.errors import InputError
from analysis.store.records import Message
from grasp.data.apart import apart_from
from grasp.data.dataset import TaskData
from grasp.data.dress import dress
from grasp.data.examples import Example, as_examples
from grasp.data.tokenise import some_of, split_neutral
from grasp.guard.naive import MEASURED
from grasp.guard.plan import GuardPlan
from grasp.settings.protection import Protection
from grasp.settings.training import TrainConfig
from grasp.training.own_answers import own_answers
from grasp.training.own_chats import kept_own_chats
from grasp.training.texts import make_batches, read_neutral

OWN_CHATS = 256
"""Chats that the base model holds with itself, where a protection asks for them."""


@dataclass(frozen=True)
class OwnTexts:
    """What the base model says by itself.

    `answers` are to the task's prompts; in `chats` it asked the questions, too.
    """

    answers: list[list[Message]]
    chats: list[list[Message]]


def let_speak(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    protection: Protection,
    task: TaskData,
    *,
    seed: int,
    keep: Path | None = None,
) -> OwnTexts:
    """The texts of the base model that a protection asks for; its chats from `keep` if there."""
    answers: list[list[Message]] = []
    if protection.divergence == "own":
        asked = [example.messages for example in task.chats()]
        answers = own_answers(model, tokenizer, asked, seed=seed)
    chats: list[list[Message]] = []
    if protection.own_chats:
        chats = kept_own_chats(keep, model, tokenizer, count=OWN_CHATS, seed=seed)
    return OwnTexts(answers, chats)


def neutral_texts(
    config: TrainConfig,
    tokenizer: Tokenizer,
    protection: Protection,
    said: OwnTexts,
    task: TaskData,
) -> tuple[list[Example], list[Example]]:
    """Neutral text that may be trained on, and such that only measures.

    It is what the settings name, and the base model's own chats about anything but the task.

    Raises:
        InputError: the text cannot be read, or there is none though the protection makes some.
    """
    given, own = read_neutral(tokenizer, config), as_examples(said.chats)
    texts = [*given, *(apart_from(task.examples.rows, own) if own else [])]
    if not texts and protection.own_chats:
        raise InputError(
            "The base model held no chat of its own to protect it on, and the settings name no "
            "neutral text; add `neutral: FILE`."
        )
    return split_neutral(texts, at_least=config.batch_size) if texts else ([], [])


def as_many_as_used(
    neutral: Sequence[Example],
    held: Sequence[Example],
    config: TrainConfig,
    protection: Protection,
    *,
    rows: int,
) -> tuple[list[Example], list[Example]]:
    """Both parts of neutral text, as far as training comes to it twice (once it may be dressed).

    What the naive run does is measured on all of it first, which on a large file would take longer
    than training.  A quarter as much is held back.

    Args:
        neutral: may be trained on.
        held: only measures.
        config: settings of the fine-tune.
        protection: what looks at the text.
        rows: that the fine-tune trains on.
    """
    batches = config.total_steps(rows) * config.gradient_accumulation_steps
    share = protection.neutral_share / (2 * protection.neutral_every)
    used = config.batch_size * max(MEASURED, math.ceil(batches * share))
    return some_of(neutral, used), some_of(held, math.ceil(used / 4))


def with_texts(
    plan: GuardPlan,
    config: TrainConfig,
    tokenizer: Tokenizer,
    said: OwnTexts,
    task: TaskData,
    *,
    neutral: Sequence[Example],
    held: Sequence[Example],
) -> GuardPlan:
    """The plan with its texts.  Text that cannot be dressed, since it is no chat, stays plain.

    Raises:
        InputError: a text cannot be tokenised.
    """
    plan = replace(plan, own_answers=make_batches(tokenizer, as_examples(said.answers), config))
    if not neutral:
        return plan
    dressed = []
    if plan.protection.dressed:
        dressed = make_batches(tokenizer, dress(neutral, task.chats(), seed=config.seed), config)
        protection = plan.protection.model_copy(update={"dressed": bool(dressed)})
        plan = replace(plan, protection=protection)
    return replace(
        plan,
        neutral=make_batches(tokenizer, neutral, config),
        dressed=dressed,
        held_back=make_batches(tokenizer, held, config),
    )
