"""A whole workspace as one archive, which opens elsewhere."""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from analysis.errors import InputError
from analysis.store.database import Database, LabelEvent
from analysis.store.labels import add_events, read_events
from analysis.store.workspace import Workspace

DATABASE = "workspace.db"


def write_bundle(workspace: Workspace, out: Path) -> list[str]:
    """Write the workspace's files and its database into the archive `out`, also while it is used.

    Links that lead out of the workspace are left out, as are pipes and the like.

    Returns:
        What was left out.

    Raises:
        DatabaseUnavailable: the database cannot be read.
        InputError: the archive cannot be written.
    """
    left_out = []
    part = out.with_name(f".{out.name}.part")
    try:
        with tempfile.TemporaryDirectory() as place, ZipFile(part, "w", ZIP_DEFLATED) as archive:
            database = Path(place) / DATABASE
            _copy_database(workspace, database)
            archive.write(database, DATABASE)
            for path in _files(workspace.root):
                if not _is_own(path, workspace.root):
                    left_out.append(path.relative_to(workspace.root).as_posix())
                    continue
                with suppress(FileNotFoundError):  # a run that is being made moves on
                    archive.write(path, path.relative_to(workspace.root))
        part.replace(out)
    except OSError as error:
        raise InputError(f"{out} could not be written ({error.strerror or error}).") from None
    finally:
        part.unlink(missing_ok=True)
    return left_out


def _copy_database(workspace: Workspace, target: Path) -> None:
    """The database as a file: a copy of one, or the labels of a workspace on a server."""
    database = workspace.database
    if database.file is not None:
        database.copy_to(target)
        return
    copy = Database(f"sqlite:///{target}")
    copy.create()
    columns = [one.name for one in LabelEvent.__table__.columns if one.name != "workspace"]
    rows = [{name: getattr(event, name) for name in columns} for event in read_events(database)]
    add_events(copy, [LabelEvent(**row) for row in rows])
    copy.engine.dispose()
    with suppress(FileNotFoundError):
        target.with_name(f"{target.name}-wal").unlink()


def _files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        beside = path.parent == root and path.name.startswith((f"{DATABASE}", f".{DATABASE}"))
        if not path.is_dir() and not beside:
            yield path


def _is_own(path: Path, root: Path) -> bool:
    """Whether a path is a file of the workspace, itself or by a link."""
    try:
        return path.resolve().is_relative_to(root) and stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False
