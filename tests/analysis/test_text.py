"""Numbers, intervals and tables as people read them."""

from __future__ import annotations

import math
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.tables import align_columns, markdown_table
from analysis.text import (
    MINUS,
    count_text,
    interval_text,
    number_text,
    p_text,
    percent_text,
    score_text,
    small_text,
)


@pytest.mark.parametrize(
    ("p", "shown", "said"),
    [(0.0002, "<.001", "p <.001"), (0.0121, ".012", "p = .012"), (1.0, "1.000", "p = 1.000")],
)
def test_p_values_in_words(p: float, shown: str, said: str) -> None:
    assert (small_text(p), p_text(p)) == (shown, said)
    assert p_text(math.nan) == "p unknown"


@given(value=st.floats(-2, 2), digits=st.integers(1, 6))
def test_numbers_are_rounded_and_no_zero_has_a_sign(value: float, digits: int) -> None:
    shown = number_text(value, digits)
    back = float(shown.replace(MINUS, "-"))
    assert abs(back - value) <= 0.5 * 10**-digits + 1e-12
    assert shown.startswith(MINUS) == (back < 0)
    assert float(number_text(value, digits, sign=True).replace(MINUS, "-")) == back
    assert number_text(value, digits, sign=True)[0] in f"+{MINUS}"


def test_what_is_unknown_is_said() -> None:
    assert [number_text(one) for one in (None, math.nan, math.inf)] == ["unknown"] * 3
    assert number_text(None, unknown="–") == "–"
    assert score_text(math.nan) == "unknown"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (-0.0031, "−.003"),
        (0.02, ".020"),
        (-0.0001, ".000"),
        (0.9999, "1.000"),
        (1.0, "1.000"),
        (-1.25, "−1.250"),
    ],
)
def test_scores_have_no_zero_before_the_point(value: float, shown: str) -> None:
    assert score_text(value) == shown


def test_shares_are_whole_per_cent() -> None:
    shown = [percent_text(share) for share in (math.nan, -0.004, 1.2, -0.31)]
    assert shown == ["unknown", "0 %", "120 %", "−31 %"]


def test_an_interval_is_in_brackets_where_there_is_one() -> None:
    assert interval_text(0.4, 0.31, 0.5) == "0.400 [0.310, 0.500]"
    assert interval_text(-0.4, -0.5, 0.1, show=score_text) == "−.400 [−.500, .100]"
    assert interval_text(0.4, math.nan, math.nan, show=partial(number_text, digits=1)) == "0.4"


def test_one_is_singular() -> None:
    assert [count_text(n, "run") for n in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]


def test_columns_are_aligned_by_their_widest_cell() -> None:
    rows = [("name", "n", "about"), ("a", "10", "long words"), ("bcdefg", "9", "")]
    assert align_columns(rows, "<>") == [
        "name     n  about",
        "a       10  long words",
        "bcdefg   9",
    ]
    with pytest.raises(ValueError, match="shorter"):
        align_columns([("a", "b"), ("c",)])


def test_bars_in_cells_are_escaped_in_markdown() -> None:
    assert markdown_table(["a|b", "c"], [["1", "|x|"]]).splitlines() == [
        r"| a\|b | c |",
        "| --- | --- |",
        r"| 1 | \|x\| |",
    ]
