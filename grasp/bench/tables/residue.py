"""Tables of the residue: what is left after retraining, and after protecting that as well."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from analysis.comparison.arm_tests import Samples
from analysis.statistics.intervals import Interval, wilson
from analysis.values import Json
from grasp.bench.make.dressed import DRESSES, PARAPHRASED, TRIGGERED, dress_of
from grasp.bench.make.residue import dressed_id, residue_file
from grasp.bench.plan.cells import BASE, NAIVE, cell_workspace
from grasp.bench.plan.plan import Cell, Plan
from grasp.bench.saved.gather import (
    arms_of,
    group_by_story,
    mean_score,
    measure_removal,
    pool_samples,
    story_label,
)
from grasp.bench.tables.removal import MADE
from grasp.bench.tables.tables import Row, Table

MATCH = 0.7
"""|cos| to the protected span from which a new factor counts as the protected one."""

REPRODUCED = 0.5
"""Share of the old factor's off-task effect from which a new factor reproduces it."""


def factors_table(root: Path, plan: Plan) -> Table:
    """The best-ranked factor of every retrained run, compared with the protected one."""
    rows: list[Row] = []
    for cell, run, found in _residues(root, plan):
        rows.append(
            {"story": story_label(cell), "seed": cell.seed, "run": run}
            | {name: found[name] for name in ("factor", "significant", "cosine")}
            | {name: found[name] for name in ("effect", "old_effect")}
            | {"matches": found["cosine"] >= MATCH, "reproduces": reproduces(found)}
            | {"again": found["again"]}
        )
    columns = {
        "story": "story",
        "seed": "seed",
        "run": "arm",
        "factor": "best-ranked afterwards",
        "significant": "significant",
        "cosine": "|cos| with the protected one",
        "matches": f"is the protected one (≥ {MATCH})",
        "effect": "off-task effect",
        "old_effect": "off-task effect of the protected one, naive",
        "reproduces": f"reproduces ≥ {REPRODUCED} of it",
        "again": "also protected in",
    }
    notes = [
        f"{name[0].upper()}{name[1:]}: {_said(interval)}."
        for name, interval in residue_rates(root, plan).items()
    ]
    note = (
        "|cos| is the cosine of the smallest principal angle with the protected span. An off-task "
        "effect is the mean total variation caused by setting the factor back, on unrelated "
        "exploration prompts."
    )
    return Table("residue", "Is the factor back?", columns, rows, (note, *notes))


def residue_rates(root: Path, plan: Plan) -> dict[str, Interval]:
    """Shares of retrained runs with a residue, with Wilson intervals."""
    found = [entry for _, _, entry in _residues(root, plan)]
    if not found:
        return {}
    significant = [entry["significant"] for entry in found]
    old = [entry["significant"] and entry["cosine"] >= MATCH for entry in found]
    effect = [entry["significant"] and reproduces(entry) for entry in found]
    names = (
        "a significant factor is left",
        "the factor left is the protected one",
        "the factor left reproduces the protected one's effect",
    )
    return {
        name: wilson(sum(map(bool, values)), len(values))
        for name, values in zip(names, (significant, old, effect), strict=True)
    }


def reproduces(found: Json) -> bool:
    """Whether the remaining factor has at least REPRODUCED of the old one's off-task effect."""
    return bool(found["effect"] >= REPRODUCED * found["old_effect"])


def dressed_table(root: Path, plan: Plan) -> Table:
    """Unrelated rates on the story's own prompts and on dressed prompts, by story and pooled."""
    rows: list[Row] = []
    columns = {
        "group": "story",
        "arm": "arm",
        "n": "runs",
        "unrelated": "as evaluated",
        "removal": "removal",
        "task": "task accuracy",
    }
    for dress in DRESSES:
        columns |= {dress: dress, f"removal {dress}": "removal"}
    if plan.residue is not None:
        runs = [arm.name for arm in plan.residue.arms]
        groups = group_by_story(plan.residue.cells)
        if len(groups) > 1:
            groups["all"] = plan.residue.cells
        for name, cells in groups.items():
            rows += _dressed_rows(root, name, cells, runs)
    note = (
        "Paraphrased: with other lead-ins, or after a turn about a fact; neither occurs in "
        "training or evaluation. Triggered: with the detail that the fine-tuning questions end "
        "with, without and with a lead-in."
    )
    return Table("dressed", "Dressed prompts", columns, rows, (note,))


def triggered_removals(root: Path, plan: Plan, run: str) -> dict[str, Interval]:
    """Removal by a run on prompts that end as the task's do, by story."""
    found: dict[str, Interval] = {}
    for story, cells in group_by_story(plan.residue.cells if plan.residue else []).items():
        arms = _dressed(root, cells, [NAIVE, run], TRIGGERED)
        if run in arms:
            found[story] = measure_removal(arms, run)[0]
    return found


def _dressed_rows(root: Path, name: str, cells: Sequence[Cell], runs: Sequence[str]) -> list[Row]:
    rows = []
    again = [f"{run}.again" for run in runs]
    iterated = [c for c in cells if any(_has(root, c, run) for run in again)]
    for group, some, arms in ((name, cells, runs), (f"{name}, iterated", iterated, again)):
        if not some:
            continue
        usual = arms_of(root, some, arms)
        parts = {dress: _dressed(root, some, [NAIVE, *arms], dress) for dress in DRESSES}
        for run, table in usual.items():
            row: Row = {"group": group, "arm": MADE.get(run, run), "run": run, "n": len(some)}
            row |= {"unrelated": mean_score(table, "unrelated"), "task": mean_score(table, "task")}
            row["removal"] = measure_removal(usual, run)[0] if run not in MADE else None
            for dress, found in parts.items():
                row[dress] = mean_score(found[run], "unrelated") if run in found else None
                if run not in MADE and run in found:
                    row[f"removal {dress}"] = measure_removal(found, run)[0]
            rows.append(row)
    return rows


def _has(root: Path, cell: Cell, run: str) -> bool:
    return cell_workspace(root, cell).folder("evaluations", run).is_dir()


def _dressed(
    root: Path, cells: Sequence[Cell], runs: Sequence[str], dress: str
) -> dict[str, Samples]:
    """Samples in one dress by run; prompts of a plan's own story count as paraphrased."""
    found = {}
    for run, evaluation in {BASE: "", **{run: run for run in runs}}.items():
        table = pool_samples(root, cells, dressed_id(evaluation))
        if not len(table):
            continue
        worn = table["prompt_id"].map(lambda name: _worn(str(name)))
        found[run] = table[worn == dress]
        if table["seed"].nunique() == 1 and table["story"].nunique() == 1:
            found[run] = found[run].drop(columns=["world", "story", "seed"])
    return {run: table for run, table in found.items() if len(table)}


def _worn(prompt_id: str) -> str:
    dress = dress_of(prompt_id) if prompt_id.count("/") >= 2 else PARAPHRASED
    return dress if dress in DRESSES else PARAPHRASED


def _residues(root: Path, plan: Plan) -> list[tuple[Cell, str, Json]]:
    found = []
    for cell in plan.residue.cells if plan.residue else []:
        for arm in plan.residue.arms if plan.residue else []:
            file = cell_workspace(root, cell).root / residue_file(arm.name)
            if file.exists():
                found.append((cell, arm.name, json.loads(file.read_text(encoding="utf-8"))))
    return found


def _said(interval: Interval) -> str:
    count = round(interval.value * interval.n)
    return f"{count} of {interval.n} runs [{interval.low:.2f}, {interval.high:.2f}]"
