"""The dashboard's frame: theme, navigation, and what is on every page."""

from __future__ import annotations

from contextlib import suppress

import streamlit as st

from analysis.errors import DatabaseUnavailable
from dashboard.state import caches
from dashboard.state.access import READ_ONLY, read_only
from dashboard.state.annotator import ask_name
from dashboard.state.selection import Key, collect_wrong_links
from dashboard.style import notices
from dashboard.style.markup import STYLE, literal
from dashboard.style.theme import FAVICON
from grasp.jobs import queue

PAGES = (
    ("home", "Home", ":material/home:", "What the fine-tune learned besides its task."),
    ("workspace", "Workspace", ":material/folder_open:", "Runs, their origin, and jobs."),
    ("spectra", "Spectra", ":material/bar_chart:", "Singular values of the weight updates."),
    ("factors", "Factors", ":material/explore:", "Ranked factors with their evidence and labels."),
    ("labels", "Labels", ":material/sell:", "All labels, and how far people agree."),
    ("retrain", "Retrain", ":material/model_training:", "Fine-tune again, protecting factors."),
    ("compare", "Compare", ":material/compare_arrows:", "Base model, naive run, GRASP and rivals."),
)


def main() -> None:
    """Draw the frame and run the selected page."""
    st.set_page_config(
        page_icon=FAVICON,
        layout="wide",
        menu_items={
            "About": "Find, label and remove what a LoRA fine-tune learned besides its task."
        },
    )
    st.html(STYLE)
    page = st.navigation(
        [
            st.Page(
                f"views/{name}.py",
                title=title,
                icon=icon,
                help=text,
                url_path=name,
                default=name == "home",
            )
            for name, title, icon, text in PAGES
        ]
    )
    with notices.catch_errors("This page"):
        st.set_page_config(page_title=f"{page.title} · {caches.workspace().root.name} · GRASP")
        _sidebar()
        if read_only():
            st.caption(f":material/lock: {literal(READ_ONLY)}")
        top = st.container(key=Key.WRONG_LINK)
        wrong = collect_wrong_links()
        page.run()
        for parameter, wanted, shown in wrong:
            top.warning(
                literal(
                    f"The link names the {parameter} {wanted}, which this page does not have; "
                    f"{shown} is shown instead."
                )
            )


def _sidebar() -> None:
    workspace = caches.workspace()
    if not read_only():
        with suppress(DatabaseUnavailable):  # which may only be locked, or read-only
            queue.reconcile(workspace.database)
    active = [job for job in queue.list_recent(workspace.database) if job.status in queue.ACTIVE]
    with st.sidebar:
        st.caption("Workspace")
        st.markdown(f"**{literal(workspace.root.name)}**", help=literal(str(workspace.root)))
        for job in active[:5]:
            with st.container(key=Key.active(job.id)):
                st.page_link(
                    "views/retrain.py",
                    label=f"Job {job.id} {literal(job.status)}",
                    icon=":material/progress_activity:",
                    help=literal(job.title),
                    query_params={"job": str(job.id)},
                )
        if not read_only():
            ask_name()


main()
