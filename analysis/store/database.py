"""The tables of a workspace's database: label events, jobs and workers.

This is the one place that opens it: `Database` knows where it is and how it is made.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from filelock import FileLock
from sqlalchemy import (
    JSON,
    Connection,
    DateTime,
    Engine,
    String,
    Text,
    create_engine,
    event,
    inspect,
    make_url,
    text,
)
from sqlalchemy.engine import URL, Dialect
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.types import TypeDecorator

from analysis.errors import DatabaseUnavailable, InputError
from analysis.store.job_requests import load_request
from analysis.values import Json

BUSY_SECONDS = 10.0
"""How long SQLite waits for another writer."""

_CREATING = 0x67726173
"""The number of the lock under which a server's tables are made."""


def now() -> datetime:
    """The current time in UTC."""
    return datetime.now(UTC)


class UtcTime(TypeDecorator[datetime]):
    """A time in UTC; SQLite drops time zones, so they are added again on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """The value to save, in UTC."""
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """The saved value as a time in UTC."""
        return value.replace(tzinfo=UTC) if value and value.tzinfo is None else value


class DatabaseTable(DeclarativeBase):
    """Declarative base class of all tables."""


class LabelEvent(DatabaseTable):
    """One claim about a factor, or its withdrawal; rows are never changed or deleted."""

    __tablename__ = "label_events"

    id: Mapped[int] = mapped_column(primary_key=True)
    workspace: Mapped[str] = mapped_column(String(36), default="", server_default="", index=True)
    created: Mapped[datetime] = mapped_column(UtcTime, default=now)
    annotator: Mapped[str] = mapped_column(String(100), index=True)
    factor: Mapped[str] = mapped_column(String(200), index=True)
    direction_sha256: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(20))
    name: Mapped[str] = mapped_column(String(100), default="")
    polarity: Mapped[str] = mapped_column(String(200), default="")
    spurious: Mapped[bool | None] = mapped_column(default=None)
    confidence: Mapped[int | None] = mapped_column(default=None)
    note: Mapped[str] = mapped_column(Text, default="")


class Job(DatabaseTable):
    """One thing to do, and its progress.

    `request` is what is asked for, as `analysis.store.job_requests` has it; None in jobs of earlier
    versions.  `seal` shows on which machine it was queued.
    """

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(primary_key=True)
    workspace: Mapped[str] = mapped_column(String(36), default="", server_default="", index=True)
    kind: Mapped[str] = mapped_column(String(40))
    title: Mapped[str] = mapped_column(String(200))
    request: Mapped[Json | None] = mapped_column(JSON, default=None)
    seal: Mapped[str] = mapped_column(String(64), default="", server_default="")
    attempts: Mapped[int] = mapped_column(default=0, server_default="0")
    output: Mapped[str] = mapped_column(String(200), default="")
    status: Mapped[str] = mapped_column(String(20), default="queued", index=True)
    step: Mapped[int] = mapped_column(default=0)
    total: Mapped[int] = mapped_column(default=0)
    message: Mapped[str] = mapped_column(Text, default="")
    error: Mapped[str] = mapped_column(Text, default="")
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    cancelled: Mapped[datetime | None] = mapped_column(UtcTime, default=None)
    created: Mapped[datetime] = mapped_column(UtcTime, default=now)
    started: Mapped[datetime | None] = mapped_column(UtcTime, default=None)
    finished: Mapped[datetime | None] = mapped_column(UtcTime, default=None)
    heartbeat: Mapped[datetime | None] = mapped_column(UtcTime, default=None)
    host: Mapped[str] = mapped_column(String(200), default="")
    pid: Mapped[int | None] = mapped_column(default=None)

    @property
    def argv(self) -> list[str]:
        """The arguments of `grasp` that do the same; empty if no version made such a request."""
        try:
            return load_request(self.request).argv()
        except InputError:
            return []


class Worker(DatabaseTable):
    """One `grasp worker` process."""

    __tablename__ = "workers"

    id: Mapped[int] = mapped_column(primary_key=True)
    workspace: Mapped[str] = mapped_column(String(36), default="", server_default="", index=True)
    host: Mapped[str] = mapped_column(String(200))
    pid: Mapped[int]
    device: Mapped[str] = mapped_column(String(40))
    heartbeat: Mapped[datetime] = mapped_column(UtcTime, default=now)


class Database:
    """A connection pool and its sessions.

    Args:
        url: where it is, as SQLAlchemy has it.
        workspace: the workspace whose rows are meant, where several share a server; "" in a
            workspace's own file.
    """

    def __init__(self, url: str, *, workspace: str = "") -> None:
        self.url = url
        self.workspace = workspace

    @cached_property
    def engine(self) -> Engine:
        """The SQLAlchemy engine; SQLite uses WAL mode, so that readers never wait for a writer.

        Raises:
            InputError: the URL is invalid, or its driver is not installed.
        """
        try:
            engine = create_engine(self._location, pool_pre_ping=self.file is None)
        except ModuleNotFoundError as error:
            raise InputError(
                f"{self._location.drivername} needs the package {error.name}, which is not "
                'installed; for PostgreSQL, run `pip install "grasp-workbench[postgresql]"`.'
            ) from None
        except SQLAlchemyError as error:
            raise InputError(
                f"The database URL cannot be used ({_in_a_line(error)}); expected one such as "
                "postgresql://user@host/name."
            ) from None
        if self.file is not None:
            event.listen(engine, "connect", _configure_sqlite)
        return engine

    @cached_property
    def file(self) -> Path | None:
        """The file of an SQLite database; None for a server."""
        name = self._location.database
        local = self._location.get_backend_name() == "sqlite" and name not in (None, "", ":memory:")
        return Path(str(name)) if local else None

    @property
    def place(self) -> str:
        """What tells this database's jobs from those of a copy: its file, or the workspace."""
        return str(self.file.resolve()) if self.file is not None else self.workspace

    def create(self) -> None:
        """Make the missing tables and columns; safe where several processes do so at once.

        Raises:
            DatabaseUnavailable: it cannot be opened or written.
        """
        with self._translated():
            if self._is_whole():
                return
            if self.file is None:
                with self.engine.begin() as connection:
                    if self.engine.dialect.name == "postgresql":
                        connection.execute(text(f"SELECT pg_advisory_xact_lock({_CREATING})"))
                    self._make(connection)
                return
            with FileLock(self.file.with_name(f".{self.file.name}.lock")):
                with self.engine.begin() as connection:
                    self._make(connection)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A session that commits at the end of the block and rolls back on an error.

        Raises:
            DatabaseUnavailable: the database did not take or give what was asked; nothing is saved.
        """
        with self._translated(), self._sessions.begin() as session:
            yield session

    def copy_to(self, target: Path) -> None:
        """Write a whole copy of an SQLite database, also while others write to it."""
        assert self.file is not None
        with self._translated(), self.engine.connect() as connection:
            source = connection.connection.driver_connection
            assert isinstance(source, sqlite3.Connection)
            copy = sqlite3.connect(target)
            try:
                source.backup(copy)
            finally:
                copy.close()

    @cached_property
    def _location(self) -> URL:
        try:
            return make_url(self.url)
        except ArgumentError:
            raise InputError(
                f"{self.url!r} is no database URL; expected one such as "
                "postgresql://user@host/name."
            ) from None

    @cached_property
    def _sessions(self) -> sessionmaker[Session]:
        return sessionmaker(self.engine, expire_on_commit=False)

    def _is_whole(self) -> bool:
        if self.file is not None and not self.file.exists():
            return False
        return not _lacking(self.engine) and not _outdated(self.engine)

    def _make(self, connection: Connection) -> None:
        """Make what is missing.  What an earlier version left is copied before it is changed."""
        if inspect(connection).has_table("label_events") and self.file is not None:
            self.copy_to(self.file.with_name(f"{self.file.name}.before-{now():%Y%m%d-%H%M%S}"))
        DatabaseTable.metadata.create_all(connection)
        for table, columns in _lacking(connection).items():
            for name in columns:
                column = DatabaseTable.metadata.tables[table].columns[name]
                kind = column.type.compile(connection.dialect)
                given = column.server_default
                default = "" if given is None else f" NOT NULL DEFAULT '{given.arg}'"  # type: ignore[attr-defined]
                connection.execute(text(f"ALTER TABLE {table} ADD COLUMN {name} {kind}{default}"))
                if name == "workspace":  # the first workspace that opens a shared one takes it over
                    named = {"workspace": self.workspace}
                    connection.execute(text(f"UPDATE {table} SET workspace = :workspace"), named)
        if _outdated(connection):
            connection.execute(text("ALTER TABLE jobs DROP COLUMN argv"))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            where = self._location.render_as_string(hide_password=True)
            raise DatabaseUnavailable(
                f"The database {self.file or where} did not answer as it should "
                f"({_in_a_line(error.orig or error)}), so nothing was saved; see that it can be "
                "reached and written and that its disk has room, then try again."
            ) from error


def _lacking(engine: Engine | Connection) -> dict[str, list[str]]:
    """Table → the columns that it lacks; all of a table that is missing."""
    there = inspect(engine)
    tables = set(there.get_table_names())
    found = {}
    for table in DatabaseTable.metadata.sorted_tables:
        known = {one["name"] for one in there.get_columns(table.name)} if table.name in tables else ()
        if missing := [column.name for column in table.columns if column.name not in known]:
            found[table.name] = missing
    return found


def _outdated(engine: Engine | Connection) -> bool:
    """Whether jobs are still saved as command lines, as earlier versions did."""
    there = inspect(engine)
    return "jobs" in there.get_table_names() and any(
        column["name"] == "argv" for column in there.get_columns("jobs")
    )


def _in_a_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # What a schema brings along, in a file that may be a stranger's, calls no risky functions.
    busy = f"busy_timeout={round(1000 * BUSY_SECONDS)}"
    pragmas = (busy, "journal_mode=WAL", "synchronous=FULL", "trusted_schema=OFF")
    for pragma in pragmas:
        connection.execute(f"PRAGMA {pragma}").close()
