"""How a base model is loaded: settings, and how the command line overrides them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from analysis.adapters.place import has_tokenizer
from analysis.errors import InputError
from analysis.store.layout import run_of
from analysis.store.workspace import workspace_of
from analysis.values import Json

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DeviceMap = Literal["auto"]
Quantization = Literal["4bit", "8bit"]


class ModelSettings(BaseModel):
    """How a base model is loaded.

    - `dtype` "auto" is bfloat16 on CUDA and float32 on the CPU.
    - `device_map` "auto" spreads the layers over all devices; without it the model is on one
      device.
    - `quantization` keeps the frozen weights in 4 bits (NF4, double quantisation) or 8 bits with
      bitsandbytes.
    - `revision` is a branch, tag or commit on the Hub; a run saves the commit it resolved to.
    - `trust_remote_code` says that the model needs Python code from its own repository.  It is a
      request: whether the code is run is decided in `grasp.settings.trust`.
    - `tokenizer` is a folder whose tokenizer and chat template take the place of the base model's:
      that of an adapter made elsewhere, with the tokenizer that it was trained with.
    - `chat_date` is what a chat template says in place of today's date; the default is that of the
      Llama templates themselves.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: Dtype = "auto"
    device_map: DeviceMap | None = None
    quantization: Quantization | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    tokenizer: str | None = None
    chat_date: str | None = Field("2024-07-26", pattern=r"^\d{4}-\d{2}-\d{2}$")

    @field_validator("chat_date", mode="before")
    @classmethod
    def _a_day(cls, value: object) -> object:
        """YAML reads a date without quotes as a date."""
        if isinstance(value, date):
            return value.isoformat()
        if isinstance(value, str):
            date.fromisoformat(value)
        return value

    def map_paths(self, locate: Callable[[str], str]) -> ModelSettings:
        """The same settings with the tokenizer's folder mapped by `locate`."""
        if self.tokenizer is None:
            return self
        return self.model_copy(update={"tokenizer": locate(self.tokenizer)})

    def non_defaults(self) -> Json:
        """The settings that differ from the defaults, as records save them."""
        return self.model_dump(exclude_defaults=True)


class ModelOptions(BaseModel):
    """Options of a command line for loading the base model; None for an option not given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: Dtype | None = None
    device_map: DeviceMap | None = None
    quantization: Quantization | None = None
    trust_remote_code: bool | None = None

    def apply_to(self, settings: ModelSettings) -> ModelSettings:
        """The settings, overridden by the options that were given."""
        return settings.model_copy(update=self.model_dump(exclude_none=True))


NO_OPTIONS = ModelOptions()


def model_options(args: argparse.Namespace) -> ModelOptions:
    """The options of a command that loads a base model."""
    return ModelOptions(**{name: getattr(args, name) for name in ModelOptions.model_fields})


def settings_beside(adapter: Path, reference: str) -> ModelSettings:
    """The settings of the run whose `adapter/` folder this is; the defaults for any other folder.

    The run's revision applies only to the run's own base model.  A tokenizer that lies beside the
    adapter is the adapter's own.

    Raises:
        InputError: the run's model settings are invalid.
    """
    own = str(adapter) if has_tokenizer(adapter) else None
    folder = run_of(adapter)
    if folder is None or not (folder / "manifest.json").is_file():
        return ModelSettings(tokenizer=own)
    file = folder / "manifest.json"
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
        settings = ModelSettings.model_validate((run.get("config") or {}).get("model") or {})
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        problem = " ".join(str(error).split())[:160]
        raise InputError(f"{file} has no valid base model settings ({problem}).") from None
    if settings.revision is not None and run.get("base_model") != reference:
        settings = settings.model_copy(update={"revision": None})
    if settings.tokenizer is None and own is not None:
        settings = settings.model_copy(update={"tokenizer": own})
    within = workspace_of(adapter)
    return settings if within is None else settings.map_paths(within.reference)


def opened_beside(settings: ModelSettings, adapter: Path) -> ModelSettings:
    """Settings of `settings_beside` with paths that can be opened."""
    within = workspace_of(adapter)
    return settings if within is None else settings.map_paths(within.resolve)
