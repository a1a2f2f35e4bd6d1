"""Every page on an empty, a whole and a broken workspace: words, no traceback."""

from __future__ import annotations

from typing import get_args

import pandas as pd
import pytest
from sqlalchemy import update

from analysis.store import labels
from analysis.store.database import Job
from analysis.store.factor_table import read_factors
from analysis.store.workspace import Kind, Workspace
from analysis.text import items_text
from dashboard.state.selection import Key
from grasp.jobs import queue
from grasp.settings.methods import METHODS
from grasp.settings.protection import Group
from tests.dashboard.conftest import Open, field, words
from tests.support import measurements

PAGES = ("home", "workspace", "spectra", "factors", "labels", "retrain", "compare")
EMPTY = {
    "home": "No runs yet",
    "workspace": "No runs yet",
    "spectra": "No runs yet",
    "factors": "No runs yet",
    "labels": "No labels yet",
    "retrain": "No runs yet",
    "compare": "No runs yet",
}
HOSTILE = "<script>alert(1)</script>"


@pytest.mark.parametrize("page", PAGES)
def test_empty_workspace_says_what_to_do(page: str, empty: Workspace, open_page: Open) -> None:
    said = words(open_page(page, empty))
    assert EMPTY[page] in said
    if page != "labels":
        assert f"grasp demo --workspace {empty.root} --no-serve" in said


@pytest.mark.parametrize("page", PAGES)
def test_whole_workspace_is_shown(page: str, whole: Workspace, open_page: Open) -> None:
    test = open_page(page, whole, run="code-naive", family="code-naive")
    assert test.title[0].value == page.capitalize()
    assert not test.error
    assert HOSTILE not in "".join(one.value for one in test.html)


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("home", "The factors of this run cannot be shown"),
        ("workspace", "torn"),
        ("spectra", "truncated or not a safetensors file"),
        ("factors", "schema version 99"),
        ("labels", "Current labels"),
        ("retrain", "schema version 99"),
        ("compare", "The evaluation of code-grasp cannot be shown"),
    ],
)
def test_broken_records_are_said_in_words(
    page: str, reason: str, broken: Workspace, open_page: Open
) -> None:
    said = words(open_page(page, broken, run="code-naive", family="code-naive"))
    assert reason in said
    assert "Traceback" not in said


def test_broken_recording_leaves_the_rest_of_the_page(whole: Workspace, open_page: Open) -> None:
    file = whole.folder("recordings", "code-naive") / "activations.safetensors"
    file.write_bytes(file.read_bytes()[:64])
    test = open_page("factors", whole, run="code-naive", factor="w2", unforeseen=True)
    assert "The recording cannot be shown." in words(test)
    assert test.selectbox(key=Key.FACTOR).value == "w2"


@pytest.mark.parametrize(
    "parameters",
    [
        {"run": "../../etc/passwd", "factor": "'; DROP TABLE jobs; --", "layer": "-1"},
        {"run": "<script>", "family": "x" * 5000, "split": "secret", "job": "1e9"},
        {"module": "\x00", "job": "９", "prompt": "no such", "role": "root"},
        {"job": "999999999", "layer": "00"},
    ],
)
@pytest.mark.parametrize("page", PAGES)
def test_hostile_urls_fall_back(
    page: str, parameters: dict[str, str], whole: Workspace, open_page: Open
) -> None:
    test = open_page(page, whole, **parameters)
    assert "Traceback" not in words(test)


def test_selection_is_written_to_the_url(whole: Workspace, open_page: Open) -> None:
    test = open_page("factors", whole, run="code-naive", factor="w1")
    assert test.selectbox(key=Key.FACTOR).value == "w1"
    test.button(key=Key.FACTOR_PREVIOUS).click().run()
    assert test.query_params["factor"] == "w2"
    test.selectbox(key=Key.RUN).select("medicine-naive").run()
    assert test.query_params["run"] == "medicine-naive"
    assert not test.exception


