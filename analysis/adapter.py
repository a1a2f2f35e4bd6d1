"""Reads a LoRA adapter folder as PEFT writes it, straight from safetensors to numpy.

Every tensor in the file is used, listed in `Adapter.unused`, or a reason to refuse
the folder by name.  What the saved weights alone do not determine is refused too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes  # noqa: F401  registers bfloat16, by which safetensors hands it out
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from analysis.adapter_config import check_config, module_rank, module_scaling, targets
from analysis.architectures import Side, module_layer, module_order, module_side
from analysis.errors import AdapterError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"

_MAX_CONFIG_BYTES = 4 << 20
_MAX_HEADER_BYTES = 16 << 20
_PREFIX = "base_model.model."
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_REFUSED_TENSORS = {
    "lora_magnitude_vector": "a DoRA magnitude, whose update depends on the base weights",
    "lora_embedding_A": "an embedding LoRA, which is not an update of a linear module",
    "lora_embedding_B": "an embedding LoRA, which is not an update of a linear module",
    "lora_B.bias": "a LoRA bias (lora_bias), which is not part of B A",
    "trainable_tokens_": "trained token rows, which are not a low-rank update",
    "modules_to_save": "a fully trained module, which is not a low-rank update",
}


@dataclass(frozen=True)
class LoraModule:
    """One low-rank update ΔW = scaling · B A of y = W x.

    `lora_A` is (r, d_in) and `lora_B` (d_out, r), both float32, for every kind of
    base layer: where the base stores W transposed (Conv1D, `fan_in_fan_out`), PEFT
    transposes the product, not the halves.
    """

    name: str
    layer: int | None
    side: Side
    lora_A: NDArray[np.float32]
    lora_B: NDArray[np.float32]
    scaling: float

    @property
    def r(self) -> int:
        """LoRA rank."""
        return int(self.lora_A.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of W."""
        return int(self.lora_B.shape[0]), int(self.lora_A.shape[1])


@dataclass(frozen=True)
class Adapter:
    """A loaded adapter; `unused` names the tensors of the file that are no part of any ΔW."""

    path: Path
    modules: tuple[LoraModule, ...]
    base_model: str | None
    base_revision: str | None
    config: dict[str, Any]
    n_parameters: int
    dtype: str
    unused: tuple[str, ...]


def load_adapter(path: str | Path) -> Adapter:
    """Load a PEFT LoRA folder without torch; weights are cast to float32.

    A run folder whose subfolder `adapter/` holds the files is resolved to it.  Modules
    are sorted by layer, then by their place in the layer.  Scaling is PEFT's:
    lora_alpha / r, or lora_alpha / √r under rsLoRA, with `rank_pattern` and
    `alpha_pattern` matched as PEFT matches them.

    Raises:
        AdapterError: the folder cannot be read exactly; one sentence says why.

    Source: peft 0.21 `tuners/lora/layer.py` (scaling), `utils/other.py` (patterns).
    """
    folder = _adapter_folder(Path(path))
    config = _read_config(folder)
    base_model, base_revision = check_config(config, folder)
    tensors, unused, dtype = _read_weights(folder)
    modules = tuple(
        _module(name, halves, config, folder)
        for name, halves in sorted(tensors.items(), key=lambda item: module_order(item[0]))
    )
    return Adapter(
        path=folder,
        modules=modules,
        base_model=base_model,
        base_revision=base_revision,
        config=config,
        n_parameters=sum(m.lora_A.size + m.lora_B.size for m in modules),
        dtype=dtype,
        unused=unused,
    )


def _adapter_folder(path: Path) -> Path:
    if not path.is_dir():
        _refuse(path, "is not a folder", "give the folder that holds " + CONFIG)
    if (path / CONFIG).exists() or (path / WEIGHTS).exists():
        return path
    if (path / "adapter" / CONFIG).exists():
        return path / "adapter"
    named = sorted(p.parent.name for p in path.glob("*/" + CONFIG))
    if not named:
        raise AdapterError(f"{path} has no {CONFIG}; give a folder written by save_pretrained.")
    raise AdapterError(
        f"{path} holds no adapter itself but subfolders do ({', '.join(named)}); give one of them."
    )


def _own_file(folder: Path, name: str) -> Path:
    """The file `name` of a folder, refused where it is missing, special or a link out of it.

    The one exception are links of a Hugging Face Hub cache, from `snapshots/<revision>`
    to the `blobs` beside it.
    """
    file = folder / name
    if not file.is_file():
        _refuse(folder, f"has no file {name}", "copy the whole folder that PEFT saved")
    target, home = file.resolve(), folder.resolve()
    in_cache = home.parent.name == "snapshots" and target.parent == home.parent.parent / "blobs"
    if not target.is_relative_to(home) and not in_cache:
        _refuse(folder, f"links {name} to a file outside the folder", "copy the file itself")
    return file


def _read_config(folder: Path) -> dict[str, Any]:
    file = _own_file(folder, CONFIG)
    if file.stat().st_size > _MAX_CONFIG_BYTES:
        _refuse(folder, f"has a {CONFIG} of more than 4 MiB", "expected a few kilobytes of JSON")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())[:120]
        raise AdapterError(
            f"{folder}: {CONFIG} is not valid JSON ({problem}); save the adapter again."
        ) from error
    except OSError as error:
        raise AdapterError(f"{folder}: {CONFIG} cannot be read ({error.strerror}).") from error
    if not isinstance(config, dict):
        _refuse(folder, f"has a {CONFIG} that is not a JSON object", "save the adapter again")
    return config


