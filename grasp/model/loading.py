"""Base models and adapters: loading, the device they run on, where their decoder layers are."""

from __future__ import annotations

import gc
import struct
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from peft import PeftModel, prepare_model_for_kbit_training
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.adapters.config import check_generates
from analysis.adapters.files import CONFIG, read_json
from analysis.base_model.files import is_gguf
from analysis.errors import GraspError, InputError, NotFoundError
from analysis.store.records import RunManifest
from analysis.values import Json
from grasp.hub.repository import pin_revision
from grasp.model.attach import attach_adapter
from grasp.model.gguf_file import check_gguf, complete_model, locate_in_folder, unpack_weights
from grasp.model.parts import text_config
from grasp.model.vocabulary import check_vocabulary, fit_vocabulary, own_tokenizer, stop_at
from grasp.settings.model import (
    NO_OPTIONS,
    ModelOptions,
    ModelSettings,
    opened_beside,
    settings_beside,
)
from grasp.settings.trust import may_run_code

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

# PEFT reads a name that transformers has given up; nobody here can act on it.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)

_LAYER_PATHS = (
    "model.layers",
    "transformer.h",
    "gpt_neox.layers",
    "model.decoder.layers",
    "model.language_model.layers",
)

_CUT_OFF = (LookupError, NotImplementedError, struct.error)
"""What transformers raises, besides ValueError, for a GGUF file that is incomplete or unknown."""

_UNREADABLE = (OSError, ValueError, NotFoundError, *_CUT_OFF)

ModelT = TypeVar("ModelT", PreTrainedModel, PeftModel)


@dataclass(frozen=True)
class LoadedModel(Generic[ModelT]):
    """A model in eval mode, its tokenizer, and what the base model was loaded with.

    `commit` is its commit on the Hub, None where it is not there.
    """

    model: ModelT
    tokenizer: Tokenizer
    settings: ModelSettings
    commit: str | None


_KEPT: dict[tuple[str, Path, int, ModelSettings], LoadedModel[PeftModel]] = {}
"""The adapted model that was loaded last."""


def pick_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(device: torch.device, settings: ModelSettings | None = None) -> torch.dtype:
    """The dtype that settings name; by default bfloat16 on CUDA and float32 on the CPU."""
    named = (settings or ModelSettings()).dtype
    if named == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, named)
    return dtype


