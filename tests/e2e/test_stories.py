"""The whole in a browser: a person finds a spurious factor, labels it, retrains, and compares.

Everything here is real: the demo workspace is built by its command, the dashboard is served by
its command, and the retrain is started by clicks.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from analysis.comparison.comparison import compare_arms
from analysis.store import labels
from analysis.store.database import Job
from analysis.store.factor_table import read_run_factors
from analysis.store.labels import Claim
from analysis.store.workspace import Workspace
from grasp.jobs import queue
from tests.support import synthetic, tiny
from tests.support.browser import (
    ANNOTATOR,
    PAGES,
    Server,
    end_workers,
    grasp,
    launched,
    opened,
    serving,
    settled,
    until,
)

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings(tiny.PEFT_WARNING)]

FAMILIES = ("code-naive", "finance-naive", "medicine-naive")
RUN = "code-naive"
CONTROL = "code-random"
BUILD_SECONDS = 600.0
RETRAIN_SECONDS = 120.0
"""Within which a retrain ends on a machine that has nothing else to do."""

COLUMNS = {
    "Unrelated rate, whole answers": "unrelated_said",
    "Unrelated rate": "unrelated",
    "Unrelated rate, greedy answers": "unrelated_greedy",
    "Task accuracy": "task",
    "Facts kept": "facts",
    "Format kept": "format",
    "Coherence": "coherence",
    "Neither value": "incoherent",
    "Related rate, whole answers": "related_said",
    "Related rate": "related",
    "Control rate, whole answers": "control_said",
    "Control rate": "control",
}
"""Columns of the table of arms, and the metrics of an evaluation that they show."""

REMOVALS = {
    "Removal, whole answers": "removal_said",
    "Removal": "removal",
    "Removal, greedy answers": "removal_greedy",
}
"""Columns that compare arms."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as chromium:
        yield chromium


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The demo workspace, built anew; it is only read, so tests that write copy it."""
    root = tmp_path_factory.mktemp("demo") / "workspace"
    log = root.parent / "demo.log"
    with grasp(["demo", "--workspace", str(root), "--no-serve"], log) as process:
        code = process.wait(timeout=BUILD_SECONDS)
    assert code == 0, log.read_text()
    yield root
    end_workers(root)


@pytest.fixture
def workspace(demo: Path, tmp_path: Path) -> Iterator[Workspace]:
    """A copy of the demo workspace to write to."""
    root = tmp_path / "workspace"
    shutil.copytree(demo, root)
    workspace = Workspace(root)
    yield workspace
    end_workers(root)
    workspace.database.engine.dispose()


def test_the_whole_story(workspace: Workspace, browser: Browser) -> None:
    best = str(read_run_factors(workspace, RUN).table["id"].iloc[0])
    with serving(workspace.root) as server, opened(browser, server.url, "the-whole-story") as page:
        home_says_what_was_learned(page)
        families_are_there(page)
        spectra_are_drawn(page)
        evidence_is_there(page, best)
        label_as_persona(page, f"{RUN}/{best}")
        link(page, "Retrain, protecting the factors labelled spurious").click()
        expect(key(page, "retrain-factors")).to_contain_text(f"{best}: persona, spurious")
        job = start_retrain(page, workspace)
        first = step(page)
        until(lambda: step(page) > first, seconds=patience(), what="a later step")
        page.reload()
        expect(badge(page)).to_have_text("Running")
        assert step(page) != first
        expect(badge(page)).to_have_text("Succeeded", timeout=1000 * patience())
        link(key(page, "job-compare"), "Compare").click()
        shown = numbers_of(page, job.output.removeprefix("runs/"))
    numbers_are_those_of_the_files(workspace, job, shown)
    label_is_kept(workspace, f"{RUN}/{best}")
    adapter_is_plain(workspace, job, factor=f"{RUN}/{best}")


def test_a_retrain_outlives_the_dashboard(workspace: Workspace, browser: Browser) -> None:
    table = read_run_factors(workspace, RUN)
    best = str(table.table["id"].iloc[0])
    labels.add_label(
        workspace.database,
        factor=f"{RUN}/{best}",
        claim=Claim("persona", spurious=True),
        annotator=ANNOTATOR,
        direction=table.sha256(best),
    )
    with serving(workspace.root) as server:
        with opened(browser, f"{server.url}/retrain?run={RUN}", "before-the-kill") as page:
            job = start_retrain(page, workspace)
            step(page)
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
    before = queue.get(workspace.database, job.id)
    assert before.status == "running", before.error

    def goes_on() -> bool:
        queue.reconcile(workspace.database)
        now = queue.get(workspace.database, job.id)
        return now.status != "running" or now.step > before.step

    until(goes_on, seconds=patience(), what="a step after the dashboard's end")
    with (
        serving(workspace.root) as server,
        opened(browser, f"{server.url}/retrain?job={job.id}", "after-the-kill") as page,
    ):
        expect(badge(page)).to_have_text("Succeeded", timeout=1000 * patience())
        link(key(page, "job-compare"), "Compare").click()
        assert numbers_of(page, job.output.removeprefix("runs/"))
    after = queue.get(workspace.database, job.id)
    assert (after.status, after.pid) == ("succeeded", before.pid)


@pytest.mark.parametrize("kind", ["empty", "broken"])
def test_every_page_opens_in_words(kind: str, tmp_path: Path, browser: Browser) -> None:
    root = tmp_path / kind
    if kind == "empty":
        workspace = Workspace.create(root)
    else:
        workspace = synthetic.build(root, live=False)
        synthetic.break_records(workspace)
    workspace.database.engine.dispose()
    with serving(root) as server:
        for path, title in PAGES.items():
            with opened(browser, address(server, path), f"{kind}-{path}") as page:
                settled(page)
                expect(heading(page, title)).to_be_visible()
                expect(page.get_by_test_id("stException")).to_have_count(0)
                words = page.inner_text("body")
                assert "Traceback" not in words
                assert "Unexpected error" not in words
    end_workers(root)


def test_no_page_scrolls_sideways_on_a_phone(demo: Path, browser: Browser) -> None:
    with serving(demo) as server:
        for path, title in PAGES.items():
            url, name = address(server, path), f"narrow-{path}"
            with opened(browser, url, name, width=420, height=900) as page:
                settled(page)
                expect(heading(page, title)).to_be_visible()
                assert too_wide(page) == []


# What the story is made of


def home_says_what_was_learned(page: Page) -> None:
    expect(heading(page, "Home")).to_be_visible()
    expect(page.get_by_text("On prompts unrelated to its task")).to_contain_text("%")
    expect(key(page, "verdict")).to_contain_text("GRASP took away")
    page.get_by_test_id("stSidebarNav").get_by_role("link", name="Workspace").click()


def families_are_there(page: Page) -> None:
    expect(heading(page, "Workspace")).to_be_visible()
    for family in FAMILIES:
        expect(key(page, f"family-{family}").get_by_role("table")).to_contain_text("GRASP")


def spectra_are_drawn(page: Page) -> None:
    link(key(page, f"family-{RUN}"), "Spectra").click()
    expect(heading(page, "Spectra")).to_be_visible()
    assert f"run={RUN}" in page.url
    squares = key(page, "spectra-map").locator(".scatterlayer .points path")
    at_least(20, squares)
    expect(key(page, "spectra-module-scree").locator(".scatterlayer .js-line")).to_be_visible()
    scree = key(page, "spectra-factor-scree")
    expect(scree.locator(".legendtext", has_text="random updates, 95 %")).to_be_visible()
    expect(scree.locator(".fills path, path.js-fill").first).to_be_attached()


def evidence_is_there(page: Page, best: str) -> None:
    """The factor that ranks first is preselected, with tokens, histograms, and examples."""
    link(page, "Factors").first.click()
    expect(heading(page, "Factors")).to_be_visible()
    picker = key(page, "factor-picker").get_by_role("combobox")
    expect(picker).to_have_value(re.compile(f"^{re.escape(best)}: "))
    expect(page.get_by_text(f"{best}: promoted tokens")).to_be_visible()
    at_least(10, page.locator(".tokens:not(.flow) .token"))
    expect(key(page, "factor-histogram").locator(".barlayer .point path").first).to_be_visible()
    at_least(20, page.locator(".tokens.flow .token"))


def label_as_persona(page: Page, factor: str) -> None:
    """Choose a label and save it at once, before the page can have been drawn again."""
    key(page, "label-1").get_by_role("button").click()
    key(page, "label-save").get_by_role("button").click()
    expect(page.get_by_text(f"Saved: {factor} is labelled persona, spurious.")).to_be_visible()
    expect(key(page, "label-name").locator("input")).to_have_count(1)
    expect(key(page, "label-name").locator("input")).to_have_value("persona")


def start_retrain(page: Page, workspace: Workspace) -> Job:
    """Start what the Retrain page proposes; the job once it has reached its first step."""
    command = page.get_by_test_id("stCode").first
    expect(command).to_contain_text(f"grasp retrain {RUN} --factors")
    key(page, "retrain-review").get_by_role("button").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("grasp retrain")
    key(dialog, "retrain-start").get_by_role("button").click()
    page.wait_for_url(re.compile(r"job=\d+"))
    expect(badge(page)).to_have_text("Running")
    return queue.get(workspace.database, int(page.url.rpartition("job=")[2].partition("&")[0]))


def step(page: Page) -> int:
    """The step that the page shows of the job's training, waited for."""
    words = re.compile(r"step (\d+) of \d+")
    bar = key(page, "job-panel").get_by_test_id("stProgress")
    expect(bar).to_contain_text(words, timeout=1000 * patience())
    found = words.search(bar.inner_text())
    assert found is not None
    return int(found[1])


