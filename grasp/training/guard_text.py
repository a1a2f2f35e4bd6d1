"""The texts of a guard: those that are given, those of the base model, and all of them dressed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.errors import InputError
from analysis.store.records import Message
from grasp.data.apart import apart_from
from grasp.data.dataset import TaskData
from grasp.data.dress import dress
from grasp.data.examples import Example, as_examples
from grasp.data.tokenise import split_neutral
from grasp.guard.plan import GuardPlan
from grasp.settings.protection import Protection
from grasp.settings.training import TrainConfig
from grasp.training.own_answers import own_answers
from grasp.training.own_chats import own_chats
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
) -> OwnTexts:
    """The texts of the base model that a protection asks for."""
    answers: list[list[Message]] = []
    if protection.divergence == "own":
        asked = [example.messages for example in task.chats()]
        answers = own_answers(model, tokenizer, asked, seed=seed)
    chats: list[list[Message]] = []
    if protection.own_chats:
        chats = own_chats(model, tokenizer, count=OWN_CHATS, seed=seed)
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
