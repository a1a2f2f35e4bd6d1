"""The workspace folder: where each record is stored, and how it is written and found."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, Literal, TypeVar, cast

from analysis.errors import (
    DatabaseUnavailable,
    GraspError,
    InputError,
    NotFoundError,
    SchemaError,
)
from analysis.store.database import Database
from analysis.store.layout import adapter_of
from analysis.store.records import (
    EvaluationManifest,
    EvidenceKind,
    EvidenceManifest,
    FactorsManifest,
    Manifest,
    RecordingManifest,
    RunManifest,
    read_manifest,
)
from analysis.text import escape_unprintable

Kind = Literal["runs", "factors", "recordings", "evaluations", "evidence"]

ManifestT = TypeVar("ManifestT", bound=Manifest)

_SCHEMAS: dict[Kind, type[Manifest]] = {
    "runs": RunManifest,
    "factors": FactorsManifest,
    "recordings": RecordingManifest,
    "evaluations": EvaluationManifest,
    "evidence": EvidenceManifest,
}
NUMBER_FILE = "workspace.id"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Broken:
    """A folder that is not a complete record, and the reason in words."""

    id: str
    reason: str


@dataclass(frozen=True)
class Listing(Generic[ManifestT]):
    """The records in a folder: the readable ones, oldest first, and the broken ones."""

    records: list[ManifestT]
    broken: list[Broken]


class Workspace:
    """A folder with all of a project's records, and its database.

    Records lie under their kind and id, such as runs/code-naive; workspace.db has label events
    and jobs, models/ the built base models, data/ the generated data files.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).resolve()

    @classmethod
    def create(cls, root: str | Path) -> Workspace:
        """Open `root`; create the folder and its database if they are missing.

        Raises:
            InputError: it is no folder, or cannot be made.
            DatabaseUnavailable: the database is damaged, or cannot be reached.
        """
        workspace = cls(root)
        if workspace.root.exists() and not workspace.root.is_dir():
            raise InputError(f"{root} is a file, but a workspace is a folder; give another path.")
        try:
            for name in (*_SCHEMAS, "models", "data"):
                (workspace.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"The workspace {root} cannot be made ({error.strerror}); give another path."
            ) from None
        workspace.database.create()
        return workspace

    @cached_property
    def database(self) -> Database:
        """Label events and jobs: workspace.db, or the database that GRASP_DATABASE_URL names.

        Several workspaces may share the latter; each sees its own rows.
        """
        if shared := os.environ.get("GRASP_DATABASE_URL"):
            return Database(shared, workspace=self._number())
        return Database(f"sqlite:///{self.root / 'workspace.db'}")

    def _number(self) -> str:
        """The workspace's own number, which goes with it wherever it is; made if it is missing."""
        file = self.root / NUMBER_FILE
        if not file.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            number = str(uuid.uuid4())
            new = file.with_name(f".{file.name}.{number}")
            new.write_text(number, encoding="ascii")
            with suppress(FileExistsError):  # the first of several processes wins
                os.link(new, file)
            new.unlink()
        return file.read_text(encoding="ascii").strip()[:36]

    def folder(self, kind: Kind, record_id: str) -> Path:
        """The path of a record, existing or not.

        Raises:
            InputError: the id has other characters than letters, digits, dots, dashes, underscores.
        """
        if not _ID.fullmatch(record_id):
            raise InputError(
                f"{record_id!r} is not a valid id; use up to 100 letters, digits, dots, dashes and "
                "underscores, starting with a letter or digit."
            )
        return self.root / kind / record_id

    def adapter(self, run_id: str) -> Path:
        """Where a run's adapter lies; raises InputError as `folder`."""
        return adapter_of(self.folder("runs", run_id))

    def partial(self, kind: Kind, record_id: str) -> Path:
        """The path of a record while it is being written."""
        return partial_of(self.folder(kind, record_id))

    def writing(self, kind: Kind, record_id: str) -> AbstractContextManager[Path]:
        """A folder to write a record into, in place of an earlier one, as `writing_folder`."""
        return writing_folder(self.folder(kind, record_id))

    def list(self, kind: Kind) -> Listing[Manifest]:
        """All records of a kind, except those that are being written."""
        records, broken = [], []
        folder = self.root / kind
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.name.startswith(".") or not path.is_dir():
                continue
            try:
                records.append(_read_record(path, _SCHEMAS[kind]))
            except GraspError as error:
                reason = escape_unprintable(str(error))
                broken.append(Broken(escape_unprintable(path.name), reason))
        return Listing(sorted(records, key=lambda record: record.created), broken)

    def runs(self) -> Listing[RunManifest]:
        """All runs, oldest first."""
        return cast(Listing[RunManifest], self.list("runs"))

    def evaluations(self) -> Listing[EvaluationManifest]:
        """All evaluations, oldest first."""
        return cast(Listing[EvaluationManifest], self.list("evaluations"))

    def run(self, run_id: str) -> RunManifest:
        """One run's manifest.

        Raises:
            NotFoundError: there is no such run; the message lists the existing ones.
        """
        return cast(RunManifest, self._read("runs", run_id))

    def factors(self, run_id: str) -> FactorsManifest:
        """The manifest of a run's factors."""
        return cast(FactorsManifest, self._read("factors", run_id))

    def recording(self, recording_id: str) -> RecordingManifest:
        """One recording's manifest."""
        return cast(RecordingManifest, self._read("recordings", recording_id))

    def evaluation(self, evaluation_id: str) -> EvaluationManifest:
        """One evaluation's manifest."""
        return cast(EvaluationManifest, self._read("evaluations", evaluation_id))

    def evidence(self, evidence_id: str) -> EvidenceManifest:
        """The manifest of one piece of evidence; `evidence_id` gives its id."""
        return cast(EvidenceManifest, self._read("evidence", evidence_id))

    def _read(self, kind: Kind, record_id: str) -> Manifest:
        folder = self.folder(kind, record_id)
        if not folder.is_dir():
            known = [record.id for record in self.list(kind).records]
            listed = f"it has: {', '.join(known)}" if known else "it is empty so far"
            raise NotFoundError(f"{self.root / kind} has no {record_id!r}; {listed}.")
        return _read_record(folder, _SCHEMAS[kind])

    def reference(self, path: str | Path) -> str:
        """A path in the form in which it is saved: relative if it lies in the workspace.

        Anything that does not exist as a path, such as a Hub id, is returned unchanged.
        """
        absolute = Path(path).resolve()
        if not absolute.exists():
            return str(path)
        inside = absolute.is_relative_to(self.root)
        return str(absolute.relative_to(self.root) if inside else absolute)

    def resolve(self, reference: str) -> str:
        """A saved reference in a form that can be opened: a path, or a Hub id unchanged."""
        inside = self.root / reference
        return str(inside) if inside.exists() else reference


