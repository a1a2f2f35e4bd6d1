"""Starts a worker for a workspace's queue if none is running."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

from analysis.interpreter import module_command
from analysis.store.workspace import Workspace
from grasp.jobs import queue

IDLE_SECONDS = 600

# OpenMP's threads spin while they wait for each other.  When training shared the processors with
# another process, that made it six times slower.
_PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}

# A worker that has just been started is not in the database yet.
_started: dict[Path, subprocess.Popen[bytes]] = {}
_lock = threading.Lock()


def ensure_worker(workspace: Workspace) -> bool:
    """Start `grasp worker` in its own session unless a worker is alive; True if it was started.

    The worker outlives the dashboard and stops by itself after ten idle minutes.
    """
    with _lock:
        mine = _started.get(workspace.root)
        if (mine is not None and mine.poll() is None) or queue.worker_alive(workspace.database):
            return False
        _started[workspace.root] = _start(workspace.root)
        return True


def worker_command(root: Path) -> list[str]:
    """The command that runs a worker for the workspace at `root`."""
    options = ["--workspace", str(root), "--idle-timeout", str(IDLE_SECONDS)]
    return module_command("grasp", "worker", *options)


def _start(root: Path) -> subprocess.Popen[bytes]:
    with (root / "worker.log").open("ab") as log:
        return subprocess.Popen(
            worker_command(root),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_PATIENT | os.environ,
        )
