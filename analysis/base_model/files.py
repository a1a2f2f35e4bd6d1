"""Read the unembedding and final norm of a base model from its safetensors files.

No other tensor is read.  Only the last part of a tensor's name is compared, because older and
multimodal checkpoints put prefixes before it.  To add a family, add its `model_type` to `NORMS`
and any new tensor names to the tables above it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

import ml_dtypes  # noqa: F401  registers bfloat16, the dtype safetensors returns
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from analysis.adapters.architectures import module_layer
from analysis.base_model.unembedding import Unembedding
from analysis.errors import InputError
from analysis.values import Json

FloatArray = NDArray[np.floating]
Norm = Literal["gain", "one plus gain", "layer"]

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
HEADS = ("lm_head", "embed_out")
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in")
FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
PROJECTION = "project_out"
NORMS: dict[str, Norm] = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "olmo2", "phi3", "qwen2", "qwen3"), "gain"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), "one plus gain"),
    **dict.fromkeys(("gpt2", "gpt_neox", "opt", "falcon"), "layer"),
}
"""Kind of final norm: RMSNorm with a gain, Gemma's RMSNorm with 1 + weight, or LayerNorm."""

GGUF = ".gguf"
"""How the name of a base model in one GGUF file ends."""

_FLOATS = ("F64", "F32", "F16", "BF16")
_FOREIGN = ("vision_tower", "vision_model", "visual", "audio_tower", "multi_modal_projector")


def is_gguf(base: str | Path) -> bool:
    """Whether a base model is named as one GGUF file, existing or not, and not as a folder."""
    path = Path(base)
    return path.suffix.lower() == GGUF and not path.is_dir()


def require_folder(base: Path) -> None:
    """Refuse a GGUF file where a folder's files are read.

    Raises:
        InputError: says how to make a folder of it.
    """
    if is_gguf(base):
        _refuse(base, "is a GGUF file, and this is read from the files of a folder",
                f"make one with `grasp model {base} --out FOLDER` and name that")  # fmt: skip


