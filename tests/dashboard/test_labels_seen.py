"""Whose labels a person sees, what they are about, and what a wrong link says."""

from __future__ import annotations

import dataclasses

import pytest
from streamlit.testing.v1 import AppTest

from analysis.store.factor_table import read_run_factors
from analysis.store.label_directions import replace_factors
from analysis.store.labels import read_events
from analysis.store.workspace import Workspace
from dashboard.state.selection import Key
from tests.dashboard.conftest import Open, field, words

RUN = "code-naive"


def tables(test: AppTest) -> str:
    """Everything in the tables of a page."""
    return "\n".join(one.value.to_csv(index=False) for one in test.dataframe)


@pytest.mark.parametrize("page", ["factors", "labels", "retrain"])
@pytest.mark.parametrize(("person", "blind"), [("ana", False), ("cleo", True), ("", True)])
def test_other_peoples_labels_are_seen_once_ones_own_is_given(
    page: str, person: str, blind: bool, whole: Workspace, open_page: Open
) -> None:
    test = open_page(page, whole, run=RUN, factor="w2", person=person)
    chosen = [str(one.options) for one in test.multiselect]
    said = words(test) + tables(test).replace("label,score", "") + "".join(chosen)
    assert ("persona" in said.replace("personal", "")) is not blind
    assert ("ben" in said) is (page == "labels" and not blind) or page == "factors"
    if page == "retrain":
        assert test.multiselect(key=Key.RETRAIN_FACTORS).value == ([] if blind else [f"{RUN}/w2"])
        assert ("2 factors have labels by other people, hidden" in said) is blind
    if blind and page != "factors":
        test.toggle(key=Key.LABELS_REVEAL).set_value(True).run()
        assert "persona" in words(test) + tables(test) + str([o.options for o in test.multiselect])


def test_one_label_uncovers_one_factor(whole: Workspace, open_page: Open) -> None:
    test = open_page("factors", whole, run=RUN, factor="w2", person="cleo")
    assert "2 other people have labelled this factor" in words(test)
    test.button(key=Key.label(4)).click().run()
    field(test.button, Key.LABEL_SAVE).click().run()
    assert "ben: persona" in words(test)
    rows = test.dataframe[0].value.set_index("id")["label"]
    assert rows["w2"] == "persona, format"
    assert rows["w1"] == ""


def test_a_label_of_another_direction_is_stale_and_is_only_suggested(
    whole: Workspace, open_page: Open
) -> None:
    table = read_run_factors(whole, RUN)
    turned = table.directions.copy()
    here, there = table.position("w2"), table.position("w3")
    turned[here], turned[there] = turned[there], 0.98 * turned[here] + 0.2 * turned[there]
    turned[there] /= (turned[there] ** 2).sum() ** 0.5
    replace_factors(whole, dataclasses.replace(table, directions=turned))

    test = open_page("retrain", whole, run=RUN)
    assert test.multiselect(key=Key.RETRAIN_FACTORS).value == []
    assert "2 labels are about directions that these factors no longer have" in words(test)

    test = open_page("labels", whole)
    assert "earlier direction, nearest now w3 (cosine 0.9" in tables(test)

    test = open_page("factors", whole, run=RUN, factor="w2")
    assert "Stale: you labelled an earlier direction called w2 as persona" in words(test)
    assert test.dataframe[0].value.set_index("id")["label"]["w2"] == ""
    assert field(test.text_input, Key.LABEL_NAME).value == ""
    test = open_page("factors", whole, run=RUN, factor="w3")
    assert "then w2, as persona. Of today's factors w3 is nearest to it: cosine 0.9" in words(test)
    test.button(key=Key.LABEL_SUGGESTED).click().run()
    assert field(test.text_input, Key.LABEL_NAME).value == "persona"
    field(test.button, Key.LABEL_SAVE).click().run()
    newest = read_events(whole.database)[-1]
    assert (newest.factor, newest.name) == (f"{RUN}/w3", "persona")
    assert newest.direction_sha256 == read_run_factors(whole, RUN).sha256("w3")


def test_without_a_name_the_form_asks_for_one(whole: Workspace, open_page: Open) -> None:
    test = open_page("factors", whole, run="medicine-naive", factor="w2", person="")
    test.button(key=Key.label(1)).click().run()
    field(test.button, Key.LABEL_SAVE).click().run()
    assert "the name of the person giving it" in words(test)
    test.text_input(key=Key.ANNOTATOR_ASKED).set_value("dora").run()
    assert test.text_input(key=Key.ANNOTATOR).value == "dora"
    test.button(key=Key.label(1)).click().run()
    field(test.button, Key.LABEL_SAVE).click().run()
    assert read_events(whole.database)[-1].annotator == "dora"


@pytest.mark.parametrize(
    ("page", "link", "said"),
    [
        ("factors", {"run": "no-such"}, "The link names the run no-such, which this page does not"),
        ("factors", {"run": RUN, "factor": "e9"}, "The link names the factor e9"),
        ("spectra", {"run": RUN, "module": "lm_head"}, "The link names the module lm_head"),
        ("compare", {"family": "no-such"}, "The link names the family no-such"),
        ("retrain", {"run": "code-grasp"}, "code-naive is shown instead"),
    ],
)
def test_a_wrong_link_says_so_until_something_else_is_chosen(
    page: str, link: dict[str, str], said: str, whole: Workspace, open_page: Open
) -> None:
    test = open_page(page, whole, **link)
    assert said in words(test)
    test.run()
    assert said in words(test)
    if page == "factors" and "factor" not in link:
        test.selectbox(key=Key.RUN).select("medicine-naive").run()
        assert "The link names" not in words(test)


def test_another_run_without_the_factor_in_hand_is_no_wrong_link(
    whole: Workspace, open_page: Open
) -> None:
    table = read_run_factors(whole, "medicine-naive")
    few = dataclasses.replace(table, table=table.table.head(2), directions=table.directions[:2])
    replace_factors(whole, few)
    test = open_page("factors", whole, run=RUN, factor="r3")
    test.selectbox(key=Key.RUN).select("medicine-naive").run()
    assert "The link names" not in words(test)
