"""A form on the Retrain page for the settings that an adapter made elsewhere lacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import streamlit as st

from analysis.errors import GraspError
from analysis.store.records import RunManifest
from analysis.store.retrain_line import Retrain
from analysis.store.workspace import Workspace
from analysis.values import Json
from dashboard.queue import commands
from dashboard.state.selection import Key
from dashboard.style import notices
from dashboard.style.markup import literal
from grasp.foreign.settings import (
    LENGTH,
    complete_run,
    missing_names,
    parse_given,
    read_known,
    save_manifest,
)
from grasp.prompts.sets import shipped_set, shipped_sets
from grasp.settings.training import Scheduler

_NUMBERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "learning_rate": ("Learning rate", {"min_value": 0.0, "step": 1e-5, "format": "%g"}),
    "warmup_steps": (
        "Warm-up steps; below 1, a share of all steps",
        {"min_value": 0.0, "format": "%g"},
    ),
    "weight_decay": ("Weight decay", {"min_value": 0.0, "format": "%g"}),
    "batch_size": ("Batch size on one device", {"min_value": 1}),
    "gradient_accumulation_steps": ("Gradient accumulation steps", {"min_value": 1}),
    "max_length": ("Longest row, in tokens", {"min_value": 8}),
}
"""The settings that are numbers: label and limits of the field."""

_LENGTHS = {"max_steps": "optimiser steps", "num_train_epochs": "epochs"}


def ask_for_settings(workspace: Workspace, run: RunManifest) -> None:
    """Draw a form for the missing settings, filled with those known; valid input is saved."""
    adapter = workspace.adapter(run.id)
    found = read_known(adapter)
    with st.container(border=True, key=Key.MISSING):
        st.markdown("**Missing settings of this adapter**")
        st.markdown(
            literal(
                f"{run.id} was made elsewhere. Retraining it needs these settings: "
                f"{', '.join(missing_names(run, adapter))}. They are not guessed, because a "
                "retrained run should differ from the original only in what is protected. Methods "
                "that do not train need none of them."
            )
        )
        for hint in found.hints:
            st.caption(literal(f"Found but not used: {hint}."))
        if _given(workspace, run, found.settings | run.config):
            st.rerun()


def _given(workspace: Workspace, run: RunManifest, known: Json) -> bool:
    with st.form("missing-settings", border=False, clear_on_submit=False):
        given = _fields(known)
        with st.expander("Other settings, as YAML"):
            lines = st.text_area(
                "One NAME: VALUE a line, such as packing: true",
                key=Key.MISSING_OTHERS,
                label_visibility="collapsed",
                placeholder="loss_on: all",
            )
        asked = st.form_submit_button("Save these settings", key=Key.MISSING_KEEP)
    # By a method that needs no factors, of which there may be none yet.
    data = str(given.get("data") or "FILE")
    tried = Retrain(run.id, method="naive", data=data, config="FILE", dry_run=True)
    st.caption("The same from a terminal, with the settings in FILE; it also reports on the data:")
    st.code(commands.command_line(tried.argv()), language="bash", wrap_lines=True)
    if not asked:
        return False
    try:
        others = parse_given(lines or "", source="The other settings")
        made = complete_run(workspace, run, workspace.adapter(run.id), given | others)
        save_manifest(workspace.folder("runs", run.id), made)
    except GraspError as error:
        notices.show_problem("Nothing was saved.", str(error))
        return False
    return True


def _fields(known: Json) -> Json:
    """Draw a field for each setting and return what they hold; empty ones are left out."""
    given: Json = {}
    given["data"] = _text(
        "data", known, "Training data: a file or folder on the machine that serves this page, or "
        "hub:org/name", "/path/to/data.jsonl",
    )  # fmt: skip
    columns = st.columns(3)
    schedulers = get_args(Scheduler)
    with columns[0]:
        unit = st.segmented_control(
            "Length in",
            list(_LENGTHS),
            default=next((name for name in LENGTH if known.get(name) is not None), LENGTH[0]),
            format_func=lambda name: _LENGTHS[name],
            required=True,
            key=Key.MISSING_LENGTH,
        )
        length = st.number_input(
            "Length of the fine-tune",
            value=_float(known.get(str(unit))),
            min_value=0.0,
            format="%g",
            key=Key.missing("length"),
        )
        given[str(unit)] = int(length) if length and unit == "max_steps" else length
        given["lr_scheduler"] = st.selectbox(
            "Learning-rate scheduler",
            schedulers,
            index=_position(known.get("lr_scheduler"), schedulers),
            key=Key.missing("lr_scheduler"),
        )
    for position, (name, (label, limits)) in enumerate(_NUMBERS.items()):
        whole = isinstance(limits["min_value"], int)
        value = known.get(name)
        with columns[1 + position // 3]:
            given[name] = st.number_input(
                label,
                value=None if value is None else int(value) if whole else float(value),
                key=Key.missing(name),
                **limits,
            )
    given["neutral"] = _text(
        "neutral", known, "Neutral text without the factor, for methods that need it", "optional"
    )
    given["prompts"] = _prompts(known)
    return {name: value for name, value in given.items() if value not in (None, "")}


def _text(name: str, known: Json, label: str, hint: str) -> str:
    value = known.get(name)
    return (
        st.text_input(
            label,
            value=str(value) if value else "",
            key=Key.missing(name),
            placeholder=hint,
        )
        or ""
    ).strip()


def _prompts(known: Json) -> str | None:
    """The prompts on which the runs are evaluated: a shipped set, or a file that is typed in."""
    value = known.get("prompts")
    names = [name for name in shipped_sets() if shipped_set(name).scorer != "judge"]
    options = [*names, value] if value and value not in names else names
    return st.selectbox(
        "Prompts for the evaluation: a set that ships, or the path of a file",
        options,
        index=_position(value, options),
        key=Key.missing("prompts"),
        accept_new_options=True,
        placeholder="none: the runs are not evaluated",
    )


def _position(value: object, options: Any) -> int | None:
    return list(options).index(value) if value in options else None


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
