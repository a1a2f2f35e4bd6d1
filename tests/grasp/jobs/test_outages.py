"""Training goes on while its database is away: a server that restarts, a file that is locked."""

from __future__ import annotations

import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.interpreter import module_command
from analysis.store.workspace import Workspace
from grasp.jobs import queue
from tests.support import postgres, tiny

PATIENCE = 120.0


@pytest.fixture
def server() -> Iterator[postgres.Server]:
    if why := postgres.missing():
        pytest.skip(why)
    with postgres.serve() as running:
        yield running


def wait(happened: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, f"{what} did not happen in {PATIENCE:.0f} s"
        time.sleep(0.05)


def train_through(workspace: Workspace, outage: Callable[[], None]) -> None:
    """Train as a job in a process of its own; the outage comes while it makes its steps."""
    config = tiny.settings(workspace.root / "data", max_steps=150, save_steps=150)
    file = workspace.root / "c.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(exclude_none=True)))
    argv = ["train", str(file), "--out", "a"]
    job = queue.submit(workspace.database, kind="train", title="", argv=argv)
    assert queue.claim(workspace.database).id == job.id
    place = ["--workspace", str(workspace.root), "--job", str(job.id)]
    process = subprocess.Popen(
        module_command("grasp", *argv, *place), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        wait(lambda: queue.get(workspace.database, job.id).step > 0, "the first step")
        outage()
        said = process.communicate(timeout=PATIENCE)[1].decode()
    finally:
        process.kill()
        process.communicate()
        workspace.database.engine.dispose()
    assert process.returncode == 0, said
    assert queue.get(workspace.database, job.id).status == "succeeded"
    assert workspace.run("a").results["steps"] == 150
    workspace.database.engine.dispose()


def test_training_outlasts_a_server_that_restarts(
    server: postgres.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRASP_DATABASE_URL", server.make_database("outage"))
    train_through(Workspace.create(tmp_path / "w"), lambda: server.restart(seconds=1.5))


def test_training_outlasts_a_file_that_is_locked(tmp_path: Path) -> None:
    """For longer than SQLite waits, so that a writer is refused."""
    workspace = Workspace.create(tmp_path / "w")

    def locked() -> None:
        other = sqlite3.connect(tmp_path / "w" / "workspace.db", timeout=30)
        other.execute("BEGIN IMMEDIATE")
        time.sleep(12)
        other.rollback()
        other.close()

    train_through(workspace, locked)
