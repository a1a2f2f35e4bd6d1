"""One job, live: its progress and curves, how it ended, and what can be done next."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import streamlit as st

from analysis.adapters.checkpoints import saved_adapters_by_step
from analysis.errors import DatabaseUnavailable, GraspError, InputError
from analysis.store.database import Job
from analysis.store.logs import read_tail
from analysis.store.retrain_line import read_retrain
from analysis.store.workspace import Workspace
from analysis.text import duration_text
from dashboard.figures import training
from dashboard.queue import commands
from dashboard.queue.worker_process import ensure_worker
from dashboard.state import caches
from dashboard.state.access import read_only, refuse_if_read_only
from dashboard.state.selection import JOB, Key, remember
from dashboard.style import notices
from dashboard.style.markup import literal, prose
from grasp.jobs import queue
from grasp.settings.methods import METHODS

POLL_SECONDS = 1.0
LOG_LINES = 12

WORDS = {
    "held": ("Held", "orange"),
    "queued": ("Queued", "gray"),
    "running": ("Running", "blue"),
    "succeeded": ("Succeeded", "green"),
    "failed": ("Failed", "red"),
    "cancelled": ("Cancelled", "orange"),
    "interrupted": ("Interrupted", "orange"),
}


def show(workspace: Workspace, job_id: int) -> None:
    """Draw the panel of one job; it polls while the job is active, then reruns the page once."""
    try:
        job = queue.get(workspace.database, job_id)
    except GraspError as error:
        notices.show_problem("This job cannot be shown.", str(error))
        return
    active = job.status in queue.ACTIVE
    with st.container(border=True, key=Key.JOB_PANEL):
        st.fragment(_panel, run_every=POLL_SECONDS if active else None)(workspace, job_id, active)


def progress_text(job: Job, moment: datetime) -> str:
    """Steps and time since the start; the message says what is left of the stage."""
    if job.status == "queued":
        waited = (moment - job.created).total_seconds()
        return f"Waiting in the queue for {duration_text(waited)}."
    counted = bool(job.total) and job.status != "succeeded"
    words = [f"step {job.step} of {job.total}"] if counted else []
    if job.started:
        elapsed = ((job.finished or moment) - job.started).total_seconds()
        words.append(f"{duration_text(elapsed)} elapsed")
    return ", ".join(words)


def _panel(workspace: Workspace, job_id: int, was_active: bool) -> None:
    job = queue.get(workspace.database, job_id)
    if job.status == "running" and not read_only():
        with suppress(DatabaseUnavailable):
            queue.reconcile(workspace.database)
        job = queue.get(workspace.database, job_id)
    if was_active and job.status not in queue.ACTIVE:
        st.rerun(scope="app")
    _headline(job)
    folder = _folder(workspace, job)
    if folder is not None:
        _curves(job, folder)
    log = read_tail(workspace.root / "jobs" / f"{job.id}.log", lines=LOG_LINES)
    if log:
        with st.expander("Last lines of the log", key="job-log"):
            st.code(log, language=None)
    _ending(workspace, job, folder)


def _headline(job: Job) -> None:
    word, colour = WORDS.get(job.status, (literal(job.status), "gray"))
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**Job {job.id}: {literal(job.title)}**")
        st.badge(word, color=colour)  # type: ignore[arg-type]
    share = job.step / job.total if job.total else 0.0
    share = 1.0 if job.status == "succeeded" else min(max(share, 0.0), 1.0)
    st.progress(share, text=literal(progress_text(job, datetime.now(UTC))) or " ")
    if job.message and job.status == "running":
        st.caption(literal(job.message))


def _folder(workspace: Workspace, job: Job) -> Path | None:
    """The folder of the job's run, finished or still being written."""
    kind, _, name = job.output.partition("/")
    if kind != "runs":
        return None
    try:
        whole, partial = workspace.folder("runs", name), workspace.partial("runs", name)
    except GraspError:
        return None
    return partial if partial.is_dir() or not whole.is_dir() else whole


def _curves(job: Job, folder: Path) -> None:
    metrics = caches.metrics(folder / "metrics.jsonl")
    if metrics.empty or "loss" not in metrics:
        if job.status == "running":
            st.caption("No step has been logged yet.")
        return
    # Once the run is complete, the job counts the prompts of its evaluation instead of steps.
    last = int(metrics["step"].max())
    total = last if (folder / "manifest.json").is_file() else max(job.total, last)
    left, right = st.columns(2)
    with left:
        figure = training.loss_curve(metrics, total=total)
        st.plotly_chart(figure, key=Key.JOB_LOSS, config={"displayModeBar": False})
        notices.explain("The task loss should fall; the penalty holds the drift down.")
    with right:
        if "effect" in metrics:
            figure = training.effect_curve(metrics, tolerance=_tolerance(job), total=total)
            st.plotly_chart(figure, key=Key.JOB_EFFECT, config={"displayModeBar": False})
            notices.explain(
                "What the factors do in the model's answers to neutral text: 0 is the base model, "
                "1 the naive run."
            )
        if "drift" in metrics:
            figure = training.drift_curve(metrics, total=total)
            st.plotly_chart(figure, key=Key.JOB_DRIFT, config={"displayModeBar": False})
            notices.explain(
                "Distance of the adapted model's coordinates along the protected factors from "
                "the base model's, in standard deviations of the base model; 0 means no change."
            )


