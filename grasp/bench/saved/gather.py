"""Pool the saved evaluations of many cells into one table of samples, and average it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.comparison.arm_tests import Samples, arm_removal
from analysis.comparison.evaluation import read_evaluation, samples_of
from analysis.comparison.measures import (
    MEASURES,
    POOLED,
    choose_headlines,
    headline_metrics,
    metric_rows,
    shared_metrics,
    split_metric,
)
from analysis.statistics.intervals import Interval, rate
from analysis.store.records import RunManifest, Split
from grasp.bench.plan.cells import BASE, NAIVE, cell_workspace
from grasp.bench.plan.plan import Cell

METRICS = (
    "unrelated",
    "related",
    "control",
    "task",
    "facts",
    "format",
    "coherence",
    "incoherent",
)

UNKNOWN = Interval(np.nan, np.nan, np.nan, 0, "none", 0.95)


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


def group_by_story(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Cells by story and settings, whatever their seed."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(story_label(cell), []).append(cell)
    return found


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


def mean_score(table: Samples, measure: str, *, whole: bool = True) -> Interval:
    """Mean of a measure; the interval is over items, crossed with fine-tunes if several.

    Of whole answers where there are any, unless `whole` is False.  Unknown if the samples are of
    several instruments, which are not averaged.
    """
    metrics = _headlines([table], measure, whole=whole) if len(table) else []
    if len(metrics) != 1:
        return UNKNOWN
    rows = metric_rows(table, metrics[0])
    clusters, crossed = sample_labels(rows)
    return rate(rows["value"].to_numpy(float), clusters, crossed=crossed)


def _headlines(tables: Sequence[Samples], measure: str, *, whole: bool) -> list[str]:
    measures = (
        [measure, f"{measure}_said"] if whole and f"{measure}_said" in MEASURES else [measure]
    )
    return choose_headlines(shared_metrics(tables, among=measures), measure)


def sample_labels(rows: Samples) -> tuple[np.ndarray, np.ndarray | None]:
    """Cluster labels (items of a world), and labels of fine-tunes, None if there is only one."""
    if "seed" not in rows:
        return rows["cluster"].to_numpy(str), None
    clusters = (rows["world"] + "/" + rows["cluster"]).to_numpy(str)
    crossed = rows[list(POOLED)].astype(str).agg("/".join, axis=1).to_numpy(str)
    return clusters, (crossed if len(set(crossed)) > 1 else None)


def measure_removal(
    arms: dict[str, Samples], run: str, *, whole: bool = True
) -> tuple[Interval, str]:
    """Removal of an arm, and the reason if it is unknown, else "".

    Of whole answers where all three arms have them, unless `whole` is False.
    """
    if not {BASE, NAIVE, run} <= arms.keys():
        return UNKNOWN, "not measured"
    tables = [arms[BASE], arms[NAIVE], arms[run]]
    metrics = _headlines(tables, "unrelated", whole=whole)
    if len(metrics) != 1:
        return UNKNOWN, "several instruments, which are not averaged" if metrics else "not measured"
    return arm_removal(*tables, metric=metrics[0])


def has_whole_answers(arms: Mapping[str, Samples]) -> bool:
    """Whether the headlines of some arms are of whole answers."""
    metrics = headline_metrics(list(arms.values())) if arms else []
    return any(split_metric(metric)[0] == "unrelated_said" for metric in metrics)


def run_manifest(root: Path, cell: Cell, run: str) -> RunManifest | None:
    """A run's manifest; None if there is no such run."""
    workspace = cell_workspace(root, cell)
    return workspace.run(run) if workspace.folder("runs", run).is_dir() else None
