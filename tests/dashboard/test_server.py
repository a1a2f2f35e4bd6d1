"""The server as a process: one line with its address, a page, and a clean end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from analysis.store.database import Worker, now
from analysis.store.workspace import Workspace
from dashboard.queue.worker_process import ensure_worker


def test_it_prints_its_address_serves_and_ends_cleanly(tmp_path: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "dashboard", "--workspace", str(tmp_path / "new")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line.startswith("Dashboard: http://127.0.0.1:")
        with urllib.request.urlopen(line.split()[-1], timeout=20) as page:
            assert page.status == 200
        server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=30)
    finally:
        server.kill()
    assert server.returncode == 0
    assert "Traceback" not in errors


def test_nothing_of_torch_is_imported() -> None:
    code = (
        "import sys, importlib\n"
        "for name in ('home', 'workspace', 'spectra', 'factors', 'labels', 'retrain', 'compare'):\n"
        "    importlib.import_module(f'dashboard.views.{name}')\n"
        "import dashboard.__main__, dashboard.panels.activations\n"
        "print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_one_worker_is_started_and_no_second(empty: Workspace, no_workers: list[list[str]]) -> None:
    assert ensure_worker(empty)
    assert not ensure_worker(empty)
    (command,) = no_workers
    assert command[1:] == [
        "-P", "-m", "grasp", "worker", "--workspace", str(empty.root), "--idle-timeout", "600",
    ]  # fmt: skip


def test_a_living_worker_is_left_alone(empty: Workspace, no_workers: list[list[str]]) -> None:
    with empty.database.session() as session:
        session.add(
            Worker(host=os.uname().nodename, pid=os.getpid(), device="cpu", heartbeat=now())
        )
    assert not ensure_worker(empty)
    assert no_workers == []