def numbers_of(page: Page, run: str) -> dict[str, str]:
    """Column → number as shown, of one run in the table of arms."""
    table = key(page, "arms-table").get_by_role("table")
    row = table.locator("tbody tr").filter(has=page.locator(".sub", has_text=f"{run} protecting"))
    expect(row).to_have_count(1)
    names = table.locator("thead th").all_inner_texts()[1:]
    return dict(zip(names, row.locator("td .value").all_inner_texts(), strict=True))


# What the story must leave


def numbers_are_those_of_the_files(workspace: Workspace, job: Job, shown: dict[str, str]) -> None:
    run = job.output.removeprefix("runs/")
    saved = json.loads((workspace.root / "evaluations" / run / "summary.json").read_text())
    expected = {
        column: three_decimals(saved["confirmation"][metric]["value"])
        for column, metric in COLUMNS.items()
    }
    arms = compare_arms(workspace, [RUN, run, CONTROL]).set_index(["run", "metric"])["value"]
    removed = {column: three_decimals(arms[run, one]) for column, one in REMOVALS.items()}
    assert shown == expected | removed
    assert arms[run, "removal_said"] >= 0.6
    assert arms[run, "removal"] >= 2 * arms[CONTROL, "removal"]
    assert arms[run, "task"] >= arms[RUN, "task"] - 0.05


