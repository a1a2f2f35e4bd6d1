"""The effort of a benchmark: runs, settings, versions, processor time, and how runs ended."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from analysis.statistics.intervals import Interval, wilson
from analysis.store.factor_table import read_run_factors
from analysis.store.records import RunManifest
from analysis.store.workspace import Workspace
from grasp.bench.make.pool import TIMES
from grasp.bench.plan.cells import NAIVE, cell_workspace
from grasp.bench.plan.plan import Cell, Plan
from grasp.bench.saved.choices import sweeps

CLAIM = "within the tolerance"
"""The words of a verdict if drift and effect are within τ (`grasp.training.verdict`)."""


def cells_of(plan: Plan) -> list[Cell]:
    """Every cell of the plan, once each."""
    cells = {cell.id: cell for section in plan.sections.values() for cell in section.cells}
    return list(cells.values())


def manifests(root: Path, plan: Plan) -> Iterator[tuple[Workspace, RunManifest]]:
    """Every run of every cell, with its workspace."""
    for cell in cells_of(plan):
        workspace = cell_workspace(root, cell)
        for run in workspace.runs().records:
            yield workspace, run


def run_endings(root: Path, plan: Plan) -> tuple[Interval, Interval, float]:
    """How the runs with a tolerance ended.

    Returns:
        The share of them that ended within the tolerance; the same among those whose verdict says
        so; and the largest leakage of all runs, NaN if none has a write constraint.
    """
    within: list[bool] = []
    claimed: list[bool] = []
    leakage = math.nan
    for _, run in manifests(root, plan):
        if (run.protection or {}).get("write_constraint"):
            leakage = _larger(leakage, run.results.get("leakage", math.nan))
        kept = ended_within(run)
        if kept is None:
            continue
        within.append(kept)
        if CLAIM in run.verdict:
            claimed.append(kept)
    return wilson(sum(within), len(within)), wilson(sum(claimed), len(claimed)), leakage


def ended_within(run: RunManifest) -> bool | None:
    """Whether drift and effect, as shares of the naive run's, ended within the run's tolerance.

    None where it has no tolerance, or its record no share.
    """
    tolerance = (run.protection or {}).get("tolerance")
    shares = [run.results[name] for name in ("drift_share", "effect") if name in run.results]
    if tolerance is None or not shares:
        return None
    return all(share <= tolerance for share in shares)


def describe_effort(root: Path, plan: Plan) -> list[str]:
    """Sentences about how much was tried, with which versions, and how long it took."""
    runs = list(manifests(root, plan))
    naive = [workspace for workspace, run in runs if run.id == NAIVE]
    directions = sum(
        len(read_run_factors(workspace, NAIVE).table)
        for workspace in naive
        if workspace.folder("factors", NAIVE).is_dir()
    )
    settings = len({(line.story, line.variant.name) for line in sweeps(root, plan)})
    seconds, tasks = _times(root)
    versions = sorted({run.code_version for _, run in runs})
    packages = sorted({f"{name} {v}" for _, run in runs for name, v in run.packages.items()})
    return [
        f"{len(runs)} runs in {len(naive)} cells; {directions} directions were ranked; "
        f"{settings} settings of rivals were tried on exploration prompts.",
        f"{seconds / 60:.0f} minutes of CPU time in {tasks} tasks.",
        f"Versions: grasp-workbench {', '.join(versions) or 'unknown'}; {', '.join(packages)}.",
    ]


def _times(root: Path) -> tuple[float, int]:
    """Processor seconds of all tasks, and their number."""
    file = root / TIMES
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    times = [float(json.loads(line)["processor_seconds"]) for line in lines]
    return sum(times), len(times)


def _larger(first: float, second: float) -> float:
    known = [value for value in (first, second) if math.isfinite(value)]
    return max(known, default=math.nan)
