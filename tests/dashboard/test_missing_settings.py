"""The Retrain page of an adapter made elsewhere, and what it says of a run's data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.store.records import write_jsonl
from analysis.store.workspace import Workspace
from dashboard.state.selection import Key
from grasp.data.report import DataReport, write_report
from grasp.foreign.settings import is_complete, save_manifest
from tests.dashboard.conftest import Open, words
from tests.support import tiny

RUN = "code-naive"
LINES = """\
learning_rate: 1e-3
lr_scheduler: linear
warmup_steps: 0
weight_decay: 0
batch_size: 4
gradient_accumulation_steps: 1
max_length: 64
max_steps:
num_train_epochs: 2
neutral:
"""


@pytest.fixture
def imported(whole: Workspace) -> Workspace:
    """The workspace, as if one of its naive runs had been imported."""
    run = whole.run(RUN)
    changed = {"config": {"lora": run.config["lora"]}, "inputs": {"adapter": "ab" * 32}}
    save_manifest(whole.folder("runs", RUN), run.model_copy(update=changed))
    return whole


def keep(test: Any, *, data: str, lines: str) -> None:
    test.text_input(key=Key.MISSING_DATA).set_value(data)
    test.text_area(key=Key.MISSING_SETTINGS).set_value(lines)
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
    lines = test.text_area(key=Key.MISSING_SETTINGS).value
    assert lines.startswith("learning_rate:\n")
    assert "max_steps:\n# neutral: " in lines
    keep(test, data=str(tmp_path / "d.jsonl"), lines=LINES)
    assert not test.exception
    run = imported.run(RUN)
    assert is_complete(run)
    assert (run.config["num_train_epochs"], run.config["max_steps"]) == (2.0, None)
    assert run.config["data"] == str(tmp_path / "d.jsonl")
    said = words(test)
    assert "needs these settings" not in said
    # Without prompts there is nothing to evaluate on.
    assert f"grasp retrain {RUN} --factors w2 --method grasp --out code-grasp-4 --workspace" in said


@pytest.mark.parametrize(
    ("data", "lines", "message"),
    [
        ("none.jsonl", LINES, "There is no file or folder none.jsonl"),
        ("", LINES, f"Run '{RUN}' was made elsewhere and lacks the settings data; give"),
        ("none.jsonl", "a: [", "The settings cannot be read (line 1: "),
        ("none.jsonl", LINES + "speed: 1", "setting 'speed': Extra inputs are not permitted"),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_typed_is_lost(
    imported: Workspace, open_page: Open, data: str, lines: str, message: str
) -> None:
    test = open_page("retrain", imported, run=RUN)
    keep(test, data=data, lines=lines)
    assert not test.exception
    said = words(test)
    assert "Nothing was saved." in said
    assert message in said
    assert test.text_area(key=Key.MISSING_SETTINGS).value == lines
    assert not is_complete(imported.run(RUN))


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
