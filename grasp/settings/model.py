"""How a base model is loaded: settings, and how the command line overrides them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from analysis.errors import InputError
from analysis.values import Json


class ModelSettings(BaseModel):
    """How a base model is loaded.

    - `dtype` "auto" is bfloat16 on CUDA and float32 on the CPU.
    - `device_map` "auto" spreads the layers over all devices; without it the model is on one
      device.
    - `quantization` keeps the frozen weights in 4 bits (NF4, double quantisation) or 8 bits with
      bitsandbytes.
    - `revision` is a branch, tag or commit on the Hub; a run saves the commit it resolved to.
    - `trust_remote_code` runs Python code from the model's own repository.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device_map: Literal["auto"] | None = None
    quantization: Literal["4bit", "8bit"] | None = None
    revision: str | None = None
    trust_remote_code: bool = False


_OVERRIDES: ContextVar[Json | None] = ContextVar("overrides", default=None)


@contextmanager
def as_asked(args: argparse.Namespace) -> Iterator[None]:
    """Let the options of a command line override the settings while the block runs."""
    names = ("dtype", "device_map", "quantization", "trust_remote_code")
    asked = {name: getattr(args, name, None) for name in names}
    token = _OVERRIDES.set({name: value for name, value in asked.items() if value is not None})
    try:
        yield
    finally:
        _OVERRIDES.reset(token)


def effective(settings: ModelSettings) -> ModelSettings:
    """The settings with the overrides of the command line applied."""
    return settings.model_copy(update=_OVERRIDES.get() or {})


def settings_beside(adapter: Path, reference: str) -> ModelSettings:
    """The settings of the run whose `adapter/` folder this is; the defaults for any other folder.

    The run's revision applies only to the run's own base model.

    Raises:
        InputError: the run's model settings are invalid.
    """
    file = adapter.parent / "manifest.json"
    if adapter.name != "adapter" or not file.is_file():
        return ModelSettings()
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
        settings = ModelSettings.model_validate((run.get("config") or {}).get("model") or {})
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        problem = " ".join(str(error).split())[:160]
        raise InputError(f"{file} has no valid base model settings ({problem}).") from None
    if settings.revision is not None and run.get("base_model") != reference:
        return settings.model_copy(update={"revision": None})
    return settings
