"""All tables of a benchmark, in reading order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from analysis.values import Json
from grasp.bench.plan.plan import Measure, Plan
from grasp.bench.tables.criteria import criteria_table
from grasp.bench.tables.identification import (
    false_positives_table,
    planted_table,
    retrained_table,
    runs_table,
)
from grasp.bench.tables.instruments import instruments_table
from grasp.bench.tables.phase import phase_table
from grasp.bench.tables.removal import core_table, needed_table, styles_table, two_table
from grasp.bench.tables.residue import dressed_table, factors_table
from grasp.bench.tables.rivals import rival_tests_table, rivals_table, sweep_table
from grasp.bench.tables.tables import Table

Make = Callable[[Path, Plan], Table]

SECTIONS: dict[str, tuple[Make, ...]] = {
    "Identification": (planted_table, runs_table),
    "No factor": (false_positives_table, retrained_table),
    "Removal": (core_table, styles_table, instruments_table),
    "Rivals": (sweep_table, rivals_table, rival_tests_table),
    "Two factors at once": (two_table,),
    "A needed factor": (needed_table,),
    "Where it breaks": (phase_table,),
    "Residue": (factors_table, dressed_table),
}
"""Section title → its tables, in the order of the page."""

IDENTIFICATION = ("Identification", "No factor", "Where it breaks")


@dataclass(frozen=True)
class Results:
    """The tables of a benchmark that have at least one row."""

    plan: Plan
    tables: list[Table]

    @property
    def data(self) -> Json:
        """The tables by name, as JSON values."""
        return {"plan": self.plan.title, "tables": {t.name: t.data for t in self.tables}}


def collect_results(root: Path, plan: Plan, measure: Measure) -> Results:
    """The tables that a command prints, from what is saved under `root`."""
    makes = [
        make
        for title, every in SECTIONS.items()
        for make in every
        if measure == "removal" or title in IDENTIFICATION
    ]
    tables = [make(root, plan) for make in (*makes, criteria_table)]
    return Results(plan, [table for table in tables if table.rows])
