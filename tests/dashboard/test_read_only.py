"""A read-only dashboard: whatever is clicked, also what is disabled, nothing is written."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text
from streamlit.testing.v1 import AppTest

from analysis.errors import DatabaseUnavailable, InputError
from analysis.store.reading import ReadOnlyWorkspace
from analysis.store.workspace import Workspace
from dashboard import READ_ONLY_VARIABLE
from dashboard.panels import job_panel
from dashboard.state.access import READ_ONLY
from dashboard.state.selection import Key
from grasp.jobs import queue
from tests.dashboard.conftest import Open, words

VIEWS = [
    ("home", {}),
    ("workspace", {}),
    ("spectra", {"run": "code-naive"}),
    ("factors", {"run": "medicine-naive"}),
    ("factors", {"run": "code-naive", "factor": "w2", "evidence": "dose"}),
    ("labels", {}),
    ("retrain", {"run": "code-naive", "job": "2"}),
    ("retrain", {"run": "code-naive", "job": "4"}),
    ("compare", {"family": "code-naive"}),
]


@pytest.fixture
def public(whole: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv(READ_ONLY_VARIABLE, "1")
    return whole


def state(workspace: Workspace) -> tuple[dict[str, bytes], list[str]]:
    """Every file but those of the database, and every row of the database."""
    files = {
        str(path.relative_to(workspace.root)): path.read_bytes()
        for path in sorted(workspace.root.rglob("*"))
        if path.is_file() and not path.name.startswith("workspace.db")
    }
    with workspace.database.session() as session:
        tables = session.scalars(text("select name from sqlite_master where type = 'table'")).all()
        rows = [
            f"{table}: {tuple(row)}"
            for table in sorted(tables)
            for row in session.execute(text(f'select * from "{table}"'))
        ]
    return files, rows


def click_everything(test: AppTest) -> int:
    """Press each button of a page once, as a client that ignores what is disabled could."""
    keys = [button.key for button in test.button]
    for key in keys:
        there = [button for button in test.button if button.key == key]
        if there:
            there[0].proto.disabled = False
            there[0].click().run()
    return len(keys)


@pytest.mark.parametrize(("page", "parameters"), VIEWS)
def test_no_click_writes_anything(
    page: str,
    parameters: dict[str, str],
    public: Workspace,
    open_page: Open,
    no_workers: list[list[str]],
) -> None:
    before = state(public)
    test = open_page(page, public, **parameters)
    assert READ_ONLY in words(test)
    assert not [one for one in test.text_input if one.key == Key.ANNOTATOR]
    click_everything(test)
    assert state(public) == before
    assert no_workers == []


@pytest.mark.parametrize("page", ["compare", "home", "factors"])
def test_what_is_missing_cannot_be_made_either(
    page: str, public: Workspace, open_page: Open, no_workers: list[list[str]]
) -> None:
    """Where evaluations, recordings and prompts are missing, pages offer to make them."""
    for record in ("evaluations/code-naive", "recordings/code-naive"):
        shutil.rmtree(public.root / record)
    manifest = public.root / "runs" / "code-naive" / "manifest.json"
    run = public.run("code-naive")
    bare = {name: run.config[name] for name in run.config if name not in ("prompts", "probes")}
    manifest.write_text(run.model_copy(update={"config": bare}).model_dump_json())
    before = state(public)
    test = open_page(page, public, run="code-naive", family="code-naive")
    makes = ("Evaluate", "Measure", "Record")
    enabled = [one.label for one in test.button if not one.disabled]
    assert page == "home" or not [label for label in enabled if label.startswith(makes)]
    click_everything(test)
    assert state(public) == before
    assert no_workers == []


def test_the_same_clicks_write_where_the_dashboard_is_not_read_only(
    whole: Workspace, open_page: Open
) -> None:
    """So that the test above would see a write."""
    before = state(whole)
    test = open_page("retrain", whole, run="code-naive", job="2")
    assert READ_ONLY not in words(test)
    click_everything(test)
    assert state(whole) != before


def test_what_writes_is_disabled_or_gone(public: Workspace, open_page: Open) -> None:
    factors = open_page("factors", public, run="code-naive", factor="w2", evidence="dose")
    assert all(one.disabled for one in factors.button if one.key == Key.measure("dose"))
    assert not [one for one in factors.button if str(one.key).startswith("label-")]
    retrain = open_page("retrain", public, run="code-naive", job="4")
    disabled = {one.key for one in retrain.button if one.disabled}
    assert {Key.RETRAIN_REVIEW, Key.JOB_CANCEL} <= disabled
    assert "Add an adapter" not in words(open_page("workspace", public))


def test_doors_below_the_pages_refuse(public: Workspace, no_workers: list[list[str]]) -> None:
    workspace = ReadOnlyWorkspace.open(public.root)
    assert len(queue.list_recent(workspace.database)) == 4
    with pytest.raises(DatabaseUnavailable, match="readonly database"):
        queue.submit(workspace.database, kind="record", title="x", argv=["record", "a"])
    with pytest.raises(InputError, match="opened to be read only"):
        workspace.writing("runs", "new")
    with pytest.raises(InputError, match="This dashboard is read-only"):
        job_panel.start_job(public, kind="record", title="x", argv=["record"], output="")
    with pytest.raises(InputError, match="This dashboard is read-only"):
        job_panel.restart_job(public, 2)
    assert no_workers == []


def test_a_workspace_that_is_not_there_is_refused_and_not_made(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    found = subprocess.run(
        [sys.executable, "-m", "grasp", "dashboard", "--workspace", str(missing), "--read-only"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert found.returncode == 2
    assert re.search("There is no workspace at .* a read-only dashboard makes none", found.stderr)
    assert "Traceback" not in found.stderr
    assert not missing.exists()
