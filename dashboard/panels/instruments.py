"""Results of prompt sets that ask both ways: statements, reversals, wordings, agreement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import streamlit as st

from analysis.comparison.comparison import ArmReading
from analysis.comparison.instruments import Direction
from analysis.text import number_text
from dashboard.state.selection import Key
from dashboard.style.markup import escape, html_table, interval

HEADER = ("Arm", "Set and group", "Statements", "Reversals", "By wording", "Agreement bias")
CAPTION = (
    "A score of 1 means the named end, for statements and reversals alike; 95 % intervals over "
    "items. By wording: the mean score of each wording, and the spread, which is the standard "
    "deviation between the wordings of an item, averaged over items. Agreement bias: the rate of "
    "agreeing over statements and reversals together, minus one half."
)


def show_instruments(found: Sequence[ArmReading], labels: Mapping[str, str]) -> None:
    """Draw the readings that have both directions, if there are any.

    Args:
        found: as `analysis.comparison.comparison.read_instruments` gives them.
        labels: run id → name on screen.
    """
    if any(one.reading.both for one in found):
        st.subheader("Statements and reversals", anchor=False)
        with st.container(key=Key.INSTRUMENTS):
            st.html(instruments_table(found, labels))


def instruments_table(found: Sequence[ArmReading], labels: Mapping[str, str]) -> str:
    """The readings that have both directions, as HTML; arguments as for `show_instruments`."""
    rows = [_row(one, labels) for one in found if one.reading.both]
    return html_table(list(HEADER), rows, caption=CAPTION)


def _row(one: ArmReading, labels: Mapping[str, str]) -> list[str]:
    reading = one.reading
    end = f", 1 = {reading.end}" if reading.end else ""
    about = f"{reading.instrument}, scorer {reading.scorer}, {reading.items} items{end}"
    bias = reading.agreement
    return [
        escape(labels.get(one.run, one.run)),
        f'{escape(reading.group)}<span class="sub">{escape(about)}</span>',
        *(_mean(each) for each in reading.directions if each.direction),
        "".join(_wordings(each) for each in reading.directions if each.direction),
        "" if bias is None else interval(bias.value, bias.low, bias.high, bias.n, bias.items),
    ]


def _mean(one: Direction) -> str:
    missing = f'<span class="bounds">{one.missing} without a score</span>' if one.missing else ""
    found = one.score
    return interval(found.value, found.low, found.high, found.n, found.items) + missing


def _wordings(one: Direction) -> str:
    means = ", ".join(map(number_text, one.wordings))
    spread = "" if math.isnan(one.spread) else f", spread {number_text(one.spread)}"
    return f'<span class="bounds">{escape(f"{one.direction}s {means}{spread}")}</span>'
