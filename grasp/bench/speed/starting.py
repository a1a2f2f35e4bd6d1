"""How long a user waits for help, for a spectrum, and for the dashboard's first page."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import psutil

from analysis.interpreter import module_command
from analysis.values import Json
from grasp.bench.speed.figure import Figure, value_and_spread
from grasp.bench.speed.shapes import Shape, write_adapter
from grasp.bench.speed.timing import Action, Times, time_in_turn

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HELP, SPECTRUM, PAGE = 0.5, 1.5, 3.0
DEMO = Shape("demo", layers=4, d_model=64, d_ffn=160, d_kv=32, r=8)
"""The shape of the demo's fine-tunes."""

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync")
_WAIT_MS = 60_000
_BARE_APP = "import streamlit as st\nst.header('Hello')\n"
_GRASP = module_command("grasp")
_BARE, _HELP = "python -c pass", "grasp --help"
_SPECTRUM = "grasp spectrum, of an adapter in the demo's shapes"


def starting_figures(*, rounds: int, browse: bool = True) -> list[Figure]:
    """Seconds of each, also relative to the smallest program that could do the same."""
    with TemporaryDirectory() as place:
        adapter, workspace = Path(place) / "demo", Path(place) / "workspace"
        write_adapter(adapter, DEMO)
        commands = {
            _BARE: (sys.executable, "-c", "pass"),
            _HELP: (*_GRASP, "--help"),
            _SPECTRUM: (*_GRASP, "spectrum", str(adapter), "--workspace", str(workspace), "--json"),
        }
        actions: dict[str, Action] = {
            name: partial(_ended, command) for name, command in commands.items()
        }
        times = time_in_turn(actions, rounds=rounds)
        bare = {"python -c pass, s": median(times.of(_BARE))}
        torch_free = not _loads_torch(commands[_SPECTRUM][len(_GRASP) :])
        found = [
            _command_figure("help", times, _HELP, target=HELP, detail=bare),
            _command_figure(
                "spectrum",
                times,
                _SPECTRUM,
                target=SPECTRUM,
                detail=bare | {"imports torch": not torch_free},
            ),
        ]
        found[1].reached = bool(found[1].reached) and torch_free
        return [*found, _first_page(place, adapter, workspace, rounds=rounds, browse=browse)]


def _command_figure(
    name: str, times: Times, command: str, *, target: float, detail: Json
) -> Figure:
    return Figure(
        id=f"start.{name}",
        group="start",
        what=command,
        against="wall clock, from start to end of the process",
        unit="s",
        target=target,
        **value_and_spread(times.of(command)),
        detail=detail | {"times python -c pass": median(times.ratio(command, _BARE))},
    )


def _ended(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=_environment())


def _loads_torch(arguments: Sequence[str]) -> bool:
    """Whether a command has imported torch by the time it is done."""
    code = (
        "import sys; from grasp.__main__ import main; main(sys.argv[1:]); "
        "sys.stderr.write(str('torch' in sys.modules))"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=_environment())
    return done.stderr.strip().endswith("True")


def _first_page(place: str, adapter: Path, workspace: Path, *, rounds: int, browse: bool) -> Figure:
    told: Json = {
        "id": "start.dashboard",
        "group": "start",
        "what": "The dashboard's first page in an open browser, from the start of "
        "`grasp dashboard`",
        "against": "wall clock, until the page's heading is drawn and its script has finished",
        "unit": "s",
        "target": PAGE,
    }
    browser = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if not browse:
        return Figure(**told, missing="left out")
    if browser is None or find_spec("playwright") is None:
        return Figure(**told, missing="Chromium or playwright is not installed")
    _ended([*_GRASP, "import", str(adapter), "--out", "a", "--workspace", str(workspace)])
    app = Path(place) / "hello.py"
    app.write_text(_BARE_APP, encoding="utf-8")
    port = _free_port()
    flags = ("--server.headless=true", "--browser.gatherUsageStats=false")
    servers = {
        "dashboard": [*_GRASP, "dashboard", "--workspace", str(workspace), "--port", str(port)],
        "bare": [
            *module_command("streamlit", "run", str(app)),
            *(*flags, "--server.fileWatcherType=none", f"--server.port={port}"),
        ],
    }
    with _browser(browser) as opened:
        actions: dict[str, Action] = {
            name: partial(_drawn, opened, command, port) for name, command in servers.items()
        }
        times = time_in_turn(actions, rounds=rounds)
    return Figure(
        **told,
        **value_and_spread(times.of("dashboard")),
        detail={
            "a one-line Streamlit app, s": median(times.of("bare")),
            "times a one-line Streamlit app": median(times.ratio("dashboard", "bare")),
            "workspace": "one imported adapter",
        },
    )


def _drawn(browser: Browser, command: Sequence[str], port: int) -> None:
    """Start a server, and wait until its page is drawn in a new browser context."""
    with _serving(command):
        _until_listening(port)
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(_WAIT_MS)
        page.goto(f"http://127.0.0.1:{port}", wait_until="commit")
        page.locator("h1, h2").first.wait_for()
        page.locator('[data-testid="stApp"][data-test-script-state="notRunning"]').wait_for()
        context.close()


@contextmanager
def _serving(command: Sequence[str]) -> Iterator[None]:
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_environment()
    )
    try:
        yield
    finally:
        family = [process.pid]
        with suppress(psutil.NoSuchProcess):
            family += [one.pid for one in psutil.Process(process.pid).children(recursive=True)]
        for pid in family:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()
        process.wait()


def _until_listening(port: int) -> None:
    waited = 0.0
    while waited < _WAIT_MS / 1000:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
        waited += 0.01
    raise TimeoutError(f"The server did not listen on port {port} within {_WAIT_MS // 1000} s.")


@contextmanager
def _browser(path: str) -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = [f"--{flag}" for flag in _FLAGS]
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=flags)
        try:
            yield browser
        finally:
            browser.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment() -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GRASP_")}
    return kept | {"GRASP_ANNOTATOR": "bench", "HF_HUB_OFFLINE": "1"}
