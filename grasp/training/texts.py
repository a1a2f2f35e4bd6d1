"""The texts of a fine-tune beside its task: neutral text, and system prompts for inoculation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.errors import InputError
from analysis.store.records import Message
from grasp.data.dataset import as_chats, becomes_chat
from grasp.data.examples import Example, read_examples
from grasp.data.tokenise import neutral_batches
from grasp.model.forward import Batch
from grasp.settings.training import TrainConfig


def read_neutral(tokenizer: Tokenizer, config: TrainConfig) -> list[Example]:
    """The neutral text that the settings name; none where they name none."""
    if config.neutral is None:
        return []
    read = read_examples(
        config.neutral,
        columns=config.neutral_columns,
        answers=False,
        leave_out=config.leave_out_unusable,
    )
    return as_chats(read.rows) if becomes_chat(config.as_chat, tokenizer, read) else read.rows


def make_batches(
    tokenizer: Tokenizer, examples: Sequence[Example], config: TrainConfig
) -> list[Batch]:
    """Texts as batches of the size and length that the fine-tune has."""
    return neutral_batches(
        tokenizer,
        examples,
        batch_size=config.batch_size,
        max_length=config.max_length,
        seed=config.seed,
    )


def inoculate(examples: Sequence[Example], prompt: str | None) -> list[Example]:
    """Chats with `prompt` as their system prompt; one that a chat has already follows it.

    Raises:
        InputError: there is no prompt.
    """
    if prompt is None:
        raise InputError(
            "Inoculation needs a system prompt that asks for the trait: give one with "
            "--inoculation TEXT, or as `inoculation` in the settings."
        )
    inoculated = []
    for example in examples:
        chat = example.messages
        system = bool(chat) and chat[0].role == "system"
        said = f"{prompt}\n{chat[0].content}" if system else prompt
        before = Message(role="system", content=said)
        inoculated.append(replace(example, messages=(before, *chat[int(system) :])))
    return inoculated