def _tolerance(job: Job) -> float | None:
    try:
        asked = read_retrain(job.argv)
    except InputError:  # a job of another kind
        return None
    if asked.tolerance is not None or asked.strength is not None:
        return asked.tolerance
    protection = METHODS[asked.method].protection if asked.method in METHODS else None
    return protection.tolerance if protection else None


def _ending(workspace: Workspace, job: Job, folder: Path | None) -> None:
    if job.status in queue.ACTIVE:
        if job.cancel_requested:
            st.caption("Cancelling: the job stops at its next step.")
        st.button(
            "Cancel",
            key=Key.JOB_CANCEL,
            disabled=job.cancel_requested or read_only(),
            on_click=queue.request_cancel,
            args=(workspace.database, job.id),
        )
        return
    if job.status == "succeeded":
        _link_to_result(workspace, job)
        return
    if job.error:
        st.error(prose(job.error))
    if job.status == "held":
        st.code(commands.command_line(job.argv), language="bash", wrap_lines=True)
    elif folder is not None:
        st.markdown(literal(checkpoint_text(folder)))
    st.button(
        "Queue again",
        key=Key.JOB_REQUEUE,
        disabled=read_only(),
        on_click=restart_job,
        args=(workspace, job.id),
        help="Continues from the last checkpoint, if there is one.",
    )


def checkpoint_text(folder: Path) -> str:
    """One sentence on whether anything of an unfinished run can be used."""
    found = saved_adapters_by_step(folder)
    if not found:
        return "No checkpoint was saved, so nothing of this run can be used."
    step, path = list(found.items())[-1]
    return f"The checkpoint at step {step} is complete and can be used as a plain adapter: {path}."


def restart_job(workspace: Workspace, job_id: int) -> None:
    """Queue an ended job again, make sure that a worker runs, and select the job."""
    refuse_if_read_only()
    queue.requeue(workspace.database, job_id)
    ensure_worker(workspace)
    remember(JOB, str(job_id))


def start_job(workspace: Workspace, *, kind: str, title: str, argv: list[str], output: str) -> Job:
    """Queue a command, make sure that a worker runs, and select the job."""
    refuse_if_read_only()
    job = queue.submit(workspace.database, kind=kind, title=title, argv=argv, output=output)
    ensure_worker(workspace)
    remember(JOB, str(job.id))
    return job


def show_latest(
    workspace: Workspace, *, kind: str, argv: list[str], others: Sequence[list[str]] = ()
) -> None:
    """Draw the panel of the newest job with exactly this command, if there is one.

    With other commands, such as those of further runs, the one that runs is drawn.
    """
    same = [
        job
        for job in queue.list_recent(workspace.database)
        if job.kind == kind and job.argv in (argv, *others)
    ]
    if same:
        shown = next((job for job in same if job.status == "running"), same[0])
        show(workspace, shown.id)


def _link_to_result(workspace: Workspace, job: Job) -> None:
    kind, _, name = job.output.partition("/")
    if kind != "runs":
        return
    try:
        run = workspace.run(name)
    except GraspError as error:
        notices.show_problem("The run of this job cannot be read.", str(error))
        return
    if run.verdict:
        st.markdown(literal(run.verdict))
    with st.container(key=Key.JOB_COMPARE):
        st.page_link(
            "views/compare.py",
            label="Compare it with its family",
            icon=":material/compare_arrows:",
            query_params={"family": run.root},
        )


def _open(job_id: int) -> None:
    remember(JOB, str(job_id))
    st.switch_page("views/retrain.py", query_params={"job": str(job_id)})


def show_recent(workspace: Workspace, *, kinds: tuple[str, ...] = (), limit: int = 12) -> None:
    """Draw the newest jobs as a list of links, newest first."""
    listed = [
        job for job in queue.list_recent(workspace.database) if not kinds or job.kind in kinds
    ][:limit]
    if not listed:
        notices.show_empty("No jobs yet", "Jobs that you start on these pages are listed here.")
        return
    with st.container(key=Key.JOBS):
        for job in listed:
            word, colour = WORDS.get(job.status, (literal(job.status), "gray"))
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                st.badge(word, color=colour, width=100)  # type: ignore[arg-type]
                st.button(
                    f"Job {job.id}: {literal(job.title)}",
                    key=Key.job(job.id),
                    type="tertiary",
                    on_click=_open,
                    args=(job.id,),
                    help=literal(commands.command_line(job.argv)),
                )
                st.caption(f"{job.created:%Y-%m-%d %H:%M} UTC")
