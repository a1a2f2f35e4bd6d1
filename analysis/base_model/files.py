"""The unembedding and final norm of a base model, read from its safetensors files alone.

Of the rest of the model not a byte is read.  Names differ between families by their last part
only, so that older and multimodal checkpoints, which put something before it, are read too.  To
add a family, add its `model_type` to `NORMS`, and a name to the table it belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import ml_dtypes  # noqa: F401  registers bfloat16, by which safetensors hands it out
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from analysis.adapters.architectures import module_layer
from analysis.base_model.unembedding import Unembedding
from analysis.errors import InputError

FloatArray = NDArray[np.floating[Any]]
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
"""What the final norm does: RMSNorm with a gain, Gemma's with 1 + weight, or LayerNorm."""

_FLOATS = ("F64", "F32", "F16", "BF16")
_FOREIGN = ("vision_tower", "vision_model", "visual", "audio_tower", "multi_modal_projector")


def read_unembedding(folder: Path) -> Unembedding:
    """The unembedding of the base model in a folder; its rows stay in their file until asked for.

    Where the files hold no unembedding of its own, it is tied to the embedding.

    Raises:
        InputError: files are missing or damaged, or the model's final norm is not known.
    """
    config = decoder_config(folder)
    find = _finder(folder)
    head = find(HEADS)
    if head is None and config.get("tie_word_embeddings") is False:
        _refuse(folder, f"holds none of {', '.join(HEADS)}, and config.json ties it to nothing",
                "copy the whole model")  # fmt: skip
    rows = head or find(EMBEDDINGS)
    if rows is None:
        _refuse(folder, f"holds none of {', '.join((*HEADS, *EMBEDDINGS))}",
                "name its place in analysis/base_model/files.py")  # fmt: skip
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
        InputError: there are none, or they are damaged.
    """
    if (folder / INDEX).is_file():
        files = sorted(set(_weight_map(folder).values()))
    elif (folder / WEIGHTS).is_file():
        files = [WEIGHTS]
    else:
        _refuse(folder, f"has neither {WEIGHTS} nor {INDEX}", "give a model with safetensors")
    shapes: dict[str, tuple[int, ...]] = {}
    for name in files:
        with _opened(folder, name) as file:
            names = file.keys()
            shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in names}
    return shapes


def norm_kind(model_type: str, *, has_bias: bool) -> Norm:
    """What the final norm of a family does.

    Raises:
        InputError: the family is not known, and its norm might be of any kind.
    """
    if model_type in NORMS:
        return NORMS[model_type]
    if has_bias:
        return "layer"  # no RMSNorm has one
    raise InputError(
        f"The final norm of models of type {model_type!r} is not known; add the type to NORMS in "
        "analysis/base_model/files.py."
    )


def unembedding_files(names: Sequence[str], index: Path | None) -> list[str]:
    """Of a model's files those that `read_unembedding` opens, as its index says where there is one.

    Raises:
        InputError: there are no safetensors among the files, or the index is damaged.
    """
    if index is None:
        if WEIGHTS not in names:
            raise InputError(
                f"The base model has neither {WEIGHTS} nor {INDEX}; give one with safetensors."
            )
        return [WEIGHTS]
    wanted = (*HEADS, *EMBEDDINGS, *FINAL_NORMS, PROJECTION)
    placed = _weight_map(index.parent)
    return sorted({file for key, file in placed.items() if _is_one_of(key, wanted)})


@dataclass(frozen=True)
class StoredRows:
    """A tensor in a safetensors file, mapped into memory and read by blocks of rows."""

    slice: Any
    shape: tuple[int, ...]

    def __getitem__(self, rows: slice, /) -> FloatArray:
        """Rows as they are stored; bfloat16 as float32."""
        block = self.slice[rows]
        if block.dtype.name == "bfloat16":
            # The upper half of float32, so shifting is exact and faster than a cast.
            wide: FloatArray = (block.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            return wide
        found: FloatArray = block
        return found


def _finder(folder: Path) -> Callable[..., StoredRows | None]:
    """A function that finds the one tensor whose module has one of some names."""
    if (folder / INDEX).is_file():
        placed = _weight_map(folder)
    elif (folder / WEIGHTS).is_file():
        with _opened(folder, WEIGHTS) as file:
            placed = dict.fromkeys(file.keys(), WEIGHTS)
    else:
        _refuse(folder, f"has neither {WEIGHTS} nor {INDEX}", "give a model with safetensors")

    def find(modules: Sequence[str], kind: str = "weight") -> StoredRows | None:
        keys = [key for key in placed if _is_one_of(key, modules, kind)]
        if len(keys) > 1:
            _refuse(folder, f"holds {' and '.join(sorted(keys))}", "give a model with one decoder")
        return _stored(folder, placed[keys[0]], keys[0]) if keys else None

    return find


def _is_one_of(key: str, modules: Sequence[str], kind: str = "weight") -> bool:
    """Whether a tensor is the `kind` of a module outside all layers that has one of the names."""
    *before, module, last = ("", *key.split("."))
    inner = module_layer(key) is not None or not set(before).isdisjoint(_FOREIGN)
    return last == kind and module in modules and not inner


def _stored(folder: Path, file: str, key: str) -> StoredRows:
    try:
        found = _opened(folder, file).get_slice(key)
    except SafetensorError as error:
        _refuse(folder, f"has no {key} in {file} ({error})", "copy index and shards together")
    if found.get_dtype() not in _FLOATS:
        _refuse(folder, f"holds {key} as {found.get_dtype()}",
                f"expected one of {', '.join(_FLOATS)}")  # fmt: skip
    return StoredRows(found, tuple(found.get_shape()))


def _opened(folder: Path, name: str) -> Any:
    try:
        return safe_open(folder / name, framework="np")
    except (SafetensorError, OSError) as error:
        _refuse(folder, f"has no whole {name} ({' '.join(str(error).split())[:120]})",
                "copy or download it again")  # fmt: skip


def _weight_map(folder: Path) -> dict[str, str]:
    placed = _json(folder, INDEX).get("weight_map")
    found: dict[str, str] = placed if isinstance(placed, dict) else {}
    if not found or not all(isinstance(f, str) and Path(f).name == f for f in found.values()):
        _refuse(folder, f"has an {INDEX} that does not name files of the folder", "copy it again")
    return found


def decoder_config(folder: Path) -> dict[str, Any]:
    """The settings of the language model in config.json, which multimodal models keep apart.

    Raises:
        InputError: there is no such file, or it is no JSON object.
    """
    config = _json(folder, CONFIG)
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        _refuse(folder, f"has no readable {name} ({' '.join(str(error).split())[:120]})",
                "give the folder of a transformers model")  # fmt: skip
    if not isinstance(content, dict):
        _refuse(folder, f"has a {name} that is no JSON object", "copy it again")
    return content


def _refuse(folder: Path, problem: str, remedy: str) -> NoReturn:
    raise InputError(f"The base model {folder} {problem}; {remedy}.")
