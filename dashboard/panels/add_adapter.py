"""Add an adapter: inspect a folder or a Hub id, choose, then queue the import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import streamlit as st

from analysis.adapters.checkpoints import list_checkpoints
from analysis.adapters.choices import Choices, adapter_choices
from analysis.adapters.place import step_of
from analysis.errors import GraspError, InputError
from analysis.spectra.report import AdapterReport
from analysis.store.layout import run_of
from analysis.store.workspace import Workspace, is_id
from dashboard.panels import adapter_facts, job_panel
from dashboard.queue import commands
from dashboard.state import adapter_cache
from dashboard.state.selection import Key
from dashboard.style import notices
from dashboard.style.markup import literal
from grasp.hub.repository import hub_name

ANCHOR = "add-an-adapter"
"""Anchor of the form on the page."""

LOOKED = "adapter-looked-at"
ADDED = "adapter-job"


class _Options(TypedDict, total=False):
    """How an adapter was looked at, which its import has to do too."""

    name: str | None
    checkpoints: bool
    low_rank_part: bool


@dataclass(frozen=True)
class _Seen:
    """An adapter that can be added: its report, its origin, and the options of its import."""

    word: str
    report: AdapterReport
    source: Mapping[str, str]
    called: str
    options: _Options


def show(workspace: Workspace) -> None:
    """The form and, below it, the adapter that was inspected."""
    with st.container(border=True):
        st.subheader("Add an adapter", anchor=ANCHOR)
        with st.form("look-at-adapter", border=False, clear_on_submit=False):
            typed = st.text_input(
                "PEFT LoRA adapter: a folder on the machine that serves this page, or a Hub id",
                key=Key.ADAPTER_PATH,
                placeholder="/path/to/adapter, or org/name@revision",
            )
            if st.form_submit_button("Inspect", key=Key.ADAPTER_LOOK):
                st.session_state[LOOKED] = typed
                st.session_state.pop(ADDED, None)
        if LOOKED in st.session_state:
            with notices.catch_errors("This adapter"):
                seen = _look(str(st.session_state[LOOKED] or ""))
                if seen is not None:
                    _offer(workspace, seen)
        if ADDED in st.session_state:
            job_panel.show(workspace, int(st.session_state[ADDED]))


def _look(typed: str) -> _Seen | None:
    """The adapter, once all choices that it needs have been made; None until then."""
    word = commands.adapter_argument(typed)
    return _look_at_folder(word) if Path(word).is_dir() else _look_at_hub(word)


def _look_at_folder(word: str) -> _Seen | None:
    folder, choices = Path(word), adapter_choices(word)
    steps = _steps(choices, word)
    name = None
    if not steps and choices.names:
        own = [""] if choices.itself else []
        name = _which(word, [*own, *choices.names], itself="the folder itself")
        if name is None:
            return None
    opened = list_checkpoints(folder)[-1].path if steps else folder
    dora = adapter_choices(opened, name=name or None).dora
    low_rank = _low_rank(word) if dora else False
    if low_rank is None:
        return None
    report = adapter_cache.load_report(opened, name=name or None, low_rank_part=low_rank)
    called = name or ((run_of(folder) or folder).name)
    options: _Options = {"name": name, "checkpoints": steps, "low_rank_part": low_rank}
    return _Seen(word, report, {}, called, options)


def _look_at_hub(word: str) -> _Seen | None:
    found = adapter_cache.hub_listing(word)
    adapters = [str(one) for one in found.adapters] or [word]
    chosen = adapters[0] if len(adapters) == 1 else _which(word, adapters)
    if chosen is None:
        return None
    seen = adapter_cache.hub_outline(chosen, found.at)
    if seen.dora:
        low_rank = _low_rank(chosen)
        if low_rank is None:
            return None
        seen = adapter_cache.hub_outline(chosen, found.at, low_rank_part=True)
    name = hub_name(chosen)
    assert seen.report is not None
    assert name is not None
    called = (name.subfolder or name.repository).rpartition("/")[2]
    return _Seen(chosen, seen.report, seen.source, called, {"low_rank_part": seen.dora})


def _which(word: str, names: list[str], *, itself: str = "") -> str | None:
    """The adapter that the user picks among several; none is preselected."""
    chosen: str | None = st.selectbox(
        f"Which of these {len(names)} adapters",
        names,
        index=None,
        key=f"{Key.ADAPTER_NAME}:{word}",
        format_func=lambda name: name or itself,
        persist_state="session",
    )
    return chosen


def _steps(choices: Choices, word: str) -> bool:
    if not choices.steps:
        return False
    first, last = choices.steps[0], choices.steps[-1]
    only = not choices.itself and all(step_of(name) is not None for name in choices.names)
    return st.checkbox(
        f"Include its {len(choices.steps)} checkpoints, steps {first} to {last}",
        value=only,
        key=f"{Key.ADAPTER_STEPS}:{word}",
        persist_state="session",
        help="They become part of one run, whose adapter is the finished one or, if there is none, "
        "the last checkpoint. The Spectra page then shows how the adapter changed over training.",
    )


def _low_rank(word: str) -> bool | None:
    """True once the user accepts only scaling · B A of a DoRA; None until then."""
    st.info(literal(adapter_facts.LOW_RANK))
    accepted = st.checkbox(
        "Add only its low-rank part, scaling · B A",
        key=f"{Key.ADAPTER_LOW_RANK}:{word}",
        persist_state="session",
    )
    return True if accepted else None


def _offer(workspace: Workspace, seen: _Seen) -> None:
    """The report, the settings, the command, and its button."""
    st.html(adapter_facts.report_table(seen.report, source=seen.source))
    named = seen.report["base_model"]
    left, right = st.columns(2)
    with left:
        base = st.text_input(
            "Base model: a folder, a GGUF file or a Hub id",
            key=f"{Key.ADAPTER_BASE}:{seen.word}",
            placeholder=named or "the adapter names none",
            persist_state="session",
        )
    with right:
        key = f"{Key.ADAPTER_OUT}:{seen.word}:{seen.called}"
        taken = [run.id for run in workspace.runs().records]
        st.session_state.setdefault(key, commands.free_id(_as_id(seen.called), taken))
        out = st.text_input("Name of the run", key=key, max_chars=100, persist_state="session")
    problem = _problem(workspace, out, base or named)
    if problem:
        notices.show_problem("This adapter cannot be added yet.", problem)
    argv = commands.import_argv(
        seen.word, workspace=workspace.root, out=out, base=_model(base), **seen.options
    )
    st.code(commands.command_line(argv), language="bash", wrap_lines=True)
    if st.button("Add", key=Key.ADAPTER_ADD, type="primary", disabled=bool(problem)):
        try:
            job = job_panel.start_job(
                workspace, kind="import", title=f"Import {out}", argv=argv, output=""
            )
        except GraspError as error:
            notices.show_problem("Nothing was added.", str(error))
            return
        st.session_state[ADDED] = job.id
        st.session_state.pop(LOOKED)
        st.rerun()


def _problem(workspace: Workspace, out: str, base: str | None) -> str:
    """Why the adapter cannot be added as it is, or "" if it can."""
    if not base:
        return "The adapter names no base model; enter the one it was trained on."
    if not is_id(out):
        return "A run's name may contain only letters, digits, dots, dashes and underscores."
    try:
        there = workspace.folder("runs", out).exists()
    except InputError as error:
        return str(error)
    return f"A run named {out} already exists; choose another name." if there else ""


def _as_id(name: str) -> str:
    """A folder's name, turned into a valid run id."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name)
    return plain.lstrip("._-")[:100] or "adapter"


def _model(base: str) -> str | None:
    """The base model for the command line: an absolute path if it is there, else as typed."""
    there = Path(base.strip()).expanduser()
    return str(there.resolve()) if base.strip() and there.exists() else base.strip() or None
