"""Resolve the arguments of a command line: workspaces, runs, folders and open adapters."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from analysis.adapters.architectures import Family, read_family
from analysis.adapters.checkpoints import Checkpoint, list_checkpoints
from analysis.adapters.files import CONFIG
from analysis.adapters.load import Adapter, read_adapter
from analysis.adapters.place import find_adapter
from analysis.errors import InputError, NotFoundError, SchemaError
from analysis.store.layout import adapter_of, run_of
from analysis.store.records import Manifest, RunManifest, read_manifest
from analysis.store.workspace import Workspace, check_not_written, is_id, workspace_of
from grasp.commands.serving import named_workspace
from grasp.foreign.pickled import readable_adapter
from grasp.hub.repository import fetch_adapter, hub_name


def make_workspace(args: argparse.Namespace, *words: str) -> Workspace:
    """As `find_workspace`, and created if it is missing."""
    return Workspace.create(find_workspace(args, *words).root)


def find_workspace(args: argparse.Namespace, *words: str) -> Workspace:
    """The workspace from --workspace, else the one around a path in `words`, else the default.

    It is not created if it is missing, so that a refused command leaves nothing behind.
    """
    places = words if args.workspace is None else ()
    found = (workspace_of(Path(word)) for word in places)
    around = next((workspace for workspace in found if workspace is not None), None)
    return around or Workspace(named_workspace(args))


def run_folder(workspace: Workspace, word: str) -> tuple[Path, RunManifest]:
    """The folder and manifest of a run, named by id or by path.

    Raises:
        NotFoundError: there is no such run; the message lists the runs.
    """
    path = Path(word)
    if (path / "manifest.json").is_file():
        return path.resolve(), read_manifest(path / "manifest.json", RunManifest)
    if os.sep in word:
        made = f", or import the Hub adapter with `grasp import {word}`" if hub_name(word) else ""
        raise NotFoundError(
            f"{word} is not a run: it has no manifest.json. Give a run's folder{made}."
        )
    return workspace.folder("runs", word), workspace.run(word)


def out_folder(
    workspace: Workspace, word: str, *, overwrite: bool, again: bool = False
) -> Path:
    """Where a new run goes: `runs/<id>` of the workspace, or the folder that a path names.

    Raises:
        InputError: it is being written; or it exists, and neither may it be overwritten, being a
            run, nor is it asked for again by the job that made it.
    """
    path = Path(word).resolve() if os.sep in word else workspace.folder("runs", word)
    check_not_written(path)
    if path.exists() and not overwrite and not again:
        raise InputError(
            f"{path} already exists; choose another --out, or add --overwrite. If it only lacks "
            f"its evaluation, run `grasp evaluate {word}`."
        )
    if path.exists() and overwrite and path.parent != workspace.root / "runs":
        check_replaceable(path, RunManifest)
    return path


def check_replaceable(folder: Path, kind: type[Manifest]) -> None:
    """Refuse to write a record in the place of a folder that is none of its kind.

    Raises:
        InputError: the folder is something else.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    try:
        if folder.exists():
            read_manifest(folder / "manifest.json", kind)
    except SchemaError:
        raise InputError(
            f"{folder} is not a record of this workbench, so it is not replaced; choose another "
            "--out, or remove it."
        ) from None


@dataclass(frozen=True)
class AdapterPlace:
    """An adapter's folder, the folder of its run, and its origin on the Hub.

    `source` comes from `grasp.hub.repository.fetch_adapter`; it is empty for a local folder.
    """

    folder: Path
    run: Path | None = None
    source: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name: the run's id, or the last part of its path or Hub name."""
        if self.run is not None:
            return self.run.name
        place = self.source.get("subfolder") or self.source.get("repository")
        return place.rpartition("/")[2] if place else self.folder.resolve().name


def adapter_place(workspace: Workspace, word: str, *, pickle: bool = False) -> AdapterPlace:
    """The adapter that an argument names: a folder, a run's id, or `org/name` on the Hub.

    Raises:
        NotFoundError: it is none of them.
    """
    path = Path(word)
    if not path.is_dir():
        name = hub_name(word)
        if name is not None:
            folder, source = fetch_adapter(name, pickle=pickle)
            return AdapterPlace(folder, source=source)
        known = workspace.folder("runs", word) if is_id(word) else path
        if not known.is_dir():
            raise NotFoundError(
                f"There is neither a folder nor a run called {word!r}; give an adapter folder "
                f"(with {CONFIG}), a run of {workspace.root}, or a Hub id such as "
                "org/name or org/name@revision."
            )
        path = known
    for run in (path.resolve(), run_of(path.resolve())):
        if run is not None and (run / "manifest.json").is_file() and adapter_of(run).is_dir():
            return AdapterPlace(adapter_of(run), run)
    return AdapterPlace(path)


@dataclass(frozen=True)
class OpenAdapter:
    """An open adapter after `step` optimiser steps, or the finished one if that is None.

    `folder` is the folder that was named; a pickle is read from a copy, at `adapter.path`.
    """

    adapter: Adapter
    folder: Path
    step: int | None = None

    @property
    def as_named(self) -> Adapter:
        """The adapter with the path that was named."""
        return replace(self.adapter, path=self.folder)


@dataclass(frozen=True)
class AdapterHistory:
    """The adapter that a command was given: its place, itself, and its earlier checkpoints."""

    place: AdapterPlace
    last: OpenAdapter
    earlier: Sequence[AbstractContextManager[OpenAdapter]]

    def stages(self) -> Iterator[OpenAdapter]:
        """Yield the checkpoints, each open only in its turn, then the adapter; works only once."""
        for one in self.earlier:
            with one as stage:
                yield stage
        yield self.last


@contextmanager
def open_adapter(
    workspace: Workspace, args: argparse.Namespace, *, with_checkpoints: bool = False
) -> Iterator[AdapterHistory]:
    """Open the adapter that a command names, with the command's options.

    With checkpoints and no finished adapter, it is the last checkpoint.

    Raises:
        NotFoundError: there is no such adapter.
        AdapterError: as `load_adapter`, or a pickle is not plain tensors.
        InputError: the file of sides is invalid, or checkpoints of a Hub adapter are asked for.
    """
    place = adapter_place(workspace, args.adapter, pickle=args.allow_pickle)
    family = read_family(args.sides) if args.sides else None
    if with_checkpoints and place.source:
        raise InputError(
            f"{place.source['asked']} is on the Hub, and --checkpoints needs a folder; download "
            "the repository and give its folder."
        )
    finished = [Checkpoint(None, place.folder)]
    found = list_checkpoints(place.folder) if with_checkpoints else finished
    *earlier, last = [_opened(one, args, family) for one in found]
    with last as stage:
        yield AdapterHistory(place, stage, earlier)


@contextmanager
def _opened(
    at: Checkpoint, args: argparse.Namespace, family: Family | None
) -> Iterator[OpenAdapter]:
    place = find_adapter(at.path, args.name)
    with readable_adapter(place.folder, allow_pickle=args.allow_pickle) as folder:
        readable = replace(place, folder=folder)
        adapter = read_adapter(readable, family=family, low_rank_part=args.low_rank_part)
        yield OpenAdapter(adapter, place.folder, at.step)
