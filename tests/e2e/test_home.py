"""Home in a browser: read what was learned, have a term explained, follow the next step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from analysis.store.workspace import Workspace
from tests.support.browser import end_workers, launched, opened, serving, settled

pytestmark = pytest.mark.browser

RUN = "medicine-naive"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as chromium:
        yield chromium


def test_a_newcomer_reads_what_was_learned_and_takes_the_next_step(
    whole: Workspace, browser: Browser
) -> None:
    whole.database.engine.dispose()
    with serving(whole.root) as server:
        with opened(browser, f"{server.url}?run={RUN}", "home") as page:
            settled(page)
            expect(page.get_by_role("heading", name="Home", level=1)).to_be_visible()
            expect(page.get_by_text("On prompts unrelated to its task")).to_contain_text("%")
            expect(page.locator(".st-key-verdict")).to_contain_text("GRASP took away")
            explained(page, "drifted value", "Of two opposite ways to answer")
            page.locator(".st-key-home-next-job").get_by_role("button").click()
            expect(page.get_by_role("heading", name="Factors", level=1)).to_be_visible()
            assert f"run={RUN}" in page.url
        with opened(browser, server.url, "home-narrow", width=420, height=900) as page:
            settled(page)
            explained(page, "drifted value", "Of two opposite ways to answer")
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    end_workers(whole.root)


def test_a_read_only_dashboard_has_no_button_that_starts_or_saves(
    whole: Workspace, browser: Browser
) -> None:
    whole.database.engine.dispose()
    before = files(whole.root)
    with serving(whole.root, "--read-only") as server:
        for path in (f"?run={RUN}", f"factors?run={RUN}", f"retrain?run={RUN}", "labels"):
            with opened(browser, f"{server.url}/{path}", "read-only") as page:
                settled(page)
                expect(page.get_by_text("Read-only: everything can be looked at")).to_be_visible()
                for name in ("Save label", "Import", "Inspect"):
                    expect(page.get_by_role("button", name=name)).to_have_count(0)
                for one in page.get_by_role("button", name="Start …").all():
                    expect(one).to_be_disabled()
    assert files(whole.root) == before


def explained(page: Page, term: str, meaning: str) -> None:
    """A term says what it means as soon as it has the focus, by mouse or keyboard."""
    found = page.locator("abbr.term", has_text=term).first
    found.focus()
    shown = found.evaluate("one => getComputedStyle(one, '::after').content")
    assert meaning in shown


def files(root: Path) -> dict[str, bytes]:
    """Every file with its contents; SQLite's log counts only if something was written to it."""
    found = [path for path in sorted(root.rglob("*")) if path.is_file()]
    kept = [path for path in found if not path.name.endswith("-shm")]
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in kept
        if path.stat().st_size or not path.name.endswith("-wal")
    }
