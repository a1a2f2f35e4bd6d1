"""Labels given faster than pages are drawn: what was pressed is saved, in order, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from analysis.store import labels
from analysis.store.factor_table import read_run_factors
from analysis.store.workspace import Workspace
from tests.support import synthetic
from tests.support.browser import Server, end_workers, launched, opened, serving, settled

pytestmark = pytest.mark.browser

RUN = "medicine-naive"
NAMES = labels.NAMES[:4]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    made = synthetic.build(tmp_path_factory.mktemp("labelling") / "workspace", live=False)
    yield made
    end_workers(made.root)
    made.database.engine.dispose()


@pytest.fixture(scope="module")
def server(workspace: Workspace) -> Iterator[Server]:
    with serving(workspace.root) as found:
        yield found


def given(workspace: Workspace, annotator: str) -> list[tuple[str, str]]:
    """Factor and name of the labels of one person, in the order they were saved."""
    events = labels.read_events(workspace.database)
    return [(one.factor, one.name) for one in events if one.annotator == annotator]


def first_factors(workspace: Workspace) -> list[tuple[str, str]]:
    ids = read_run_factors(workspace, RUN).table["id"]
    return [(f"{RUN}/{one}", name) for one, name in zip(ids, NAMES, strict=False)]


def open_as(page: Page, annotator: str) -> None:
    """Wait for the page, and give a name, which takes the focus out of the way."""
    settled(page)
    name = page.locator(".st-key-annotator input")
    name.fill(annotator)
    name.press("Enter")
    name.blur()
    page.wait_for_timeout(400)
    settled(page)


@pytest.mark.parametrize("pause_ms", [80, 150, 300, 700])
def test_keys_are_saved_in_order(
    pause_ms: int, workspace: Workspace, server: Server, browser: Browser
) -> None:
    person = f"keys-{pause_ms}"
    with opened(browser, f"{server.url}/factors?run={RUN}", person) as page:
        open_as(page, person)
        for key in "1 s n 2 s n 3 s n 4 s".split():
            page.keyboard.press(key)
            page.wait_for_timeout(pause_ms)
        last = first_factors(workspace)[-1][0]
        expect(page.get_by_text(f"Saved: {last} is labelled {NAMES[-1]}")).to_be_visible()
    assert given(workspace, person) == first_factors(workspace)


def test_clicks_keys_and_words_keep_their_order(
    workspace: Workspace, server: Server, browser: Browser
) -> None:
    person = "mixed"
    with opened(browser, f"{server.url}/factors?run={RUN}", person) as page:
        open_as(page, person)
        field = page.locator(".st-key-label-name input")
        expect(field).to_have_count(1)
        field.fill("of my own")
        for act in ("label-save", "factor-next", "label-2", "label-save"):
            page.locator(f".st-key-{act} button").first.evaluate(
                "one => { one.focus(); one.click(); }"
            )
            page.wait_for_timeout(50)
        for key in "n s".split():
            page.keyboard.press(key)
        (w2, _), (w1, _), (r1, _), *_ = first_factors(workspace)
        expect(page.get_by_text(f"Saved: {w1} is labelled {NAMES[1]}")).to_be_visible()
        refused = page.get_by_text("A label needs a name")
        expect(refused).to_contain_text(f"Not saved for {r1.rpartition('/')[2]}")
        expect(page.get_by_text("pressed, not handled yet")).to_have_count(0)
    assert given(workspace, person) == [(w2, "of my own"), (w1, NAMES[1])]
