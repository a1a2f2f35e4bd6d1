"""The significant factors of a fine-tune, each in a sentence, for readers who know no column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import streamlit as st

from analysis.evidence.learned import describe_factor
from analysis.store import labels
from analysis.store.database import LabelEvent
from analysis.store.label_directions import follow_directions
from analysis.store.records import RunManifest
from analysis.store.workspace import Workspace
from analysis.text import count_text
from analysis.values import TableRow
from dashboard.queue import runs
from dashboard.state import caches
from dashboard.state.annotator import Seen, annotator, see, sees_everything
from dashboard.state.selection import FACTOR, RUN
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
    factors = caches.factors(workspace, run.id)
    table = factors.table
    rows = table[table["significant"].astype(bool)].to_dict("records")
    if not rows:
        st.html(f'<p class="more">{mark_terms(_NONE.format(count_text(len(table), "factor")))}</p>')
        return
    history = follow_directions(labels.read_events(workspace.database), factors)
    seen = see(history, annotator(), everything=sees_everything())
    found = f"Significant directions: {len(rows)} of {len(table)} looked at. {_OVERLAP}"
    st.html(f'<p class="more">{mark_terms(found)}</p>')
    _cards(run, rows[:FIRST], seen)
    if rows[FIRST:]:
        with st.expander(count_text(len(rows) - FIRST, "more significant factor")):
            _cards(run, rows[FIRST:], seen)


_NONE = (
    "None of its {} is significant: no single direction stands out from chance, so nothing here "
    "says that the fine-tune learned one more thing."
)
_OVERLAP = "Their shares overlap and do not add up. The one with the highest score comes first."


def _cards(run: RunManifest, rows: Sequence[TableRow], seen: Seen) -> None:
    claims = labels.current_claims(seen.events)
    for start in range(0, len(rows), FIRST):
        columns = st.columns(FIRST)
        for column, row in zip(columns, rows[start : start + FIRST], strict=False):
            with column, st.container(border=True, height="stretch"):
                factor = runs.factor_name(run.id, row["id"])
                _card(run, row, claims.get(factor, {}), seen.hidden.get(factor, set()))


def _card(
    run: RunManifest, row: TableRow, claims: Mapping[str, LabelEvent], hidden: set[str]
) -> None:
    name, about = _label(claims, hidden)
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


def _label(claims: Mapping[str, LabelEvent], hidden: set[str]) -> tuple[str, str]:
    """The name of a factor by the labels that may be seen, and what else they say."""
    if hidden:
        others = "one other person" if len(hidden) == 1 else f"{len(hidden)} other people"
        return "Not labelled by you yet", f", labelled by {others}"
    if not claims:
        return "Not labelled yet", ""
    spurious = {claim.spurious for claim in claims.values() if claim.spurious is not None}
    said = ", people disagree on whether it is spurious"
    if len(spurious) < 2:
        said = "".join(", spurious" if one else ", not spurious" for one in spurious)
    name = runs.label_names(claims)
    return name[:1].upper() + name[1:], said
