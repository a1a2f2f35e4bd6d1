"""What a fine-tune needs, loaded before anything is written: model, texts, and what to hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, set_seed
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.errors import InputError, NotFoundError
from analysis.records import RunManifest
from grasp.anchor import Batch
from grasp.config import Protection, TrainConfig, parse_protection
from grasp.data import neutral_batches, read_chats, training_rows
from grasp.footprint import footprint
from grasp.models import load_base
from grasp.protect import Directions

FOOTPRINT_BATCHES = 16
"""Neutral batches that a footprint is measured on."""


@dataclass(frozen=True)
class Prepared:
    """A fine-tune's model with its fresh adapter, its texts, and the directions to protect."""

    model: PeftModel
    tokenizer: Tokenizer
    rows: list[dict[str, list[int]]]
    neutral: list[Batch]
    protected: Directions | None
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
        directions: (k, d_model) factors to protect; None for a naive run.
        naive: the naive fine-tune's adapter folder, where a footprint is to be followed.

    Raises:
        GraspError: a file, the model or a setting is not as it should be.
    """
    chats = read_chats(Path(config.data))
    model, tokenizer = load_base(config.base_model)
    neutral = (
        neutral_batches(
            tokenizer,
            read_chats(Path(config.neutral)),
            batch_size=config.batch_size,
            max_length=config.max_length,
            seed=config.seed,
        )
        if config.neutral and directions is not None
        else []
    )
    protection = (
        parse_protection(run.protection, source=f"run {run.id!r}") if run.protection else None
    )
    protected: Directions | None = directions
    if directions is not None and protection is not None and protection.footprint and neutral:
        assert naive is not None
        width = protection.footprint
        model, protected = _followed(model, directions, naive=naive, neutral=neutral, width=width)
    set_seed(config.seed)
    return Prepared(
        model=_with_lora(model, config),
        tokenizer=tokenizer,
        rows=training_rows(tokenizer, chats, max_length=config.max_length),
        neutral=neutral,
        protected=protected,
        protection=protection,
    )


def _followed(
    model: PreTrainedModel,
    directions: NDArray[np.float32],
    *,
    naive: Path,
    neutral: Sequence[Batch],
    width: int,
) -> tuple[PreTrainedModel, list[NDArray[np.float32]]]:
    """The factors' footprint in the naive fine-tune, and the base model without an adapter."""
    if not (naive / "adapter_config.json").is_file():
        raise NotFoundError(
            f"There is no adapter in {naive}; the naive run is needed to follow its factors."
        )
    adapted = PeftModel.from_pretrained(model, str(naive)).eval()
    found = footprint(adapted, directions, neutral[:FOOTPRINT_BATCHES], width=width)
    plain: PreTrainedModel = adapted.unload()
    return plain, found


def _with_lora(model: PreTrainedModel, config: TrainConfig) -> PeftModel:
    try:
        lora = LoraConfig(task_type="CAUSAL_LM", **config.lora.model_dump())
        return get_peft_model(model, lora)
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"The lora settings do not fit {config.base_model}: {reason}") from None
