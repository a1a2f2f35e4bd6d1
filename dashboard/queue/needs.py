"""What evidence needs and this machine lacks, so that pages can say it before offering a job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from analysis.adapters.files import read_json
from analysis.base_model.files import CONFIG, INDEX, WEIGHTS, is_gguf
from analysis.errors import GraspError, NotFoundError
from analysis.store.records import RunManifest
from analysis.store.workspace import Workspace
from dashboard.queue import commands
from grasp.hub.repository import find_cached, hub_name

_SETTINGS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "activations": (("probes", "chats to record with --probes FILE"),),
    "dose": (("prompts", "a prompt set with --prompts FILE"),),
    "rows": (("prompts", "a prompt set with --prompts FILE"), ("data", "its training data")),
    "overlap": (("prompts", "a prompt set with --prompts FILE"),),
}
"""The settings of a run that each kind of evidence needs, and what to give in their place."""

_COMMANDS = {"activations": "record", "dose": "dose", "rows": "rows", "overlap": "overlap"}


def find_missing(workspace: Workspace, run: RunManifest, kind: str) -> list[str]:
    """What is missing for one kind of evidence, one sentence each; empty if nothing is."""
    found = [base] if (base := missing_base(workspace, run)) else []
    for setting, given_as in _SETTINGS[kind]:
        if run.config.get(setting):
            continue
        if setting == "data":
            found.append(
                f"{run.id} was imported, so its training data is not known; enter it on the "
                "Retrain page."
            )
        else:
            found.append(f"{run.id} has no {setting}; give {given_as}.")
    return found


def missing_set(workspace: Workspace, run: RunManifest, kind: str) -> str | None:
    """The one setting that is missing, "probes" or "prompts", if a shipped set can take its place.

    None if nothing is missing, or something that no set replaces.
    """
    lacking = [name for name, _ in _SETTINGS[kind] if not run.config.get(name)]
    only = lacking[0] if len(lacking) == 1 else ""
    return only if only in ("probes", "prompts") and not missing_base(workspace, run) else None


def evidence_argv(
    workspace: Workspace, run: RunManifest, kind: str, factor: str, *, given: str
) -> list[str]:
    """The arguments that make evidence on a set given in place of the missing setting."""
    root = workspace.root
    if kind == "activations":
        return commands.record_argv(run.id, workspace=root, probes=given)
    if kind == "dose":
        return commands.dose_argv(run.id, factor, workspace=root, prompts=given)
    if kind == "rows":
        return commands.rows_argv(run.id, factor, workspace=root, prompts=given)
    return commands.overlap_argv(run.id, factor, workspace=root, prompts=given)


def evidence_command(workspace: Workspace, run: RunManifest, kind: str, factor: str) -> str | None:
    """The command that makes the evidence once its needs are met; None if no command can."""
    if kind == "rows" and not run.config.get("data"):
        return None
    argv = [_COMMANDS[kind], run.id, *([] if kind == "activations" else [factor])]
    for setting, given_as in _SETTINGS[kind]:
        if "--" in given_as and not run.config.get(setting):
            argv += [f"--{setting}", "FILE"]
    return commands.command_line([*argv, "--workspace", str(workspace.root)])


def missing_base(workspace: Workspace, run: RunManifest) -> str:
    """Why the run's base model cannot be loaded here; "" if its files are on this machine."""
    reference = workspace.resolve(run.base_model)
    if is_gguf(reference) and Path(reference).is_file():
        return ""
    if Path(reference).is_dir():
        return (
            ""
            if _is_whole(Path(reference))
            else (f"The base model folder {reference} has no weights; copy the whole model there.")
        )
    model = run.config.get("model")
    revision = model.get("revision") if isinstance(model, Mapping) else None
    try:
        whole = _is_whole(find_cached(reference, revision))
    except NotFoundError:
        whole = False
    if whole:
        return ""
    again = "or import the adapter again with --base FOLDER"
    if os.sep in reference and hub_name(reference) is None:
        return f"Its base model {reference} is not on this machine; restore it, {again}."
    return (
        f"Its base model {reference} is not on this machine; download it (hf download "
        f"{reference}), {again}."
    )


def _is_whole(folder: Path) -> bool:
    """Whether a folder holds a config and every weight file that its index names."""
    if not (folder / CONFIG).is_file():
        return False
    if not (folder / INDEX).is_file():
        return (folder / WEIGHTS).is_file() or any(folder.glob("pytorch_model*.bin"))
    try:
        placed = read_json(folder, INDEX).get("weight_map")
    except GraspError:
        return False
    names = set(placed.values()) if isinstance(placed, dict) else set()
    return bool(names) and all(isinstance(n, str) and (folder / n).is_file() for n in names)