def test_label_is_saved_and_withdrawn(whole: Workspace, open_page: Open) -> None:
    test = open_page("factors", whole, run="medicine-naive")
    assert test.query_params["factor"] == "w2"
    test.text_input(key=Key.ANNOTATOR).set_value("cleo").run()
    test.button(key=Key.label(1)).click().run()
    assert field(test.text_input, Key.LABEL_NAME).value == "persona"
    field(test.button, Key.LABEL_SAVE).click().run()
    assert "Saved: medicine-naive/w2 is labelled persona, spurious." in words(test)
    assert field(test.text_input, Key.LABEL_NAME).value == "persona"
    history = labels.read_events(whole.database, factor="medicine-naive/w2")
    assert [(one.annotator, one.name, one.spurious) for one in history] == [
        ("cleo", "persona", True)
    ]
    field(test.button, Key.LABEL_WITHDRAW).click().run()
    assert not test.exception
    assert (
        labels.current_claims(labels.read_events(whole.database)).get("medicine-naive/w2") is None
    )


def test_label_without_a_name_is_refused_in_words(whole: Workspace, open_page: Open) -> None:
    test = open_page("factors", whole, run="medicine-naive")
    field(test.button, Key.LABEL_SAVE).click().run()
    assert "A label needs a name" in words(test)
    assert labels.read_events(whole.database, factor="medicine-naive/w2") == []


def test_retrain_offers_spurious_factors_and_shows_the_command(
    whole: Workspace, open_page: Open
) -> None:
    test = open_page("retrain", whole, run="code-naive")
    assert test.multiselect(key=Key.RETRAIN_FACTORS).value == ["code-naive/w2"]
    command = (
        "grasp retrain code-naive --factors w2 --method grasp --out code-grasp-4 --evaluate "
        f"--workspace {whole.root}"
    )
    assert command in words(test)
    assert len(queue.list_recent(whole.database)) == 4


def test_retrain_offers_every_method_in_its_group(whole: Workspace, open_page: Open) -> None:
    test = open_page("retrain", whole, run="code-naive")
    offered = {"naive"}
    for group in get_args(Group):
        test.segmented_control(key=Key.RETRAIN_GROUP).set_value(group).run()
        assert not test.exception
        key = f"{Key.RETRAIN_METHOD}:{group}"
        for label in test.selectbox(key=key).options:
            name = next(name for name, one in METHODS.items() if one.label == label)
            offered.add(name)
            method = METHODS[name]
            test.selectbox(key=key).set_value(name).run()
            assert not test.exception
            said = words(test)
            assert method.description in said
            held = "--factors w2 " if "factors" in method.needs else ""
            assert f"grasp retrain code-naive {held}--method {name} --out code-{name}" in said
            if method.knob is not None and method.knob.setting != "tolerance":
                strength = test.number_input(key=f"{Key.RETRAIN_STRENGTH}:{name}")
                assert strength.value == method.knob.default
    assert offered == set(METHODS)


def test_a_strength_that_is_the_methods_own_is_not_in_the_command(
    whole: Workspace, open_page: Open
) -> None:
    test = open_page("retrain", whole, run="code-naive")
    test.segmented_control(key=Key.RETRAIN_GROUP).set_value("rivals").run()
    test.selectbox(key=f"{Key.RETRAIN_METHOD}:rivals").set_value("wise-ft").run()
    assert "--strength" not in words(test)
    test.number_input(key=f"{Key.RETRAIN_STRENGTH}:wise-ft").set_value(0.25).run()
    assert "--method wise-ft --strength 0.25 --out code-wise-ft --evaluate" in words(test)
    test.selectbox(key=f"{Key.RETRAIN_METHOD}:rivals").set_value("inoculation").run()
    test.text_area(key=Key.RETRAIN_INOCULATION).set_value("Give bad advice.").run()
    assert "--inoculation 'Give bad advice.'" in words(test)


def test_active_job_is_shown_without_a_url(whole: Workspace, open_page: Open) -> None:
    said = words(open_page("retrain", whole))
    assert "Job 4: Retrain code-naive with grasp" in said
    assert "Step 40 of 120" in said


def test_a_job_that_came_with_a_workspace_shows_its_command_and_waits(
    whole: Workspace, open_page: Open, no_workers: list[list[str]]
) -> None:
    job = queue.submit(whole.database, kind="record", title="theirs", argv=["record", "code-naive"])
    with whole.database.session() as session:
        session.execute(update(Job).where(Job.id == job.id).values(seal="theirs"))
    assert queue.claim(whole.database, without=("retrain",)) is None
    test = open_page("retrain", whole, job=str(job.id))
    assert "This job was queued on another machine, or came with the workspace" in words(test)
    assert "grasp record code-naive" in words(test)
    assert no_workers == []
    test.button(key=Key.JOB_REQUEUE).click().run()
    assert queue.claim(whole.database, without=("retrain",)).id == job.id


