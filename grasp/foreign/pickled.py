"""Adapters saved as a pickle (`adapter_model.bin`), read only with explicit permission.

torch unpickles tensors only (`weights_only=True`), so nothing in the file can run code.  The
tensors are written to a temporary folder as safetensors, which is what everything else reads.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.adapters.files import CONFIG, INDEX, PICKLE, WEIGHTS, own_file
from analysis.errors import AdapterError

if TYPE_CHECKING:
    import torch


@contextmanager
def readable_adapter(folder: Path, *, allow_pickle: bool) -> Iterator[Path]:
    """A folder that `load_adapter` can read: this one, or a safetensors copy of a pickle.

    The copy is deleted when the context ends.

    Raises:
        AdapterError: the pickle is damaged, or holds anything but named tensors.
    """
    has_others = any((folder / name).exists() for name in (WEIGHTS, INDEX))
    if not allow_pickle or has_others or not (folder / PICKLE).exists():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="grasp-") as temporary:
        copy = Path(temporary) / folder.resolve().name
        copy.mkdir()
        _convert(folder, copy)
        yield copy


def _convert(folder: Path, copy: Path) -> None:
    from safetensors.torch import save_file

    shutil.copyfile(own_file(folder, CONFIG), copy / CONFIG)
    tensors = {key: value.detach().clone().contiguous() for key, value in _tensors(folder).items()}
    save_file(tensors, copy / WEIGHTS, metadata={"format": "pt"})


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    import torch

    file = own_file(folder, PICKLE)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise AdapterError(
            f"{folder}: {PICKLE} cannot be read as plain tensors ({type(error).__name__}); save "
            "the adapter again with safe_serialization=True."
        ) from error
    named = isinstance(content, dict) and all(
        isinstance(key, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided
        for key, value in content.items()
    )
    if not named:
        raise AdapterError(
            f"{folder}: {PICKLE} holds more than named tensors; save the adapter again "
            "with safe_serialization=True."
        )
    return dict(content)
