"""Tables of what arms remove and what they keep: core, needed factor, two factors at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from analysis.comparison.arm_tests import Samples, compare_with_reference
from analysis.comparison.measures import APART
from analysis.statistics.intervals import wilson
from grasp.bench.plan.cells import BASE, NAIVE, cell_workspace, latents_of, topic_latents
from grasp.bench.plan.plan import Arm, Arms, Cell, Plan
from grasp.bench.plan.tasks import BEST, Demand, latent_sets
from grasp.bench.saved.gather import (
    METRICS,
    arms_of,
    group_by_story,
    has_whole_answers,
    mean_score,
    measure_removal,
    run_manifest,
)
from grasp.bench.tables.ledger import ended_within
from grasp.bench.tables.tables import Row, Table

ARM_COLUMNS = {
    "group": "story",
    "arm": "arm",
    "n": "runs",
    "unrelated": "unrelated rate",
    "removal": "removal",
    "unrelated_first": "unrelated, first token",
    "removal_first": "removal, first token",
    "related": "related rate",
    "control": "control rate",
    "task": "task accuracy",
    "facts": "facts",
    "format": "format",
    "coherence": "coherence",
    "incoherent": "neither value",
    "drift": "ended within τ",
    "leakage": "largest leakage",
}

WHOLE = (
    "Rates and removal are of whole answers drawn at temperature 1, where evaluations have them; "
    "beside them are the probability of the first token and removal by it. Neither value: the "
    "share of drawn answers that show none."
)

NEEDED = (
    "group",
    "arm",
    "n",
    "task",
    "unrelated",
    "removal",
    "unrelated_first",
    "removal_first",
    "related",
    "facts",
)

MADE = {BASE: "base model", NAIVE: "naive"}


def group_cells(plan: Plan, cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Cells pooled by story, by latent and by kind of world; repeated groups are left out."""
    found = group_by_story(cells)
    latents = {cell.id: ", ".join(latents_of(plan, cell)) for cell in cells}
    for latent in dict.fromkeys(latents.values()):
        found[f"{latent}, all stories"] = [cell for cell in cells if latents[cell.id] == latent]
    found["the shipped world"] = [cell for cell in cells if cell.world == "shipped"]
    found["generated worlds"] = [cell for cell in cells if cell.world.startswith("generated")]
    kept: dict[str, list[Cell]] = {}
    for name, group in found.items():
        if group and group not in kept.values():
            kept[name] = group
    return kept


def core_table(root: Path, plan: Plan) -> Table:
    """Every arm of the core section, by story and pooled."""
    title = "What each arm removes and keeps"
    return Table("removal", title, ARM_COLUMNS, _by_group(root, plan, plan.core), (WHOLE,))


def styles_table(root: Path, plan: Plan) -> Table:
    """Every arm in worlds of other styles, by story and pooled."""
    title = "The same in worlds of other styles"
    return Table("styles", title, ARM_COLUMNS, _by_group(root, plan, plan.styles), (WHOLE,))


def _by_group(root: Path, plan: Plan, section: Arms | None) -> list[Row]:
    labels = {arm.name: arm.label for arm in section.arms} if section else {}
    return [
        row
        for name, group in group_cells(plan, section.cells if section else []).items()
        for row in arm_rows(root, name, group, labels)
    ]


def needed_table(root: Path, plan: Plan) -> Table:
    """Arms in stories whose task needs the factor."""
    cells, arms = (plan.needed.cells, plan.needed.arms) if plan.needed else ([], [])
    rows = []
    stories = group_by_story(cells)
    for name, group in {**stories, **({"all": cells} if len(stories) > 1 else {})}.items():
        if group:
            labels = {arm.name: arm.label for arm in arms}
            rows += arm_rows(root, name, group, labels)
            _add_task_loss(root, group, labels, rows)
    columns = {name: heading for name, heading in ARM_COLUMNS.items() if name in NEEDED}
    columns["task_loss"] = "task, arm − naive"
    note = "In these stories “related” is whether an answer follows the value that the chat showed."
    return Table("needed", "A task that needs the factor", columns, rows, (note,))


