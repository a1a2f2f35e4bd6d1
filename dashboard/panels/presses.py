"""Keys and clicks in the order they were made, however fast, each handed on exactly once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from dashboard.state.selection import Key

_CSS = """
[role=status] { font-size: 0.8rem; opacity: 0; line-height: 1.6rem; }
[role=status]:not(:empty) { opacity: 0.75; transition: opacity 0s 0.4s; }
"""
_listen = st.components.v2.component(
    "grasp.presses",
    html='<div role="status"></div>',
    css=_CSS,
    js=Path(__file__).with_name("presses.js").read_text(encoding="utf-8"),
)


def read_presses(session: str, *, after: int, acts: Sequence[str]) -> list[tuple[int, str]]:
    """Number and act of the presses that came after a number, oldest first.

    What the browser sends is untrusted: other sessions' presses and unknown acts are left out.
    """
    sent = dict(st.session_state.get(Key.PRESSES) or {}).get("presses")
    if not isinstance(sent, Mapping) or sent.get("session") != session:
        return []
    rows = sent.get("acts")
    pressed = [_press(row) for row in rows] if isinstance(rows, list) else []
    return sorted(
        {number: act for number, act in pressed if number > after and act in acts}.items()
    )


def _press(row: Any) -> tuple[int, str]:
    number, act = (row.get("number"), row.get("act")) if isinstance(row, Mapping) else (0, "")
    return (int(number) if isinstance(number, int | float) else 0), str(act)


def listen(session: str, *, handled: int, keys: Mapping[str, str], acts: Sequence[str]) -> None:
    """Take the keys, and the clicks on the buttons named after acts; show how many wait.

    Args:
        session: presses made in another session are never handed on in this one.
        handled: the number of the last press that was handled.
        keys: key → act.
        acts: acts, each the key of a button or of a container around it.
    """
    _listen(
        key=Key.PRESSES,
        data={"session": session, "handled": handled, "keys": dict(keys), "acts": list(acts)},
        width="content",
        on_presses_change=lambda: None,
    )
