"""Workspaces for the pages: empty, whole, and broken."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from streamlit.testing.v1 import AppTest  # noqa: E402

from analysis.store.workspace import Workspace  # noqa: E402
from dashboard import WORKSPACE_VARIABLE  # noqa: E402
from dashboard.queue import worker_process  # noqa: E402
from dashboard.state.annotator import VARIABLE  # noqa: E402
from tests.support import synthetic  # noqa: E402

Open = Callable[..., AppTest]


@pytest.fixture
def broken(whole: Workspace) -> Workspace:
    synthetic.break_records(whole)
    return whole


@pytest.fixture
def empty(tmp_path: Path) -> Workspace:
    return Workspace.create(tmp_path / "empty")


@pytest.fixture(autouse=True)
def no_workers(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Processes that a page would have started; none is."""
    started: list[list[str]] = []

    class Process:
        def poll(self) -> int | None:
            return None

    def start(root: Path) -> Process:
        started.append(worker_process.worker_command(root))
        return Process()

    monkeypatch.setattr(worker_process, "_start", start)
    monkeypatch.setattr(worker_process, "_started", {})
    return started


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens one page of the real application on a workspace, with URL parameters."""
    # A page takes the place of `__main__`: left there, spawned processes would run it.
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])

    def open_it(
        page: str,
        workspace: Workspace,
        *,
        unforeseen: bool = False,
        person: str = "ana",
        **parameters: str,
    ) -> AppTest:
        monkeypatch.setenv(WORKSPACE_VARIABLE, str(workspace.root))
        monkeypatch.setenv(VARIABLE, person)
        test = AppTest.from_file(str(ROOT / "dashboard" / "app.py"), default_timeout=60)
        for name, value in parameters.items():
            test.query_params[name] = value
        test.run()
        if page != "home":
            test.switch_page(f"views/{page}.py")
            for name, value in parameters.items():
                test.query_params[name] = value
            test.run()
        assert not test.exception, [one.value for one in test.exception]
        assert unforeseen or "Unexpected error" not in words(test)
        return test

    with warnings.catch_warnings():
        yield open_it


def words(test: AppTest) -> str:
    """Everything that is written on a page."""
    parts = []
    for kind in ("title", "header", "subheader", "markdown", "caption", "text", "code",
                 "info", "warning", "error", "success", "html"):  # fmt: skip
        parts += [str(one.value) for one in getattr(test, kind)]
    return "\n".join(parts).replace("\\", "")


def field(fields: Iterable[Any], key: str) -> Any:
    """The one of `fields`, such as `test.button`, whose key begins with `key`."""
    found = [one for one in fields if str(one.key).startswith(f"{key}-")]
    assert len(found) == 1, [one.key for one in found]
    return found[0]
