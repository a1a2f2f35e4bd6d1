"""The dashboard's frame: theme, navigation, and what is on every page."""

from __future__ import annotations

import getpass
import os

import streamlit as st

from dashboard.state import caches
from dashboard.state.access import READ_ONLY, read_only
from dashboard.state.selection import Key
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
        page_title="GRASP workbench",
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
    _sidebar()
    if read_only():
        st.caption(f":material/lock: {literal(READ_ONLY)}")
    page.run()


def _sidebar() -> None:
    workspace = caches.workspace()
    if not read_only():
        queue.reconcile(workspace.database)
    active = [job for job in queue.list_recent(workspace.database) if job.status in queue.ACTIVE]
    with st.sidebar:
        st.caption("Workspace")
        st.markdown(f"**{literal(workspace.root.name)}**", help=f"`{workspace.root}`")
        for job in active[:5]:
            with st.container(key=Key.active(job.id)):
                st.page_link(
                    "views/retrain.py",
                    label=f"Job {job.id} {job.status}",
                    icon=":material/progress_activity:",
                    help=literal(job.title),
                    query_params={"job": str(job.id)},
                )
        if read_only():
            return
        st.session_state.setdefault(Key.ANNOTATOR, _default_annotator())
        st.text_input(
            "Your name",
            key=Key.ANNOTATOR,
            max_chars=100,
            persist_state="session",
            help="Saved with every label you give.",
        )


def _default_annotator() -> str:
    try:
        return os.environ.get("GRASP_ANNOTATOR") or getpass.getuser()
    except OSError:
        return ""


main()
