"""Write label events as CSV or JSON, and import them from CSV."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pandas as pd

from analysis.errors import GraspError, InputError
from analysis.store.database import LabelEvent
from analysis.store.factor_table import read_run_factors
from analysis.store.labels import Claim, add_events, label_event, withdrawal_event
from analysis.store.workspace import Workspace

COLUMNS = (
    "id",
    "created",
    "annotator",
    "factor",
    "direction_sha256",
    "action",
    "name",
    "polarity",
    "spurious",
    "confidence",
    "note",
)
_REQUIRED = ("factor", "annotator", "name")
_SPURIOUS = {"yes": True, "true": True, "no": False, "false": False, "": None, "unsure": None}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def label_table(history: Sequence[LabelEvent]) -> pd.DataFrame:
    """One row per event, with COLUMNS; `spurious` is yes, no or unsure for labels."""
    rows = [{name: getattr(event, name) for name in COLUMNS} for event in history]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    words = {True: "yes", False: "no", None: "unsure"}
    frame["spurious"] = [
        words[event.spurious] if event.action == "label" else "" for event in history
    ]
    frame["confidence"] = frame["confidence"].astype("Int64")
    return frame


def labels_to_csv(history: Sequence[LabelEvent]) -> str:
    """Events as CSV; text that a spreadsheet would run as a formula gets a leading quote."""
    frame = label_table(history)
    for name in ("annotator", "factor", "name", "polarity", "note"):
        frame[name] = [_guarded(str(text)) for text in frame[name]]
    return frame.to_csv(index=False)


def labels_to_json(history: Sequence[LabelEvent]) -> str:
    """Events as a JSON list of objects."""
    return label_table(history).to_json(orient="records", date_format="iso", indent=2)


def import_labels(workspace: Workspace, content: bytes) -> int:
    """Add the events of a CSV file to the history, all or none, and return how many.

    Raises:
        InputError: the file is not CSV, a column is missing, or a row is not a valid event.
            The message gives the line, and nothing is added.
        DatabaseUnavailable: the database did not take them, and nothing is added.
    """
    entries = [_entry(workspace, row, line) for line, row in enumerate(_rows(content), start=2)]
    add_events(workspace.database, entries)
    return len(entries)


def _rows(content: bytes) -> list[dict[str, str]]:
    try:
        frame = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(
            f"The file cannot be read as CSV ({error}); expected one exported from labels."
        ) from None
    missing = [name for name in _REQUIRED if name not in frame]
    if missing:
        raise InputError(
            f"The file has no column {', '.join(missing)}; expected a first line with the columns "
            f"{', '.join(_REQUIRED)}."
        )
    if frame.empty:
        raise InputError("The file has no labels; expected one per line after the header.")
    return [{str(k): str(v) for k, v in row.items()} for row in frame.to_dict("records")]


def _entry(workspace: Workspace, row: dict[str, str], line: int) -> LabelEvent:
    factor, annotator = _unguarded(row["factor"]), _unguarded(row["annotator"]).strip()
    action = row.get("action", "") or "label"
    if not annotator:
        raise InputError(f"Line {line}: annotator is empty; expected a person's name.")
    if action not in ("label", "withdraw"):
        raise InputError(f"Line {line}: action is {action!r}; expected label or withdraw.")
    try:
        about = {"factor": factor, "annotator": annotator}
        claim = _claim(row) if action == "label" else None
        about["direction"] = row.get("direction_sha256", "") or _direction(workspace, factor)
        if claim is None:
            return withdrawal_event(note=_unguarded(row.get("note", "")), **about)
        return label_event(claim=claim, **about)
    except GraspError as error:
        raise InputError(f"Line {line}: {error}") from None


def _claim(row: dict[str, str]) -> Claim:
    spurious = row.get("spurious", "").strip().casefold()
    confidence = row.get("confidence", "").strip()
    if spurious not in _SPURIOUS:
        raise InputError(f"spurious is {spurious!r}; expected yes, no, unsure or an empty field.")
    if confidence not in ("", "1", "2", "3"):
        raise InputError(f"confidence is {confidence!r}; expected 1, 2, 3 or an empty field.")
    return Claim(
        name=_unguarded(row["name"]),
        spurious=_SPURIOUS[spurious],
        polarity=_unguarded(row.get("polarity", "")),
        confidence=int(confidence) if confidence else None,
        note=_unguarded(row.get("note", "")),
    )


def _direction(workspace: Workspace, factor: str) -> str:
    run, _, name = factor.rpartition("/")
    if not run:
        raise InputError(
            f"factor is {factor!r}; expected a run and a factor, such as code-naive/w2."
        )
    return read_run_factors(workspace, run).sha256(name)


def _guarded(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _unguarded(text: object) -> str:
    value = str(text)
    return value[1:] if value.startswith("'") and value[1:].startswith(_FORMULA) else value
