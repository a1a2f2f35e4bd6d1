"""The Retrain page of an adapter made elsewhere, and what it says of a run's data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from analysis.store.records import write_jsonl
from analysis.store.workspace import Workspace
from dashboard.state.selection import Key
from grasp.data.report import DataReport, write_report
from grasp.foreign.settings import is_complete, save_manifest
from grasp.jobs import queue
from tests.dashboard.conftest import Open, words
from tests.support import tiny

RUN = "code-naive"
NUMBERS = {
    "learning_rate": 1e-3,
    "warmup_steps": 0.0,
    "weight_decay": 0.0,
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_length": 64,
    "length": 2.0,
}


@pytest.fixture
def imported(whole: Workspace) -> Workspace:
    """The workspace, as if one of its naive runs had been imported."""
    run = whole.run(RUN)
    changed = {"config": {"lora": run.config["lora"]}, "inputs": {"adapter": "ab" * 32}}
    save_manifest(whole.folder("runs", RUN), run.model_copy(update=changed))
    return whole


def keep(test: Any, *, data: str, others: str = "", numbers: dict[str, Any] = NUMBERS) -> None:
    test.text_input(key=Key.missing("data")).set_value(data)
    test.segmented_control(key=Key.MISSING_LENGTH).set_value("num_train_epochs")
    test.selectbox(key=Key.missing("lr_scheduler")).set_value("linear")
    for name, value in numbers.items():
        test.number_input(key=Key.missing(name)).set_value(value)
    test.text_area(key=Key.MISSING_OTHERS).set_value(others)
    (button,) = [one for one in test.button if one.label == "Save these settings"]
    button.click().run()


def test_what_is_missing_is_asked_for_and_kept(
    imported: Workspace, open_page: Open, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "d.jsonl", tiny.chats(4))
    test = open_page("retrain", imported, run=RUN)
    said = words(test)
    assert "needs these settings: data, learning_rate, lr_scheduler, warmup_steps" in said
    assert "max_length, max_steps or num_train_epochs. They are not guessed" in said
    assert "first fill in the missing settings above" in said
    assert not [one for one in test.button if one.key == Key.RETRAIN_REVIEW]
    assert {test.number_input(key=Key.missing(name)).value for name in NUMBERS} == {None}
    test.selectbox(key=Key.missing("prompts")).set_value("persona-pairs")
    keep(test, data=str(tmp_path / "d.jsonl"))
    assert not test.exception
    run = imported.run(RUN)
    assert is_complete(run)
    assert (run.config["num_train_epochs"], run.config["max_steps"]) == (2.0, None)
    assert run.config["data"] == str(tmp_path / "d.jsonl")
    assert (run.config["learning_rate"], run.config["batch_size"]) == (1e-3, 4)
    said = words(test)
    assert "needs these settings" not in said
    assert f"grasp retrain {RUN} --factors w2 --method grasp --out code-grasp-4 --evaluate" in said
    assert not test.button(key=Key.RETRAIN_REVIEW).disabled


def test_what_the_folder_says_is_filled_in(imported: Workspace, open_page: Open) -> None:
    state = {"max_steps": 300, "global_step": 300, "train_batch_size": 16}
    (imported.adapter(RUN) / "trainer_state.json").write_text(json.dumps(state))
    run = imported.run(RUN)
    more = run.config | {"learning_rate": 2e-5, "prompts": "own-prompts.jsonl"}
    save_manifest(imported.folder("runs", RUN), run.model_copy(update={"config": more}))
    test = open_page("retrain", imported, run=RUN)
    shown = {name: test.number_input(key=Key.missing(name)).value for name in NUMBERS}
    assert (shown["length"], shown["batch_size"], shown["learning_rate"]) == (300, 16, 2e-5)
    assert test.segmented_control(key=Key.MISSING_LENGTH).value == "max_steps"
    assert test.selectbox(key=Key.missing("prompts")).value == "own-prompts.jsonl"


@pytest.mark.parametrize(
    ("data", "others", "numbers", "message"),
    [
        ("none.jsonl", "", NUMBERS, "There is no file or folder none.jsonl"),
        ("", "", NUMBERS, f"Run '{RUN}' was made elsewhere and lacks the settings data; give"),
        ("none.jsonl", "", {"length": 1.0}, "lacks the settings learning_rate"),
        ("none.jsonl", "a: [", NUMBERS, "The other settings cannot be read (line 1: "),
        ("none.jsonl", "speed: 1", NUMBERS, "setting 'speed': Extra inputs are not permitted"),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_typed_is_lost(
    imported: Workspace,
    open_page: Open,
    data: str,
    others: str,
    numbers: dict[str, Any],
    message: str,
) -> None:
    test = open_page("retrain", imported, run=RUN)
    keep(test, data=data, others=others, numbers=numbers)
    assert not test.exception
    said = words(test)
    assert "Nothing was saved." in said
    assert message in said
    assert test.text_area(key=Key.MISSING_OTHERS).value == others
    assert test.number_input(key=Key.missing("length")).value == numbers["length"]
    assert not is_complete(imported.run(RUN))


def test_an_imported_run_is_evaluated_and_measured_on_a_set_that_ships(
    imported: Workspace, open_page: Open, no_workers: list[list[str]]
) -> None:
    shutil.rmtree(imported.folder("evaluations", RUN))
    test = open_page("compare", imported, family=RUN)
    said = words(test)
    assert f"grasp evaluate {RUN} --prompts persona-pairs --workspace {imported.root}" in said
    assert "persona-open" not in test.selectbox(key=Key.EVALUATE_SET).options  # needs a judge
    test.button(key=Key.EVALUATE).click().run()
    (job, *_) = queue.list_recent(imported.database)
    assert (job.kind, job.argv[:4]) == ("evaluate", ["evaluate", RUN, "--prompts", "persona-pairs"])
    assert f"Job {job.id}: Evaluate {RUN} on persona-pairs" in words(test)

    shutil.rmtree(imported.folder("recordings", RUN))
    for kind, option in (("activations", "--probes"), ("dose", "--prompts")):
        test = open_page("factors", imported, run=RUN, factor="w2", evidence=kind)
        test.selectbox(key=Key.EVIDENCE_SET).set_value("politics").run()
        test.button(key=Key.EVIDENCE_START).click().run()
        assert not test.exception
        (job, *_) = queue.list_recent(imported.database)
        assert job.argv[-4:-2] == [option, "politics"]


def test_what_trains_nothing_can_be_started(imported: Workspace, open_page: Open) -> None:
    test = open_page("retrain", imported, run=RUN)
    test.segmented_control(key=Key.RETRAIN_GROUP).set_value("rivals").run()
    test.selectbox(key=f"{Key.RETRAIN_METHOD}:rivals").set_value("wise-ft").run()
    said = words(test)
    assert f"grasp retrain {RUN} --method wise-ft --out code-wise-ft --workspace" in said
    assert "Nothing is trained: the adapter of code-naive is edited (WiSE-FT)." in said
    assert [one for one in test.button if one.key == Key.RETRAIN_REVIEW]


def test_the_page_shows_what_became_of_the_data(whole: Workspace, open_page: Open) -> None:
    report = DataReport(
        source="d.jsonl",
        form="messages",
        columns={"messages": "messages"},
        as_chat=False,
        loss_on="assistant",
        max_length=64,
        read=9,
        used=8,
        empty=[3],
        sequences=8,
        tokens=100,
        learnt=25,
        shared=[1],
        shared_prompts=1,
        quoted=["<b>who</b>?"],
    )
    write_report(whole.folder("runs", RUN), report)
    said = words(open_page("retrain", whole, run=RUN))
    assert "9 rows read, 8 trained on." in said
    assert "1 of the evaluation prompts also occurs in 1 row (1)" in said
    assert "Left out as empty: 1 row (3)." in said
