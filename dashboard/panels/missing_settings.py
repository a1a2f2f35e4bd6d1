"""A form on the Retrain page for the settings that an adapter made elsewhere lacks."""

from __future__ import annotations

import streamlit as st

from analysis.errors import GraspError
from analysis.store.records import RunManifest
from analysis.store.workspace import Workspace
from dashboard.queue import commands, runs
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

OPTIONAL = """\
# neutral: text without the factor, which GRASP needs
# prompts: prompt set on which the runs are evaluated
"""


def ask_for_settings(workspace: Workspace, run: RunManifest) -> None:
    """List the missing settings and draw a form for them; valid input is saved with the run."""
    adapter = runs.adapter_folder(workspace, run.id)
    missing = missing_names(run, adapter)
    with st.container(border=True, key=Key.MISSING):
        st.markdown("**Missing settings of this adapter**")
        st.markdown(
            literal(
                f"{run.id} was made elsewhere. Retraining it needs these settings: "
                f"{', '.join(missing)}. They are not guessed, because a retrained run should "
                "differ from the original only in what is protected. Methods that do not train "
                "need none of them."
            )
        )
        for hint in read_known(adapter).hints:
            st.caption(literal(f"Found but not used: {hint}."))
        if _given(workspace, run, missing):
            st.rerun()


def _given(workspace: Workspace, run: RunManifest, missing: list[str]) -> bool:
    with st.form("missing-settings", border=False, clear_on_submit=False):
        data = st.text_input(
            "Training data: a file or folder on the machine that serves this page, or hub:org/name",
            key=Key.MISSING_DATA,
            placeholder="/path/to/data.jsonl",
        )
        lines = st.text_area(
            "Other settings, as YAML",
            value=_lines(missing),
            key=Key.MISSING_SETTINGS,
            height=260,
        )
        asked = st.form_submit_button("Save these settings", key=Key.MISSING_KEEP)
    command = ["retrain", run.id, "--data", data or "FILE", "--config", "FILE", "--dry-run"]
    st.caption("The same from a terminal, with the settings in FILE; it also reports on the data:")
    st.code(commands.command_line(command), language="bash", wrap_lines=True)
    if not asked:
        return False
    try:
        given = parse_given(lines or "", source="The settings")
        said = (data or "").strip()
        adapter = runs.adapter_folder(workspace, run.id)
        made = complete_run(workspace, run, adapter, given | ({"data": said} if said else {}))
        save_manifest(workspace.folder("runs", run.id), made)
    except GraspError as error:
        notices.show_problem("Nothing was saved.", str(error))
        return False
    return True


def _lines(missing: list[str]) -> str:
    names = [LENGTH[0] if " or " in name else name for name in missing]
    return "".join(f"{name}:\n" for name in names if name != "data") + OPTIONAL