def _read_record(folder: Path, kind: type[ManifestT]) -> ManifestT:
    """The manifest of a record, whose id is the name of its folder.

    Raises:
        SchemaError: as `read_manifest`, or the folder has another name than the record.
    """
    if not is_id(folder.name):
        raise SchemaError(
            f"The folder {folder.name!r} has no valid id for a name; rename it to letters, digits, "
            "dots, dashes and underscores, as it was before."
        )
    found = read_manifest(folder / "manifest.json", kind)
    if found.id != folder.name:
        raise SchemaError(
            f"The folder {folder.name!r} holds {found.id!r}, as its manifest says; a record's "
            f"folder has its id for a name, so rename it to {found.id!r}."
        )
    return found


def ensure_workspace(root: Path) -> Workspace:
    """As `Workspace.create`, for work that needs no database: it may be away for a while."""
    with suppress(DatabaseUnavailable):
        Workspace.create(root)
    return Workspace(root)


def is_id(word: str) -> bool:
    """Whether a text is a valid record id: one path segment of plain characters."""
    return _ID.fullmatch(word) is not None


def evidence_id(run: str, factor: str, kind: EvidenceKind) -> str:
    """The id of one kind of evidence for a run's factor, such as "code-naive.w2.dose"."""
    return f"{run}.{factor}.{kind}"


def partial_of(final: Path) -> Path:
    """The path of a folder while it is being written."""
    return final.with_name(f".{final.name}.partial")


@contextmanager
def writing_folder(
    final: Path, *, keep: bool = False, replace: bool = True, wait: float = 0.0
) -> Iterator[Path]:
    """A folder to write into; it gets the name `final` only if the block succeeds.

    Args:
        final: what the folder is called in the end.
        keep: keep the files of an earlier attempt, and the folder after a failure, so that training
            can resume from its checkpoints.
        replace: whether it may take the place of an earlier one.
        wait: seconds to wait for another process that writes the same folder.

    Raises:
        InputError: another process writes it, or there is something that is not to be replaced.
    """
    if not final.parent.exists():
        final.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(final)
    with _only_writer(final, wait):
        if final.is_symlink() or (final.exists() and not (replace and final.is_dir())):
            raise InputError(f"{final} already exists; choose another name, or remove it.")
        if not keep:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(exist_ok=True)
        try:
            yield partial
        except BaseException:
            if not keep:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        earlier = final.with_name(f".{final.name}.earlier")
        shutil.rmtree(earlier, ignore_errors=True)
        if final.exists():
            final.rename(earlier)
        partial.rename(final)
        shutil.rmtree(earlier, ignore_errors=True)


@contextmanager
def _only_writer(final: Path, wait: float) -> Iterator[None]:
    """Within the block no other process writes a folder; a lock goes with its process."""
    path = final.with_name(f".{final.name}.lock")
    end = time.monotonic() + wait
    while (lock := _take(path)) is None:
        if time.monotonic() >= end:
            raise InputError(
                f"{final} is being written by another process; wait until it is done, or choose "
                "another name."
            )
        time.sleep(0.2)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _take(path: Path) -> int | None:
    """The descriptor of a lock file that is now held, or None.

    Its holder takes the file away at the end, so one that was opened before may be another by now.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_ino == path.stat().st_ino:
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(lock)
    return None


def check_not_written(final: Path) -> None:
    """Refuse a folder that another process is writing, before anything is loaded.

    Raises:
        InputError: another process writes it.
    """
    if partial_of(final).exists():
        with _only_writer(final, 0.0):
            pass


def workspace_of(path: Path) -> Workspace | None:
    """The workspace that contains `path`, if it is a run folder or lies in one; else None."""
    for parent in path.resolve().parents:
        known = ("workspace.db", NUMBER_FILE)  # the latter where the database is on a server
        if parent.name == "runs" and any((parent.parent / name).exists() for name in known):
            return Workspace(parent.parent)
    return None
