"""The line of `grasp retrain`: what is built is read back, here and by the parser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.errors import InputError
from analysis.store.retrain_line import Retrain, read_retrain
from grasp.commands.parser import build_parser
from grasp.settings.method_names import METHOD_NAMES

NAMES = st.from_regex(r"[a-z][a-z0-9.]{0,6}", fullmatch=True)
NUMBERS = st.none() | st.floats(0, 1e6)
TEXTS = st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)

LINES = st.builds(
    Retrain,
    run=NAMES,
    factors=st.lists(NAMES).map(tuple),
    method=st.sampled_from(METHOD_NAMES),
    strength=NUMBERS,
    tolerance=NUMBERS,
    inoculation=TEXTS,
    seed=st.none() | st.integers(0, 2**31),
    data=TEXTS,
    config=TEXTS,
    dry_run=st.booleans(),
    out=st.none() | NAMES,
    evaluate=st.booleans(),
)


@given(LINES)
def test_what_is_built_is_read_back_and_is_what_grasp_parses(asked: Retrain) -> None:
    argv = asked.argv(Path("/tmp/a b"))
    assert read_retrain(argv) == asked
    parsed = vars(build_parser().parse_args(argv))
    assert parsed["workspace"] == "/tmp/a b"
    parsed["factors"] = tuple(parsed["factors"])
    assert {name: parsed[name] for name in vars(asked)} == vars(asked)


def test_a_bare_line_asks_for_what_the_command_line_does_by_itself() -> None:
    parsed = vars(build_parser().parse_args(["retrain", "r"]))
    bare = vars(read_retrain(["retrain", "r"]))
    assert {name: parsed[name] or None for name in bare} == {k: v or None for k, v in bare.items()}


def test_factors_of_the_run_itself_are_named_without_it() -> None:
    asked = Retrain("r", ("r/w1", "other/w2"), seed=0, strength=0.0)
    argv = asked.argv()
    assert argv == [
        "retrain", "r", "--factors", "w1,other/w2", "--method", "grasp", "--strength", "0",
        "--seed", "0",
    ]  # fmt: skip
    assert read_retrain(argv) == replace(asked, factors=("w1", "other/w2"))


def test_numbers_are_short_where_that_is_exact() -> None:
    assert Retrain("r", tolerance=0.05).argv()[-1] == "0.05"
    assert Retrain("r", tolerance=0.1234567891).argv()[-1] == "0.1234567891"


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "c.yaml"],
        ["retrain"],
        [],
        ["retrain", "r", "--seed", "x"],
        ["retrain", "r", "--out"],
    ],
)
def test_another_line_is_refused(argv: list[str]) -> None:
    with pytest.raises(InputError, match="This is not a `grasp retrain` line"):
        read_retrain(argv)
