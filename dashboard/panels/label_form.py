"""The form in which a person labels one factor, by mouse or keyboard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st

from analysis.errors import GraspError
from analysis.store import labels
from analysis.store.database import LabelEvent
from analysis.store.factor_table import FactorTable
from analysis.store.labels import Claim
from analysis.store.workspace import Workspace
from dashboard.queue import runs
from dashboard.state.selection import Key
from dashboard.style import notices
from dashboard.style.markup import literal

OFFERED = labels.NAMES[:6]
SPURIOUS: dict[str, bool | None] = {"yes": True, "no": False, "unsure": None}
SUGGESTED = {"persona": "yes", "political slant": "yes", "task": "no", "format": "no"}
CONFIDENCE = {1: "1 guess", 2: "2 likely", 3: "3 sure"}
_DRAFT = "label-draft"
_SAID = "label-said"
_TURNS = "label-turns"


@dataclass
class _Draft:
    """What the form was filled with, for whom, and how often it was filled anew.

    A click can reach the server before the browser has drawn the answer to the one before it, and
    then brings the old contents of every field along. So fields that are filled anew get new keys:
    what an old field held can neither be saved for another factor nor undo a choice just made.
    """

    factor: str
    annotator: str
    turn: int
    choice: int = 0
    name: str = ""
    spurious: str | None = None
    polarity: str = ""
    confidence: int | None = None
    note: str = ""

    def key(self, field: str) -> str:
        chosen = f".{self.choice}" if field in (Key.LABEL_NAME, Key.LABEL_SPURIOUS) else ""
        return f"{field}-{self.turn}{chosen}"

    def filled(self, field: str) -> Any:
        """What the field was filled with."""
        return getattr(self, field.removeprefix("label-"))

    def value(self, field: str) -> Any:
        """What the field holds; what it was filled with, if the browser has not drawn it yet."""
        return st.session_state.get(self.key(field), self.filled(field))


def show(workspace: Workspace, table: FactorTable, factor: str) -> None:
    """Draw the form for `factor`, such as "w2", filled with this person's last label."""
    name = runs.factor_name(table.manifest.run, factor)
    annotator = str(st.session_state.get(Key.ANNOTATOR) or "").strip()
    draft = _fill(workspace, name, annotator)
    direction = table.sha256(factor)
    st.markdown("**Label**")
    _buttons(draft)
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
            st.button(
                "Save label",
                key=draft.key(Key.LABEL_SAVE),
                type="primary",
                shortcut="S",
                on_click=_save,
                args=(workspace, draft, direction),
            )
        if _standing(workspace, name, annotator):
            with st.container(key=Key.LABEL_WITHDRAW, width="content"):
                st.button(
                    "Withdraw",
                    key=draft.key(Key.LABEL_WITHDRAW),
                    on_click=_withdraw,
                    args=(workspace, draft, direction),
                )
    _say()
    _others(workspace, name)


def _write(draft: _Draft, field: str, label: str, *, most: int, hint: str) -> None:
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


def _pick(draft: _Draft, field: str, label: str, names: Mapping[Any, str]) -> None:
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


def _buttons(draft: _Draft) -> None:
    chosen = draft.value(Key.LABEL_NAME)
    with st.container(horizontal=True, gap="xsmall"):
        for position, offered in enumerate(OFFERED, start=1):
            st.button(
                offered,
                key=Key.label(position),
                type="primary" if offered == chosen else "secondary",
                shortcut=str(position),
                on_click=_choose,
                args=(draft, offered),
            )


def _choose(draft: _Draft, name: str) -> None:
    spurious = SUGGESTED.get(name, draft.value(Key.LABEL_SPURIOUS))
    draft.name, draft.spurious, draft.choice = name, spurious, draft.choice + 1


def _fill(workspace: Workspace, name: str, annotator: str) -> _Draft:
    """The form's contents, read anew when another factor or person is selected."""
    draft: _Draft | None = st.session_state.get(_DRAFT)
    if draft and (draft.factor, draft.annotator) == (name, annotator):
        return draft
    turn = st.session_state.get(_TURNS, 0) + 1
    st.session_state[_TURNS] = turn
    draft = _Draft(name, annotator, turn)
    if claim := _standing(workspace, name, annotator):
        words = {value: word for word, value in SPURIOUS.items()}
        draft.name, draft.spurious = claim.name, words[claim.spurious]
        draft.polarity, draft.confidence, draft.note = claim.polarity, claim.confidence, claim.note
    st.session_state[_DRAFT] = draft
    return draft


def _standing(workspace: Workspace, name: str, annotator: str) -> LabelEvent | None:
    history = labels.read_events(workspace.database, factor=name)
    return labels.current_claims(history).get(name, {}).get(annotator)


def _save(workspace: Workspace, draft: _Draft, direction: str) -> None:
    try:
        claim = Claim(
            name=draft.value(Key.LABEL_NAME) or "",
            spurious=SPURIOUS[draft.value(Key.LABEL_SPURIOUS) or "unsure"],
            polarity=draft.value(Key.LABEL_POLARITY) or "",
            confidence=draft.value(Key.LABEL_CONFIDENCE),
            note=draft.value(Key.LABEL_NOTE) or "",
        )
        labels.add_label(
            workspace.database,
            factor=draft.factor,
            claim=claim,
            annotator=draft.annotator,
            direction=direction,
        )
    except GraspError as error:
        st.session_state[_SAID] = ("error", str(error))
        return
    st.session_state.pop(_DRAFT, None)
    spurious = {True: ", spurious", False: ", not spurious", None: ""}[claim.spurious]
    said = f"Saved: {draft.factor} is labelled {claim.name}{spurious}."
    st.session_state[_SAID] = ("saved", said)


def _withdraw(workspace: Workspace, draft: _Draft, direction: str) -> None:
    labels.withdraw_label(
        workspace.database, factor=draft.factor, annotator=draft.annotator, direction=direction
    )
    st.session_state.pop(_DRAFT, None)
    st.session_state[_SAID] = ("saved", f"Withdrawn: your label of {draft.factor}.")


def _say() -> None:
    kind, text = st.session_state.pop(_SAID, ("", ""))
    if kind == "error":
        notices.show_problem("The label was not saved.", text)
    elif kind == "saved":
        st.success(literal(text))


def _others(workspace: Workspace, name: str) -> None:
    """The labels of other people, shown only once this person has given one."""
    claims = labels.current_claims(labels.read_events(workspace.database, factor=name)).get(
        name, {}
    )
    annotator = str(st.session_state.get(Key.ANNOTATOR) or "").strip()
    others = {who: claim for who, claim in claims.items() if who != annotator}
    if not others:
        return
    if annotator not in claims:
        count = "One other person has" if len(others) == 1 else f"{len(others)} other people have"
        st.caption(f"{count} labelled this factor; save your own label to see theirs.")
        return
    for who, claim in others.items():
        st.caption(literal(f"{who}: {claim.name}. {claim.polarity}"))