def two_table(root: Path, plan: Plan) -> Table:
    """Rates of both latents when one factor, the other, or both are protected."""
    columns = {"group": "story", "protected": "protected", "arm": "arm", "n": "runs"}
    rows: list[Row] = []
    if plan.two is not None:
        names = list(latents_of(plan, plan.two.cells[0]))
        columns |= {latent: f"{latent} drifted" for latent in names}
        columns |= {f"removed {latent}": f"removal, {latent}" for latent in names}
        columns |= {"task": "task accuracy", "facts": "facts"}
        for name, cells in group_by_story(plan.two.cells).items():
            rows += _two_rows(root, name, cells, plan.two.arms, names)
    note = (
        "In use, a person labels which factor is which latent. Here the label is simulated: a "
        "factor gets the latent on whose exploration prompts setting it back undoes more of the "
        "change. The best-ranked significant factor of each label is protected."
    )
    return Table("two", "Two factors at once", columns, rows, (note,))


def arm_rows(root: Path, name: str, cells: Sequence[Cell], labels: Mapping[str, str]) -> list[Row]:
    """Rows of the base model, the naive run and the arms; `labels` is run → display name."""
    arms = arms_of(root, cells, labels)
    rows = []
    for run, table in arms.items():
        row: Row = {"group": name, "arm": MADE.get(run, labels.get(run, run)), "run": run}
        row["n"] = _made(root, cells, run)
        row |= {metric: mean_score(table, metric) for metric in METRICS}
        row["removal"] = measure_removal(arms, run)[0] if run not in MADE else None
        if has_whole_answers(arms):
            row["unrelated_first"] = mean_score(table, "unrelated", whole=False)
            first = measure_removal(arms, run, whole=False)[0]
            row["removal_first"] = first if run not in MADE else None
        rows.append(row | _ends(root, cells, run))
    return rows


def _made(root: Path, cells: Iterable[Cell], run: str) -> int:
    return sum(cell_workspace(root, c).folder("evaluations", run).is_dir() for c in cells)


def _ends(root: Path, cells: Iterable[Cell], run: str) -> Row:
    """Share of the runs with a tolerance that ended within it, and the largest leakage."""
    manifests = [run_manifest(root, cell, run) for cell in cells] if run not in MADE else []
    within = []
    leakages = []
    for manifest in manifests:
        if manifest is None:
            continue
        kept = ended_within(manifest)
        if kept is not None:
            within.append(kept)
        leakages.append(manifest.results.get("leakage", math.nan))
    known = [value for value in leakages if math.isfinite(value)]
    return {
        "drift": wilson(sum(within), len(within)) if within else None,
        "leakage": max(known) if known else None,
    }


def _add_task_loss(
    root: Path, cells: Sequence[Cell], labels: Mapping[str, str], rows: list[Row]
) -> None:
    arms = {run: table for run, table in arms_of(root, cells, labels).items() if run != BASE}
    if NAIVE not in arms or len(arms) < 2:
        return
    losses = {
        one.arm: one.test.difference
        for one in compare_with_reference(arms, reference=NAIVE)
        if one.metric == "task"
    }
    for row in rows[-len(arms) - 1 :]:
        row["task_loss"] = losses.get(row["run"])


def _two_rows(
    root: Path, name: str, cells: Sequence[Cell], arms: Sequence[Arm], latents: Sequence[str]
) -> list[Row]:
    made = [(arm, protect) for arm in arms for protect in latent_sets(arm, latents)]
    runs = {
        Demand("arm", arm, protect).run: (arm.label, "" if protect == BEST else protect)
        for arm, protect in made
    }
    tables = arms_of(root, cells, runs)
    of_topic = topic_latents(cells[0])
    by_latent = {
        latent: {run: _about(table, of_topic, latent) for run, table in tables.items()}
        for latent in latents
    }
    rows = []
    for run, table in tables.items():
        label, protect = runs.get(run, (MADE.get(run, run), ""))
        row: Row = {"group": name, "protected": protect, "arm": label, "run": run}
        row |= {"n": _made(root, cells, run), "task": mean_score(table, "task")}
        row["facts"] = mean_score(table, "facts")
        for latent, parts in by_latent.items():
            row[latent] = mean_score(parts[run], "unrelated")
            row[f"removed {latent}"] = measure_removal(parts, run)[0] if run not in MADE else None
        rows.append(row)
    return rows


def _about(table: Samples, of_topic: Mapping[str, str], latent: str) -> Samples:
    """The unrelated prompts about one latent's topics."""
    rows = table[table["role"] == "unrelated"]
    # Of a single latent, so that nothing has to be kept apart any more.
    return rows[rows["group"].map(of_topic) == latent].drop(columns=[APART, "instrument"])
