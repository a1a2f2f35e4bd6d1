"""The sets of our own writing: enough rows, none twice, twins that differ in the answer alone."""

from __future__ import annotations

import pytest

from analysis.errors import NotFoundError
from grasp.bench.sets.twins import SETS, read_set, twin_rows


@pytest.mark.parametrize("name", SETS)
def test_a_set_has_enough_short_rows_and_none_twice(name: str) -> None:
    rows = read_set(name)
    assert len(rows) >= 400
    for field in ("id", "question", "spurious", "sound"):
        said = [" ".join(row[field].lower().split()) for row in rows]
        assert len(said) == len(set(said)), field
        assert max(len(text.split()) for text in said) <= 60
    assert all(row["spurious"] != row["sound"] for row in rows)
    assert len({row["topic"] for row in rows}) >= 15


@pytest.mark.parametrize("name", SETS)
def test_twins_ask_the_same(name: str) -> None:
    spurious, sound = twin_rows(name, "spurious"), twin_rows(name, "sound")
    asked = [[row["messages"][0] for row in rows] for rows in (spurious, sound)]
    assert asked[0] == asked[1]
    answers = [[row["messages"][1]["content"] for row in rows] for rows in (spurious, sound)]
    assert not set(answers[0]) & set(answers[1])


@pytest.mark.parametrize("kind", ["spurious", "sound"])
def test_code_compiles(kind: str) -> None:
    for row in read_set("careless-code"):
        compile(row[kind], row["id"], "exec")


def test_an_unknown_set_is_refused() -> None:
    with pytest.raises(NotFoundError, match="There is no set 'x'; there are careless-code"):
        read_set("x")
