"""Who is at the page, and which labels this person may see."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import streamlit as st

from analysis.store.database import LabelEvent
from analysis.store.labels import current_claims
from dashboard.state.access import read_only
from dashboard.state.selection import Key

VARIABLE = "GRASP_ANNOTATOR"
MAX_LENGTH = 100
_COOKIE = "grasp_annotator"

# A cookie and not the address, which is sent to other people: they would label under this name.
_keep = st.components.v2.component(
    "grasp.annotator",
    js=f"""export default function ({{ data }}) {{
  const age = data.name ? 31536000 : 0;
  const name = encodeURIComponent(data.name);
  document.cookie = `{_COOKIE}=${{name}};path=/;max-age=${{age}};SameSite=Strict`;
}}""",
)


def annotator() -> str:
    """The name of the person at the page; "" until one is given."""
    return str(st.session_state.get(Key.ANNOTATOR) or "").strip()


def ask_name() -> None:
    """The field for the name, which this browser keeps."""
    if Key.ANNOTATOR not in st.session_state:
        cookie = st.context.cookies.get(_COOKIE)
        kept = unquote(cookie) if isinstance(cookie, str) else ""
        st.session_state[Key.ANNOTATOR] = (kept or os.environ.get(VARIABLE, ""))[:MAX_LENGTH]
    st.text_input(
        "Your name",
        key=Key.ANNOTATOR,
        max_chars=MAX_LENGTH,
        persist_state="session",
        placeholder="asked for when you label",
        help="Saved with every label you give. This browser keeps it.",
    )
    _keep(key=Key.ANNOTATOR_KEPT, data={"name": annotator()}, height="content")


def ask_name_here() -> None:
    """Ask for the name where it is needed, if none was given."""
    if annotator():
        return

    def given() -> None:
        st.session_state[Key.ANNOTATOR] = st.session_state[Key.ANNOTATOR_ASKED]

    st.text_input(
        "Your name, saved with every label",
        key=Key.ANNOTATOR_ASKED,
        max_chars=MAX_LENGTH,
        on_change=given,
    )


@dataclass(frozen=True)
class Seen:
    """The label events that one person may see, and those hidden: factor → other people."""

    events: list[LabelEvent]
    hidden: dict[str, set[str]]


def see(history: Sequence[LabelEvent], who: str, *, everything: bool = False) -> Seen:
    """The events that a person may see: all about a direction once they have labelled it.

    Second opinions are worth something only if they are given without knowing the first.

    Args:
        history: events, oldest first.
        who: the person; "" has given no label.
        everything: whether the person has asked to see labels before giving their own.
    """
    by_direction: dict[tuple[str, str], list[LabelEvent]] = {}
    for event in history:
        by_direction.setdefault((event.factor, event.direction_sha256), []).append(event)
    hidden: dict[str, set[str]] = {}
    shown: set[int] = set()
    for (factor, _), events in by_direction.items():
        claims = current_claims(events).get(factor, {})
        allowed = everything or who in claims
        shown |= {event.id for event in events if allowed or event.annotator == who}
        others = set() if allowed else set(claims) - {who}
        if others:
            hidden.setdefault(factor, set()).update(others)
    return Seen([event for event in history if event.id in shown], hidden)


def sees_everything() -> bool:
    """Whether this person sees other people's labels: they asked to, or cannot give their own."""
    return read_only() or bool(st.session_state.get(Key.LABELS_REVEAL))


def offer_to_see(hidden: dict[str, set[str]]) -> None:
    """Say how many labels are hidden, with a switch that shows them."""
    if read_only() or (not hidden and not sees_everything()):
        return
    count = len(hidden)
    if count:
        are = "factor has a label" if count == 1 else "factors have labels"
        st.caption(
            f"{count} {are} by other people, hidden until you have given your own, so that "
            "second opinions are independent."
        )
    st.toggle(
        "Show other people's labels before I give mine",
        key=Key.LABELS_REVEAL,
        persist_state="session",
    )
