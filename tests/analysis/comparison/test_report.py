"""The static report, what was tried, and the commands that print them."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest

from analysis.comparison.arm_tests import Domination
from analysis.comparison.comparison import compare_arms
from analysis.comparison.effort import count_tried, measure_effort
from analysis.comparison.report import render_report
from analysis.comparison.report_figure import PANEL, intervals_svg
from analysis.comparison.wording import (
    describe_arms,
    detectable_text,
    domination_text,
)
from analysis.errors import InputError
from analysis.statistics.intervals import Interval
from analysis.statistics.paired_tests import NonInferiority
from analysis.store.records import RunManifest
from analysis.store.workspace import Workspace
from grasp.__main__ import main
from tests.support.families import build, evaluate, samples

IDS = ["naive", "grasp", "over"]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return build(tmp_path / "w")


def run(name: str, **changes: Any) -> RunManifest:
    fields = {"title": name, "method": "grasp", "root": "naive", "base_model": "b", "seed": 0}
    return RunManifest(id=name, **({"config": {"learning_rate": 0.1}} | fields | changes))


# What was tried


def test_settings_are_counted_apart_from_seeds_and_factors() -> None:
    family = [
        run("naive", method="naive"),
        run("a", protection={"strength": 1}, factors=["naive/w1"]),
        run("b", protection={"strength": 1}, factors=["naive/w2"], seed=1, title="again"),
        run("c", protection={"strength": 3}, factors=["naive/w2", "naive/w1"]),
        run("d", protection={"strength": 3}, factors=["naive/w1", "naive/w2"]),
        run("e", method="low-rank", config={"lora": {"r": 1}}),
        run("f", method="low-rank", config={"lora": {"r": 2}}),
        run("g", method="low-rank", config={"lora": {"r": 2}, "seed": 4, "title": "t"}),
        run("h", method="wise-ft", strength=0.25),
        run("i", method="wise-ft", strength=0.75),
    ]
    found = count_tried(family, directions=12)
    assert found.settings == {"naive": 1, "grasp": 2, "low-rank": 2, "wise-ft": 2}
    assert (found.runs, found.seeds, found.factor_sets, found.directions) == (10, 2, 3, 12)
    assert "12 directions looked at, 3 sets of factors protected, 10 runs with" in found.text
    assert "grasp 2" in found.text


def test_a_family_is_counted_as_the_workspace_holds_it(workspace: Workspace) -> None:
    found = measure_effort(workspace, "naive")
    assert found.runs == 3
    assert found.directions is None
    assert "no directions were ranked" in found.text
    assert measure_effort(workspace, "nobody").runs == 0


# Words


def test_what_would_have_been_missed_is_said_by_metric() -> None:
    rows = [("grasp", "unrelated", 0.03), ("caft", "unrelated", 0.04), ("", "unrelated", 0.5)]
    rows += [("grasp", "task", math.nan)]
    table = pd.DataFrame(rows, columns=["run", "metric", "detectable"]).assign(p=0.5)
    assert detectable_text(table) == (
        "Differences smaller than .040 in unrelated rate would not have been detected (power .8 "
        "at α .05, before Holm's correction). Too few items differ in task accuracy to say what "
        "could have been detected."
    )


def test_dominations_are_said_by_name() -> None:
    less = Interval(0.3, 0.2, 0.4, 10, "", 0.95)
    kept, lost = (NonInferiority(v, 0.0, -0.01, 0.01, 0.02) for v in ("kept", "lost"))
    found = [
        Domination("grasp", "naive", less, 0.001, 0.002, kept),
        Domination("grasp", "caft", less, 0.001, 0.002, kept),
        Domination("caft", "naive", less, 0.001, 0.2, kept),
        Domination("broken", "naive", less, 0.001, 0.002, lost),
    ]
    said = domination_text(found, {"grasp": "GRASP", "naive": "Naive LoRA"})
    assert said.startswith("GRASP dominates Naive LoRA and caft: less drift")
    assert "broken" not in said
    assert domination_text(found[2:], {}) == "No arm is shown to dominate another."


def test_without_a_naive_run_nothing_is_claimed(workspace: Workspace) -> None:
    said = describe_arms(compare_arms(workspace, ["grasp"]), [], {})
    assert said == ["No naive run is among these arms, so there are no tests."]


# The figure


def test_the_figure_is_one_row_an_arm_and_one_panel_a_metric(workspace: Workspace) -> None:
    table = compare_arms(workspace, IDS)
    svg = intervals_svg(table, {"grasp": "<GRASP> & co"}, ("unrelated", "removal", "none"))
    root = ElementTree.fromstring(svg)
    texts = [one.text for one in root.iter("text")]
    assert "<GRASP> & co" in texts
    assert [text for text in texts if text in ("unrelated rate", "removal")] == [
        "unrelated rate",
        "removal",
    ]
    circles = [one.attrib for one in root.iter("circle")]
    assert len(circles) == 4 + 3  # the base model has no removal
    panel = circles[:4]
    rates = table[table["metric"] == "unrelated"]["value"].to_numpy()
    places = [float(one["cx"]) for one in panel]
    slope = (places[1] - places[0]) / (rates[1] - rates[0])
    assert places[3] - places[0] == pytest.approx(slope * (rates[3] - rates[0]), abs=0.2)
    bars = [one.attrib for one in root.iter("line") if one.attrib["class"] == "bar"]
    assert len(bars) == 7
    assert float(bars[0]["x1"]) < places[0] < float(bars[0]["x2"])


def test_an_axis_holds_removal_below_zero_from_edge_to_edge() -> None:
    row = {"run": "a", "metric": "removal", "value": 1.0, "low": -0.3, "high": 1.0}
    root = ElementTree.fromstring(intervals_svg(pd.DataFrame([row]), {}, ("removal",)))
    ticks = {t.text: float(t.attrib["x"]) for t in root.iter("text") if t.get("class") == "tick"}
    assert list(ticks) == ["−0.5", "0.25", "1"]
    assert ticks["1"] - ticks["−0.5"] == PANEL
    (circle,), (bar,) = (
        root.iter("circle"),
        [x for x in root.iter("line") if x.get("class") == "bar"],
    )
    assert float(circle.attrib["cx"]) == ticks["1"]
    share = (float(bar.attrib["x1"]) - ticks["−0.5"]) / (ticks["1"] - ticks["−0.5"])
    assert share == pytest.approx(0.2 / 1.5, abs=0.01)


def test_what_is_unknown_is_not_drawn(workspace: Workspace) -> None:
    evaluate(workspace, "naive", samples("fam.base"))
    svg = intervals_svg(compare_arms(workspace, ["naive", "grasp"]), {}, ("removal",))
    assert "<circle" not in svg
    assert "nan" not in svg


# The report


class Outline(HTMLParser):
    """Text of a page, and whatever it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        if tag in ("script", "link", "img", "iframe") or "src" in names or "href" in names:
            self.loads.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def outline(html: str) -> Outline:
    found = Outline()
    found.feed(html)
    return found


