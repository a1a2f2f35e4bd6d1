"""Pool the saved evaluations of many cells into one table of samples, and average it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.comparison.arm_tests import Samples, arm_removal
from analysis.comparison.evaluation import read_evaluation, samples_of
from analysis.comparison.measures import POOLED
from analysis.statistics.intervals import Interval, rate
from analysis.store.records import RunManifest, Split
from grasp.bench.plan.cells import BASE, NAIVE, cell_workspace
from grasp.bench.plan.plan import Cell

METRICS = ("unrelated", "related", "control", "task", "facts", "format", "coherence")


@cache
def _saved(folder: Path) -> pd.DataFrame:
    return read_evaluation(folder).samples


def pool_samples(
    root: Path, cells: Iterable[Cell], evaluation: str, *, split: Split = "confirmation"
) -> Samples:
    """Samples of one evaluation, from every cell that has it.

    The columns of `analysis.comparison.arm_tests.POOLED` say which cell a sample is from.  The
    table is empty, without columns, if no cell has the evaluation.
    """
    tables = []
    for cell in cells:
        folder = cell_workspace(root, cell).folder("evaluations", evaluation)
        if folder.is_dir():
            table = samples_of(_saved(folder), split)
            where = table.assign(world=cell.world, story=story_label(cell), seed=cell.seed)
            tables.append(where)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def story_label(cell: Cell) -> str:
    """A cell's story and settings, without its seed."""
    return cell.model_copy(update={"seed": 0}).id.replace(".s0", "", 1)


def arms_of(
    root: Path, cells: Sequence[Cell], runs: Iterable[str], *, split: Split = "confirmation"
) -> dict[str, Samples]:
    """Samples of the base model, the naive run and the arms, as far as cells have them.

    With a single fine-tune the columns that tell fine-tunes apart are dropped, since there is
    nothing to resample; intervals are then over items alone.
    """
    found = {
        run: pool_samples(root, cells, run, split=split)
        for run in dict.fromkeys([BASE, NAIVE, *runs])
    }
    found = {run: table for run, table in found.items() if len(table)}
    if NAIVE in found and len(found[NAIVE][list(POOLED)].drop_duplicates()) == 1:
        found = {run: table.drop(columns=list(POOLED)) for run, table in found.items()}
    return found


def mean_score(table: Samples, metric: str) -> Interval:
    """Mean score of a metric; the interval is over items, crossed with fine-tunes if several."""
    role, column = ("unrelated", "coherence") if metric == "coherence" else (metric, "score")
    rows = table[table["role"] == role].dropna(subset=column) if len(table) else table
    if not len(rows):
        return Interval(np.nan, np.nan, np.nan, 0, "none", 0.95)
    clusters, crossed = sample_labels(rows)
    return rate(rows[column].to_numpy(float), clusters, crossed=crossed)


def sample_labels(rows: Samples) -> tuple[np.ndarray, np.ndarray | None]:
    """Cluster labels (items of a world), and labels of fine-tunes, None if there is only one."""
    if "seed" not in rows:
        return rows["cluster"].to_numpy(str), None
    clusters = (rows["world"] + "/" + rows["cluster"]).to_numpy(str)
    crossed = rows[list(POOLED)].astype(str).agg("/".join, axis=1).to_numpy(str)
    return clusters, (crossed if len(set(crossed)) > 1 else None)


def measure_removal(arms: dict[str, Samples], run: str) -> tuple[Interval, str]:
    """Removal of an arm, and the reason if it is unknown, else ""."""
    if not {BASE, NAIVE, run} <= arms.keys():
        return Interval(np.nan, np.nan, np.nan, 0, "none", 0.95), "not measured"
    return arm_removal(arms[BASE], arms[NAIVE], arms[run])


def run_manifest(root: Path, cell: Cell, run: str) -> RunManifest | None:
    """A run's manifest; None if there is no such run."""
    workspace = cell_workspace(root, cell)
    return workspace.run(run) if workspace.folder("runs", run).is_dir() else None
