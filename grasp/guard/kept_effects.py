"""Effects on disk, beside the naive run that they were measured on: the next retrain reads them.

A file is named by the hash of all that it depends on, so that nothing stale is ever read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
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


class KeptEffects:
    """Effects that one set of factors has in one naive run, each text in a file of its own.

    Args:
        folder: of the files; without one nothing is kept.
        naive: the naive fine-tune.
        bases: what is set back, as for `grasp.guard.effect.measure_effects`.
    """

    def __init__(
        self, folder: Path | None, naive: nn.Module, bases: Sequence[Sequence[Tensor]]
    ) -> None:
        self._folder = folder
        self._device = device_of(naive)
        self._digest = hashlib.sha256(f"{VERSION} {KEPT} {self._device.type}".encode())
        if folder is not None:
            set_back = [basis for layers in bases for basis in layers]
            add_tensors(self._digest, [*naive.state_dict().values(), *set_back])

    def find(
        self, batches: Sequence[Batch], *, how: str, measure: Callable[[], Effects]
    ) -> Effects:
        """Effects on a text from its file, or measured and written there.

        A file that cannot be read is measured and written again.
        """
        if self._folder is None:
            return measure()
        digest = self._digest.copy()
        digest.update(how.encode())
        add_tensors(digest, [batch[name] for batch in batches for name in sorted(batch)])
        file = self._folder / f"effects-{digest.hexdigest()[:32]}.safetensors"
        with suppress(FileNotFoundError, SafetensorError, KeyError):
            return _effects(load_file(file, device=str(self._device)))
        found = measure()
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        save_file(_tensors(found), partial)
        partial.replace(file)
        return found


def add_tensors(digest: hashlib._Hash, tensors: Iterable[Tensor]) -> None:
    """Hash shapes, types and values of tensors, in their order."""
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{tuple(plain.shape)} {plain.dtype}".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().data)


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
