"""The server as a process: one line with its address, a page, and a clean end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from analysis.interpreter import module_command
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


def test_a_page_is_in_no_frame_loads_nothing_from_elsewhere_and_has_known_names(
    tmp_path: Path,
) -> None:
    """Also where other machines may connect."""
    command = module_command("dashboard", "--workspace", str(tmp_path / "new"))
    where = ["--host", "0.0.0.0", "--allow-remote", "--allow-host", "grasp.example.org"]
    with subprocess.Popen([*command, *where], stdout=subprocess.PIPE, text=True) as server:
        try:
            port = server.stdout.readline().rpartition(":")[2].strip()
            answers = {}
            for name in (
                "127.0.0.1",
                f"{socket.gethostname()}:{port}",
                "grasp.example.org",
                "evil",
            ):
                asked = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Host": name})
                refused = suppress(urllib.error.HTTPError)
                with refused, urllib.request.urlopen(asked, timeout=20) as page:
                    answers[name] = page.headers["Content-Security-Policy"]
                    assert page.headers["X-Frame-Options"] == "DENY"
        finally:
            server.kill()
    assert "evil" not in answers
    assert len(answers) == 3
    for policy in answers.values():
        assert "frame-ancestors 'none'" in policy
        assert policy.startswith("default-src 'self' ")
