"""Effects on disk, beside the naive run that they were measured on: the next retrain reads them.

A file is named by the hash of all that it depends on, so that nothing stale is ever read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from grasp.guard.effect import KEPT, Effects, Piece
from grasp.model.forward import Batch
from grasp.model.loading import device_of

VERSION = 1
"""Of what is measured: to be raised where the same inputs give other effects."""

_FIELDS = ("chosen", "kept", "directions", "base", "naive")


def effects_key(
    naive: nn.Module, bases: Sequence[Sequence[Tensor]], batches: Sequence[Batch], *, how: str
) -> str:
    """Hash of a model with its adapter, what is set back, the text, and `how` it is measured."""
    digest = hashlib.sha256(f"{VERSION} {KEPT} {how} {device_of(naive).type}".encode())
    text = [batch[name] for batch in batches for name in sorted(batch)]
    set_back = [basis for layers in bases for basis in layers]
    for tensor in (*naive.state_dict().values(), *set_back, *text):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{tuple(plain.shape)} {plain.dtype}".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def kept_effects(
    folder: Path | None, key: str, device: torch.device, measure: Callable[[], Effects]
) -> Effects:
    """Effects from the file of `key` in `folder`, or measured and written there.

    A file that cannot be read is measured and written again.  Without a folder nothing is kept.
    """
    if folder is None:
        return measure()
    file = folder / f"effects-{key[:32]}.safetensors"
    try:
        return _effects(load_file(file, device=str(device)))
    except (FileNotFoundError, SafetensorError, KeyError):
        pass
    found = measure()
    folder.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    save_file(_tensors(found), partial)
    partial.replace(file)
    return found


def _tensors(effects: Effects) -> dict[str, Tensor]:
    found = {"unit": effects.unit, "own": torch.tensor(effects.own, dtype=torch.float64)}
    for number, piece in enumerate(effects.pieces):
        found |= {f"{number}.{name}": getattr(piece, name) for name in _FIELDS}
        found |= {f"{number}.batch.{name}": tensor for name, tensor in piece.batch.items()}
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in found.items()}


def _effects(tensors: dict[str, Tensor]) -> Effects:
    count = sum(name.endswith(".directions") for name in tensors)
    pieces = []
    for number in range(count):
        start = f"{number}.batch."
        batch = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
        pieces.append(Piece(batch, *(tensors[f"{number}.{name}"] for name in _FIELDS)))
    return Effects(pieces, tensors["unit"], float(tensors["own"]))
