"""The significant factors of a fine-tune, each in a sentence, for readers who know no column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import streamlit as st

from analysis.evidence.learned import describe_factor
from analysis.store import labels
from analysis.store.database import LabelEvent
from analysis.store.records import RunManifest
from analysis.store.workspace import Workspace
from analysis.text import count_text
from analysis.values import TableRow
from dashboard.queue import runs
from dashboard.state import caches
from dashboard.state.access import read_only
from dashboard.state.selection import FACTOR, RUN, Key
from dashboard.style import notices
from dashboard.style.glossary import mark_factor, mark_terms
from dashboard.style.markup import literal

FIRST = 3
"""Factors that are shown at once; the others are behind a click."""


def show_factors(workspace: Workspace, run: RunManifest) -> None:
    """Draw a card for each significant factor, best score first."""
    st.subheader("Where that lies in the model", anchor=False)
    if not workspace.folder("factors", run.id).is_dir():
        notices.show_empty(
            "Not looked for yet",
            "Factors are the directions along which the fine-tune changed the model. Finding them "
            "shows which of them carry what it learned besides its task.",
        )
        return
    table = caches.factors(workspace, run.id).table
    rows = table[table["significant"].astype(bool)].to_dict("records")
    if not rows:
        st.html(f'<p class="more">{mark_terms(_NONE.format(count_text(len(table), "factor")))}</p>')
        return
    claims = labels.current_claims(labels.read_events(workspace.database))
    found = f"Significant directions: {len(rows)} of {len(table)} looked at. {_OVERLAP}"
    st.html(f'<p class="more">{mark_terms(found)}</p>')
    _cards(run, rows[:FIRST], claims)
    if rows[FIRST:]:
        with st.expander(count_text(len(rows) - FIRST, "more significant factor")):
            _cards(run, rows[FIRST:], claims)


_NONE = (
    "None of its {} is significant: no single direction stands out from chance, so nothing here "
    "says that the fine-tune learned one more thing."
)
_OVERLAP = "Their shares overlap and do not add up. The one with the highest score comes first."


def _cards(
    run: RunManifest, rows: Sequence[TableRow], claims: Mapping[str, Mapping[str, LabelEvent]]
) -> None:
    for start in range(0, len(rows), FIRST):
        columns = st.columns(FIRST)
        for column, row in zip(columns, rows[start : start + FIRST], strict=False):
            with column, st.container(border=True, height="stretch"):
                _card(run, row, claims.get(runs.factor_name(run.id, row["id"]), {}))


def _card(run: RunManifest, row: TableRow, claims: Mapping[str, LabelEvent]) -> None:
    name, about = _label(claims)
    st.markdown(f"**{literal(name)}**")
    st.html(
        f'<p class="more">{mark_terms(describe_factor(row))}</p>'
        f'<p class="small">{mark_factor(row["id"])}{about}</p>'
    )
    st.page_link(
        "views/factors.py",
        label="See the evidence",
        icon=":material/explore:",
        query_params={RUN: run.id, FACTOR: row["id"]},
    )


def _label(claims: Mapping[str, LabelEvent]) -> tuple[str, str]:
    """The name of a factor by its labels, and what else they say.

    Other people's labels are shown to somebody who has given one, so that second opinions are
    independent, and where nobody can give one.
    """
    who = str(st.session_state.get(Key.ANNOTATOR) or "").strip()
    if not claims:
        return "Not labelled yet", ""
    if who not in claims and not read_only():
        others = "one other person" if len(claims) == 1 else f"{len(claims)} other people"
        return "Not labelled by you yet", f", labelled by {others}"
    spurious = [claim.spurious for claim in claims.values() if claim.spurious is not None]
    said = ""
    if spurious:
        said = ", spurious" if all(spurious) else ", not spurious" if not any(spurious) else (
            ", people disagree on whether it is spurious"
        )  # fmt: skip
    name = runs.label_names(claims)
    return name[:1].upper() + name[1:], said
