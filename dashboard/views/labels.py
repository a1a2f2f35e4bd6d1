"""Labels: the current ones, agreement, the full history, and import and export as files."""

from __future__ import annotations

from contextlib import suppress

import pandas as pd
import streamlit as st

from analysis.errors import GraspError
from analysis.store import label_files, labels
from analysis.store.database import LabelEvent
from analysis.store.factor_table import FactorTable
from analysis.store.label_directions import Stale, find_stale, follow_directions
from analysis.store.workspace import Workspace
from analysis.text import count_text
from dashboard.state import caches
from dashboard.state.access import read_only
from dashboard.state.annotator import annotator, offer_to_see, see, sees_everything
from dashboard.state.selection import Key
from dashboard.style import notices
from dashboard.style.glossary import TERMS
from dashboard.style.markup import literal

ALL = "all runs"
SPURIOUS = {True: "yes", False: "no", None: "unsure"}


def draw_page() -> None:
    """Draw the page."""
    workspace = caches.workspace()
    st.title("Labels", anchor=False)
    history = labels.read_events(workspace.database)
    if not history:
        notices.show_empty(
            "No labels yet",
            "A label is a person's claim about a factor: what it is, and whether the fine-tune "
            "should have learned it. Give one on the Factors page, or import a file below.",
        )
        st.page_link("views/factors.py", label="Factors", icon=":material/explore:")
    else:
        history = _of_run(history)
        seen = see(history, annotator(), everything=sees_everything())
        _standing(workspace, history, seen.events)
        offer_to_see(seen.hidden)
        _history(seen.events)
        _download(seen.events)
    if not read_only():
        _import(workspace)


def _of_run(history: list[LabelEvent]) -> list[LabelEvent]:
    owners = sorted({event.factor.rpartition("/")[0] for event in history})
    run = st.selectbox(
        "Run", [ALL, *owners], key=Key.LABELS_RUN, persist_state="session", width=360
    )
    if run == ALL:
        return history
    return [event for event in history if event.factor.rpartition("/")[0] == run]


def _standing(workspace: Workspace, history: list[LabelEvent], seen: list[LabelEvent]) -> None:
    st.subheader("Current labels", anchor=False)
    tables = _tables(workspace, history)
    share, pairs = labels.agreement(_follow(history, tables))
    people = len({event.annotator for event in history})
    st.markdown(
        literal(
            f"{count_text(people, 'annotator')}. Of {count_text(pairs, 'pair')} of labels on the "
            f"same factor, {share:.0%} agree on the name."
            if pairs
            else "No factor has been labelled by two people yet, so there is no agreement to show."
        )
    )
    rows = [
        _row(claim, factor, "")
        for factor, claims in labels.current_claims(_follow(seen, tables)).items()
        for claim in claims.values()
    ]
    for table in tables.values():
        rows += [
            _row(stale.claim, stale.claim.factor, _where_now(stale))
            for stale in find_stale(workspace, seen, table)
        ]
    if not rows:
        st.caption("There is no label in force that you may see.")
        return
    stale = any(row["stale"] for row in rows)
    shown = pd.DataFrame(rows)
    if not stale:
        shown = shown.drop(columns="stale")
    terms = {
        name: st.column_config.Column(help=TERMS[name])
        for name in ("factor", "spurious", "polarity", "confidence")
    }
    st.dataframe(shown, hide_index=True, placeholder="", column_config=terms, alt="Current labels")
    if stale:
        notices.explain(
            "A stale label is about a direction that the run's factors no longer have, since they "
            "were computed again. It counts for nothing until it is given anew."
        )


def _tables(workspace: Workspace, history: list[LabelEvent]) -> dict[str, FactorTable]:
    """The factors of the labelled runs, as far as they can be read."""
    tables = {}
    for run in sorted({event.factor.rpartition("/")[0] for event in history}):
        with suppress(GraspError):
            tables[run] = caches.factors(workspace, run)
    return tables


def _follow(history: list[LabelEvent], tables: dict[str, FactorTable]) -> list[LabelEvent]:
    """Events under the names that their directions have today; as they are without factors."""
    followed = [one for table in tables.values() for one in follow_directions(history, table)]
    rest = [event for event in history if event.factor.rpartition("/")[0] not in tables]
    return sorted(followed + rest, key=lambda event: event.id)


def _row(claim: LabelEvent, factor: str, stale: str) -> dict[str, object]:
    return {
        "factor": factor,
        "annotator": claim.annotator,
        "name": claim.name,
        "spurious": SPURIOUS[claim.spurious],
        "stale": stale,
        "polarity": claim.polarity,
        "confidence": claim.confidence,
        "note": claim.note,
    }


def _where_now(stale: Stale) -> str:
    if stale.nearest is None:
        return "earlier direction"
    return f"earlier direction, nearest now {stale.nearest} (cosine {stale.cosine:.2f})"


def _history(history: list[LabelEvent]) -> None:
    st.subheader("History", anchor=False)
    st.dataframe(
        label_files.label_table(history).iloc[::-1],
        hide_index=True,
        placeholder="",
        column_order=[
            "created", "annotator", "action", "factor", "name", "spurious", "polarity",
            "confidence", "note",
        ],
        column_config={
            "created": st.column_config.DatetimeColumn("when (UTC)", format="YYYY-MM-DD HH:mm:ss")
        },
        alt="All label events, newest first",
    )  # fmt: skip
    notices.explain("Newest first. Events are only added; a withdrawal is an event of its own.")


def _download(history: list[LabelEvent]) -> None:
    with st.container(horizontal=True):
        st.download_button(
            "CSV", label_files.labels_to_csv(history), "labels.csv", "text/csv",
            key=Key.LABELS_CSV, icon=":material/download:", on_click="ignore",
        )  # fmt: skip
        st.download_button(
            "JSON", label_files.labels_to_json(history), "labels.json", "application/json",
            key=Key.LABELS_JSON, icon=":material/download:", on_click="ignore",
        )  # fmt: skip


def _import(workspace: Workspace) -> None:
    with st.expander("Import labels from CSV", key="labels-import-box"):
        st.markdown(
            "Required columns: `factor` (for example `code-naive/w2`), `annotator` and `name`. "
            "Optional: `direction_sha256`, `spurious` (yes, no or empty), `polarity`, "
            "`confidence` (1 to 3) and `note`. Rows are added to the history; nothing is replaced."
        )
        file = st.file_uploader("CSV file", type="csv", key=Key.LABELS_UPLOAD)
        if file is None or not st.button("Import", key=Key.LABELS_IMPORT):
            return
        try:
            count = label_files.import_labels(workspace, file.getvalue())
        except GraspError as error:
            notices.show_problem("Nothing was imported.", str(error))
            return
        st.session_state["labels-imported"] = count
        st.rerun()
    if count := st.session_state.pop("labels-imported", None):
        st.toast(f"Added {count} label{'' if count == 1 else 's'}.")


if __name__ == "__main__":
    draw_page()
