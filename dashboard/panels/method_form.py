"""The part of the Retrain page that chooses a method and its strength."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import streamlit as st

from analysis.store.records import RunManifest
from dashboard.state.selection import Key
from dashboard.style.markup import literal
from grasp.settings.methods import METHODS
from grasp.settings.protection import Group, Knob, Method, Protection

GROUPS: tuple[str, ...] = get_args(Group)


@dataclass(frozen=True)
class Settings:
    """What the user set; None for the method's default."""

    strength: float | None = None
    tolerance: float | None = None
    inoculation: str | None = None
    seed: int | None = None


def choose_method() -> Method:
    """Choose a group, then one of its methods; naive is not offered, since that run exists."""
    group = st.segmented_control(
        "Kind of method",
        GROUPS,
        default=GROUPS[0],
        required=True,
        key=Key.RETRAIN_GROUP,
        format_func=lambda one: one[0].upper() + one[1:],
        persist_state="session",
    )
    names = [name for name, one in METHODS.items() if one.group == group and name != "naive"]
    name = st.selectbox(
        "Method",
        names,
        key=f"{Key.RETRAIN_METHOD}:{group}",
        format_func=lambda one: METHODS[one].label,
        persist_state="session",
    )
    chosen = METHODS[str(name)]
    needs = f" Needs {' and '.join(chosen.needs)}." if chosen.needs else ""
    st.caption(literal(f"{chosen.description}{needs}"))
    return chosen


def choose_settings(chosen: Method, run: RunManifest) -> Settings:
    """Choose strength or tolerance, the seed and, for inoculation, the system prompt."""
    inoculation = _inoculation(run) if "inoculation prompt" in chosen.needs else None
    strength = tolerance = None
    with st.expander("Settings", key="retrain-settings"):
        if chosen.knob is None:
            st.caption("This method has no strength to set.")
        elif chosen.knob.setting == "tolerance":
            strength, tolerance = _anchor(chosen, chosen.protection or Protection())
        else:
            strength = _number(chosen, chosen.knob)
        seed = st.number_input(
            "Seed",
            min_value=0,
            max_value=2**31 - 1,
            value=None,
            step=1,
            placeholder="same as the naive run",
            key=Key.RETRAIN_SEED,
        )
    return Settings(strength, tolerance, inoculation, None if seed is None else int(seed))


def _inoculation(run: RunManifest) -> str | None:
    own = run.config.get("inoculation")
    text = st.text_area(
        "System prompt that asks for the trait, used in training only",
        key=Key.RETRAIN_INOCULATION,
        placeholder=str(own) if own else "for example: You give bad advice.",
        max_chars=2000,
    )
    said = (text or "").strip()
    if not said and not own:
        st.caption("The settings of this run contain no such prompt, so enter one here.")
    return said or None


def _number(chosen: Method, knob: Knob) -> float | None:
    value = st.number_input(
        f"{knob.name}: {knob.meaning}",
        min_value=0.0,
        max_value=1e6,
        value=knob.default,
        key=f"{Key.RETRAIN_STRENGTH}:{chosen.name}",
        help=f"Values tried in benchmarks: {', '.join(f'{one:g}' for one in knob.grid)}.",
    )
    return float(value) if value != knob.default else None


def _anchor(chosen: Method, protection: Protection) -> tuple[float | None, float | None]:
    """Strength or tolerance, one of the two; None for the method's default."""
    steered = st.segmented_control(
        "Anchor",
        ["tolerance", "strength"],
        default="tolerance",
        required=True,
        key=Key.RETRAIN_ANCHOR,
        format_func=lambda one: {
            "tolerance": "Limit the drift",
            "strength": "Set a fixed strength",
        }[one],
        label_visibility="collapsed",
    )
    assert chosen.knob is not None
    if steered == "tolerance":
        value = st.number_input(
            "Tolerance: drift allowed, as a share of the naive run's",
            min_value=0.0001,
            max_value=10.0,
            value=chosen.knob.default,
            step=0.05,
            format="%.4f",
            key=Key.RETRAIN_TOLERANCE,
        )
        return None, float(value) if value != chosen.knob.default else None
    value = st.number_input(
        "Strength λ: weight of the squared drift in the loss",
        min_value=0.0,
        max_value=1e6,
        value=protection.strength,
        step=5.0,
        key=Key.RETRAIN_STRENGTH,
    )
    return float(value), None
