"""Text of data and manifests in a real browser: nothing is fetched, and nothing becomes a link."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from analysis.store import labels
from analysis.store.workspace import Workspace
from grasp.foreign.settings import save_manifest
from tests.support.browser import launched, opened, serving, settled

pytestmark = pytest.mark.browser

EVIL = "![x](http://evil.example/x.png) https://evil.example www.evil.example a@evil.example"
ICON = ":material/delete: :smile: :red[x]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as opened_browser:
        yield opened_browser


def test_text_of_others_is_only_text(whole: Workspace, browser: Browser) -> None:
    """A page that asks another host, or breaks its own policy, fails in `opened`."""
    for name in ("code-grasp", "code-naive"):
        run = whole.run(name)
        method = f"{EVIL} {name}" if run.id != run.root else run.method
        changed = {"method": method, "title": EVIL, "verdict": ICON, "base_model": ICON}
        save_manifest(whole.folder("runs", name), run.model_copy(update=changed))
    claim = labels.Claim(EVIL[:90], polarity=ICON, note=EVIL)
    labels.add_label(
        whole.database, factor="code-naive/w2", claim=claim, annotator=EVIL[:50], direction="d"
    )
    places = ("", "compare?family=code-naive", "factors?run=code-naive&factor=w2",
              "labels", "retrain?run=code-naive", "spectra?run=code-grasp")  # fmt: skip
    with serving(whole.root) as server:
        for place in places:
            with opened(browser, f"{server.url}/{place}", f"hostile-{place[:4]}") as page:
                settled(page)
                assert page.locator("[href*='evil'], [src*='evil']").count() == 0, place
                said = page.locator("[data-testid=stMain]").inner_text()
                assert "😄" not in said
                if not place:
                    assert ":\u2060material/delete: :\u2060smile:" in said
