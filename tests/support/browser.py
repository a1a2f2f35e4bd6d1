"""The dashboard as a person has it: a real server, a real browser, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import psutil
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
ARTIFACTS = ROOT / "test-artifacts"
ANNOTATOR = "ana"
PAGES = {
    "home": "Home",
    "workspace": "Workspace",
    "spectra": "Spectra",
    "factors": "Factors",
    "labels": "Labels",
    "retrain": "Retrain",
    "compare": "Compare",
}
START_SECONDS = 60.0
LOAD_MS = 60_000
POLL_SECONDS = 0.2


Found = TypeVar("Found")

# Pages are drawn from top to bottom, and other tests use the processors too.
expect.set_options(timeout=20_000)


@dataclass(frozen=True)
class Server:
    """A dashboard that answers at `url`."""

    url: str
    process: subprocess.Popen[bytes]


def chromium() -> str:
    """Where the browser lies; without one the test is skipped, but in CI it fails."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if (path := shutil.which(name)) is not None:
            return path
    reason = "There is no chromium here; `apt-get install chromium` brings it."
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def launched() -> Iterator[Browser]:
    """A headless browser that asks nothing of the network."""
    path = chromium()
    arguments = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run"]
    arguments += ["disable-background-networking", "disable-component-update", "disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, headless=True, args=[f"--{one}" for one in arguments]
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser: Browser, url: str, name: str, *, width: int = 1440, height: int = 1000
) -> Iterator[Page]:
    """A page in a context of its own.

    If the block fails, a picture of the page goes to `test-artifacts/<name>.png`.  If it does
    not, an error on the page's console or a request to another host is a failure.
    """
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    page.set_default_timeout(LOAD_MS)
    complaints = _complaints(page, urlsplit(url).netloc)
    try:
        page.goto(url, wait_until="domcontentloaded")
        yield page
        assert not complaints, complaints
    except BaseException:
        ARTIFACTS.mkdir(exist_ok=True)
        with suppress(Exception):
            page.screenshot(path=ARTIFACTS / f"{name}.png", full_page=True)
        raise
    finally:
        context.close()


def _complaints(page: Page, host: str) -> list[str]:
    """What goes wrong on a page, as it goes wrong."""
    found: list[str] = []

    def said(message: ConsoleMessage) -> None:
        if message.type == "error":
            found.append(f"console: {message.text} ({message.location['url']})")

    def asked(request: Request) -> None:
        address = urlsplit(request.url)
        if address.netloc not in ("", host):
            found.append(f"asked {address.netloc} for {address.path}")

    page.on("console", said)
    page.on("pageerror", lambda error: found.append(f"uncaught: {error}"))
    page.on("request", asked)
    return found


def settled(page: Page) -> None:
    """Wait until the page's script has run to its end, and charts have been drawn."""
    page.locator('[data-testid="stApp"][data-test-script-state="notRunning"]').wait_for()
    page.wait_for_function("() => !document.querySelector('[data-testid=stSkeleton]')")


def until(ask: Callable[[], Found | None], *, seconds: float, what: str) -> Found:
    """What `ask` gives as soon as it gives anything true.

    Raises:
        AssertionError: it did not within `seconds`.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := ask():
            return answer
        time.sleep(POLL_SECONDS)
    raise AssertionError(f"Waited {seconds:g} s for {what}.")


@contextmanager
def serving(root: Path, *options: str) -> Iterator[Server]:
    """`grasp dashboard` on a workspace, on a free port of this machine only."""
    port = _free_port()
    log = root.parent / f"dashboard-{port}.log"
    argv = ["dashboard", "--workspace", str(root), "--port", str(port), *options]
    with grasp(argv, log) as process:

        def url() -> str | None:
            if process.poll() is not None:
                raise AssertionError(f"The dashboard ended:\n{log.read_text()}")
            lines = [line for line in log.read_text().splitlines() if "Dashboard: " in line]
            return lines[0].split()[-1] if lines else None

        address = until(url, seconds=START_SECONDS, what="the dashboard's address")
        assert urlsplit(address).hostname == "127.0.0.1"
        with urllib.request.urlopen(address, timeout=START_SECONDS) as answer:
            assert answer.status == 200
        yield Server(address, process)
    assert "Traceback" not in log.read_text(), log.read_text()


@contextmanager
def grasp(argv: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command `grasp *argv` as a process that writes to `log`; ended with what it started."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "grasp", *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=_environment(os.environ),
        )
    try:
        yield process
    finally:
        children: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        _end(children)


def end_workers(root: Path) -> None:
    """End what still serves a workspace, such as the worker of a dashboard that was killed.

    They are orphans by then, but each names the workspace, which only this test has.
    """
    mine = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and str(root) in process.cmdline():
                mine.append(process)
    _end(mine)


def _end(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def _environment(outer: Mapping[str, str]) -> dict[str, str]:
    """The outer one without this project's settings, offline, with a person's name."""
    kept = {name: value for name, value in outer.items() if not name.startswith("GRASP_")}
    return kept | {"GRASP_ANNOTATOR": ANNOTATOR, "HF_HUB_OFFLINE": "1"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
