"""The form in which a person labels one factor, by mouse or keyboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from analysis.store import labels
from analysis.store.factor_table import FactorTable
from analysis.store.workspace import Workspace
from dashboard.panels import presses
from dashboard.panels.label_desk import (
    ACTS,
    CHOICES,
    FIELDS,
    KEYS,
    SPURIOUS,
    Desk,
    Draft,
    find_standing,
)
from dashboard.queue import runs
from dashboard.state import caches
from dashboard.state.selection import FACTOR, RUN, Key, read_parameter, remember
from dashboard.style import notices
from dashboard.style.markup import literal

CONFIDENCE = {1: "1 guess", 2: "2 likely", 3: "3 sure"}
_DESK = "label-desk"


def take_presses(workspace: Workspace) -> None:
    """Do what was pressed since the page was last drawn, in order, before it is drawn again."""
    desk = _desk()
    waiting = presses.read_presses(desk.session, after=desk.handled, acts=ACTS)
    named = read_parameter(RUN) in (None, desk.run)
    if waiting:
        _perform(workspace, desk, waiting)
    elif not (named and desk.is_behind(read_parameter(FACTOR))):
        return
    if named:
        remember(FACTOR, desk.factor)


def go_to(workspace: Workspace, factor: str) -> None:
    """Select a factor, once what was pressed for the one in hand is done."""
    take_presses(workspace)
    _desk().factor = factor
    remember(FACTOR, factor)


def take_up(run: str, factor: str) -> None:
    """What is pressed from here on is about this factor."""
    _desk().place(run, factor)


def show(workspace: Workspace, table: FactorTable, factor: str) -> None:
    """Draw the form for `factor`, such as "w2", filled with this person's last label."""
    name = runs.factor_name(table.manifest.run, factor)
    desk, annotator = _desk(), _annotator()
    draft = desk.fill(workspace, annotator)
    with st.container(horizontal=True):
        st.markdown("**Label**", width="content")
        presses.listen(desk.session, handled=desk.handled, keys=KEYS, acts=ACTS)
    _names(workspace, draft)
    _write(draft, Key.LABEL_NAME, "Name", most=100, hint="or a name of your own")
    left, right = st.columns(2)
    with left:
        _pick(draft, Key.LABEL_SPURIOUS, "Spurious", {word: word for word in SPURIOUS})
    with right:
        _pick(draft, Key.LABEL_CONFIDENCE, "Confidence", CONFIDENCE)
    ends = "high end: …, low end: …"
    _write(draft, Key.LABEL_POLARITY, "Polarity: what each end means", most=200, hint=ends)
    _write(draft, Key.LABEL_NOTE, "Note", most=2000, hint="evidence for this label")
    with st.container(horizontal=True, vertical_alignment="center"):
        with st.container(key=Key.LABEL_SAVE, width="content"):
            button(workspace, "Save label", Key.LABEL_SAVE, key=draft.key(Key.LABEL_SAVE),
                   type="primary")  # fmt: skip
        if find_standing(workspace, name, annotator):
            with st.container(key=Key.LABEL_WITHDRAW, width="content"):
                button(workspace, "Withdraw", Key.LABEL_WITHDRAW,
                       key=draft.key(Key.LABEL_WITHDRAW))  # fmt: skip
    _say(desk)
    _others(workspace, name)


def button(workspace: Workspace, label: str, act: str, **options: Any) -> None:
    """A button that does one of ACTS, with its key on the keyboard.

    In a browser `presses.listen` takes the clicks and the keys; Streamlit shows the key and, should the
    listener be missing, does the same with less care.
    """
    shortcut = next((key.upper() for key, one in KEYS.items() if one == act), None)
    st.button(
        label,
        **{"key": act, "shortcut": shortcut} | options,
        on_click=_clicked,
        args=(workspace, act),
    )


def _desk() -> Desk:
    desk: Desk = st.session_state.setdefault(_DESK, Desk())
    return desk


def _annotator() -> str:
    return str(st.session_state.get(Key.ANNOTATOR) or "").strip()


def _clicked(workspace: Workspace, act: str) -> None:
    take_presses(workspace)
    desk = _desk()
    _perform(workspace, desk, [(desk.handled + 1, act)])
    remember(FACTOR, desk.factor)


def _perform(workspace: Workspace, desk: Desk, waiting: Sequence[tuple[int, str]]) -> None:
    """Do acts, each counted as it is done.

    Another press ends this run wherever it asks Streamlit for something, so all that is asked for
    comes before the first act; and it starts another run at once, which waits for its turn.
    """
    table, annotator = caches.factors(workspace, desk.run), _annotator()
    keys = [desk.draft.key(field) for field in FIELDS] if desk.draft else []
    held = {key: st.session_state[key] for key in keys if key in st.session_state}
    with desk.turn:
        for number, act in waiting:
            if number > desk.handled:
                desk.perform(act, workspace, table, annotator=annotator, held=held)
                desk.handled = number


def _write(draft: Draft, field: str, label: str, *, most: int, hint: str) -> None:
    """A line of text, of at most so many characters."""
    with st.container(key=field):
        st.text_input(
            label,
            draft.filled(field),
            key=draft.key(field),
            persist_state="session",
            max_chars=most,
            placeholder=hint,
        )


def _pick(draft: Draft, field: str, label: str, names: Mapping[Any, str]) -> None:
    """One of a few values, by their names."""
    with st.container(key=field):
        st.segmented_control(
            label,
            list(names),
            default=draft.filled(field),
            key=draft.key(field),
            persist_state="session",
            format_func=lambda one: names[one],
        )


def _names(workspace: Workspace, draft: Draft) -> None:
    chosen = draft.value(Key.LABEL_NAME, st.session_state)  # type: ignore[arg-type]
    with st.container(horizontal=True, gap="xsmall"):
        for act, name in CHOICES.items():
            button(workspace, name, act, type="primary" if name == chosen else "secondary")


def _say(desk: Desk) -> None:
    """What became of the last acts, newest first."""
    for position, outcome in enumerate(desk.outcomes):
        if outcome.kind == "refused":
            st.warning(literal(outcome.text))
        elif position == 0:
            st.success(literal(outcome.text))
        else:
            st.caption(literal(outcome.text))


def _others(workspace: Workspace, name: str) -> None:
    """The labels of other people, shown only once this person has given one."""
    claims = labels.current_claims(labels.read_events(workspace.database, factor=name)).get(
        name, {}
    )
    annotator = _annotator()
    others = {who: claim for who, claim in claims.items() if who != annotator}
    if not others:
        return
    if annotator not in claims:
        count = "One other person has" if len(others) == 1 else f"{len(others)} other people have"
        st.caption(f"{count} labelled this factor; save your own label to see theirs.")
        return
    for who, claim in others.items():
        st.caption(literal(f"{who}: {claim.name}. {claim.polarity}"))
