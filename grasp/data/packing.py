"""Packing several rows into one sequence without letting them see each other."""

from __future__ import annotations

import inspect
from bisect import bisect_left, insort
from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor

from analysis.errors import InputError
from grasp.model.forward import Batch, to_device
from grasp.model.loading import device_of

Row = dict[str, list[int]]

_CHECKED = 32
"""The most tokens of a row that the check looks at."""


def pack_rows(rows: Sequence[Row], *, max_length: int) -> list[Row]:
    """Pack rows into sequences of at most `max_length` tokens, without splitting a row.

    Each row goes into the fullest sequence that has room.  Positions restart with every row, which
    is how the model tells rows apart.
    """
    places: list[list[Row]] = []
    room: list[tuple[int, int]] = []
    for row in sorted(rows, key=lambda one: -len(one["input_ids"])):
        length = len(row["input_ids"])
        found = bisect_left(room, (length, 0))
        if found < len(room):
            left, place = room.pop(found)
        else:
            left, place = max_length, len(places)
            places.append([])
        places[place].append(row)
        insort(room, (left - length, place))
    return [_joined(place) for place in places]


def collate_packed(rows: Sequence[Row]) -> Batch:
    """Packed rows as one batch (1, tokens), one after the other, without padding."""
    joined = {key: [token for row in rows for token in row[key]] for key in rows[0]}
    return {key: torch.tensor([tokens]) for key, tokens in joined.items()}


def check_packing(model: PeftModel, rows: Sequence[Row]) -> None:
    """Check that a row's logits do not depend on the row packed before it.

    Raises:
        InputError: they do, so rows would learn from each other.
    """
    plain = model.get_base_model()
    name = type(plain).__name__
    if "position_ids" not in inspect.signature(plain.forward).parameters:
        raise InputError(f"{name} takes no position_ids, so rows cannot be packed; {_INSTEAD}")
    first, second = (row["input_ids"][:_CHECKED] for row in (rows[0], rows[-1]))
    alone = _logits(model, [second])
    behind = _logits(model, [first, second])[len(first) :]
    moved = (behind - alone).abs().max() / alone.abs().max()
    allowed = 1e-4 if next(plain.parameters()).dtype == torch.float32 else 3e-2
    if not moved <= allowed:
        raise InputError(
            f"In {name} a packed row sees the row before it (its logits change by {moved:.1%} of "
            f"the largest), so packing would not be exact; {_INSTEAD}"
        )


_INSTEAD = "turn packing off, which is the default."


@torch.no_grad()
def _logits(model: PeftModel, ids: Sequence[list[int]]) -> Tensor:
    batch = collate_packed([_joined([{"input_ids": one}]) for one in ids])
    given = to_device(batch, device_of(model))
    logits: Tensor = model(**given, use_cache=False).logits[0].float()
    return logits


def _joined(rows: Sequence[Row]) -> Row:
    keys = [key for key in rows[0] if key != "attention_mask"]
    joined = {key: [token for row in rows for token in row[key]] for key in keys}
    places = [place for row in rows for place in range(len(row["input_ids"]))]
    return joined | {"position_ids": places}
