"""A workspace that is opened to be read only, such as one that is shown in public."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import event

from analysis.errors import InputError
from analysis.store.database import Database
from analysis.store.workspace import NUMBER_FILE, Kind, Workspace

READ_ONLY = "This workspace was opened to be read only; nothing was written."

_REFUSE = {
    "sqlite": "PRAGMA query_only=ON",
    "postgresql": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
}
"""What makes a connection refuse to write, by kind of database."""


class ReadOnlyWorkspace(Workspace):
    """A workspace whose database and folders refuse to be written through it."""

    @classmethod
    def open(cls, root: str | Path) -> ReadOnlyWorkspace:
        """The workspace at `root`.

        Raises:
            InputError: there is none, and nothing may be made.
        """
        workspace = cls(root)
        if not workspace.root.is_dir() or not _has_database(workspace.root):
            raise InputError(
                f"There is no workspace at {root}, and a read-only dashboard makes none; give the "
                "folder of an existing one."
            )
        return workspace

    @cached_property
    def database(self) -> Database:
        """The database, each connection to which refuses to write.

        Raises:
            InputError: it is of a kind that cannot be told to refuse.
        """
        database = super().database
        kind = database.engine.dialect.name
        if kind not in _REFUSE:
            raise InputError(f"A {kind} database cannot be opened to be read only.")

        def refuse(connection: Any, _record: object) -> None:
            cursor = connection.cursor()
            cursor.execute(_REFUSE[kind])
            cursor.close()

        event.listen(database.engine, "connect", refuse)
        return database

    def writing(self, kind: Kind, record_id: str) -> AbstractContextManager[Path]:
        """Refuses.

        Raises:
            InputError: always.
        """
        raise InputError(f"{READ_ONLY} It would have been {kind}/{record_id}.")


def _has_database(root: Path) -> bool:
    """Whether it has a database of its own, or a number by which a shared one knows it."""
    shared = bool(os.environ.get("GRASP_DATABASE_URL"))
    return (root / (NUMBER_FILE if shared else "workspace.db")).is_file()
