"""What a fine-tune needs, loaded before anything is written: model, texts, and what to hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel, set_seed
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.errors import InputError, NotFoundError
from analysis.store.records import Message, RunManifest
from grasp.data.dataset import as_chats, becomes_chat, data_report, read_task, tokenise_task
from grasp.data.examples import Example, as_examples, read_examples
from grasp.data.packing import check_packing, packed_rows
from grasp.data.report import DataReport
from grasp.data.tokenise import held_back, neutral_batches
from grasp.guard.context import Directions
from grasp.guard.footprint import footprint
from grasp.guard.steering import steering_vectors
from grasp.model.forward import Batch
from grasp.model.loading import load_base, ready_to_train
from grasp.settings.protection import Protection, parse_protection
from grasp.settings.training import TrainConfig
from grasp.training.own_answers import own_answers

FOOTPRINT_BATCHES = 16
"""Neutral batches that a footprint is measured on."""


@dataclass(frozen=True)
class Prepared:
    """A fine-tune's model with its fresh adapter, its texts, and the directions to protect.

    `rows` are what is trained on, packed where the settings say it, and `report` says what they
    are made of.  `neutral` text may be trained on; text that was `held_back` only measures drift.
    `own_chats` are the base model's own answers, and `own_answers` the same as batches;
    `steering` are vectors (layers, d_model).  Each is empty or None where it is not asked for.
    """

    model: PeftModel
    tokenizer: Tokenizer
    rows: list[dict[str, list[int]]]
    report: DataReport
    neutral: list[Batch]
    held_back: list[Batch]
    own_chats: list[list[Message]]
    own_answers: list[Batch]
    protected: Directions | None
    steering: Tensor | None
    protection: Protection | None


def prepare(
    config: TrainConfig,
    run: RunManifest,
    directions: NDArray[np.float32] | None,
    *,
    naive: Path | None,
) -> Prepared:
    """Load it all, for a run whose paths `config` has located.

    Args:
        config: settings, with paths as they can be opened.
        run: whose protection is meant.
        directions: (k, d_model) factors to protect, or None.
        naive: the naive fine-tune's adapter folder, where a footprint is to be followed, or where
            steering needs to know which way it drifted.

    Raises:
        GraspError: a file, the model or a setting is not as it should be.
    """
    examples = read_task(config)
    model, tokenizer = load_base(config.base_model, config.model)
    task = tokenise_task(config, tokenizer, examples)
    if run.method == "inoculation":
        said = inoculated(task.chats(), config.inoculation)
        task = task.with_rows(config, tokenizer, said)
    protection = (
        parse_protection(run.protection, source=f"run {run.id!r}") if run.protection else None
    )
    watched = directions is not None or protection is not None
    neutral, held = _neutral(tokenizer, config) if watched else ([], [])
    own = protection is not None and protection.divergence == "own"
    own_chats = []
    if own:
        asked = [example.messages for example in task.chats()]
        own_chats = own_answers(model, tokenizer, asked, seed=config.seed)
    protected: Directions | None = directions
    steering = None
    if directions is not None and protection is not None and neutral:
        assert naive is not None
        if protection.footprint:
            with _adapted(model, naive) as before:
                protected = naive_footprint(before, directions, neutral, protection)
        if protection.steering:
            with _adapted(model, naive) as before:
                steering = naive_steering(before, directions, neutral)
    set_seed(config.seed)
    adapted = _with_lora(model, config)
    rows = task.rows.rows
    if config.packing:
        check_packing(adapted, rows)
        rows = packed_rows(rows, max_length=config.max_length)
    return Prepared(
        model=adapted,
        tokenizer=tokenizer,
        rows=rows,
        report=data_report(config, task, packed=len(rows) if config.packing else None),
        neutral=neutral,
        held_back=held,
        own_chats=own_chats,
        own_answers=_batched(tokenizer, as_examples(own_chats), config),
        protected=protected,
        steering=steering,
        protection=protection,
    )


def naive_footprint(
    adapted: PeftModel,
    directions: NDArray[np.float32],
    neutral: Sequence[Batch],
    protection: Protection,
) -> list[NDArray[np.float32]]:
    """What factors become at each layer of a naive run, as a protection asks for it.

    Raises:
        InputError: there is no neutral text to measure it on.
    """
    if not neutral:
        raise InputError("A footprint is measured on neutral text; name a file of it.")
    return footprint(
        adapted,
        directions,
        neutral[:FOOTPRINT_BATCHES],
        width=protection.footprint,
        site=protection.site,
    )


def naive_steering(
    adapted: PeftModel, directions: NDArray[np.float32], neutral: Sequence[Batch]
) -> Tensor:
    """Steering vectors towards a naive run's own drift, as it is where answers begin."""
    return steering_vectors(adapted, directions, neutral[:FOOTPRINT_BATCHES], site="prompt-end")


def neutral_text(config: TrainConfig, tokenizer: Tokenizer) -> list[Batch]:
    """The neutral text that may be trained on."""
    return _neutral(tokenizer, config)[0]


def inoculated(examples: Sequence[Example], prompt: str | None) -> list[Example]:
    """Chats with a system prompt put before each; one that there is already follows it.

    Raises:
        InputError: there is no prompt.
    """
    if prompt is None:
        raise InputError(
            "Inoculation needs a system prompt that asks for the trait: give one with "
            "--inoculation TEXT, or as `inoculation` in the settings."
        )
    found = []
    for example in examples:
        chat = example.messages
        system = bool(chat) and chat[0].role == "system"
        said = f"{prompt}\n{chat[0].content}" if system else prompt
        before = Message(role="system", content=said)
        found.append(replace(example, messages=(before, *chat[int(system) :])))
    return found


def _neutral(tokenizer: Tokenizer, config: TrainConfig) -> tuple[list[Batch], list[Batch]]:
    """The neutral text to train on, and what is held back of it; both empty where none is named."""
    if config.neutral is None:
        return [], []
    read = read_examples(config.neutral, columns=config.neutral_columns, answers=False)
    taken = as_chats(read.rows) if becomes_chat(config.as_chat, tokenizer, read) else read.rows
    kept, held = held_back(taken, at_least=config.batch_size)
    return _batched(tokenizer, kept, config), _batched(tokenizer, held, config)


def _batched(tokenizer: Tokenizer, examples: Sequence[Example], config: TrainConfig) -> list[Batch]:
    return neutral_batches(
        tokenizer,
        examples,
        batch_size=config.batch_size,
        max_length=config.max_length,
        seed=config.seed,
    )


@contextmanager
def _adapted(model: PreTrainedModel, naive: Path) -> Iterator[PeftModel]:
    """The naive fine-tune; afterwards `model` is the base model again."""
    if not (naive / "adapter_config.json").is_file():
        raise NotFoundError(
            f"There is no adapter in {naive}; the naive run is needed to follow its factors."
        )
    adapted = PeftModel.from_pretrained(model, str(naive)).eval()
    yield adapted
    adapted.unload()


def _with_lora(model: PreTrainedModel, config: TrainConfig) -> PeftModel:
    try:
        lora = LoraConfig(task_type="CAUSAL_LM", **config.lora.changed())
        return get_peft_model(ready_to_train(model), lora)
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"The lora settings do not fit {config.base_model}: {reason}") from None