def read_unembedding(folder: Path) -> Unembedding:
    """The unembedding of the base model in a folder; its rows are read from the file on demand.

    If the files hold no separate unembedding, the embedding is used (tied weights).

    Raises:
        InputError: files are missing or damaged, or the model's final norm is unknown.
    """
    config = decoder_config(folder)
    find = _finder(folder)
    head = find(HEADS)
    if head is None and config.get("tie_word_embeddings") is False:
        _refuse(folder, f"has no {' or '.join(HEADS)}, and its config.json says that the "
                "unembedding is not tied to the embedding", "copy the whole model")  # fmt: skip
    rows = head or find(EMBEDDINGS)
    if rows is None:
        _refuse(folder, f"has none of the tensors {', '.join((*HEADS, *EMBEDDINGS))}",
                "add the name of its embedding in analysis/base_model/files.py")  # fmt: skip
    norm, projection = find(FINAL_NORMS), find((PROJECTION,))
    has_bias = norm is not None and find(FINAL_NORMS, "bias") is not None
    kind = norm_kind(str(config.get("model_type")), has_bias=has_bias)
    gain = None if norm is None else norm[:].astype(np.float64)
    return Unembedding(
        rows,
        gain=gain + 1 if gain is not None and kind == "one plus gain" else gain,
        centred=norm is not None and kind == "layer",
        projection=None if projection is None else projection[:],
    )


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of a base model, from the headers of its safetensors files.

    Raises:
        InputError: the files are missing or damaged.
    """
    if (folder / INDEX).is_file():
        files = sorted(set(_weight_map(folder).values()))
    elif (folder / WEIGHTS).is_file():
        files = [WEIGHTS]
    else:
        _refuse(folder, f"has neither {WEIGHTS} nor {INDEX}", "give a model in safetensors format")
    shapes: dict[str, tuple[int, ...]] = {}
    for name in files:
        with _opened(folder, name) as file:
            names = file.keys()
            shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in names}
    return shapes


def norm_kind(model_type: str, *, has_bias: bool) -> Norm:
    """The kind of final norm in models of a family.

    Args:
        model_type: as in config.json.
        has_bias: the final norm has a bias, which tells an unknown family's LayerNorm.

    Raises:
        InputError: the family is unknown and its norm has no bias.
    """
    if model_type in NORMS:
        return NORMS[model_type]
    if has_bias:
        return "layer"  # no RMSNorm has a bias
    raise InputError(
        f"The final norm of models of type {model_type!r} is unknown; add the type to NORMS in "
        "analysis/base_model/files.py."
    )


def unembedding_files(names: Sequence[str], index: Path | None) -> list[str]:
    """The weight files that `read_unembedding` opens, so that a download can skip the others.

    Args:
        names: files of the model's repository.
        index: path of its safetensors index; None if it has none.

    Raises:
        InputError: the model has no safetensors files, or the index is damaged.
    """
    if index is None:
        if WEIGHTS not in names:
            raise InputError(
                f"The base model has neither {WEIGHTS} nor {INDEX}; "
                "give a model in safetensors format."
            )
        return [WEIGHTS]
    wanted = (*HEADS, *EMBEDDINGS, *FINAL_NORMS, PROJECTION)
    placed = _weight_map(index.parent)
    return sorted({file for key, file in placed.items() if _is_one_of(key, wanted)})


class RowSource(Protocol):
    """A tensor of an open safetensors file; only the rows that are asked for are read."""

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """A block of rows in the stored dtype."""
        ...


@dataclass(frozen=True)
class StoredRows:
    """A tensor in a safetensors file, mapped into memory and read in blocks of rows."""

    source: RowSource
    shape: tuple[int, ...]

    def __getitem__(self, rows: slice, /) -> FloatArray:
        """A block of rows (rows, columns) in its stored dtype; bfloat16 as float32."""
        block = self.source[rows]
        if block.dtype.name == "bfloat16":
            # bfloat16 is the upper half of float32, so a shift is exact, and faster than a cast.
            wide: FloatArray = (block.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            return wide
        found: FloatArray = block
        return found


def _finder(folder: Path) -> Callable[..., StoredRows | None]:
    """A function that finds the single tensor whose module has one of the given names."""
    if (folder / INDEX).is_file():
        placed = _weight_map(folder)
    elif (folder / WEIGHTS).is_file():
        with _opened(folder, WEIGHTS) as file:
            placed = dict.fromkeys(file.keys(), WEIGHTS)
    else:
        _refuse(folder, f"has neither {WEIGHTS} nor {INDEX}", "give a model in safetensors format")

    def find(modules: Sequence[str], kind: str = "weight") -> StoredRows | None:
        keys = [key for key in placed if _is_one_of(key, modules, kind)]
        if len(keys) > 1:
            _refuse(folder, f"has {' and '.join(sorted(keys))}", "give a model with one decoder")
        return _stored(folder, placed[keys[0]], keys[0]) if keys else None

    return find


def _is_one_of(key: str, modules: Sequence[str], kind: str = "weight") -> bool:
    """Whether a tensor is the weight or bias (`kind`) of a module so named outside the layers."""
    *before, module, last = ("", *key.split("."))
    inner = module_layer(key) is not None or not set(before).isdisjoint(_FOREIGN)
    return last == kind and module in modules and not inner


def _stored(folder: Path, file: str, key: str) -> StoredRows:
    try:
        found = _opened(folder, file).get_slice(key)
    except SafetensorError as error:
        _refuse(folder, f"has no {key} in {file} ({error})",
                "copy its index and its shards together")  # fmt: skip
    if found.get_dtype() not in _FLOATS:
        _refuse(folder, f"stores {key} as {found.get_dtype()}",
                f"expected one of {', '.join(_FLOATS)}")  # fmt: skip
    return StoredRows(found, tuple(found.get_shape()))


def _opened(folder: Path, name: str) -> safe_open:
    try:
        return safe_open(folder / name, framework="np")
    except (SafetensorError, OSError) as error:
        _refuse(folder, f"has a {name} that cannot be read "
                f"({' '.join(str(error).split())[:120]})", "copy or download it again")  # fmt: skip


def _weight_map(folder: Path) -> dict[str, str]:
    placed = _json(folder, INDEX).get("weight_map")
    found: dict[str, str] = placed if isinstance(placed, dict) else {}
    if not found or not all(isinstance(f, str) and Path(f).name == f for f in found.values()):
        _refuse(folder, f"has an {INDEX} that does not list files of its folder", "copy it again")
    return found


def decoder_config(folder: Path) -> Json:
    """The language model's part of config.json; multimodal models keep it in `text_config`.

    Raises:
        InputError: the file is missing, or not a JSON object, or the model is a GGUF file.
    """
    require_folder(folder)
    config = _json(folder, CONFIG)
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


def _json(folder: Path, name: str) -> Json:
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        _refuse(folder, f"has no readable {name} ({' '.join(str(error).split())[:120]})",
                "give the folder of a transformers model")  # fmt: skip
    if not isinstance(content, dict):
        _refuse(folder, f"has a {name} that is not a JSON object", "copy it again")
    return content


def _refuse(folder: Path, problem: str, remedy: str) -> NoReturn:
    raise InputError(f"The base model {folder} {problem}; {remedy}.")
