"""What is kept by row: known again whatever is around it, and never mistaken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grasp.guard.coordinate_cache import KeptRows, row_keys


def batch(rows: list[list[int]], *, width: int = 0, left: bool = False) -> dict[str, Any]:
    """Padded rows (batch, tokens) with their mask."""
    width = max(width, *(len(row) for row in rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        at = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, at], mask[i, at] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask.long()}


def keys(inputs: dict[str, Any]) -> list[bytes] | None:
    return row_keys(inputs, inputs["attention_mask"].bool())


ROWS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=5)


@given(rows=ROWS, wider=st.integers(0, 4))
def test_two_rows_have_one_key_if_and_only_if_they_are_equal(
    rows: list[list[int]], wider: int
) -> None:
    """However wide the padding, and however the rows are grouped."""
    together = keys(batch(rows, width=4 + wider))
    apart = [keys(batch([row]))[0] for row in rows]
    assert together == apart
    for one, key in zip(rows, together, strict=True):
        assert [key == other for other in together] == [one == other for other in rows]


def test_where_a_row_begins_counts_unless_positions_are_given() -> None:
    row = [[5, 6, 7]]
    right, left = batch(row, width=5), batch(row, width=5, left=True)
    assert keys(right) != keys(left)
    places = {"right": torch.tensor([[0, 1, 2, 3, 4]]), "left": torch.tensor([[0, 0, 0, 1, 2]])}
    told = [keys(right | {"position_ids": places["right"]})]
    assert keys(left | {"position_ids": places["left"]}) == told[0]
    assert keys(left | {"position_ids": places["right"]}) != told[0]


def test_every_input_of_the_tokens_counts() -> None:
    plain = batch([[5, 6, 7]])
    types = [plain | {"token_type_ids": torch.tensor([kind])} for kind in ([0, 0, 0], [0, 1, 0])]
    assert len({keys(one)[0] for one in (plain, *types)}) == 3


@pytest.mark.parametrize(
    "further",
    [
        {"attention_mask": torch.ones(2, 1, 3, 3)},
        {"inputs_embeds": torch.ones(2, 3, 8)},
        {"lengths": torch.tensor([3, 3])},
        {"position_ids": torch.zeros(3, 2, 3)},
    ],
)
def test_rows_with_inputs_that_are_not_understood_have_no_key(further: dict[str, Any]) -> None:
    inputs = batch([[5, 6, 7], [8, 9, 1]])
    assert row_keys(inputs | further, inputs["attention_mask"].bool()) is None


def test_no_more_is_kept_than_there_is_room_for() -> None:
    kept = KeptRows(limit=100)
    values = [torch.full((10,), float(i)) for i in range(3)]  # 40 bytes each
    for name, value in zip((b"a", b"b", b"c"), values, strict=True):
        kept.keep(name, value)
    found = kept.get([b"c", b"b", b"a"])
    assert found[0] is None
    torch.testing.assert_close(found[1:], [values[1], values[0]])


def test_what_is_kept_is_a_copy() -> None:
    kept, whole = KeptRows(), torch.zeros(4, 2)
    kept.keep(b"a", whole[:2])
    whole += 1
    (found,) = kept.get([b"a"])
    assert found.abs().max() == 0
    assert found.untyped_storage().nbytes() == 16
