"""What is kept of rows of tokens from one epoch to the next, by what is in them.

A row is known again by its real tokens and their positions alone, so that shuffling, padding,
accumulation, a resumed run or a process of its own cannot mistake one for another.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from torch import Tensor

from grasp.model.forward import Batch

KEPT_BYTES = 1 << 30
"""Most memory of the host that is kept; rows that find no room are computed each time."""

_KEY_BYTES = 16


class KeptRows:
    """One tensor a row, in the host's memory."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._rows: dict[bytes, Tensor] = {}
        self._room = limit

    def get(self, keys: Sequence[bytes]) -> list[Tensor | None]:
        """What is kept under each key; None where nothing is."""
        return [self._rows.get(key) for key in keys]

    def keep(self, key: bytes, values: Tensor) -> None:
        """Keep a copy, where there is room for it."""
        size = values.numel() * values.element_size()
        if key not in self._rows and size <= self._room:
            self._rows[key] = values.detach().cpu().clone()
            self._room -= size


def row_keys(inputs: Batch, real: Tensor) -> list[bytes] | None:
    """A key for each row; None where something decides about a row that no row of its own tells.

    Args:
        inputs: of a model, by name: `input_ids` (batch, tokens) and whatever else has that shape
            or (1, tokens).  A mask of another shape, or any further input, is not understood.
        real: (batch, tokens) of bool, the tokens that are not padding.
    """
    ids, told = inputs["input_ids"], []
    for name, value in inputs.items():
        if not isinstance(value, Tensor):
            continue
        if value.dim() != 2 or value.shape[1] != ids.shape[1] or len(value) not in (1, len(ids)):
            return None
        if name != "attention_mask":
            told.append(value.expand_as(ids))
    if "position_ids" not in inputs:  # then padding on the left moves a row's positions
        told.append(real.new_ones(real.shape).long().cumsum(dim=1))
    columns, places = [value.cpu().numpy() for value in told], real.cpu().numpy()
    return [
        blake2b(
            b"".join(value[row][mask].tobytes() for value in columns), digest_size=_KEY_BYTES
        ).digest()
        for row, mask in enumerate(places)
    ]
