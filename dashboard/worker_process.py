"""Starts a worker for a workspace's queue where none runs."""

from __future__ import annotations

import subprocess
import sys

from analysis.workspace import Workspace
from grasp import jobs

IDLE_SECONDS = 600


def ensure_worker(workspace: Workspace) -> bool:
    """Start `grasp worker` in a session of its own, unless one is alive; True if it was started.

    The worker outlives the dashboard, and ends by itself after ten idle minutes.
    """
    if jobs.worker_alive(workspace.database):
        return False
    command = [sys.executable, "-m", "grasp", "worker", "--workspace", str(workspace.root)]
    with (workspace.root / "worker.log").open("ab") as log:
        subprocess.Popen(
            [*command, "--idle-timeout", str(IDLE_SECONDS)],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    return True