def _read_weights(
    folder: Path,
) -> tuple[dict[str, dict[str, NDArray[np.float32]]], tuple[str, ...], str]:
    """Halves by module name, the names of unused tensors, and the dtypes of the halves."""
    file = _weights_file(folder)
    halves: dict[str, dict[str, NDArray[np.float32]]] = {}
    unused: list[str] = []
    dtypes: set[str] = set()
    try:
        with safe_open(file, framework="np") as weights:
            for key in sorted(weights.keys()):
                found = _half(key, folder)
                if found is None:
                    unused.append(key)
                    continue
                dtypes.add(_check_kind(key, weights.get_slice(key), folder))
                module, half = found
                halves.setdefault(module, {})[half] = _float32(key, weights.get_tensor(key), folder)
    except (SafetensorError, OSError) as error:
        problem = " ".join(str(error).split())[:160]
        raise AdapterError(
            f"{folder}: {WEIGHTS} is truncated or not a safetensors file ({problem}); "
            "copy or download it again."
        ) from error
    if not halves:
        _refuse(
            folder, f"has no LoRA weights in {WEIGHTS}", "expected tensors named …lora_A.weight"
        )
    return halves, tuple(unused), ", ".join(sorted(dtypes))


def _weights_file(folder: Path) -> Path:
    if not (folder / WEIGHTS).exists() and (folder / PICKLE).exists():
        _refuse(folder, f"has only {PICKLE}, a pickle, which can run code when it is read",
                "save the adapter again with safe_serialization=True")  # fmt: skip
    if (folder / (WEIGHTS + ".index.json")).exists():
        _refuse(folder, "is split into shards", f"merge them into one {WEIGHTS}")
    file = _own_file(folder, WEIGHTS)
    with file.open("rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
    if header > _MAX_HEADER_BYTES:
        _refuse(folder, f"has a {WEIGHTS} whose header claims {header} bytes (16 MiB at most)",
                "copy or download it again")  # fmt: skip
    return file


def _half(key: str, folder: Path) -> tuple[str, str] | None:
    """(module name, "A" or "B") of a tensor; None for a tensor that is no LoRA weight."""
    for part, meaning in _REFUSED_TENSORS.items():
        if part in key:
            _refuse(folder, f"holds {key}, {meaning}", "train with plain LoRA to analyse it")
    for half in "AB":
        module = key.removesuffix(f".lora_{half}.weight")
        if module != key:
            if not module.startswith(_PREFIX) or module == _PREFIX:
                _refuse(folder, f"holds {key}, whose name does not begin with {_PREFIX}",
                        "save the adapter with PEFT's save_pretrained")  # fmt: skip
            return module.removeprefix(_PREFIX), half
    if "lora_" in key:
        _refuse(folder, f"holds {key}, a LoRA tensor of an unknown kind",
                "expected names ending in lora_A.weight or lora_B.weight")  # fmt: skip
    return None


def _check_kind(key: str, tensor: Any, folder: Path) -> str:
    kind, shape = tensor.get_dtype(), tuple(tensor.get_shape())
    if kind not in _DTYPES:
        _refuse(folder, f"holds {key} of dtype {kind}", "expected float32, float16 or bfloat16")
    if len(shape) != 2:
        _refuse(folder, f"holds {key} of shape {shape}",
                "expected a matrix, since only LoRA on linear modules is read")  # fmt: skip
    if 0 in shape:
        _refuse(folder, f"holds {key} of shape {shape}, which is empty",
                "gather the weights before saving (DeepSpeed ZeRO-3 and FSDP)")  # fmt: skip
    return _DTYPES[kind]


def _float32(key: str, tensor: NDArray[Any], folder: Path) -> NDArray[np.float32]:
    if tensor.dtype.name == "bfloat16":
        # bfloat16 is the upper half of float32; shifting is exact and several times
        # faster than the element-wise cast.
        values = (tensor.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        with np.errstate(over="ignore"):  # what overflows float32 is refused just below
            values = tensor.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        _refuse(folder, f"holds NaN or infinite values in {key}",
                "take an earlier checkpoint or train again")  # fmt: skip
    return values


def _module(
    name: str,
    halves: Mapping[str, NDArray[np.float32]],
    config: Mapping[str, Any],
    folder: Path,
) -> LoraModule:
    missing = [f"lora_{half}" for half in "AB" if half not in halves]
    if missing:
        _refuse(folder, f"has no {missing[0]} for {name}", "copy the whole file again")
    if not targets(config, name):
        _refuse(folder, f"holds weights for {name}, which target_modules does not name",
                "PEFT would ignore them; use the config they were trained with")  # fmt: skip
    lora_A, lora_B = halves["A"], halves["B"]
    r = module_rank(config, name)
    if (lora_A.shape[0], lora_B.shape[1]) != (r, r):
        _refuse(folder, f"has lora_A {lora_A.shape} and lora_B {lora_B.shape} for {name}",
                f"expected rank {r} as {CONFIG} says")  # fmt: skip
    scaling = module_scaling(config, name)
    if not math.isfinite(scaling):
        _refuse(folder, f"gives {name} the scaling {scaling}", "expected a finite lora_alpha")
    return LoraModule(name, module_layer(name), module_side(name), lora_A, lora_B, scaling)


def _refuse(folder: Path, problem: str, remedy: str) -> NoReturn:
    raise AdapterError(f"{folder} {problem}; {remedy}.")