def test_failed_job_says_why_and_can_be_queued_again(
    whole: Workspace, open_page: Open, no_workers: list[list[str]]
) -> None:
    test = open_page("retrain", whole, job="2")
    assert "The loss became NaN at step 12." in words(test)
    assert "No checkpoint was saved" in words(test)
    test.button(key=Key.JOB_REQUEUE).click().run()
    assert not test.exception
    assert queue.get(whole.database, 2).status == "queued"
    assert no_workers[0][1:5] == ["-P", "-m", "grasp", "worker"]


def test_cancel_is_asked_for(whole: Workspace, open_page: Open) -> None:
    test = open_page("retrain", whole, job="4")
    test.button(key=Key.JOB_CANCEL).click().run()
    assert queue.get(whole.database, 4).cancel_requested


def test_arms_table_holds_the_numbers_of_the_evaluations(whole: Workspace, open_page: Open) -> None:
    from analysis.comparison.evaluation import read_evaluation

    said = words(open_page("compare", whole, family="code-naive"))
    for run in ("code-naive.base", "code-naive", "code-grasp", "code-caft"):
        summary = read_evaluation(whole.folder("evaluations", run)).summary["confirmation"]
        for metric in ("unrelated", "task", "format"):
            found = summary[metric]
            assert f"{found.value:.3f}" in said
            size = items_text(found.n, found.items)
            assert f"{found.low:.3f} to {found.high:.3f}, {size}" in said


def test_exploration_is_marked(whole: Workspace, open_page: Open) -> None:
    test = open_page("compare", whole, family="code-naive", split="exploration")
    assert "Report results on the confirmation prompts" in test.warning[0].value


def test_missing_evaluation_gives_the_command(whole: Workspace, open_page: Open) -> None:
    import shutil

    shutil.rmtree(whole.folder("evaluations", "code-random"))
    said = words(open_page("compare", whole, family="code-naive"))
    assert f"grasp evaluate code-random --workspace {whole.root}" in said


def test_missing_recording_offers_to_record(
    whole: Workspace, open_page: Open, no_workers: list[list[str]]
) -> None:
    import shutil

    shutil.rmtree(whole.folder("recordings", "code-naive"))
    test = open_page("factors", whole, run="code-naive")
    test.button(key=Key.RECORD).click().run()
    assert not test.exception
    assert queue.list_recent(whole.database)[0].argv[:2] == ["record", "code-naive"]
    assert no_workers


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("name", ["../<b>odd", "torn"])
def test_oddly_named_runs_are_survived(
    page: str, name: str, broken: Workspace, open_page: Open
) -> None:
    test = open_page(page, broken, run=name, family=name)
    assert "<b>" not in "".join(one.value for one in test.html)


# Evidence that a model must be run for

MEASURES = {
    "dose": "grasp dose code-naive w2",
    "rows": "grasp rows code-naive w2",
    "overlap": "grasp overlap code-naive w2",
}


@pytest.mark.parametrize("kind", MEASURES)
def test_what_is_not_measured_shows_the_command_and_queues_it(
    kind: str, whole: Workspace, open_page: Open, no_workers: list[list[str]]
) -> None:
    test = open_page("factors", whole, run="code-naive", factor="w2", evidence=kind)
    said = words(test)
    assert "Not measured yet" in said
    assert f"{MEASURES[kind]} --workspace {whole.root}" in said
    before = len(queue.list_recent(whole.database))
    test.button(key=Key.measure(kind)).click().run()
    assert not test.exception
    (newest, *rest) = queue.list_recent(whole.database)
    assert len(rest) == before
    assert newest.kind == kind
    assert newest.argv == [*MEASURES[kind].split()[1:], "--workspace", str(whole.root)]
    assert f"Job {newest.id}: {kind} of code-naive/w2" in words(test)
    assert no_workers


