"""The steps that follow a fine-tune, and the next of them as a button."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import streamlit as st

from analysis.adapters.choices import uses_dora
from analysis.errors import GraspError
from analysis.store import labels
from analysis.store.label_directions import follow_directions
from analysis.store.records import RunManifest
from analysis.store.workspace import Workspace
from dashboard.panels import job_panel
from dashboard.queue import commands
from dashboard.queue.needs import missing_base
from dashboard.queue.next_step import Act, Step, list_steps
from dashboard.state import caches
from dashboard.state.access import read_only
from dashboard.state.selection import FAMILY, RUN, Key
from dashboard.style.markup import escape, literal
from grasp.jobs import queue

PAGES: dict[Act, tuple[str, str]] = {
    "evaluate": ("compare", FAMILY),
    "factors": ("factors", RUN),
    "label": ("factors", RUN),
    "retrain": ("retrain", RUN),
    "compare": ("compare", FAMILY),
}
"""The page on which a step is taken, and the parameter that opens it on the run."""


def show(workspace: Workspace, run: RunManifest, family: Sequence[RunManifest]) -> None:
    """Draw the steps of `run`, and a button for the first that is missing."""
    history = labels.read_events(workspace.database)
    with suppress(GraspError):  # as they are, where the factors cannot be read
        history = follow_directions(history, caches.factors(workspace, run.id))
    claims = labels.current_claims(history)
    steps = list_steps(workspace, run, family, claims)
    following = next(step for step in steps if not step.done)
    with st.container(border=True, key=Key.NEXT_STEP):
        st.subheader("Next step", anchor=False)
        st.html(steps_html(steps, following))
        if following.argv and not _is_dora(workspace, run, following):
            _start(workspace, run, following)
        else:
            _open(run, following)


def steps_html(steps: Sequence[Step], following: Step) -> str:
    """The steps as a list, in which the next one says why it is taken."""
    items = []
    for step in steps:
        state = "done" if step.done else "next" if step is following else "later"
        why = f'<span class="why">{escape(step.why)}</span>' if step is following else ""
        said = {"done": ", done", "next": ", next", "later": ""}[state]
        items.append(
            f'<li class="{state}">{escape(step.title)}<span class="unseen">{said}</span>{why}</li>'
        )
    return f'<ol class="steps">{"".join(items)}</ol>'


def _open(run: RunManifest, step: Step) -> None:
    view, parameter = PAGES[step.act]
    if st.button(step.title, key=Key.NEXT_JOB, type="primary", width="stretch"):
        st.switch_page(f"views/{view}.py", query_params={parameter: run.id})


def _start(workspace: Workspace, run: RunManifest, step: Step) -> None:
    """A button that queues the command of a step, or the command alone where it would fail."""
    missing = missing_base(workspace, run) if step.act == "evaluate" else ""
    if missing:
        st.caption(literal(missing))
    elif st.button(
        step.title, key=Key.NEXT_JOB, type="primary", width="stretch",
        disabled=read_only() or _is_active(workspace, step),
    ):  # fmt: skip
        job_panel.start_job(
            workspace, kind=step.act, title=f"{step.title}: {run.id}", argv=step.argv, output=""
        )
        st.rerun()
    st.code(commands.command_line(step.argv), language="bash", wrap_lines=True)
    job_panel.show_latest(workspace, kind=step.act, argv=step.argv)


def _is_active(workspace: Workspace, step: Step) -> bool:
    recent = queue.list_recent(workspace.database)
    return any(job.argv == step.argv and job.status in queue.ACTIVE for job in recent)


def _is_dora(workspace: Workspace, run: RunManifest, step: Step) -> bool:
    """Whether finding factors needs a decision first, which the Factors page asks for."""
    return step.act == "factors" and uses_dora(workspace.adapter(run.id))
