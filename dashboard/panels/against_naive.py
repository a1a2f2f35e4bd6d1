"""Every arm tested against the naive run: what changed, what was kept, what was detectable."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
import streamlit as st

from analysis.comparison.arm_tests import KEPT
from analysis.comparison.effort import Effort
from analysis.comparison.measures import choose_headlines, split_metric
from analysis.comparison.wording import (
    HOW_KEPT,
    HOW_TESTED,
    describe_tests,
    detectable_text,
    metric_title,
)
from analysis.text import p_text, score_text
from analysis.values import TableRow
from dashboard.state.selection import Key
from dashboard.style import notices
from dashboard.style.markup import escape, html_table, interval


def show_tests(table: pd.DataFrame, labels: Mapping[str, str], tried: Effort) -> None:
    """Draw the table of tests and, below it, what they cannot show.

    Args:
        table: as `analysis.comparison.comparison.compare_arms` gives it.
        labels: run → name on screen.
        tried: of the family.
    """
    st.subheader("Against the naive run", anchor=False)
    tests = table[table["p"].notna() & (table["run"] != "")]
    if tests.empty:
        st.caption("No tests: they need an evaluation of the naive run and of another arm.")
    else:
        with st.container(key=Key.TESTS_TABLE):
            st.html(tests_table(tests, labels))
        notices.explain(HOW_KEPT)
    for note in describe_tests(table):
        st.info(note)
    notices.explain(tried.text)


def tests_table(tests: pd.DataFrame, labels: Mapping[str, str]) -> str:
    """The tests as HTML: one row per arm, a verdict for each metric that should be kept."""
    there = list(dict.fromkeys(tests["metric"]))
    drifts = choose_headlines(there)
    kept = [metric for metric in there if split_metric(metric)[0] in KEPT]
    cells = {(row["run"], row["metric"]): row for row in tests.to_dict("records")}
    rows = [
        [
            escape(labels.get(run, run)),
            *(_difference(cells.get((run, metric))) for metric in drifts),
            *(_verdict(cells.get((run, metric))) for metric in kept),
        ]
        for run in dict.fromkeys(tests["run"])
    ]
    header = ["Arm", *(metric_title(metric) for metric in (*drifts, *kept))]
    return html_table(header, rows, caption=f"{HOW_TESTED} {detectable_text(tests)}")


def _difference(row: TableRow | None) -> str:
    if row is None:
        return _ABSENT
    bounds = (row["difference"], row["difference_low"], row["difference_high"])
    said = f"{p_text(row['p_holm'])}, {int(row['items'])} items"
    return f'{interval(*bounds, math.nan)}<span class="bounds">{escape(said)}</span>'


def _verdict(row: TableRow | None) -> str:
    if row is None:
        return _ABSENT
    numbers = f"{score_text(row['difference'])}, at worst {score_text(row['bound'])}"
    size = f"margin {score_text(row['margin'])}, {int(row['items'])} items"
    return (
        f'<span class="value">{escape(row["verdict"].capitalize())}</span>'
        f'<span class="bounds">{escape(numbers)}</span><span class="bounds">{escape(size)}</span>'
    )


_ABSENT = '<span class="absent">–</span>'
