"""Tables, choices, criteria and the page, from cells whose numbers are known."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.errors import InputError
from analysis.store.records import RunManifest, split_of
from grasp.bench.make.runner import keep_plan
from grasp.bench.plan.plan import Cell, Plan
from grasp.bench.saved.choices import chosen_arms, sweeps
from grasp.bench.saved.found import read_found
from grasp.bench.saved.gather import arms_of, has_whole_answers, mean_score, measure_removal
from grasp.bench.tables.criteria import criteria_table
from grasp.bench.tables.instruments import instruments_table
from grasp.bench.tables.ledger import ended_within
from grasp.bench.tables.page import write_page
from grasp.bench.tables.removal import core_table
from grasp.bench.tables.sections import collect_results
from grasp.bench.tables.tables import Table, format_value
from grasp.settings.training import check_settings
from tests.support.bench_miniature import ITEMS, NAIVE_RATES, write_cell

GRASP = NAIVE_RATES | {"unrelated": 0.26}  # drift .06 of .70: removal .91
RANDOM = NAIVE_RATES | {"unrelated": 0.77}  # .19
BROKEN = {"unrelated": 0.2, "task": 0.5, "facts": 1.0, "format": 1.0}  # all removed, task lost
WEAK = NAIVE_RATES | {"unrelated": 0.76}  # .20

STORIES = ["shipped/code", "shipped/medicine"]
STYLED = ["styled-wide-1/persona-a", "styled-large-1/persona-a", "styled-large-1/lean"]
ARMS = {
    "grasp": GRASP,
    "random": RANDOM,
    "caft-1": BROKEN,
    "caft-0.5": WEAK,
    "wise-ft-0.4": BROKEN | {"task": 0.75},
    "wise-ft-0.6": BROKEN,
}


def make_plan() -> Plan:
    data = {
        "title": "Miniature",
        "core": {"stories": STORIES, "seeds": [0, 1, 2], "arms": ["grasp", "random"]},
        "styles": {"stories": STYLED, "seeds": [0], "arms": ["grasp", "random"]},
        "rivals": {
            "stories": STORIES[:1],
            "seeds": [0, 1, 2],
            "arms": [
                {"method": "grasp", "sweep": []},
                {"method": "caft", "sweep": [0.5, 1.0]},
                {"method": "wise-ft", "sweep": [0.4, 0.6]},
            ],
        },
        "none": {"stories": ["shipped/plain"], "seeds": [0, 1], "retrained": 1, "arms": ["grasp"]},
        "needed": {"stories": ["shipped/needed"], "seeds": [0], "arms": ["grasp", "caft"]},
        "phase": {
            "stories": STORIES[:1],
            "seeds": [0],
            "default": {"strength": 1.0, "steps": 120},
            "crossed": {"strength": [0.5, 1.0], "steps": [40, 120]},
            "arms": ["grasp"],
        },
        "residue": {"stories": STORIES[:1], "seeds": [0], "arms": ["grasp"]},
    }
    return check_settings(Plan, data, "the miniature")


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    root, plan = tmp_path_factory.mktemp("bench"), make_plan()
    keep_plan(root, plan)
    sections = plan.sections
    for cell in sections["core"].cells:
        missed = cell == Cell(story="shipped/code", seed=2)
        write_cell(root, cell, ARMS, angle=1.4 if missed else 0.3)
    for cell in sections["styles"].cells:
        little = {"naive": NAIVE_RATES | {"unrelated": 0.3}} if cell.story == STYLED[2] else {}
        grasp = WEAK if cell.story == STYLED[1] else GRASP
        write_cell(root, cell, {"grasp": grasp, "random": RANDOM}, **little)
    for cell in sections["none"].cells:
        write_cell(root, cell, {"grasp": NAIVE_RATES}, significant=cell.seed == 1)
    lost = NAIVE_RATES | {"task": 0.5}
    for cell in sections["needed"].cells:
        write_cell(root, cell, {"grasp": NAIVE_RATES, "caft": lost})
    for cell in sections["phase"].cells:
        if cell.changed:
            write_cell(root, cell, {"grasp": GRASP}, angle=1.5 if cell.strength else 0.3)
    residue = {"factor": "w1", "significant": True, "cosine": 0.2, "off_task": 0.5}
    residue |= {"effect": 0.2, "old_effect": 0.3, "again": ""}
    workspace = root / "cells" / "shipped-code.s0"
    (workspace / "bench").mkdir()
    (workspace / "bench" / "residue-grasp.json").write_text(json.dumps(residue))
    (root / "failures.json").write_text(json.dumps({"shipped-both.s0": "it was refused"}))
    (root / "times.jsonl").write_text('{"task": "a", "processor_seconds": 90.0}\n' * 2)
    return root, plan


def rows(table: Table, **which: Any) -> list[dict[str, Any]]:
    return [row for row in table.rows if all(row.get(k) == v for k, v in which.items())]


def test_removal_and_rates_are_the_planted_ones(miniature: tuple[Path, Plan]) -> None:
    root, plan = miniature
    assert plan.core is not None
    arms = arms_of(root, plan.core.cells, ["grasp", "random"])
    assert mean_score(arms["naive"], "unrelated").value == pytest.approx(0.9, abs=0.02)
    assert measure_removal(arms, "grasp")[0].value == pytest.approx(0.9, abs=0.02)
    assert measure_removal(arms, "random")[0].value == pytest.approx(0.19, abs=0.04)
    found = measure_removal(arms, "grasp")[0]
    assert found.low < 0.9 < found.high
    confirmation = arms["naive"]
    assert set(confirmation["split"]) == {"confirmation"}
    assert confirmation[["story", "seed"]].drop_duplicates().shape == (6, 2)


def test_headlines_are_of_whole_answers_and_of_one_instrument(
    miniature: tuple[Path, Plan],
) -> None:
    """By first tokens GRASP removes .90; by planted whole answers it removes a half."""
    root, plan = miniature
    assert plan.core is not None
    arms = arms_of(root, plan.core.cells, ["grasp"])
    assert not has_whole_answers(arms)
    said = {"base": 0.0, "naive": 1.0, "grasp": 0.5}
    names = dict(zip(arms, ("base", "naive", "grasp"), strict=True))
    whole = {run: table.assign(said=said[names[run]]) for run, table in arms.items()}
    assert has_whole_answers(whole)
    assert mean_score(whole["grasp"], "unrelated").value == 0.5
    assert measure_removal(whole, "grasp")[0].value == 0.5
    first = measure_removal(whole, "grasp", whole=False)[0].value
    assert first == pytest.approx(0.9, abs=0.02)
    assert mean_score(whole["grasp"], "unrelated", whole=False).value < 0.3
    parts = np.where(np.arange(len(arms["grasp"])) % 2, "a", "b")
    apart = {run: table.assign(apart=parts) for run, table in arms.items()}
    assert np.isnan(mean_score(apart["grasp"], "unrelated").value)
    found, why = measure_removal(apart, "grasp")
    assert np.isnan(found.value)
    assert why == "several instruments, which are not averaged"


def test_identification_counts_the_run_that_missed(miniature: tuple[Path, Plan]) -> None:
    root, plan = miniature
    assert plan.core is not None
    entries = read_found(root, plan, plan.core.cells)
    assert [entry.hit for entry in entries] == [True, True, False, True, True, True]
    assert entries[0].cosine == pytest.approx(np.cos(0.3), abs=1e-3)
    assert entries[2].cosine == pytest.approx(np.cos(1.4), abs=1e-3)
    assert entries[0].nearest
    table = collect_results(root, plan, "identification").tables[0]
    (pooled,) = rows(table, group="persona, all stories")
    assert (pooled["hit"].value, pooled["hit"].n) == (pytest.approx(7 / 8), 8)
    assert "shipped-code seed 2 (w1" in table.notes[0]


def test_strengths_are_chosen_by_removal_where_the_task_is_kept(
    miniature: tuple[Path, Plan],
) -> None:
    root, plan = miniature
    chosen = chosen_arms(root, plan)["shipped/code"]
    assert chosen["caft"].name == "caft-0.5"  # less removed, but the task is kept
    assert chosen["wise-ft"].name == "wise-ft-0.4"  # none keeps it: the better task
    lines = {line.variant.name: line for line in sweeps(root, plan)}
    assert not lines["wise-ft-0.4"].kept
    assert lines["caft-0.5"].kept
    assert lines["caft-1"].removal == pytest.approx(1.0, abs=0.05)


def test_sweeps_look_at_exploration_prompts_only(
    miniature: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, plan = miniature
    splits = []
    import grasp.bench.saved.choices as choices

    def watched(*args: Any, split: str, **kwargs: Any) -> Any:
        splits.append(split)
        return arms_of(*args, split=split, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(choices, "arms_of", watched)
    sweeps(root, plan)
    assert set(splits) == {"exploration"}


def test_criteria_are_held_to_what_was_measured(miniature: tuple[Path, Plan]) -> None:
    root, plan = miniature
    table = criteria_table(root, plan)
    verdicts = {row["name"]: row["verdict"] for row in table.rows}
    values = {row["name"]: row["measured"] for row in table.rows}

    def of(start: str) -> str:
        (name,) = [name for name in verdicts if name.startswith(start)]
        return str(verdicts[name])

    assert of("Identification, persona: the best-ranked") == "not reached"  # 7 of 8
    assert of("False positives") == "not reached"  # 1 of 2
    assert values["False positives where the data have no slant"].n == 2
    assert of("Removal by GRASP, shipped/medicine") == "reached"
    (mean,) = [name for name in verdicts if "other styles, persona" in name]
    assert values[mean].value == pytest.approx((0.91 + 0.2) / 2, abs=0.03)
    assert verdicts[mean] == "not reached"
    assert not any("other styles, lean" in name for name in verdicts)  # naive moves it by .1
    (worst,) = [name for name in verdicts if "the worst of these" in name]
    assert "styled-large-1-persona-a" in worst
    assert verdicts[worst] == "not reached"
    assert of("Task accuracy, GRASP") == "reached"
    assert of("Removal by random subspaces, all stories (") == "reached"
    assert of("Removal by random subspaces, all stories in other styles") == "reached"
    assert of("Drift and effect ≤ τ at the end, runs with a tolerance") == "reached"
    assert of("Largest leakage") == "reached"
    assert of("Needed factor: task accuracy, GRASP") == "reached"
    assert of("Needed factor: task accuracy, CAFT") == "reached"
    assert values["Rivals shown to dominate GRASP"].startswith("none")
    more = values["Rivals that remove more at equal task accuracy, by value alone"]
    assert more.startswith("none")
    assert values["Residue after GRASP: a significant factor is left"].value == 1.0
    assert values["Residue after GRASP: the factor left is the protected one"].value == 0.0
    effect = "the factor left reproduces the protected one's effect"
    assert values[f"Residue after GRASP: {effect}"].value == 1.0


@pytest.mark.parametrize(
    ("results", "kept"),
    [
        ({"drift_share": 0.2, "effect": 0.1}, True),
        ({"drift_share": 0.2, "effect": 0.4}, False),
        ({"drift_share": 0.4}, False),
        ({"effect": 0.3, "drift": 5.0}, True),  # at the tolerance; drift has another unit
        ({"drift": 0.1}, None),  # a record from before shares were kept
    ],
)
def test_a_run_ended_within_its_tolerance_by_all_of_its_shares(
    results: dict[str, float], kept: bool | None
) -> None:
    made = {"title": "t", "method": "grasp", "root": "r", "base_model": "b", "config": {}}
    run = RunManifest(id="a", **made, results=results, protection={"tolerance": 0.3})
    assert ended_within(run) is kept
    assert ended_within(run.model_copy(update={"protection": {"tolerance": None}})) is None
    assert ended_within(run.model_copy(update={"protection": None})) is None


def test_prompt_sets_are_shown_one_by_one_with_removal_where_there_is_drift(
    tmp_path: Path,
) -> None:
    core = {"stories": STORIES[:1], "seeds": [0], "arms": ["grasp"]}
    plan = check_settings(Plan, {"title": "Two sets", "core": core}, "the plan")
    keep_plan(tmp_path, plan)
    rates = {"unrelated@persona": 0.9, "unrelated@politics": 1.0, "task": 1.0}
    write_cell(
        tmp_path,
        plan.found[0],
        {"grasp": rates | {"unrelated@persona": 0.34}},
        naive=rates,
        base=rates | {"unrelated@persona": 0.2},
    )
    table = instruments_table(tmp_path, plan)
    there = [
        sum(split_of(f"{name}/item {n}") == "confirmation" for n in range(ITEMS)) for name in rates
    ]
    assert [row["items"] for row in table.rows] == [n for n in there for _ in range(3)]
    (persona,) = rows(table, run="grasp", metric="Unrelated rate, persona")
    assert persona["drift"].value == pytest.approx(0.14, abs=0.03)
    assert persona["removal"].value == pytest.approx(0.8, abs=0.05)
    (politics,) = rows(table, run="grasp", metric="Unrelated rate, politics")
    assert politics["removal"] is None  # the naive run did not move it
    (task,) = rows(table, run="naive", metric="Task accuracy")
    assert "removal" not in task
    assert core_table(tmp_path, plan).rows[-1]["removal"].n == 0  # and never of both together


def test_a_single_prompt_set_needs_no_table_of_its_own(miniature: tuple[Path, Plan]) -> None:
    assert not instruments_table(*miniature).rows


def test_nothing_measured_is_not_called_reached(tmp_path: Path) -> None:
    plan = make_plan()
    keep_plan(tmp_path, plan)
    verdicts = {row["verdict"] for row in criteria_table(tmp_path, plan).rows}
    assert verdicts <= {"not measured", "–"}
    assert collect_results(tmp_path, plan, "removal").data["plan"] == "Miniature"


def test_a_phase_diagram_has_a_point_a_combination(miniature: tuple[Path, Plan]) -> None:
    root, plan = miniature
    tables = {table.name: table for table in collect_results(root, plan, "identification").tables}
    found = {(row["strength"], row["steps"]): row["hit"].value for row in tables["phase"].rows}
    assert found == {(0.5, 40): 0.0, (0.5, 120): 0.0, (1, 40): 1.0, (1, 120): 1.0}


def test_the_page_is_written_from_what_is_saved(
    miniature: tuple[Path, Plan], tmp_path: Path
) -> None:
    root, _ = miniature
    notes = tmp_path / "results-notes.md"
    notes.write_text("---\nchosen on: seeds 7 and 8\n---\nWords that stand | as they are.\n")
    out = tmp_path / "results.md"
    written = write_page(root, out, notes=notes)
    page = out.read_text()
    assert [path.name for path in written] == [
        "results.md",
        "results-frontier.svg",
        "results-phase.svg",
    ]
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert headings[0] == "Targets and measurements"
    assert headings[-2:] == ["Cells that failed", "How it was made"]
    assert "- **chosen on**: seeds 7 and 8" in page
    assert "Words that stand | as they are." in page
    assert "shipped-both.s0: it was refused" in page
    assert "3 minutes of CPU time in 2 tasks" in page
    assert "(results-frontier.svg)" in page
    assert str(root.parent) not in page
    for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().splitlines()}
        assert len(bars) == 1, table
    drawn = (tmp_path / "results-frontier.svg").read_text()
    assert "CAFT" in drawn
    before = page, drawn
    write_page(root, out, notes=notes)
    assert (out.read_text(), (tmp_path / "results-frontier.svg").read_text()) == before


def test_notes_with_a_broken_header_are_refused(
    miniature: tuple[Path, Plan], tmp_path: Path
) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("---\nchosen on: seeds\n")
    with pytest.raises(InputError, match="no second line ---"):
        write_page(miniature[0], tmp_path / "results.md", notes=notes)
    notes.write_text("---\n- a\n---\n")
    with pytest.raises(InputError, match="is not a mapping"):
        write_page(miniature[0], tmp_path / "results.md", notes=notes)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.500"),
        (-0.25, "−0.250"),
        (2e-8, "2e−08"),
        (None, "–"),
        (float("nan"), "–"),
        (3, "3"),
    ],
)
def test_values_as_they_are_shown(value: Any, text: str) -> None:
    assert format_value(value) == text
