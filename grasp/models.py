"""Base models and adapters: loading, the device they run on, where their decoder layers are."""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.errors import InputError, NotFoundError

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

# PEFT reads a name that transformers has given up; nobody here can act on it.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)

_LAYER_PATHS = ("model.layers", "transformer.h", "gpt_neox.layers", "model.decoder.layers")


def pick_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on CUDA, float32 on the CPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def load_base(reference: str) -> tuple[PreTrainedModel, Tokenizer]:
    """Load a causal language model and its tokenizer from a folder or the Hub, in eval mode.

    Raises:
        NotFoundError: neither a folder of that name nor a Hub model could be opened.
    """
    device = pick_device()
    if reference.startswith(("/", ".")) and not Path(reference).is_dir():
        # Else transformers looks for it on the Hub, and tries for a minute where there is none.
        raise NotFoundError(f"There is no folder {reference}; name the base model's folder.")
    try:
        model = AutoModelForCausalLM.from_pretrained(reference, dtype=pick_dtype(device))
        tokenizer = AutoTokenizer.from_pretrained(reference)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise NotFoundError(
            f"The base model {reference!r} cannot be loaded: {reason} Give a folder with a "
            "transformers model, or a Hub id that can be reached."
        ) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device).eval(), tokenizer


def load_adapted(reference: str, adapter: Path) -> tuple[PeftModel, Tokenizer]:
    """Load a base model with a PEFT adapter on it, in eval mode; not to be trained.

    The last one is kept, so that a worker's next job on the same adapter finds it loaded.
    """
    changed = max((file.stat().st_mtime_ns for file in adapter.glob("*")), default=0)
    return _adapted(reference, adapter.resolve(), changed)


@lru_cache(maxsize=1)
def _adapted(reference: str, adapter: Path, _changed: int) -> tuple[PeftModel, Tokenizer]:
    model, tokenizer = load_base(reference)
    return PeftModel.from_pretrained(model, str(adapter)).eval(), tokenizer


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a causal language model, with or without an adapter on it.

    Raises:
        InputError: the architecture keeps them in none of the known places.
    """
    plain: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    for path in _LAYER_PATHS:
        found = plain
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.ModuleList):
            return found
    raise InputError(
        f"{type(plain).__name__} keeps its decoder layers in none of {', '.join(_LAYER_PATHS)}; "
        "add its path to grasp/models.py."
    )


def check_width(model: PeftModel, directions: NDArray[np.floating]) -> None:
    """Refuse directions that are not (k, d_model) for this model.

    Raises:
        InputError: says what they are, and what was expected.
    """
    config = model.get_base_model().config
    if directions.ndim != 2 or directions.shape[1] != config.hidden_size:
        raise InputError(
            f"Directions have shape {directions.shape}; expected (k, {config.hidden_size}), the "
            f"width of {config.model_type}."
        )


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter."""
    return next(model.parameters()).device
