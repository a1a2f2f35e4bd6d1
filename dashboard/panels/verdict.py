"""The verdict on the GRASP runs of a family, in sentences, above everything else."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from analysis.comparison.verdict import NO_BASE, Verdict, state_verdict
from analysis.store.records import RunManifest, Split
from analysis.store.workspace import Workspace
from dashboard.queue import commands, runs
from dashboard.queue.next_step import is_evaluated
from dashboard.state import caches
from dashboard.state.selection import Key
from dashboard.style.glossary import mark_terms


def show_verdict(
    workspace: Workspace, arms: Sequence[RunManifest], table: pd.DataFrame, *, split: Split
) -> None:
    """Draw the verdict; `table` is the comparison of the `arms`, all of which are evaluated."""
    ids = [run.id for run in arms]
    judged = [run.id for run in runs.grasp_runs(arms)]
    controls = [run.id for run in runs.random_controls(arms)]
    found = state_verdict(
        table,
        runs.arm_labels(arms),
        judged=judged,
        controls=controls,
        tests=caches.control_tests(workspace, ids, judged=judged, controls=controls, split=split),
    )
    with st.container(border=True, key=Key.VERDICT):
        st.html(verdict_html(found))


def show_without_base(workspace: Workspace, root: str) -> bool:
    """Draw why there is no verdict if the family's base model has not been evaluated."""
    if is_evaluated(workspace, f"{root}.base"):
        return False
    with st.container(border=True, key=Key.VERDICT):
        st.html(verdict_html(Verdict((NO_BASE,))))
        argv = commands.evaluate_argv(root, workspace=workspace.root)
        st.code(commands.command_line(argv), language="bash", wrap_lines=True)
    return True


def verdict_html(found: Verdict) -> str:
    """The first sentence large, the others below it, and what the numbers are."""
    seen: set[str] = set()
    first, *others = found.sentences
    parts = [f'<p class="lead">{mark_terms(first, seen=seen)}</p>']
    parts += [f'<p class="more">{mark_terms(one, seen=seen)}</p>' for one in others]
    if found.basis:
        parts.append(f'<p class="small">{mark_terms(found.basis, seen=seen)}</p>')
    return "".join(parts)
