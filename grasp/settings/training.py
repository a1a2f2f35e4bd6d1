"""Settings of fine-tunes.  Torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from analysis.errors import InputError
from analysis.values import Json
from analysis.yaml_files import read_mapping
from grasp.settings.model import ModelSettings

Scheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
]
"""The schedulers of transformers that need no further settings."""

STEPS = 200
"""Optimiser steps of a fine-tune whose settings give neither steps nor epochs."""

PATHS = ("base_model", "data", "neutral", "prompts", "probes")


class Settings(BaseModel):
    """Settings that refuse unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


SettingsT = TypeVar("SettingsT", bound=Settings)


class LoraSettings(Settings):
    """The part of PEFT's LoraConfig that a run fixes; names and meaning are PEFT's."""

    r: int = Field(8, ge=1)
    lora_alpha: float = Field(16, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | list[str] | None = "all-linear"
    use_rslora: bool = False
    exclude_modules: str | list[str] | None = None
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    target_parameters: list[str] | None = None
    fan_in_fan_out: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    lora_bias: bool = False
    use_dora: bool = False
    init_lora_weights: bool | Literal["gaussian", "orthogonal"] = True

    def non_defaults(self) -> Json:
        """The fields that every run fixes, and those that differ from PEFT's defaults."""
        fixed = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora")
        found = self.model_dump(exclude_defaults=True)
        return {name: getattr(self, name) for name in fixed} | found


class TrainConfig(Settings):
    """One LoRA fine-tune.

    `data` is a file or folder in any form of `grasp.data.examples`, or a data set on the Hub as in
    `grasp.data.readers.HubData`; `columns` maps fields to columns if that is not clear from their
    names.  `neutral`, with `neutral_columns`, is text without the factor, for the anchor.  Runs of
    this family are evaluated on `prompts` and recorded on `probes`.  `inoculation` is a system
    prompt that asks for the trait, for the method of that name.

    The loss is on assistant tokens, completions or plain text; with `loss_on: all` also on
    prompts.  Prompts and completions become chats if the tokenizer has a chat template, unless
    `as_chat` decides it.  Training ends after `max_steps` optimiser steps or `num_train_epochs`.
    A `warmup_steps` below 1 is a share of all steps, as in transformers.

    Paths are relative to the settings file, or to the workspace once a run has saved them.  `data`
    is None only for a run that was imported without its data.

    Raises:
        ValueError: (pydantic's ValidationError) a setting is unknown or out of range.

    Example:
        >>> config = grasp.TrainConfig(
        ...     title="Finance", base_model="models/base", data="finance.jsonl", max_steps=120
        ... )
        >>> config.lora.r, config.learning_rate
        (8, 0.0001)

    Source: names and meanings are those of PEFT's LoraConfig and transformers' TrainingArguments.
    """

    title: str
    base_model: str
    model: ModelSettings = ModelSettings()
    data: str | None = None
    columns: dict[str, str] | None = None
    neutral: str | None = None
    neutral_columns: dict[str, str] | None = None
    prompts: str | None = None
    probes: str | None = None
    inoculation: str | None = Field(None, min_length=1)
    loss_on: Literal["assistant", "all"] = "assistant"
    as_chat: bool | None = None
    packing: bool = False
    lora: LoraSettings = LoraSettings()
    learning_rate: float = Field(1e-4, gt=0)
    lr_scheduler: Scheduler = "linear"
    warmup_steps: float = Field(0.0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    batch_size: int = Field(8, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    gradient_checkpointing: bool = False
    max_steps: int | None = Field(None, ge=1)
    num_train_epochs: float | None = Field(None, gt=0)
    max_length: int = Field(1024, ge=8)
    save_steps: int | None = Field(None, ge=1)
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _one_length(cls, data: object) -> object:
        """Require steps or epochs, not both; STEPS if neither is given."""
        if not isinstance(data, dict):
            return data
        named = [n for n in ("max_steps", "num_train_epochs") if data.get(n) is not None]
        if len(named) == 2:
            raise ValueError("max_steps and num_train_epochs are both given; give only one")
        return data if named else {**data, "max_steps": STEPS}

    def shorten(self, share: float) -> Json:
        """The setting that makes a fine-tune `share` times as long."""
        if self.max_steps is None:
            assert self.num_train_epochs is not None
            return {"num_train_epochs": share * self.num_train_epochs}
        return {"max_steps": max(1, round(share * self.max_steps))}

    def total_steps(self, rows: int) -> int:
        """Optimiser steps of a fine-tune on so many rows, on one device."""
        if self.num_train_epochs is None:
            assert self.max_steps is not None
            return self.max_steps
        batches = math.ceil(rows / self.batch_size)
        return math.ceil(
            self.num_train_epochs * math.ceil(batches / self.gradient_accumulation_steps)
        )

    def map_paths(self, locate: Callable[[str], str]) -> TrainConfig:
        """The same settings with every path and the base model mapped by `locate`."""
        paths = {name: getattr(self, name) for name in PATHS}
        return self.model_copy(
            update={
                "model": self.model.map_paths(locate),
                **{name: locate(path) for name, path in paths.items() if path is not None},
            }
        )


def load_config(path: str | Path) -> TrainConfig:
    """Read a YAML or JSON file of settings; its relative paths start at its own folder."""
    path = Path(path)
    data = read_mapping(path, what="settings", example="title: my run")
    folder = path.resolve().parent
    if "data" not in data:
        raise InputError(f"{path} has no setting 'data'; add the training data.")
    return parse_config(data, source=str(path)).map_paths(
        lambda name: str(folder / name) if (folder / name).exists() else name
    )


def parse_config(data: Json, *, source: str) -> TrainConfig:
    """Check settings; an error names the first that does not fit."""
    return check_settings(TrainConfig, data, source)


def check_settings(kind: type[SettingsT], data: Json, source: str) -> SettingsT:
    """Settings of a kind from plain data; an error names the first that does not fit."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        named = f"setting {where!r}: " if where else ""
        raise InputError(f"{source}: {named}{problem['msg']}.") from None
