"""A list of the prompt sets that ship, for runs whose settings name none; a file is typed in."""

from __future__ import annotations

import streamlit as st

from dashboard.style.markup import literal
from grasp.prompts.sets import shipped_set, shipped_sets


def choose_set(label: str, *, key: str, pairs: bool = False) -> str | None:
    """Draw a list of shipped sets into which a file's path can be typed; None if none is chosen.

    Args:
        label: of the list.
        key: of the widget.
        pairs: only sets whose items have a pair of answers, which can be read without a question.
    """
    names = [name for name in shipped_sets() if shipped_set(name).scorer != "judge"]
    if pairs:
        names = [name for name in names if all(one.pair for one in shipped_set(name).prompts())]
    first = names.index("persona-pairs")
    chosen = st.selectbox(
        label,
        names,
        index=first,
        key=key,
        accept_new_options=True,
        help="A set that comes with the workbench, or the path of a file on the machine that "
        "serves this page.",
    )
    if chosen in names:
        st.caption(literal(shipped_set(chosen).description))
    return chosen or None
