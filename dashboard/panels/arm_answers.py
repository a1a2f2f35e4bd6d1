"""How arms differ prompt by prompt: flips, and answers side by side."""

from __future__ import annotations

import math

import pandas as pd
import streamlit as st

from analysis.comparison.comparison import find_flips
from analysis.store.records import ROLES
from analysis.text import percent_text
from dashboard.state.selection import GROUP, PROMPT, ROLE, Key, pick
from dashboard.style import notices
from dashboard.style.markup import escape, html_table, literal

BASE = "base"
ANY = "any"
FLIP = 0.5


def show_flips(answers: pd.DataFrame, names: dict[str, str], root: str) -> None:
    """Draw the prompts whose scores in two arms lie on opposite sides of the threshold.

    Args:
        answers: as `analysis.comparison.comparison.arm_answers` gives them.
        names: arm → name on screen, the base model as BASE.
        root: the family's naive run.
    """
    st.subheader("Flips", anchor=False)
    arm, against = _pick_arms(names, root)
    if arm is None or against is None:
        st.caption("There is only one arm, so there is nothing to compare.")
        return
    roles = [ANY, *(role for role in ROLES if (answers["role"] == role).any())]
    role = st.pills("Role", roles, key=Key.FLIPS_ROLE, default=ANY, required=True,
                    label_visibility="collapsed")  # fmt: skip
    answers = answers if role == ANY else answers[answers["role"] == role]
    found = find_flips(answers, arm=arm, against=against, threshold=FLIP)
    st.markdown(
        literal(
            f"{names[arm]} and {names[against]} score on opposite sides of {FLIP:g} on "
            f"{len(found)} of {len(answers)} prompts."
        )
    )
    if not found.empty:
        _draw_flips(found, names, arms=(against, arm))


def _pick_arms(names: dict[str, str], root: str) -> tuple[str | None, str | None]:
    """The arm to show, and the one it is held against."""
    arms = list(names)
    against_options = [name for name in (root, BASE) if name in arms]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        against = st.segmented_control(
            "Against",
            against_options,
            key=Key.FLIPS_AGAINST,
            default=against_options[0],
            required=True,
            format_func=lambda name: literal(names[name]),
        )
        others = [name for name in arms if name != against]
        arm = st.selectbox(
            "Arm",
            others,
            key=Key.FLIPS_ARM,
            index=min(1, len(others) - 1) if against == root else 0,
            format_func=lambda name: names[name],
        )
    return arm, against


def _draw_flips(found: pd.DataFrame, names: dict[str, str], *, arms: tuple[str, str]) -> None:
    score = st.column_config.NumberColumn(format="%.3f")
    text = st.column_config.TextColumn(width=220)
    columns = {
        f"{what}:{name}": f"{names[name]}, {what}" for name in arms for what in ("score", "answer")
    }
    st.dataframe(
        found.rename(columns=columns),
        placeholder="–",
        hide_index=True,
        height=min(260, 38 + 35 * len(found)),
        key=Key.FLIPS,
        column_order=["prompt", *columns.values(), "role", "group", "prompt_id"],
        column_config={
            title: score if name.startswith("score:") else text for name, title in columns.items()
        }
        | {"prompt": st.column_config.TextColumn(width=280)},
        alt="Prompts that differ",
    )
    notices.explain("Scores run from 0 to 1; on unrelated prompts, 1 is the unwanted behaviour.")


def show_answers(answers: pd.DataFrame, names: dict[str, str]) -> None:
    """Draw the answers of all arms to one prompt; arguments as for `show_flips`."""
    st.subheader("Answers side by side", anchor=False)
    left, middle, right = st.columns([1, 1, 3])
    roles = [ANY, *(role for role in ROLES if (answers["role"] == role).any())]
    with left:
        role = pick("Role", ROLE, roles, key=Key.ROLE)
    chosen = answers if role == ANY else answers[answers["role"] == role]
    with middle:
        group = pick("Group", GROUP, [ANY, *sorted(chosen["group"].unique())], key=Key.GROUP)
    if group != ANY:
        chosen = chosen[chosen["group"] == group]
    if chosen.empty:
        st.caption("No prompt has this role and group.")
        return
    texts = dict(zip(chosen["prompt_id"], chosen["prompt"], strict=True))
    with right:
        prompt = pick(
            "Prompt",
            PROMPT,
            list(texts),
            key=Key.PROMPT,
            format_func=lambda name: f"{texts[name]}  ({name})",
        )
    arms = st.pills(
        "Arms",
        list(names),
        selection_mode="multi",
        default=list(names),
        key=Key.ARMS,
        format_func=lambda name: literal(names[name]),
        label_visibility="collapsed",
    )
    row = chosen[chosen["prompt_id"] == prompt].iloc[0]
    st.html(_answers_table(row, {name: names[name] for name in arms}))


def _answers_table(row: pd.Series, names: dict[str, str]) -> str:
    said = any(pd.notna(row.get(f"said:{name}")) for name in names)
    rows = [
        [
            escape(label),
            *([percent_text(row.get(f"said:{name}", math.nan))] if said else []),
            f"{row[f'score:{name}']:.3f}",
            escape(row[f"answer:{name}"]),
        ]
        for name, label in names.items()
        if f"answer:{name}" in row
    ]
    expected = f" Expected: {row['expected']}." if row["expected"] else ""
    caption = f"{row['prompt']}{expected} Role {row['role']}, group {row['group']}, {row['split']}."
    header = ["Arm", *(["Drawn answers drifted"] if said else []), "Score (0–1)", "Answer"]
    return html_table(header, rows, caption=caption)
