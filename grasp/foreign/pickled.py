"""Adapters saved as a pickle (`adapter_model.bin`), read only where that is allowed in words.

torch unpickles tensors alone (`weights_only=True`), so that nothing in the file can run code.
They are written to a temporary folder as safetensors, which is what everything else reads.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from analysis.adapters.files import CONFIG, INDEX, PICKLE, WEIGHTS, own_file
from analysis.errors import AdapterError


@contextmanager
def readable_adapter(folder: Path, *, allow_pickle: bool) -> Iterator[Path]:
    """A folder that `load_adapter` reads: this one, or for a pickle a copy as safetensors.

    The copy goes when the context ends.

    Raises:
        AdapterError: the pickle holds something else than named tensors, or is damaged.
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


def _tensors(folder: Path) -> dict[str, Any]:
    import torch

    file = own_file(folder, PICKLE)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged pickle leads torch to
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
            f"{folder}: {PICKLE} holds something else than named tensors; save the adapter again "
            "with safe_serialization=True."
        )
    return dict(content)
