"""Retrain: choose factors and a method, review what will happen, start the job, watch it."""

from __future__ import annotations

import re
from pathlib import Path

import streamlit as st

from analysis.base_model.memory_estimate import describe_memory_needs
from analysis.errors import GraspError
from analysis.store import labels
from analysis.store.factor_table import FactorTable
from analysis.store.label_directions import find_stale, follow_directions
from analysis.store.records import RunManifest
from analysis.store.retrain_line import Retrain
from analysis.store.workspace import Workspace
from analysis.text import duration_text
from dashboard.panels import job_panel, method_form, missing_settings
from dashboard.panels.frame import show_run_header
from dashboard.queue import commands, preflight, runs
from dashboard.state import caches
from dashboard.state.access import read_only
from dashboard.state.annotator import annotator, offer_to_see, see, sees_everything
from dashboard.state.selection import JOB, Key, read_number
from dashboard.style import notices
from dashboard.style.markup import literal, prose
from grasp.data.report import read_report
from grasp.foreign.settings import is_complete
from grasp.jobs import queue
from grasp.settings.methods import METHODS
from grasp.settings.protection import Method, Protection


def draw_page() -> None:
    """Draw the page."""
    workspace = caches.workspace()
    run = show_run_header(workspace, "Retrain", need="naive")
    shown = _job_shown(workspace)
    if shown is not None:
        job_panel.show(workspace, shown)
    if run is not None:
        if not is_complete(run) and not read_only():
            with notices.catch_errors("The form for missing settings"):
                missing_settings.ask_for_settings(workspace, run)
        with notices.catch_errors("The factors"):
            _plan(workspace, run, caches.factors(workspace, run.id))
    st.subheader("Recent jobs", anchor=False)
    job_panel.show_recent(workspace)


def _job_shown(workspace: Workspace) -> int | None:
    """The job named in the URL, else the newest active one."""
    named = read_number(JOB)
    if named is not None:
        return named
    active = [job.id for job in queue.list_recent(workspace.database) if job.status in queue.ACTIVE]
    return active[0] if active else None


def _plan(workspace: Workspace, run: RunManifest, table: FactorTable) -> None:
    left, right = st.columns([3, 2], gap="large")
    with left:
        method = method_form.choose_method()
        factors = _factors(workspace, run, table) if "factors" in method.needs else []
        settings = method_form.choose_settings(method, run)
        out = _name(workspace, run, method.name)
    with right, st.container(border=True):
        try:
            chosen = preflight.drop_dependent(workspace, factors, run=run.id)
            asked = Retrain(
                run.id,
                tuple(chosen.factors),
                method=method.name,
                out=out,
                strength=settings.strength,
                tolerance=settings.tolerance,
                inoculation=settings.inoculation,
                seed=settings.seed,
                evaluate=bool(run.config.get("prompts")),
            )
            argv = commands.retrain_argv(asked, workspace=workspace.root)
            workspace.folder("runs", out)
        except GraspError as error:
            st.markdown("**What will happen**")
            st.markdown(prose(str(error)))
            return
        if method.trains and not is_complete(run):
            st.markdown("**What will happen**")
            st.markdown("This method trains, so first fill in the missing settings above.")
            return
        _what_will_happen(workspace, run, asked, method, argv)
        _left_out(chosen)
        _data(workspace, run)
        problems = preflight.find_problems(workspace, run, asked)
        if out in _taken(workspace):
            problems.append(f"A run named {out} already exists; choose another name.")
        for problem in problems:
            st.warning(prose(problem))
        stopped = bool(problems) or read_only()
        if st.button("Start …", key=Key.RETRAIN_REVIEW, type="primary", disabled=stopped):
            _confirm(workspace, run, method.name, argv, out)


def _factors(workspace: Workspace, run: RunManifest, table: FactorTable) -> list[str]:
    history = labels.read_events(workspace.database)
    seen = see(follow_directions(history, table), annotator(), everything=sees_everything())
    claims = labels.current_claims(seen.events)
    spurious = labels.spurious_factors(seen.events)
    ids = [runs.factor_name(run.id, name) for name in table.table["id"]]
    default = [name for name in ids if name in spurious]
    state = f"{Key.RETRAIN_FACTORS}:{run.id}:{','.join(default)}"
    if st.session_state.get("retrain-factors-for") != state:
        st.session_state["retrain-factors-for"] = state
        st.session_state[Key.RETRAIN_FACTORS] = default

    def shown(name: str) -> str:
        label = runs.label_names(claims.get(name, {})) or "no label"
        mark = ", spurious" if name in spurious else ""
        return f"{name.rpartition('/')[2]}: {label}{mark}"

    selected = st.multiselect(
        "Factors to protect",
        ids,
        key=Key.RETRAIN_FACTORS,
        format_func=shown,
        persist_state="session",
        help="Factors labelled spurious are selected by default.",
    )
    if not default:
        st.caption("You see no factor labelled spurious; label factors on the Factors page.")
    if stale := len(find_stale(workspace, history, table)):
        are = "label is" if stale == 1 else "labels are"
        st.caption(
            f"{stale} {are} about directions that these factors no longer have, and not used; the "
            "Labels page lists them."
        )
    offer_to_see(seen.hidden)
    return list(selected)


