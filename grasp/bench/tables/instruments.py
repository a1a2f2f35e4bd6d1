"""What each prompt set shows by itself, where several of them count towards one role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from analysis.comparison.arm_tests import Samples, arm_drift, arm_removal
from analysis.comparison.measures import (
    AGREEMENT,
    headline_metrics,
    metric_rows,
    shared_metrics,
)
from analysis.comparison.wording import metric_title
from analysis.statistics.intervals import rate
from grasp.bench.plan.cells import BASE, NAIVE
from grasp.bench.plan.plan import Arms, Cell, Plan
from grasp.bench.saved.gather import arms_of, group_by_story, sample_labels
from grasp.bench.tables.removal import MADE
from grasp.bench.tables.tables import Row, Table

COLUMNS = {
    "group": "story",
    "metric": "measured by",
    "arm": "arm",
    "items": "items",
    "rate": "rate",
    "drift": "arm − base",
    "removal": "removal",
}

NOTE = (
    "Each prompt set is a measure of its own; none are averaged. Removal is the share of the naive "
    "run's drift that is gone. It is left out for tasks, and where the naive run's drift cannot be "
    "told from 0. Agreement bias is half the difference between agreeing with a statement and "
    "with its reversal: 0 for a model that looks at what is said."
)


def instruments_table(root: Path, plan: Plan) -> Table:
    """Rates, drift and removal of every arm, one prompt set at a time."""
    rows = [
        row
        for section in (plan.core, plan.styles)
        if section is not None
        for story, cells in group_by_story(section.cells).items()
        for row in _rows(root, story, cells, section)
    ]
    return Table("instruments", "One prompt set at a time", COLUMNS, rows, (NOTE,))


def _rows(root: Path, story: str, cells: Sequence[Cell], section: Arms) -> list[Row]:
    labels = {arm.name: arm.label for arm in section.arms}
    arms = arms_of(root, cells, labels)
    if not {BASE, NAIVE} <= arms.keys():
        return []
    tables = list(arms.values())
    unrelated = headline_metrics(tables) + shared_metrics(tables, among=[AGREEMENT])
    if len(unrelated) < 2:
        return []
    tasks = headline_metrics(tables, "task")
    return [
        row
        for metric in (*unrelated, *tasks)
        for row in _of_metric(arms, metric, labels, story=story, removable=metric in unrelated)
    ]


def _of_metric(
    arms: Mapping[str, Samples],
    metric: str,
    labels: Mapping[str, str],
    *,
    story: str,
    removable: bool,
) -> list[Row]:
    found = []
    for run, table in arms.items():
        rows = metric_rows(table, metric)
        clusters, crossed = sample_labels(rows)
        row: Row = {"group": story, "metric": metric_title(metric), "run": run}
        row["arm"] = MADE.get(run, labels.get(run, run))
        row["items"] = rows["cluster"].nunique()
        row["rate"] = rate(rows["value"].to_numpy(float), clusters, crossed=crossed)
        if run != BASE:
            row["drift"] = arm_drift(arms[BASE], table, metric=metric)
        if removable and run not in MADE:
            removed, reason = arm_removal(arms[BASE], arms[NAIVE], table, metric=metric)
            row["removal"] = None if reason else removed
        found.append(row)
    return found
