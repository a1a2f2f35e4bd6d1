"""Home: sentences of stored numbers, the next step whatever is missing, and the glossary."""

from __future__ import annotations

import re
import shutil
from html import unescape

import pytest

from analysis.comparison.evaluation import read_evaluation
from analysis.comparison.wording import METRIC_NAMES
from analysis.store.factor_table import read_factors, write_factors
from analysis.store.workspace import Workspace
from analysis.text import share_text
from dashboard.state.selection import Key
from dashboard.style.glossary import TERMS, explain_heading, mark_heading, mark_terms
from grasp.jobs import queue
from tests.dashboard.conftest import Open, words

RUN = "code-naive"


def plain(said: str) -> str:
    """The words of a page without its markup."""
    return re.sub(r"<[^>]*>", "", said)


def test_home_is_the_first_page_and_says_what_was_learned(
    whole: Workspace, open_page: Open
) -> None:
    test = open_page("home", whole, run=RUN)
    said = plain(words(test))
    after = read_evaluation(whole.folder("evaluations", RUN)).summary["confirmation"]
    before = read_evaluation(whole.folder("evaluations", f"{RUN}.base")).summary["confirmation"]
    for found in (after["unrelated"], before["unrelated"], after["task"], before["task"]):
        assert share_text(found.value, found.low, found.high) in said
    assert "Setting this one direction back undoes 71 % of the change on unrelated prompts" in said
    assert "GRASP took away" in said
    assert "random subspace" in said
    assert test.button(key=Key.NEXT_JOB).label == "Compare"


def test_a_label_names_the_factor_to_those_who_gave_one(whole: Workspace, open_page: Open) -> None:
    test = open_page("home", whole, run=RUN)
    test.text_input(key=Key.ANNOTATOR).set_value("ana").run()
    assert "Persona" in words(test)
    assert ", spurious" in words(test)
    test.text_input(key=Key.ANNOTATOR).set_value("cleo").run()
    assert "Persona" not in words(test)
    assert "labelled by 2 other people" in words(test)


@pytest.mark.parametrize(
    ("gone", "title", "said"),
    [
        (["evaluations/code-naive"], "Evaluate it", "Not measured yet"),
        (["evaluations/code-naive.base"], "Evaluate it", "No verdict: the base model has not"),
        (["factors/code-naive"], "Find factors", "Not looked for yet"),
        (["runs/code-grasp"], "Retrain with GRASP", "No verdict yet: no GRASP run"),
        (["evaluations/code-grasp"], "Evaluate code-grasp", "No verdict yet: no GRASP run"),
        (["evaluations/code-random"], "Compare", "No random control has been evaluated"),
    ],
)
def test_the_next_step_is_what_is_missing(
    gone: list[str], title: str, said: str, whole: Workspace, open_page: Open
) -> None:
    for record in gone:
        shutil.rmtree(whole.root / record)
    test = open_page("home", whole, run=RUN)
    assert test.button(key=Key.NEXT_JOB).label == title
    assert said in plain(words(test))
    assert not test.error


def test_a_step_that_is_a_command_is_queued_once(
    whole: Workspace, open_page: Open, no_workers: list[list[str]]
) -> None:
    shutil.rmtree(whole.root / "evaluations" / RUN)
    test = open_page("home", whole, run=RUN)
    test.button(key=Key.NEXT_JOB).click().run()
    assert not test.exception
    newest = queue.list_recent(whole.database)[0]
    assert newest.argv == ["evaluate", RUN, "--workspace", str(whole.root)]
    assert no_workers
    assert test.button(key=Key.NEXT_JOB).disabled


def test_a_run_without_prompts_is_evaluated_where_a_set_can_be_chosen(
    whole: Workspace, open_page: Open
) -> None:
    shutil.rmtree(whole.root / "evaluations" / RUN)
    run = whole.run(RUN)
    bare = run.model_copy(update={"config": run.config | {"prompts": None}})
    (whole.folder("runs", RUN) / "manifest.json").write_text(bare.model_dump_json())
    test = open_page("home", whole, run=RUN)
    test.button(key=Key.NEXT_JOB).click().run()
    assert test.title[0].value == "Compare"
    assert "choose the set to evaluate on" in words(test)


def test_without_significant_factors_nothing_is_claimed(whole: Workspace, open_page: Open) -> None:
    folder = whole.folder("factors", RUN)
    table = read_factors(folder)
    table.table["significant"] = False
    write_factors(folder, table)
    said = plain(words(open_page("home", whole, run=RUN)))
    assert "None of its 12 factors is significant" in said
    assert "undoes" not in said


def test_terms_are_explained_once_and_text_stays_text() -> None:
    html = mark_terms("The drift of <b>factors</b> & the drift of a naive run.")
    assert html.count("<abbr") == 3
    assert unescape(html).count(TERMS["drift"]) == 2  # as it is shown, and as it is read aloud
    assert "&lt;b&gt;" in html
    assert "&amp;" in html
    assert mark_terms("a driftwood task-force") == "a driftwood task-force"
    assert mark_heading("Arms race") == "Arms race"


def test_every_metric_of_a_table_is_in_the_glossary() -> None:
    for name in METRIC_NAMES.values():
        if not name.startswith(("removal of", "drift of")):
            assert explain_heading(name[:1].upper() + name[1:]), name
    both = explain_heading("Unrelated rate, whole answers")
    assert TERMS["unrelated rate"] in both
    assert TERMS["whole answers"] in both


def test_definitions_are_one_sentence_of_plain_words() -> None:
    for term, meaning in TERMS.items():
        assert meaning.endswith("."), term
        assert not re.search(r"\.\s+[A-Z]", meaning), term
        assert len(meaning) < 220, term


def test_headings_of_the_existing_tables_explain_themselves(
    whole: Workspace, open_page: Open
) -> None:
    html = "".join(one.value for one in open_page("compare", whole, family=RUN).html)
    for heading in ("Unrelated rate", "Removal", "Task accuracy", "Arm"):
        assert re.search(rf'<th scope="col"><abbr title="[^"]+">{heading}</abbr></th>', html)
