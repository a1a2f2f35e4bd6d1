"""Labels as files: written, read into another workspace, and refused whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.errors import InputError
from analysis.store import label_files, labels
from analysis.store.workspace import Workspace


def test_labels_survive_a_round_trip(whole: Workspace, tmp_path: Path) -> None:
    history = labels.read_events(whole.database)
    other = Workspace.create(tmp_path / "other")
    count = label_files.import_labels(other, label_files.labels_to_csv(history).encode())
    assert count == len(history)
    copied = labels.read_events(other.database)
    for name in ("factor", "annotator", "name", "spurious", "polarity", "confidence", "note"):
        assert [getattr(one, name) for one in copied] == [getattr(one, name) for one in history]
    assert len(json.loads(label_files.labels_to_json(history))) == count


def test_a_withdrawn_label_stays_withdrawn(whole: Workspace, tmp_path: Path) -> None:
    labels.withdraw_label(
        whole.database, factor="code-naive/w2", annotator="ben", direction="ab", note="Mistaken."
    )
    other = Workspace.create(tmp_path / "other")
    label_files.import_labels(
        other, label_files.labels_to_csv(labels.read_events(whole.database)).encode()
    )
    assert set(labels.current_claims(labels.read_events(other.database))["code-naive/w2"]) == {
        "ana"
    }


def test_formulas_are_quoted_in_csv_and_read_back(whole: Workspace, tmp_path: Path) -> None:
    claim = labels.Claim("=HYPERLINK(1)", note="+1")
    labels.add_label(
        whole.database, factor="code-naive/w3", claim=claim, annotator="@ana", direction="ab"
    )
    text = label_files.labels_to_csv(labels.read_events(whole.database, factor="code-naive/w3"))
    assert ",'=HYPERLINK(1)," in text
    other = Workspace.create(tmp_path / "other")
    label_files.import_labels(other, text.encode())
    assert labels.read_events(other.database)[0].name == "=HYPERLINK(1)"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "cannot be read as CSV"),
        (b"\xff\xfe\x00", "cannot be read as CSV|no column"),
        (b"factor,name\nx,y\n", "no column annotator"),
        (b"factor,annotator,name\n", "has no labels"),
        (b"factor,annotator,name\ncode-naive/w2,ana,persona\ncode-naive/w9,ana,x\n", "Line 3"),
        (b"factor,annotator,name\nw2,ana,persona\n", "expected a run and a factor"),
        (b"factor,annotator,name\ncode-naive/w2,,persona\n", "annotator is empty"),
        (b"factor,annotator,name\ncode-naive/w2,ana,\n", "needs a name"),
        (b"factor,annotator,name,spurious\ncode-naive/w2,ana,a,maybe\n", "spurious is 'maybe'"),
        (b"factor,annotator,name,action\ncode-naive/w2,ana,a,erase\n", "action is 'erase'"),
        (b"factor,annotator,name,confidence\ncode-naive/w2,ana,a,9\n", "confidence is '9'"),
    ],
)
def test_bad_label_files_add_nothing(content: bytes, match: str, whole: Workspace) -> None:
    before = len(labels.read_events(whole.database))
    with pytest.raises(InputError, match=match):
        label_files.import_labels(whole, content)
    assert len(labels.read_events(whole.database)) == before
