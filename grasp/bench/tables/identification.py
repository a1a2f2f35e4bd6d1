"""Tables of what identification found, with and without a planted factor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from analysis.comparison.arm_tests import compare_with_reference
from analysis.statistics.intervals import Interval, wilson
from analysis.text import score_text
from grasp.bench.plan.cells import NAIVE
from grasp.bench.plan.plan import Plan
from grasp.bench.saved.found import PLANTED, BestFactor, read_found
from grasp.bench.saved.gather import METRICS, arms_of, story_label
from grasp.bench.tables.tables import Row, Table

COSINE = 0.7
"""|cos| that a criterion asks for, stricter than the one from which a factor counts as planted."""

COLUMNS = {
    "group": "group",
    "n": "runs",
    "significant": "significant",
    "hit": "planted is best-ranked and significant",
    "cosine": "median |cos|",
    "cosine_least": "smallest |cos|",
    "near": f"|cos| ≥ {COSINE}",
    "nearest": "best-ranked is the nearest candidate",
}


def share(entries: Sequence[BestFactor], true: Callable[[BestFactor], bool]) -> Interval:
    """Share of entries for which `true` holds, with a Wilson interval."""
    return wilson(sum(map(true, entries)), len(entries))


def planted_table(root: Path, plan: Plan) -> Table:
    """Whether the planted factor is found, pooled by latent, by kind of world and by story."""
    entries = read_found(root, plan, plan.found)
    groups: dict[str, list[BestFactor]] = {}
    for name in dict.fromkeys(entry.latent for entry in entries):
        groups[f"{name}, all stories"] = [entry for entry in entries if entry.latent == name]
    for name, shipped in (("the shipped world", True), ("other worlds", False)):
        there = [entry for entry in entries if (entry.cell.world == "shipped") == shipped]
        groups |= {name: there} if there else {}
    for story in dict.fromkeys(story_label(entry.cell) for entry in entries):
        groups[story] = [entry for entry in entries if story_label(entry.cell) == story]
    distinct: dict[str, list[BestFactor]] = {}
    for name, rows in groups.items():
        distinct |= {name: rows} if rows not in distinct.values() else {}
    notes = (
        "A factor counts as the planted one if its |cos| with the supervised contrast direction "
        "(mean difference of the base model's activations between both ends of the latent, at the "
        f"token before the answer) is at least {PLANTED} at its best layer. Intervals are Wilson's "
        "over runs; seeds of one story are not quite independent. "
        f"{_candidates(entries)}",
    )
    return Table(
        "identification",
        "Is the planted factor found?",
        COLUMNS,
        [_row(name, rows) for name, rows in distinct.items()],
        notes,
    )


def runs_table(root: Path, plan: Plan) -> Table:
    """One row per run and latent, including failures."""
    entries = read_found(root, plan, plan.found)
    columns = {
        "story": "story",
        "seed": "seed",
        "latent": "latent",
        "factor": "best-ranked",
        "significant": "significant",
        "cosine": "|cos|",
        "layer": "at layer",
        "best": "nearest candidate",
        "best_cosine": "its |cos|",
        "off_task": "off-task share",
    }
    rows = [
        {
            "story": story_label(entry.cell),
            "seed": entry.cell.seed,
            "latent": entry.latent,
            "factor": entry.factor,
            "significant": entry.significant,
            "cosine": entry.cosine,
            "layer": entry.layer,
            "best": entry.best_factor,
            "best_cosine": entry.best_cosine,
            "off_task": entry.off_task,
        }
        for entry in entries
    ]
    return Table("identification_runs", "Every run", columns, rows)


def false_positives_table(root: Path, plan: Plan) -> Table:
    """Significant factors in stories whose data have no slant."""
    entries = read_found(root, plan, plan.none.cells) if plan.none else []
    groups = {"all": entries} if entries else {}
    for story in dict.fromkeys(entry.cell.story for entry in entries):
        groups[story] = [entry for entry in entries if entry.cell.story == story]
    columns = {
        "group": "group",
        "n": "runs",
        "significant": "a significant factor (false positive)",
        "off_task": "largest off-task share",
    }
    rows: list[Row] = [
        {
            "group": name,
            "n": len(rows),
            "significant": share(rows, lambda entry: entry.significant),
            "off_task": _largest(entry.off_task for entry in rows),
        }
        for name, rows in groups.items()
    ]
    return Table("none", "No spurious factor in the data", columns, rows)


def retrained_table(root: Path, plan: Plan) -> Table:
    """What protecting the best-ranked factor changes in stories where it is noise."""
    columns = {
        "arm": "arm",
        "metric": "metric",
        "difference": "arm − naive",
        "p": "p (Holm)",
        "detectable": "smallest detectable",
    }
    rows: list[Row] = []
    if plan.none is not None:
        arms = arms_of(root, plan.none.cells, [arm.name for arm in plan.none.arms])
        made = {name: table for name, table in arms.items() if name != "naive.base"}
        for one in compare_with_reference(made, reference=NAIVE) if len(made) > 1 else []:
            if one.metric in METRICS:
                rows.append(
                    {
                        "arm": one.arm,
                        "metric": one.metric,
                        "difference": one.test.difference,
                        "p": one.p_holm,
                        "detectable": one.test.detectable,
                    }
                )
    note = "Paired by prompt, over the runs of these stories that were retrained."
    return Table("none_retrained", "Retrained anyway", columns, rows, (note,))


def _row(name: str, entries: Sequence[BestFactor]) -> Row:
    cosines = np.array([entry.cosine for entry in entries])
    return {
        "group": name,
        "n": len(entries),
        "significant": share(entries, lambda entry: entry.significant),
        "hit": share(entries, lambda entry: entry.hit),
        "cosine": float(np.median(cosines)),
        "cosine_least": float(cosines.min()),
        "near": share(entries, lambda entry: entry.cosine >= COSINE),
        "nearest": share(entries, lambda entry: entry.nearest),
    }


def _candidates(entries: Sequence[BestFactor]) -> str:
    if not entries:
        return ""
    counts = [entry.candidates for entry in entries]
    missed = [
        f"{story_label(entry.cell)} seed {entry.cell.seed} "
        f"({entry.factor}, {score_text(entry.cosine)})"
        for entry in entries
        if not entry.hit
    ]
    looked = f"{min(counts)} to {max(counts)} candidate directions were ranked in each run."
    return f"{looked} Missed: {', '.join(missed) or 'none'}."


def _largest(values: Iterable[float]) -> float:
    return max((value for value in values if math.isfinite(value)), default=math.nan)
