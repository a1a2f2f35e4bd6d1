"""Where identification and removal work and where they break: cells around the default."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.statistics.intervals import Interval, wilson
from grasp.bench.plan.cells import BASE, NAIVE
from grasp.bench.plan.plan import SETTINGS, Cell, Plan
from grasp.bench.saved.found import BestFactor, read_found
from grasp.bench.saved.gather import UNKNOWN, arms_of, mean_score, measure_removal, story_label
from grasp.bench.tables.tables import Row, Table


@dataclass(frozen=True)
class Point:
    """One story at one combination of settings, pooled over seeds."""

    story: str
    values: dict[str, float]
    hit: Interval
    cosine: float
    drift: float
    removal: Interval
    task: float


def points(root: Path, plan: Plan) -> list[Point]:
    """Every combination of settings that has results."""
    if plan.phase is None:
        return []
    by_label: dict[str, list[Cell]] = {}
    for cell in plan.phase.cells:
        by_label.setdefault(story_label(cell), []).append(cell)
    found = []
    for cells in by_label.values():
        entries = read_found(root, plan, cells)
        if entries:
            found.append(_point(root, plan, cells, entries))
    return found


def phase_table(root: Path, plan: Plan) -> Table:
    """One row per story and combination of settings."""
    rows: list[Row] = [
        {"story": point.story, **point.values, "hit": point.hit, "cosine": point.cosine}
        | {"drift": point.drift, "removal": point.removal, "task": point.task}
        for point in points(root, plan)
    ]
    columns = {
        "story": "story",
        "strength": "spurious strength",
        "details": "details taught",
        "r": "LoRA rank",
        "steps": "steps",
        "hit": "planted is best-ranked and significant",
        "cosine": "mean |cos|",
        "drift": "naive drift",
        "removal": "removal",
        "task": "task accuracy",
    }
    note = (
        "alpha / r stays the same when the rank changes. Removal is unknown if naive does not "
        "drift."
    )
    return Table("phase", "Around the default", columns, rows, (note,))


def _number(value: float) -> float:
    """Whole numbers as int, so that they are shown without decimals."""
    return int(value) if value == int(value) else value


def _point(root: Path, plan: Plan, cells: list[Cell], entries: list[BestFactor]) -> Point:
    assert plan.phase is not None
    values = {**plan.phase.default, **cells[0].changed}
    names = [arm.name for arm in plan.phase.arms[:1]]
    arms = arms_of(root, cells, names)
    drift = np.nan
    if {BASE, NAIVE} <= arms.keys():
        drift = (
            mean_score(arms[NAIVE], "unrelated").value - mean_score(arms[BASE], "unrelated").value
        )
    return Point(
        story=cells[0].story,
        values={name: _number(values[name]) for name in SETTINGS if name in values},
        hit=wilson(sum(entry.hit for entry in entries), len(entries)),
        cosine=float(np.mean([entry.cosine for entry in entries])),
        drift=float(drift),
        removal=measure_removal(arms, names[0])[0] if names else UNKNOWN,
        task=mean_score(arms[names[0]], "task").value if names and names[0] in arms else np.nan,
    )
