"""Tables of rivals: how their strengths were chosen, and how they compare with GRASP."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from analysis.comparison.arm_tests import (
    Domination,
    Samples,
    compare_with_reference,
    find_dominations,
)
from analysis.comparison.wording import domination_text, metric_name
from grasp.bench.plan.cells import BASE, NAIVE
from grasp.bench.plan.plan import Cell, Plan
from grasp.bench.saved.choices import MARGIN, sweeps
from grasp.bench.saved.gather import arms_of, story_label
from grasp.bench.tables.removal import ARM_COLUMNS, arm_rows
from grasp.bench.tables.tables import Row, Table
from grasp.settings.methods import METHODS

REFERENCE = "grasp"

TESTED = ("unrelated_said", "unrelated", "task", "facts", "format")


def sweep_table(root: Path, plan: Plan) -> Table:
    """Every strength tried, on exploration prompts."""
    rows: list[Row] = [
        {
            "story": line.story,
            "arm": line.arm.label,
            "variant": line.variant.name,
            "removal": line.removal,
            "task": line.task,
            "facts": line.facts,
            "kept": line.kept,
            "chosen": "chosen" if line.chosen else "",
        }
        for line in sweeps(root, plan)
    ]
    columns = {
        "story": "story",
        "arm": "arm",
        "variant": "strength",
        "removal": "removal",
        "task": "task accuracy",
        "facts": "facts",
        "kept": f"within {MARGIN} of naive",
        "chosen": "",
    }
    seed = plan.rivals.chosen_on if plan.rivals else 0
    tried = len({row["variant"] for row in rows})
    note = (
        f"On exploration prompts, seed {seed}. The chosen strength is the one with the highest "
        f"removal among those whose task accuracy and facts are within {MARGIN} of naive; if there "
        f"is none, the one with the best task accuracy. {tried} settings were tried."
    )
    return Table("sweep", "Strengths tried", columns, rows, (note,))


def rivals_table(root: Path, plan: Plan) -> Table:
    """Arms at their chosen strengths on confirmation prompts."""
    rows: list[Row] = []
    for name, cells in _stories(plan).items():
        labels = reported_labels(root, plan, cells[0].story)
        rows += arm_rows(root, name, cells, labels)
        kept = _kept(root, plan, name)
        for row in rows:
            if row["group"] == name:
                row["kept"] = kept.get(row["run"])
    columns = ARM_COLUMNS | {"kept": "task kept on exploration"}
    note = "At the strength chosen on exploration prompts, measured on confirmation prompts."
    return Table("rivals", "Rivals at their chosen strengths", columns, rows, (note,))


def rival_tests_table(root: Path, plan: Plan) -> Table:
    """Every rival tested against GRASP, Holm-corrected over rivals within each metric."""
    rows: list[Row] = []
    for name, cells in _stories(plan).items():
        labels = reported_labels(root, plan, cells[0].story)
        arms = {run: t for run, t in arms_of(root, cells, labels).items() if run != BASE}
        for one in compare_with_reference(arms, reference=REFERENCE) if REFERENCE in arms else []:
            if one.metric in TESTED:
                rows.append(
                    {
                        "group": name,
                        "arm": labels.get(one.arm, one.arm),
                        "metric": metric_name(one.metric),
                        "difference": one.test.difference,
                        "p": one.p_holm,
                        "detectable": one.test.detectable,
                    }
                )
    columns = {
        "group": "story",
        "arm": "arm",
        "metric": "metric",
        "difference": "arm − GRASP",
        "p": "p (Holm)",
        "detectable": "smallest detectable",
    }
    notes = [
        domination_text(found, labels) for found, labels in find_dominated(root, plan).values()
    ]
    named = [f"{name}: {text}" for name, text in zip(_stories(plan), notes, strict=False)]
    return Table("rival_tests", "Rivals tested against GRASP", columns, rows, named)


def find_dominated(root: Path, plan: Plan) -> dict[str, tuple[list[Domination], dict[str, str]]]:
    """Story → every tested pair of arms, and the display names of the arms."""
    return _dominated(root, plan.model_dump_json())


@cache
def _dominated(root: Path, text: str) -> dict[str, tuple[list[Domination], dict[str, str]]]:
    plan = Plan.model_validate_json(text)
    found = {}
    for name, cells in _stories(plan).items():
        labels = {NAIVE: "naive"} | reported_labels(root, plan, cells[0].story)
        arms: dict[str, Samples] = arms_of(root, cells, labels)
        if {BASE, NAIVE} <= arms.keys():
            found[name] = (find_dominations(arms, base=BASE, naive=NAIVE), labels)
    return found


def rival_runs(root: Path, plan: Plan) -> set[str]:
    """Runs of actual rivals (not GRASP's parts and controls) at their chosen strengths."""
    return {
        line.variant.name
        for line in sweeps(root, plan)
        if line.chosen and METHODS[line.arm.method].group == "rivals"
    }


def reported_labels(root: Path, plan: Plan, story: str) -> dict[str, str]:
    """Run → display name, for the arms of a story at their chosen strengths."""
    return {
        line.variant.name: line.arm.label
        if line.variant.name == line.arm.name
        else f"{line.arm.label}, {line.variant.name.removeprefix(line.arm.name + '-')}"
        for line in sweeps(root, plan)
        if line.chosen and line.story == story
    }


def _kept(root: Path, plan: Plan, story: str) -> dict[str, bool]:
    lines = [line for line in sweeps(root, plan) if line.story.replace("/", "-") == story]
    return {line.variant.name: line.kept for line in lines if line.chosen}


def _stories(plan: Plan) -> dict[str, list[Cell]]:
    found: dict[str, list[Cell]] = {}
    for cell in plan.rivals.cells if plan.rivals else []:
        found.setdefault(story_label(cell), []).append(cell)
    return found
