"""Copy an adapter's own files: one safetensors file that PEFT reads, config, tokenizer, notes."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analysis.adapters.files import (
    CONFIG,
    DTYPES,
    INDEX,
    WEIGHTS,
    StoredTensor,
    own_file,
    stored_tensors,
)
from analysis.adapters.load import Adapter, check_values
from analysis.errors import AdapterError

_PAPERS = (".json", ".jsonl", ".md", ".txt", ".jinja", ".yaml", ".yml", ".model")
_SETTINGS = "training_args.bin"  # a pickle; copied for other programs, never read here


def copy_adapter(adapter: Adapter, target: Path) -> Path:
    """Copy an adapter into a new folder and return the path of its weights there.

    PEFT reads neither shards nor tensor names that contain the adapter's name, so shards are
    merged and that name is removed.  Checkpoints, optimiser states and other adapters are not
    copied.

    Raises:
        AdapterError: a value is not finite, or a file is a link out of the folder.
    """
    check_values(adapter)
    target.mkdir(parents=True)
    papers = [
        path.name
        for path in sorted(adapter.path.iterdir())
        if path.is_file()
        and path.name not in (WEIGHTS, INDEX)
        and (path.suffix in _PAPERS or path.name == _SETTINGS)
    ]
    for name in papers:
        shutil.copyfile(own_file(adapter.path, name), target / name)
    if CONFIG not in papers:
        raise AdapterError(
            f"{adapter.path} has no {CONFIG}; give a folder written by PEFT's save_pretrained."
        )
    tensors = stored_tensors(adapter.path)
    if adapter.key_name is None and not (adapter.path / INDEX).exists():
        shutil.copyfile(own_file(adapter.path, WEIGHTS), target / WEIGHTS)
    else:
        _write(tensors, adapter.key_name, target / WEIGHTS)
    return target / WEIGHTS


def _write(tensors: dict[str, StoredTensor], name: str | None, file: Path) -> None:
    from safetensors.numpy import save_file

    known = {key: tensor for key, tensor in tensors.items() if tensor.kind in DTYPES}
    named = {_without(key, name): tensor for key, tensor in known.items()}
    save_file({key: _raw(tensor) for key, tensor in named.items()}, file, {"format": "pt"})


def _without(key: str, name: str | None) -> str:
    """A tensor's name without the adapter's name, as PEFT's save_pretrained writes it."""
    if name is None:
        return key
    own = re.escape(name)
    key = re.sub(rf"\.modules_to_save\.{own}\.", ".", key)
    return re.sub(rf"\.((?:lora|trainable_tokens)_\w+)\.{own}(?=\.|$)", r".\1", key)


def _raw(tensor: StoredTensor) -> NDArray[np.generic]:
    """The values in the dtype they are stored in."""
    import ml_dtypes

    dtype = np.dtype(ml_dtypes.bfloat16 if tensor.kind == "BF16" else DTYPES[tensor.kind])
    count = math.prod(tensor.shape)
    return np.fromfile(tensor.file, dtype, count, offset=tensor.offset).reshape(tensor.shape)
