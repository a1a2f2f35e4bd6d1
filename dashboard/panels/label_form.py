"""The form in which a person labels one factor, by mouse or keyboard."""

from __future__ import annotations

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
_DRAFT_OF = "label-draft-of"
_SAID = "label-said"


def show(workspace: Workspace, table: FactorTable, factor: str) -> None:
    """Draw the form for `factor`, such as "w2", filled with this person's last label."""
    name = runs.factor_name(table.manifest.run, factor)
    annotator = str(st.session_state.get(Key.ANNOTATOR) or "").strip()
    _draft(workspace, name, annotator)
    direction = table.sha256(factor)
    st.markdown("**Label**")
    _buttons()
    st.text_input("Name", key=Key.LABEL_NAME, max_chars=100, placeholder="or a name of your own")
    left, right = st.columns(2)
    with left:
        st.segmented_control("Spurious", list(SPURIOUS), key=Key.LABEL_SPURIOUS)
    with right:
        st.segmented_control(
            "Confidence",
            list(CONFIDENCE),
            key=Key.LABEL_CONFIDENCE,
            format_func=lambda one: CONFIDENCE[one],
        )
    st.text_input(
        "Polarity: what each end means",
        key=Key.LABEL_POLARITY,
        max_chars=200,
        placeholder="high end: …, low end: …",
    )
    st.text_input("Note", key=Key.LABEL_NOTE, max_chars=2000, placeholder="evidence for this label")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Save label",
            key=Key.LABEL_SAVE,
            type="primary",
            shortcut="S",
            on_click=_save,
            args=(workspace, name, direction),
        )
        if _standing(workspace, name, annotator):
            st.button(
                "Withdraw", key=Key.LABEL_WITHDRAW, on_click=_withdraw,
                args=(workspace, name, direction),
            )  # fmt: skip
    _say()
    _others(workspace, name)


def _buttons() -> None:
    chosen = st.session_state.get(Key.LABEL_NAME)
    with st.container(horizontal=True, gap="xsmall"):
        for position, offered in enumerate(OFFERED, start=1):
            st.button(
                offered,
                key=Key.label(position),
                type="primary" if offered == chosen else "secondary",
                shortcut=str(position),
                on_click=_choose,
                args=(offered,),
            )


def _choose(name: str) -> None:
    st.session_state[Key.LABEL_NAME] = name
    if name in SUGGESTED:
        st.session_state[Key.LABEL_SPURIOUS] = SUGGESTED[name]


def _draft(workspace: Workspace, name: str, annotator: str) -> None:
    """Refill the form when another factor or person is selected."""
    if st.session_state.get(_DRAFT_OF) == (name, annotator) and Key.LABEL_NAME in st.session_state:
        return
    st.session_state[_DRAFT_OF] = (name, annotator)
    claim = _standing(workspace, name, annotator)
    words = {value: word for word, value in SPURIOUS.items()}
    st.session_state[Key.LABEL_NAME] = claim.name if claim else ""
    st.session_state[Key.LABEL_SPURIOUS] = words[claim.spurious] if claim else None
    st.session_state[Key.LABEL_POLARITY] = claim.polarity if claim else ""
    st.session_state[Key.LABEL_CONFIDENCE] = claim.confidence if claim else None
    st.session_state[Key.LABEL_NOTE] = claim.note if claim else ""


def _standing(workspace: Workspace, name: str, annotator: str) -> LabelEvent | None:
    history = labels.read_events(workspace.database, factor=name)
    return labels.current_claims(history).get(name, {}).get(annotator)


def _save(workspace: Workspace, name: str, direction: str) -> None:
    state = st.session_state
    try:
        claim = Claim(
            name=state.get(Key.LABEL_NAME) or "",
            spurious=SPURIOUS.get(state.get(Key.LABEL_SPURIOUS) or "unsure"),
            polarity=state.get(Key.LABEL_POLARITY) or "",
            confidence=state.get(Key.LABEL_CONFIDENCE),
            note=state.get(Key.LABEL_NOTE) or "",
        )
        labels.add_label(
            workspace.database,
            factor=name,
            claim=claim,
            annotator=state.get(Key.ANNOTATOR) or "",
            direction=direction,
        )
    except GraspError as error:
        state[_SAID] = ("error", str(error))
        return
    state[_SAID] = ("saved", f"Saved: {name} is labelled {claim.name}.")


def _withdraw(workspace: Workspace, name: str, direction: str) -> None:
    annotator = st.session_state.get(Key.ANNOTATOR) or ""
    labels.withdraw_label(workspace.database, factor=name, annotator=annotator, direction=direction)
    st.session_state.pop(_DRAFT_OF, None)
    st.session_state[_SAID] = ("saved", f"Withdrawn: your label of {name}.")


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
