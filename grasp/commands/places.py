"""Which workspace, run or folder the words on a command line mean."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from analysis.errors import InputError, NotFoundError
from analysis.records import RunManifest, read_manifest
from analysis.workspace import Workspace, workspace_of
from grasp.commands.serving import named_workspace


def workspace_for(args: argparse.Namespace, *words: str) -> Workspace:
    """The workspace named by --workspace, or that one of `words` lies in, or the default."""
    return _around(args, words) or Workspace.create(named_workspace(args))


def unmade_workspace(args: argparse.Namespace, *words: str) -> Workspace:
    """As `workspace_for`, but not created where it is missing: a refused command leaves nothing."""
    return _around(args, words) or Workspace(named_workspace(args))


def _around(args: argparse.Namespace, words: Sequence[str]) -> Workspace | None:
    if args.workspace is not None:
        return None
    found = (workspace_of(Path(word)) for word in words)
    return next((workspace for workspace in found if workspace is not None), None)


def run_folder(workspace: Workspace, word: str) -> tuple[Path, RunManifest]:
    """The folder and manifest of a run, named by id or by path.

    Raises:
        NotFoundError: there is no such run; those there are are listed.
    """
    path = Path(word)
    if (path / "manifest.json").is_file():
        return path.resolve(), read_manifest(path / "manifest.json", RunManifest)
    if os.sep in word:
        raise NotFoundError(f"{word} is no run: it has no manifest.json. Give a run's folder.")
    return workspace.folder("runs", word), workspace.run(word)


def out_folder(workspace: Workspace, word: str, *, overwrite: bool) -> Path:
    """Where a new run goes: `runs/<id>` of the workspace, or the folder that a path names.

    Raises:
        InputError: there is something already, and it is not to be overwritten.
    """
    path = Path(word).resolve() if os.sep in word else workspace.folder("runs", word)
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already; choose another --out, or add --overwrite.")
    return path


def adapter_folder(workspace: Workspace, word: str) -> tuple[Path, Path | None]:
    """The adapter folder that a path or a run's id means, and the run's folder if it is of one."""
    path = Path(word)
    if not path.is_dir():
        path = workspace.folder("runs", word) if os.sep not in word else path
        if not path.is_dir():
            raise NotFoundError(
                f"There is neither a folder nor a run called {word!r}; give an adapter folder "
                f"(with adapter_config.json), or a run of {workspace.root}."
            )
    for run in (path.resolve(), path.resolve().parent):
        if (run / "manifest.json").is_file() and (run / "adapter").is_dir():
            return run / "adapter", run
    return path, None
