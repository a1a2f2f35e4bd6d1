"""The database, as a file and on a real PostgreSQL server: opened by many, away, damaged, shared."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine

from analysis.errors import DatabaseUnavailable, InputError
from analysis.store import label_files, labels
from analysis.store.database import Database
from analysis.store.workspace import Workspace
from grasp.jobs import queue
from tests.support import postgres

KINDS = ("sqlite", "postgresql")
HEADER = "factor,annotator,name,direction_sha256\n"


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    if why := postgres.missing():
        pytest.skip(why)
    with postgres.serve() as running:
        yield running


@pytest.fixture(autouse=True)
def _closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Connections are closed at the end of a test, whoever opened them."""
    made: list[Engine] = []

    def create(*args: Any, **kwargs: Any) -> Engine:
        made.append(create_engine(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr("analysis.store.database.create_engine", create)
    yield
    for engine in made:
        engine.dispose()


@pytest.fixture(params=KINDS)
def workspace(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Workspace:
    """A workspace whose database does not exist yet, as a file or on the server."""
    monkeypatch.delenv("GRASP_DATABASE_URL", raising=False)
    if request.param == "postgresql":
        name = f"d{abs(hash(request.node.name)) % 10**12}"
        url = request.getfixturevalue("server").make_database(name)
        monkeypatch.setenv("GRASP_DATABASE_URL", url)
    return Workspace(tmp_path / "w")


def label(workspace: Workspace, factor: str = "a/w1", name: str = "persona") -> None:
    claim = labels.Claim(name)
    labels.add_label(workspace.database, factor=factor, claim=claim, annotator="ana", direction="d")


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


_OPENS = """
import sys
from analysis.store.labels import Claim, add_label
from analysis.store.workspace import Workspace
print("ready", flush=True)
sys.stdin.readline()
workspace = Workspace.create(sys.argv[1])
for n in range(5):
    claim = Claim(f"{sys.argv[2]} {n}")
    add_label(workspace.database, factor="a/w1", claim=claim, annotator="a", direction="d")
"""


def test_a_new_workspace_is_opened_by_many_at_once(workspace: Workspace) -> None:
    """Four processes at a barrier, each of which labels as soon as it can."""
    processes = [run_python(_OPENS, str(workspace.root), str(n)) for n in range(4)]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert errors == [""] * 4
    found = labels.read_events(workspace.database)
    assert sorted(one.name for one in found) == sorted(f"{n} {i}" for n in range(4) for i in range(5))


_IMPORTS = """
import sys
from analysis.store.label_files import import_labels
from analysis.store.workspace import Workspace
import_labels(Workspace.create(sys.argv[1]), open(sys.argv[2], "rb").read())
"""


def test_an_import_that_is_killed_leaves_all_or_nothing(
    workspace: Workspace, tmp_path: Path
) -> None:
    """It is killed as soon as a first row can be seen."""
    Workspace.create(workspace.root)
    file = tmp_path / "labels.csv"
    file.write_text(HEADER + "".join(f"a/w1,ana,name {n},d\n" for n in range(3000)))
    process = run_python(_IMPORTS, str(workspace.root), str(file))
    seen = 0
    while process.poll() is None and not seen:
        seen = len(labels.read_events(workspace.database))
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(labels.read_events(workspace.database)) in (0, 3000)


def test_an_import_that_fails_in_its_middle_leaves_nothing(workspace: Workspace) -> None:
    """What does not fit is named before anything is written, on every database."""
    Workspace.create(workspace.root)
    long = "x" * 101
    content = f"{HEADER}a/w1,ana,persona,d\na/w1,ana,{long},d\n".encode()
    with pytest.raises(InputError, match="Line 3: The name of a label has 101 characters; expected"):
        label_files.import_labels(workspace, content)
    assert labels.read_events(workspace.database) == []


def test_an_import_into_a_file_without_room_leaves_nothing(tmp_path: Path) -> None:
    """A limit on pages is SQLite's own full disk."""
    workspace = Workspace.create(tmp_path / "w")
    with workspace.database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 30")
        content = HEADER + "".join(f"a/w1,ana,{'y' * 90} {n},d\n" for n in range(3000))
        connection.close()
        with pytest.raises(DatabaseUnavailable, match=r"database or disk is full\), so nothing"):
            label_files.import_labels(workspace, content.encode())
    assert labels.read_events(workspace.database) == []


def test_workspaces_that_share_a_server_see_their_own_rows(
    server: postgres.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of one never runs a job of the other; one that is copied sees what it had."""
    monkeypatch.setenv("GRASP_DATABASE_URL", server.make_database("shared"))
    one, other = Workspace.create(tmp_path / "one"), Workspace.create(tmp_path / "other")
    label(one)
    job = queue.submit(one.database, kind="factors", title="x" * 300, argv=["factors", "a"])
    assert labels.read_events(other.database) == []
    assert queue.list_recent(other.database) == []
    assert queue.claim(other.database) is None
    with queue.register_worker(one.database):
        assert not queue.worker_alive(other.database)
    assert queue.claim(one.database).id == job.id
    assert len(queue.get(one.database, job.id).title) == 200
    assert len(labels.read_events(Workspace(one.root).database)) == 1


def test_a_server_that_restarts_is_found_again(
    server: postgres.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRASP_DATABASE_URL", server.make_database("restarts"))
    workspace = Workspace.create(tmp_path / "w")
    label(workspace)
    server.restart()
    label(workspace)
    assert len(labels.read_events(workspace.database)) == 2
    server.stop()
    try:
        with pytest.raises(DatabaseUnavailable, match="so nothing was saved; see that it can be"):
            label(workspace)
    finally:
        server.start()
    label(workspace)


def test_what_a_database_cannot_be_opened_with_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="is no database URL; expected one such as postgresql://"):
        Database("nonsense").create()
    with pytest.raises(InputError, match="cannot be used"):
        Database("oracledb2://x/y").create()
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InputError, match=r"psycopg.*pip install \"grasp-workbench\[postgresql\]\""):
        Database("postgresql://x/y").create()
