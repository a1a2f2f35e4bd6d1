"""Which workspace, run or folder the words on a command line mean."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from analysis.errors import InputError, NotFoundError
from analysis.store.records import RunManifest, read_manifest
from analysis.store.workspace import Workspace, is_id, workspace_of
from grasp.commands.serving import named_workspace
from grasp.hub.repository import fetch_adapter, hub_name


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
        made = f", or make one of a Hub adapter by `grasp import {word}`" if hub_name(word) else ""
        raise NotFoundError(
            f"{word} is no run: it has no manifest.json. Give a run's folder{made}."
        )
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


@dataclass(frozen=True)
class AdapterPlace:
    """An adapter's folder, the folder of the run it is of, and where on the Hub it came from.

    `source` is what `grasp.hub.repository.fetch_adapter` says, empty for a folder of this machine.
    """

    folder: Path
    run: Path | None = None
    source: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What to call it: the run's id, or the last part of its path or Hub name."""
        if self.run is not None:
            return self.run.name
        place = self.source.get("subfolder") or self.source.get("repository")
        return place.rpartition("/")[2] if place else self.folder.resolve().name


def adapter_place(workspace: Workspace, word: str, *, pickle: bool = False) -> AdapterPlace:
    """The adapter that a word means: a folder, else a run's id, else `org/name` on the Hub.

    Raises:
        NotFoundError: it is none of them.
    """
    path = Path(word)
    name = hub_name(word)
    if not path.is_dir() and name is not None:
        folder, source = fetch_adapter(name, pickle=pickle)
        return AdapterPlace(folder, source=source)
    if not path.is_dir():
        known = workspace.folder("runs", word) if is_id(word) else path
        if not known.is_dir():
            raise NotFoundError(
                f"There is neither a folder nor a run called {word!r}; give an adapter folder "
                f"(with adapter_config.json), a run of {workspace.root}, or a Hub id such as "
                "org/name or org/name@revision."
            )
        path = known
    for run in (path.resolve(), path.resolve().parent):
        if (run / "manifest.json").is_file() and (run / "adapter").is_dir():
            return AdapterPlace(run / "adapter", run)
    return AdapterPlace(path)