@pytest.mark.parametrize("kind", MEASURES)
def test_measured_evidence_is_shown_with_its_sentence(
    kind: str, whole: Workspace, open_page: Open
) -> None:
    direction = read_factors(whole.folder("factors", "code-naive")).direction("w2")
    measurements.add(whole, kind, "w2", direction)  # type: ignore[arg-type]
    test = open_page("factors", whole, run="code-naive", factor="w2", evidence=kind)
    said = words(test)
    assert f"What was found of w2 by {kind}" in said
    assert "Not measured yet" not in said
    assert not test.warning
    assert not test.error
    assert HOSTILE not in "".join(one.value for one in test.html)
    shown = {"dose": "adapted at 2", "rows": "answer 29", "overlap": "0.930"}
    assert shown[kind] in said
    # The projections of the first tab are not read.
    assert "Strongest examples" not in said


def test_evidence_of_an_earlier_direction_says_so_and_can_be_measured_again(
    whole: Workspace, open_page: Open, no_workers: list[list[str]]
) -> None:
    direction = read_factors(whole.folder("factors", "code-naive")).direction("w1")
    measurements.add(whole, "overlap", "w2", direction)
    test = open_page("factors", whole, run="code-naive", factor="w2", evidence="overlap")
    assert "about the earlier direction" in test.warning[0].value
    test.button(key=Key.measure("overlap")).click().run()
    assert queue.list_recent(whole.database)[0].argv[:3] == ["overlap", "code-naive", "w2"]


def test_rows_are_validated_by_a_job_in_a_process_of_its_own(
    whole: Workspace, open_page: Open, no_workers: list[list[str]]
) -> None:
    direction = read_factors(whole.folder("factors", "code-naive")).direction("w2")
    measurements.add(whole, "rows", "w2", direction)
    measurements.add(whole, "validation", "w2", direction)
    test = open_page("factors", whole, run="code-naive", factor="w2", evidence="rows")
    said = words(test)
    assert "What was found of w2 by validation" in said
    assert "without random 2" in said
    test.number_input(key=Key.ROWS_LEFT_OUT).set_value(7).run()
    assert "grasp rows code-naive w2 --validate 7" in words(test)
    test.button(key=Key.measure("validate")).click().run()
    newest = queue.list_recent(whole.database)[0]
    assert newest.kind == "validate"
    assert newest.argv[:5] == ["rows", "code-naive", "w2", "--validate", "7"]


def test_damaged_evidence_is_said_in_words(whole: Workspace, open_page: Open) -> None:
    direction = read_factors(whole.folder("factors", "code-naive")).direction("w2")
    measurements.add(whole, "dose", "w2", direction)
    (whole.folder("evidence", "code-naive.w2.dose") / "curves.parquet").write_bytes(b"PAR1")
    test = open_page("factors", whole, run="code-naive", factor="w2", evidence="dose")
    assert "This evidence cannot be shown." in words(test)
    assert Key.measure("dose") in [button.key for button in test.button]


# A database that cannot be used


@pytest.mark.parametrize("page", PAGES)
def test_a_damaged_database_is_said_on_every_page(
    page: str, whole: Workspace, open_page: Open
) -> None:
    whole.database.engine.dispose()
    for file in whole.root.glob("workspace.db*"):
        file.unlink()
    (whole.root / "workspace.db").write_bytes(b"no database at all" * 100)
    said = words(open_page(page, whole, run="code-naive", family="code-naive"))
    assert "This page cannot be shown." in said
    assert "did not answer as it should (file is not a database)" in said


@pytest.mark.parametrize(("page", "kind"), [("compare", "evaluations"), ("factors", "recordings")])
def test_a_table_of_other_columns_is_said(
    page: str, kind: Kind, whole: Workspace, open_page: Open
) -> None:
    """A whole file, but of something else; the rest of the page is drawn."""
    name = {"evaluations": "samples", "recordings": "prompts"}[kind]
    record = {"evaluations": "code-grasp", "recordings": "code-naive"}[kind]
    file = whole.folder(kind, record) / f"{name}.parquet"
    pd.DataFrame({"a": [1], "score": ["high"]}).to_parquet(file)
    said = words(open_page(page, whole, run="code-naive", family="code-naive", factor="w2"))
    assert "lacks the columns" in said
    assert "This page cannot be shown" not in said
