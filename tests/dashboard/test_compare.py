"""The Compare page: what is tested, what is only looked at, and what it says where nothing is."""

from __future__ import annotations

import shutil

import pytest

from analysis.comparison import wording
from analysis.comparison.comparison import compare_arms
from analysis.store.workspace import Workspace
from dashboard.panels import against_naive
from dashboard.state.selection import Key
from tests.dashboard.conftest import Open, words

IDS = ["code-naive", "code-grasp", "code-caft"]


def test_tests_against_naive_are_on_the_page(whole: Workspace, open_page: Open) -> None:
    test = open_page("compare", whole, family="code-naive")
    said = words(test)
    assert "Against the naive run" in said
    table = compare_arms(whole, IDS)
    row = table[(table["run"] == "code-grasp") & (table["metric"] == "unrelated")].iloc[0]
    assert f"{abs(row['difference']):.3f}" in said
    assert wording.HOW_TESTED in said
    assert wording.HOW_KEPT in said
    assert "Tried in this family: " in said
    assert "dominate" in said
    assert {one.key for one in test.get("download_button")} >= {
        Key.COMPARE_CSV,
        Key.COMPARE_REPORT,
    }


def test_without_naive_nothing_is_tested(whole: Workspace, open_page: Open) -> None:
    shutil.rmtree(whole.folder("evaluations", "code-naive"))
    said = words(open_page("compare", whole, family="code-naive"))
    assert "No tests: they need an evaluation of the naive run and of another arm" in said


@pytest.mark.parametrize("metric", ["task", "unrelated"])
def test_a_cell_for_what_was_not_measured_is_empty(whole: Workspace, metric: str) -> None:
    table = compare_arms(whole, IDS)
    tests = table[table["p"].notna() & (table["run"] != "")]
    partly = tests[~((tests["run"] == "code-caft") & (tests["metric"] == metric))]
    html = against_naive.tests_table(partly, {"code-caft": "<b>CAFT</b>"})
    assert html.count('class="absent"') == 1
    assert "&lt;b&gt;CAFT" in html