def _name(workspace: Workspace, run: RunManifest, method: str) -> str:
    stem = run.id.removesuffix("-naive")
    free = commands.free_id(f"{stem}-{method}", sorted(_taken(workspace)))
    if st.session_state.get("retrain-out-for") != free:
        st.session_state["retrain-out-for"] = free
        st.session_state[Key.RETRAIN_OUT] = free
    return str(
        st.text_input("Name of the new run", key=Key.RETRAIN_OUT, max_chars=100) or ""
    ).strip()


def _taken(workspace: Workspace) -> set[str]:
    """Names in use: of all runs, broken ones included, and of runs that queued jobs will make."""
    listing = workspace.runs()
    made = {run.id for run in listing.records} | {broken.id for broken in listing.broken}
    planned = {
        job.output.removeprefix("runs/")
        for job in queue.list_recent(workspace.database, limit=200)
        if job.output.startswith("runs/")
    }
    return made | planned


def _what_will_happen(
    workspace: Workspace, run: RunManifest, asked: Retrain, method: Method, argv: list[str]
) -> None:
    st.markdown("**What will happen**")
    then = ", then evaluated" if asked.evaluate else ""
    count = "one factor" if len(asked.factors) == 1 else f"{len(asked.factors)} factors"
    if method.trains:
        held = f", protecting {count}" if asked.factors else ""
        words = (
            f"The base model {run.base_model} is fine-tuned again with the settings and data of "
            f"{run.id}{held} ({method.label}){then}."
        )
    elif method.kind == "edit":
        words = f"Nothing is trained: the adapter of {run.id} is edited ({method.label}){then}."
    else:
        done = "steers against" if method.name == "steering" else "ablates"
        words = (
            f"Nothing is trained: the new run {done} {count} of {run.id} whenever the adapted "
            f"model answers{', and is evaluated that way' if then else ''}."
        )
    st.markdown(literal(words))
    st.markdown(literal(time_estimate(run, method.name)))
    base = Path(workspace.resolve(run.base_model))
    if method.trains and base.exists():
        st.caption(literal(describe_memory_needs(base, run.config)))
    st.code(commands.command_line(argv), language="bash", wrap_lines=True)


def _left_out(chosen: preflight.Selection) -> None:
    """Factors that were selected and add nothing."""
    for name, parts in chosen.left_out.items():
        told = re.sub(r"\S+/", "", parts)
        st.caption(
            literal(
                f"{name.rpartition('/')[2]} is left out: it lies in the span of {told}, so it is "
                "protected with them."
            )
        )


def _data(workspace: Workspace, run: RunManifest) -> None:
    """The data report of the run, if it was trained here."""
    report = read_report(workspace.folder("runs", run.id))
    if report is None:
        return
    lines = report.lines()
    warnings = [line for line in lines if line.startswith("Warning: ")]
    for line in warnings:
        st.warning(literal(line.removeprefix("Warning: ")))
    with st.expander("Training data", key="retrain-data"):
        for line in lines:
            if line not in warnings:
                st.caption(literal(line))


def time_estimate(run: RunManifest, method: str) -> str:
    """How long it may take, judging by the naive run."""
    if run.seconds is None:
        return "There is no time estimate, because the duration of the naive run is not known."
    if not METHODS[method].trains:
        return "This takes about as long as an evaluation, usually seconds."
    protection = METHODS[method].protection or Protection()
    if protection.anchor or protection.divergence is not None:
        factor = 2.5
    else:
        factor = 1.5 if protection.anchor_task or protection.clamp else 1.2
    return (
        f"The naive run took {duration_text(run.seconds)}; expect about "
        f"{duration_text(factor * run.seconds)} of training, plus the evaluation."
    )


@st.dialog("Start this job?")
def _confirm(
    workspace: Workspace, run: RunManifest, method: str, argv: list[str], out: str
) -> None:
    st.markdown(literal(f"Retrain {run.id} with {runs.method_label(method)}, as {out}."))
    st.code(commands.command_line(argv), language="bash", wrap_lines=True)
    st.caption(literal(time_estimate(run, method)))
    with st.container(horizontal=True):
        if st.button("Start", key=Key.RETRAIN_START, type="primary"):
            job_panel.start_job(
                workspace,
                kind="retrain",
                title=f"{runs.method_label(method)} on {run.id}",
                argv=argv,
                output=f"runs/{out}",
            )
            st.rerun()
        if st.button("Back", key=Key.RETRAIN_BACK):
            st.rerun()


if __name__ == "__main__":
    draw_page()
