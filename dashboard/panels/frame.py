"""The top of a page about one run: its title and the run picker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import streamlit as st

from analysis.store.records import RunManifest
from analysis.store.workspace import Workspace
from dashboard.queue import commands, runs
from dashboard.state.selection import RUN, Key, pick
from dashboard.style import notices

Need = Literal["adapter", "naive"]


def show_run_header(workspace: Workspace, title: str, *, need: Need) -> RunManifest | None:
    """Draw title and run picker; return the run, or None after an empty state if no run fits.

    Args:
        workspace: the workspace of the runs.
        title: the title of the page.
        need: "adapter" for runs with an adapter of their own, "naive" for roots of families.
    """
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    with left:
        st.title(title, anchor=False)
    listing = workspace.runs()
    fits: dict[Need, Callable[[RunManifest], bool]] = {
        "adapter": lambda run: runs.has_adapter(workspace, run.id),
        "naive": lambda run: run.id == run.root,
    }
    by_id = {run.id: run for run in listing.records if fits[need](run)}
    if not by_id:
        notices.show_broken(listing.broken)
        show_no_runs(workspace)
        return None
    with right:
        run = pick("Run", RUN, list(by_id), key=Key.RUN, hidden_label=True)
    notices.show_broken(listing.broken)
    return by_id[str(run)]


def show_no_runs(workspace: Workspace) -> None:
    """The empty state of every page that needs a run."""
    notices.show_empty(
        "No runs yet",
        "Build the demo's three fine-tunes into this workspace, or add an adapter of your own on "
        "the Workspace page.",
        command=commands.command_line(["demo", "--workspace", str(workspace.root), "--no-serve"]),
    )
