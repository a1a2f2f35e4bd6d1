"""Put an adapter on a model: the one place where that is done, and what is refused there.

PEFT loads what it finds and says nothing of the rest, so that an adapter of another model would
act as if it fitted.  Here what was loaded is compared with what the file holds.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from analysis.adapters.config import check_generates, names_of
from analysis.adapters.files import CONFIG, read_json
from analysis.adapters.tensors import PREFIX
from analysis.errors import InputError
from grasp.model.parts import base_of
from grasp.model.vocabulary import fit_vocabulary

_NAME = "default"
_RELATIVE, _ABSOLUTE = 2e-2, 1e-4
"""How far two roundings of one weight to sixteen bits may be apart."""

_SIZES = re.compile(
    r"size mismatch for (\S+): .*?torch\.Size\(\[(.*?)\]\).*?torch\.Size\(\[(.*?)\]\)", re.DOTALL
)
_DOES_NOT_LOAD = (RuntimeError, ValueError, LookupError, TypeError, AttributeError)
"""What PEFT raises for an adapter that is not of the model."""

_ADVICE = "Give the base model that it was trained on"


def attach_adapter(base: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
    """The model with a saved adapter on it, in evaluation mode.

    An embedding of which the file holds fewer rows is cut first; more are added by `load_base`,
    with the tokenizer that knows them.

    Raises:
        InputError: the adapter is not for generating text, or it does not fit: a tensor of its file
            has no place in the model, has another shape or another base weight in it, or one that
            the model needs is not in the file.
    """
    check_generates(read_json(folder, CONFIG), folder)
    name = str(base.name_or_path)
    fit_vocabulary(base, folder, own_tokenizer=False)
    weights = _read(folder)
    _check_base_weights(base, weights, folder)
    with _explained(folder, name), warnings.catch_warnings():
        # It is said below, as an error, and with what is in the file.
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        model = PeftModel.from_pretrained(base, str(folder), is_trainable=trainable)
    _check_fit(model, weights, folder, name, adapter=_NAME)
    return model.eval()


def attach_beside(model: PeftModel, folder: Path, *, name: str) -> None:
    """Load another saved adapter beside the model's own, which stays the active one.

    Raises:
        InputError: as `attach_adapter`, or its vocabulary is another.
    """
    check_generates(read_json(folder, CONFIG), folder)
    base = str(base_of(model).name_or_path)
    weights = _read(folder)
    _check_base_weights(base_of(model), weights, folder)
    with _explained(folder, base), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        model.load_adapter(str(folder), adapter_name=name)
    _check_fit(model, weights, folder, base, adapter=name)


def _read(folder: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = load_peft_weights(str(folder), device="cpu")
    return weights


@contextmanager
def _explained(folder: Path, base: str) -> Iterator[None]:
    """Turn what PEFT raises for an adapter that does not fit into one sentence."""
    try:
        yield
    except _DOES_NOT_LOAD as error:
        raise InputError(
            f"The adapter in {folder} does not fit the base model {base}: {_reason(error)}. "
            f"{_ADVICE}."
        ) from None


def _reason(error: Exception) -> str:
    sizes = _SIZES.findall(str(error))
    if sizes:
        key, there, here = sizes[0]
        return (
            f"{len(sizes)} of its tensors have another shape than in the model, such as "
            f"{key.replace(f'.{_NAME}', '')}, ({there}) in the file and ({here}) in the model"
        )
    if isinstance(error, KeyError):
        return f"its file lacks {error.args[0]}, which its config names"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].partition(". ")[0].rstrip(".")


def _check_fit(
    model: PeftModel, weights: Mapping[str, Tensor], folder: Path, base: str, *, adapter: str
) -> None:
    """Refuse an adapter of which something has no place in the model, or is not in the file.

    PEFT renames what older releases called otherwise, so it is asked again what was left over.
    """
    with _explained(folder, base):
        result: Any = set_peft_model_state_dict(model, dict(weights), adapter_name=adapter)
    own = {name: tensor for name, tensor in model.state_dict().items() if _is_of(adapter, name)}
    unfilled = set(result.missing_keys)
    filled = {tensor.data_ptr() for name, tensor in own.items() if name not in unfilled}
    lacking = sorted(name for name in unfilled & own.keys() if own[name].data_ptr() not in filled)
    left = sorted(key for key in result.unexpected_keys if not _is_copy(key))
    if not left and not lacking:
        return
    said = []
    if left:
        said.append(
            f"{len(left)} of the {len(weights)} tensors in its file have no place in the model, "
            f"such as {left[0]}"
        )
    if lacking:
        said.append(
            f"{len(lacking)} of the {len(own)} that the model with this adapter has are not in the "
            f"file, such as {lacking[0].replace(f'.{adapter}', '')}"
        )
    wrapped = ", or save it again with PEFT's save_pretrained, without wrappers around the model"
    raise InputError(
        f"The adapter in {folder} does not fit the base model {base}: {', and '.join(said)}. "
        f"{_ADVICE}{wrapped if len(left) >= len(weights) else ''}."
    )


def _is_of(adapter: str, name: str) -> bool:
    """Whether a weight of the model is an adapter's."""
    return f".{adapter}." in name or name.endswith(f".{adapter}")


def _is_copy(key: str) -> bool:
    """Whether PEFT wrote a module of `modules_to_save` once more, as an embedding of a vocabulary
    that was enlarged; it does not read it again."""
    return any(f".{copy}." in key for copy in ("modules_to_save", "original_module"))


def _check_base_weights(base: PreTrainedModel, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse complete weights that differ from the base model's.

    PEFT puts them into the base model itself, which would then be another without the adapter too.
    """
    config = PeftConfig.from_pretrained(str(folder))
    apart = names_of(getattr(config, "modules_to_save", None))
    own = base.state_dict()
    for key, saved in weights.items():
        name = key.removeprefix(PREFIX).replace(".base_layer.", ".")
        module, _, kind = name.rpartition(".")
        if ".lora_" in key or _is_apart(module, apart):
            continue
        there = own.get(name, own.get(f"{module}.base_layer.{kind}"))
        if there is None or there.shape != saved.shape:
            continue
        rounded = there.detach().to("cpu", saved.dtype).float()
        if not torch.allclose(rounded, saved.float(), rtol=_RELATIVE, atol=_ABSOLUTE):
            raise InputError(
                f"The adapter in {folder} holds a complete {name} that differs from the base "
                f"model's, and PEFT would put it into the base model itself, so that it could not "
                "be told from the fine-tune. Train it with modules_to_save, or give the base model "
                "that it belongs to."
            )


def _is_apart(module: str, apart: tuple[str, ...]) -> bool:
    """Whether PEFT keeps an adapter's copy of a module, for its own name or that of one around it.

    Source: peft 0.21 `utils/other.py`, `_set_trainable`, which compares endings.
    """
    parts = module.split(".")
    around = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return any(path.endswith(apart) for path in around)