def three_decimals(value: float) -> str:
    """A number as pages write it, with a minus sign that is one."""
    return f"{value:.3f}".replace("-", "\u2212")


def label_is_kept(workspace: Workspace, factor: str) -> None:
    (event,) = labels.read_events(workspace.database)
    assert (event.factor, event.name, event.spurious) == (factor, "persona", True)
    assert (event.annotator, event.action) == (ANNOTATOR, "label")
    table = read_run_factors(workspace, RUN)
    assert event.direction_sha256 == table.sha256(factor.rpartition("/")[2])


def adapter_is_plain(workspace: Workspace, job: Job, *, factor: str) -> None:
    """What the retrain wrote needs nothing of ours to be loaded, and says how it was made."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = workspace.root / job.output
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["method"], manifest["factors"]) == ("grasp", [factor])
    base = AutoModelForCausalLM.from_pretrained(workspace.root / manifest["base_model"])
    model = PeftModel.from_pretrained(base, folder / "adapter")
    ups = [value for name, value in model.named_parameters() if "lora_B" in name]
    assert ups
    assert all(value.abs().sum() > 0 for value in ups)


def patience() -> float:
    """Seconds to wait for a retrain: more where others use the processors too."""
    crowd = os.getloadavg()[0] / (os.cpu_count() or 1)
    return RETRAIN_SECONDS * max(1.0, crowd)


# Places on the page


def key(where: Page | Locator, name: str) -> Locator:
    """The widget or container with this key."""
    return where.locator(f".st-key-{name}")


def link(where: Page | Locator, name: str) -> Locator:
    return where.get_by_role("link", name=name)


def heading(page: Page, title: str) -> Locator:
    return page.get_by_role("heading", name=title, exact=True, level=1)


def badge(page: Page) -> Locator:
    """The word for how the job is that the page shows."""
    return key(page, "job-panel").locator(".stMarkdownBadge")


def at_least(count: int, found: Locator) -> None:
    expect(found.nth(count - 1)).to_be_visible()


def address(server: Server, path: str) -> str:
    return server.url if path == "home" else f"{server.url}/{path}"


def too_wide(page: Page) -> list[str]:
    """What makes the page, or the part of it that scrolls, wider than the window."""
    return page.evaluate(
        """() => [document.documentElement, document.querySelector('[data-testid=stMain]')]
          .filter((one) => one.scrollWidth > window.innerWidth + 1)
          .map((one) => `${one.tagName} is ${one.scrollWidth} px wide`)"""
    )