def load_base(
    reference: str, settings: ModelSettings | None = None
) -> LoadedModel[PreTrainedModel]:
    """Load a causal language model and its tokenizer, in eval mode.

    They are in a folder, in a GGUF file, whose weights are unpacked, or on the Hub.  A model that
    is quantised or spread over devices stays where it was put.

    Raises:
        NotFoundError: neither a folder or file of that name nor a Hub model could be opened.
        InputError: the settings ask for what is not installed or not allowed.
    """
    settings = settings or ModelSettings()
    _check_there(reference, settings)
    device = pick_device()
    try:
        place, where = _where(reference, settings)
        placed = unpack_weights() if is_gguf(reference) else {}
        model = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=pick_dtype(device, settings),
            **where,
            **placed,
            **_placed(device, settings),
        )
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(place, **where)
    except _UNREADABLE as error:
        raise _unloadable(reference, error) from None
    if is_gguf(reference):
        complete_model(model, tokenizer, reference)
    if settings.tokenizer is not None:
        tokenizer = own_tokenizer(Path(settings.tokenizer), tokenizer)
        fit_vocabulary(model, Path(settings.tokenizer), own_tokenizer=True)
        check_vocabulary(model, tokenizer, settings.tokenizer)
        stop_at(model, tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if settings.device_map is None and settings.quantization is None:
        _move(model, device)
    model.eval()
    return LoadedModel(model, tokenizer, settings, where.get("revision"))


def _move(model: nn.Module, device: torch.device) -> None:
    """Move a model; `PreTrainedModel.to` is annotated as if `self` were an argument of its own."""
    model.to(device)


def load_tokenizer(reference: str, settings: ModelSettings | None = None) -> Tokenizer:
    """The tokenizer of `load_base` alone, for what looks at data and runs no model.

    Raises:
        NotFoundError: neither a folder or file of that name nor a Hub model could be opened.
        InputError: as `load_base`.
    """
    settings = settings or ModelSettings()
    _check_there(reference, settings)
    try:
        place, where = _where(reference, settings)
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(place, **where)
    except _UNREADABLE as error:
        raise _unloadable(reference, error) from None
    own = settings.tokenizer
    return tokenizer if own is None else own_tokenizer(Path(own), tokenizer)


def count_layers(reference: str, settings: ModelSettings | None = None) -> int:
    """The decoder layers of a base model by its config alone; raises as `load_tokenizer`."""
    settings = settings or ModelSettings()
    _check_there(reference, settings)
    try:
        place, where = _where(reference, settings)
        return int(AutoConfig.from_pretrained(place, **where).num_hidden_layers)
    except _UNREADABLE as error:
        raise _unloadable(reference, error) from None


def computes_in(settings: ModelSettings, device: str) -> torch.dtype:
    """The dtype that training computes in on a device, by autocast where it is narrow."""
    return pick_dtype(torch.device(device), settings)


def at_commit(run: RunManifest, commit: str | None) -> RunManifest:
    """The run with the commit of its base model among its settings, where that is of the Hub."""
    if commit is None:
        return run
    settings = {**(run.config.get("model") or {}), "revision": commit}
    return run.model_copy(update={"config": {**run.config, "model": settings}})


def load_adapted(
    reference: str, adapter: Path, *, options: ModelOptions = NO_OPTIONS
) -> LoadedModel[PeftModel]:
    """Load a base model with a PEFT adapter on it, in eval mode; not to be trained.

    The base is loaded as the run that the adapter belongs to says, but for the options, and with
    the adapter's own tokenizer where it has one.  The last model is kept, so that a worker's next
    job on the same adapter finds it loaded; it goes before another is loaded.

    Raises:
        GraspError: as `load_base` and `attach_adapter`.
    """
    changed = max((file.stat().st_mtime_ns for file in adapter.glob("*")), default=0)
    settings = options.apply_to(settings_beside(adapter, reference))
    key = (reference, adapter.resolve(), changed, settings)
    if key not in _KEPT:
        check_generates(read_json(adapter, CONFIG), adapter)  # before a base model is loaded
        forget()
        base = load_base(reference, opened_beside(settings, adapter))
        adapted = attach_adapter(base.model, adapter)
        _KEPT[key] = LoadedModel(adapted, base.tokenizer, settings, base.commit)
    return _KEPT[key]


def forget() -> None:
    """Let go of the model that is kept, and of the memory it takes."""
    _KEPT.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def ready_to_train(model: PreTrainedModel) -> PreTrainedModel:
    """The base model as an adapter is trained on it; norms and head of a quantised one in float32.

    Activations are checkpointed by the trainer, where the settings ask for it.
    """
    if not getattr(model, "is_quantized", False):
        return model
    prepared: PreTrainedModel = prepare_model_for_kbit_training(
        model, use_gradient_checkpointing=False
    )
    return prepared


def _check_there(reference: str, settings: ModelSettings) -> None:
    """Refuse a path at which there is no model, before anything is asked of the Hub."""
    if is_gguf(reference):
        check_gguf(Path(reference), settings)
    elif reference.startswith(("/", ".")) and not Path(reference).is_dir():
        raise NotFoundError(f"There is no folder {reference}; name the base model's folder.")


def _where(reference: str, settings: ModelSettings) -> tuple[str, Json]:
    """The folder or repository, and which of its files, without tries where there is no network."""
    if is_gguf(reference):
        folder, named = locate_in_folder(Path(reference))
        return folder, named | _trusted(folder, None, settings)
    if Path(reference).is_dir():
        return reference, _trusted(reference, None, settings)
    at = pin_revision(reference, settings.revision)
    pinned = {"revision": at.commit, "local_files_only": at.files is None}
    return reference, pinned | _trusted(reference, at.commit, settings)


def _trusted(place: str, commit: str | None, settings: ModelSettings) -> Json:
    asked = settings.trust_remote_code
    return {"trust_remote_code": may_run_code(place, commit=commit, asked=asked)}


def _placed(device: torch.device, settings: ModelSettings) -> Json:
    """Where the weights go, and in how many bits."""
    if settings.quantization is None:
        return {} if settings.device_map is None else {"device_map": settings.device_map}
    if find_spec("bitsandbytes") is None:
        raise InputError(
            f"Quantization {settings.quantization!r} needs the package bitsandbytes, which is not "
            "installed; install it with `pip install bitsandbytes`, or leave the setting out."
        )
    four = settings.quantization == "4bit"
    quantized = BitsAndBytesConfig(
        load_in_4bit=four,
        load_in_8bit=not four,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=pick_dtype(device, settings),
    )
    whole = {"": device}
    return {"quantization_config": quantized, "device_map": settings.device_map or whole}


def _unloadable(reference: str, error: Exception) -> GraspError:
    """Why a base model could not be loaded, in one sentence."""
    if isinstance(error, NotFoundError):
        return NotFoundError(f"The base model {reference!r} cannot be loaded: {error}")
    if isinstance(error, GraspError):
        return error
    reason = str(error).strip().splitlines()[0].rstrip(".")
    if "trust_remote_code" in str(error):
        return InputError(
            f"The base model {reference!r} brings Python code of its own, which is run only where "
            f"it is trusted: read it, then add --trust-remote-code, or run `grasp trust {reference}` "
            "once."
        )
    return NotFoundError(
        f"The base model {reference!r} cannot be loaded: {reason}. Give a folder with a "
        "transformers model, a whole GGUF file, or a Hub id that can be reached."
    )


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a causal language model, with or without an adapter on it.

    Raises:
        InputError: the architecture keeps them in none of the known places.
    """
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    for path in _LAYER_PATHS:
        found: object = plain
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.ModuleList):
            return found
    raise InputError(
        f"{type(plain).__name__} keeps its decoder layers in none of {', '.join(_LAYER_PATHS)}; "
        "add its path to grasp/model/loading.py."
    )


def check_width(model: PeftModel, directions: NDArray[np.floating]) -> None:
    """Refuse directions that are not (k, d_model) for this model.

    Raises:
        InputError: says what they are, and what was expected.
    """
    config = text_config(model)
    if directions.ndim != 2 or directions.shape[1] != config.hidden_size:
        raise InputError(
            f"Directions have shape {directions.shape}; expected (k, {config.hidden_size}), the "
            f"width of {config.model_type}."
        )


def check_together(model: nn.Module) -> None:
    """Refuse a model whose decoder layers are not all on one device.

    Raises:
        InputError: names the devices; "meta" stands for weights that are kept elsewhere.
    """
    devices = sorted({str(w.device) for layer in decoder_layers(model) for w in layer.parameters()})
    if len(devices) > 1 or devices == ["meta"]:
        raise InputError(
            f"The decoder layers are spread over {', '.join(devices)}, and subspaces are protected "
            "on one device; leave `device_map` out and use `quantization: 4bit`, a smaller "
            "batch_size or gradient_checkpointing instead."
        )


def device_of(model: nn.Module) -> torch.device:
    """The device that a model takes its tokens on: that of its first parameter that is there."""
    devices = (weight.device for weight in model.parameters())
    return next((device for device in devices if device.type != "meta"), pick_device())