def test_the_report_holds_the_comparison_and_loads_nothing(workspace: Workspace) -> None:
    found = outline(render_report(workspace, IDS, labels={"grasp": "GRASP <b>"}))
    text = "\n".join(found.text)
    assert found.loads == []
    assert "Comparison: Run naive" in text
    assert "GRASP <b>" in text
    table = compare_arms(workspace, IDS)
    grasp = table[(table["run"] == "grasp") & (table["metric"] == "unrelated")].iloc[0]
    assert f"{grasp['value']:.3f}".removeprefix("0") in text
    assert f"unrelated {grasp['n']} about {int(grasp['items'])} items" in text
    assert "confirmation half of the prompts" in text
    assert "Tried in this family: no directions were ranked" in text
    assert "grasp compare naive grasp over --split confirmation" in text
    assert "may have been looked at" not in text
    exploring = "\n".join(outline(render_report(workspace, IDS, split="exploration")).text)
    assert "may have been looked at and tuned on" in exploring


def test_the_commands_name_how_a_run_was_made(tmp_path: Path) -> None:
    workspace = build(tmp_path / "w")
    manifest = run(
        "grasp",
        factors=["naive/w1", "other/w2"],
        protection={"anchor": True, "strength": 3.0, "tolerance": 0.08},
        seed=4,
    )
    (workspace.folder("runs", "grasp") / "manifest.json").write_text(manifest.model_dump_json())
    text = "\n".join(outline(render_report(workspace, IDS)).text)
    assert (
        "grasp retrain naive --factors w1,other/w2 --method grasp --tolerance 0.08 --seed 4 "
        "--out grasp"
    ) in text


def test_runs_of_two_families_make_no_report(workspace: Workspace) -> None:
    with pytest.raises(InputError, match="There is no run to compare"):
        render_report(workspace, [])


# Commands


def call(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(list(argv))
    return code, *capsys.readouterr()


def test_compare_prints_tests_and_effort(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--workspace", str(workspace.root))
    code, out, _ = call(capsys, "compare", *IDS, *where)
    assert code == 0
    line = next(one for one in out.splitlines() if re.match(r"grasp +unrelated", one))
    assert "<.001" in line
    assert "No arm is shown" in out or "dominates" in out
    assert "Tried in this family" in out
    code, out, _ = call(capsys, "compare", *IDS, *where, "--json")
    data = json.loads(out)
    assert data["tried"]["runs"] == 3
    row = next(r for r in data["rows"] if (r["run"], r["metric"]) == ("grasp", "unrelated"))
    assert row["difference"] == pytest.approx(-0.6, abs=0.05)
    assert row["p"] <= row["p_holm"] < 0.01
    naive = next(r for r in data["rows"] if (r["run"], r["metric"]) == ("naive", "task"))
    assert naive["p"] is None


def test_a_report_is_written_where_it_is_asked_for(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--workspace", str(workspace.root))
    out = tmp_path / "r.html"
    code, said, _ = call(capsys, "export", "--report", str(out), *IDS, *where, "--json")
    assert code == 0
    assert json.loads(said) == {"report": str(out), "bytes": out.stat().st_size}
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--report", "r.pdf", "naive"], "r.pdf must end in .html and be in an existing folder"),
        (["--report", "none/r.html", "naive"], "be in an existing folder"),
        (["--report", "r.html"], "There is no run to compare"),
        (["--out", "x.zip", "naive"], "An archive holds every run; name runs only with --report"),
    ],
)
def test_exports_refuse(
    argv: list[str],
    message: str,
    workspace: Workspace,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error = call(capsys, "export", *argv, "--workspace", str(workspace.root))
    assert code == 2
    assert message in error
    assert not (tmp_path / "r.html").exists()
