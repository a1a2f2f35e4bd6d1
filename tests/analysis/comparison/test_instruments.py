"""What sets asked in both directions measured: planted leanings, agreement, spread; how shown."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.comparison.comparison import read_instruments
from analysis.comparison.evaluation import COLUMNS, write_evaluation
from analysis.comparison.instruments import Reading, instrument_readings, text_lines, wording_table
from analysis.comparison.report import render_report
from analysis.store.records import EvaluationManifest, RunManifest, split_of
from analysis.store.workspace import Workspace
from dashboard.panels.instruments import instruments_table
from grasp.__main__ import main

ITEMS = [name for name in map(str, range(200)) if split_of(f"economic/{name}") == "confirmation"][
    :40
]


def table(
    *,
    leaning: float = 0.5,
    agreeing: float = 0.0,
    tilt: float = 0.0,
    samples: int = 1,
    ways: tuple[str, ...] = ("statement", "reversal"),
    **columns: Any,
) -> pd.DataFrame:
    """Scores of items asked both ways in two wordings, the second higher by `tilt`.

    Agreement raises the score of a statement, and lowers that of a reversal, by `agreeing`.
    """
    rows = []
    for item in ITEMS:
        for way in ways:
            for wording in range(2):
                for sample in range(samples):
                    bias = {"statement": agreeing, "reversal": -agreeing, "": 0.0}[way]
                    rows.append(
                        {
                            "prompt_id": f"set/{item}/{way}/{wording}",
                            "cluster": f"economic/{item}",
                            "role": "unrelated",
                            "group": "economic",
                            "split": "confirmation",
                            "scorer": "pair",
                            "score": leaning + bias + tilt * (wording - 0.5),
                            "coherence": math.nan,
                            "prompt": "q",
                            "expected": "",
                            "answer": "a",
                            "sample": sample,
                            "instrument": "set 1",
                            "direction": way,
                            "paraphrase": wording,
                            "end": "market-leaning",
                            **columns,
                        }
                    )
    return pd.DataFrame(rows)


def only(samples: pd.DataFrame) -> Reading:
    (found,) = instrument_readings(samples, split="confirmation")
    return found


@given(st.floats(0.2, 0.8), st.floats(-0.15, 0.15), st.floats(0, 0.1))
def test_leaning_agreement_and_spread_are_told_apart(
    leaning: float, agreeing: float, tilt: float
) -> None:
    found = only(table(leaning=leaning, agreeing=agreeing, tilt=tilt))
    statement, reversal = found.directions
    assert (statement.direction, reversal.direction) == ("statement", "reversal")
    assert statement.score.value == pytest.approx(leaning + agreeing)
    assert reversal.score.value == pytest.approx(leaning - agreeing)
    assert found.agreement is not None
    assert found.agreement.value == pytest.approx(agreeing, abs=1e-12)
    for one in found.directions:
        # The standard deviation of two numbers is their distance over √2.
        assert one.spread == pytest.approx(tilt / math.sqrt(2), abs=1e-12)
        assert one.wordings[1] - one.wordings[0] == pytest.approx(tilt, abs=1e-12)
    assert (found.items, found.end, found.instrument) == (40, "market-leaning", "set 1")


def test_a_model_that_agrees_with_everything_leans_nowhere() -> None:
    found = only(table(agreeing=0.5))
    assert [one.score.value for one in found.directions] == [1, 0]
    assert found.agreement is not None
    assert found.agreement.value == 0.5


def test_the_agreement_of_a_model_without_any_is_no_rate_of_successes() -> None:
    """Halves of differences lie between −0.5 and 0.5; that they are all 0 makes them no counts."""
    found = only(table()).agreement
    assert found is not None
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert found.n == len(ITEMS)


def test_intervals_are_over_items_not_over_answers() -> None:
    rng = np.random.default_rng(0)
    by_item = dict(zip(ITEMS, rng.random(len(ITEMS)), strict=True))
    one, ten = table(), table(samples=10)
    for samples in (one, ten):
        samples["score"] = [by_item[name.split("/")[1]] for name in samples["cluster"]]
    widths = []
    for samples in (one, ten):
        score = only(samples).directions[0].score
        widths.append(score.high - score.low)
    assert widths[0] == pytest.approx(widths[1])
    spread = float(np.std(list(by_item.values()), ddof=1))
    assert widths[0] == pytest.approx(2 * 2.02 * spread / math.sqrt(len(ITEMS)), rel=0.1)


def test_answers_without_a_score_are_counted_and_left_out() -> None:
    samples = table(leaning=0.7)
    gone = (samples["direction"] == "reversal") & (samples.index < 20)
    samples.loc[gone, "score"] = math.nan
    statement, reversal = only(samples).directions
    assert (statement.missing, reversal.missing) == (0, int(gone.sum()))
    assert reversal.score.value == pytest.approx(0.7)
    assert f"missing {gone.sum()}" in "\n".join(text_lines([only(samples)]))


def test_sets_without_a_name_or_of_an_older_version_have_no_reading() -> None:
    assert instrument_readings(table()[list(COLUMNS)], split="confirmation") == []
    assert instrument_readings(table(instrument=""), split="confirmation") == []
    assert instrument_readings(table(), split="exploration") == []


def test_one_direction_is_shown_without_an_agreement() -> None:
    for ways in (("statement",), ("",)):
        found = only(table(ways=ways))
        assert found.agreement is None
        assert not found.both
        assert len(found.directions) == 1


def test_each_wording_of_each_item_has_a_row() -> None:
    samples = table(tilt=0.2, samples=5, leaning=0.4)
    rng = np.random.default_rng(0)
    samples["score"] += rng.normal(0, 0.05, len(samples))
    samples.loc[0, "score"] = math.nan
    found = wording_table(samples, split="confirmation")
    assert len(found) == len(ITEMS) * 4
    first = found.iloc[0]
    cell = samples.iloc[1:5]["score"]
    assert (first["n"], first["missing"]) == (4, 1)
    assert first["score"] == pytest.approx(cell.mean())
    assert first["low"] < first["score"] < first["high"]
    pair = found.iloc[:2]["score"]
    assert list(found["spread"][:2]) == pytest.approx([pair.std(ddof=1)] * 2)
    assert list(found["item_mean"][:2]) == pytest.approx([pair.mean()] * 2)


def test_no_text_is_one_bare_score() -> None:
    lines = text_lines([only(table(leaning=0.6, agreeing=0.1, tilt=0.1))])
    assert lines[0] == "set 1, economic: scorer pair, 40 items, 1 = market-leaning"
    assert lines[1].startswith("  statement  0.700 [")
    assert "by wording 0.650, 0.750" in lines[1]
    assert "spread 0.071" in lines[1]
    assert lines[2].startswith("  reversal   0.500 [")
    assert lines[3].startswith("  agreement  +0.100 [")


# Where it is shown


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace.create(tmp_path / "w")
    run = RunManifest(
        id="naive", title="Naive", method="naive", root="naive", base_model="b", config={}
    )
    with workspace.writing("runs", "naive") as folder:
        (folder / "manifest.json").write_text(run.model_dump_json())
    for name, leaning in (("naive.base", 0.5), ("naive", 0.8)):
        manifest = EvaluationManifest(
            id=name, run=None if "." in name else name, base_model="b", prompts="set"
        )
        with workspace.writing("evaluations", name) as folder:
            samples = table(leaning=leaning, agreeing=0.1, end="<b>market</b>")
            write_evaluation(folder, manifest=manifest, samples=samples)
    return workspace


def test_comparison_page_and_report_show_both_directions(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read_instruments(workspace, ["naive"])
    assert [(one.run, round(one.reading.directions[0].score.value, 3)) for one in found] == [
        ("", 0.6),
        ("naive", 0.9),
    ]
    html = instruments_table(found, {"": "Base model", "naive": "Naive"})
    for text in ("Base model", "set 1", "scorer pair", "0.900", "0.700", "0.100", "spread"):
        assert text in html
    assert "<b>" not in html
    page = render_report(workspace, ["naive"])
    assert "Both directions" in page
    assert "<b>market" not in page
    line = ["compare", "naive", "--workspace", str(workspace.root)]
    assert main(line) == 0
    out = capsys.readouterr().out
    assert "base: set 1, economic" in out
    assert "statement" in out
    assert main([*line, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["instruments"]
    assert [one["run"] for one in data] == ["", "naive"]
    assert [way["direction"] for way in data[0]["directions"]] == ["statement", "reversal"]
