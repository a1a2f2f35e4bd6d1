"""How much was tried in a family of runs, which a reader needs to judge its best numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.errors import NotFoundError
from analysis.store.factor_table import read_run_factors
from analysis.store.records import RunManifest
from analysis.store.workspace import Workspace
from analysis.text import count_text

_DEFINES_A_RUN = {"protection", "intervention", "strength", "config"}
_NOT_A_SETTING = {"title", "seed"}


@dataclass(frozen=True)
class Effort:
    """Counts for one family, as far as the workspace still has its runs.

    `directions` is the number of candidate factors of the naive run, None if there are none;
    `runs` counts all runs of the family, `factor_sets` the different sets of protected factors,
    and `settings` the different settings of each method, not counting factors and seeds.
    """

    directions: int | None
    runs: int
    seeds: int
    factor_sets: int
    settings: dict[str, int]

    @property
    def text(self) -> str:
        """The counts in one sentence."""
        looked = "no directions were ranked" if self.directions is None else (
            f"{count_text(self.directions, 'direction')} looked at"
        )  # fmt: skip
        settings = ", ".join(f"{method} {count}" for method, count in self.settings.items())
        return (
            f"Tried in this family: {looked}, {count_text(self.factor_sets, 'set')} of factors "
            f"protected, {count_text(self.runs, 'run')} with {count_text(self.seeds, 'seed')}; "
            f"settings by method: {settings}."
        )


def measure_effort(workspace: Workspace, root: str) -> Effort:
    """Count what was tried in the family of the naive run `root`."""
    try:
        directions: int | None = len(read_run_factors(workspace, root).table)
    except NotFoundError:
        directions = None
    family = [run for run in workspace.runs().records if run.root == root]
    return count_tried(family, directions=directions)


def count_tried(family: Sequence[RunManifest], *, directions: int | None) -> Effort:
    """Count what was tried, from a family's manifests and its number of candidate factors."""
    settings: dict[str, set[str]] = {}
    for run in family:
        settings.setdefault(run.method, set()).add(_setting(run))
    return Effort(
        directions=directions,
        runs=len(family),
        seeds=len({run.seed for run in family if run.seed is not None}),
        factor_sets=len({tuple(sorted(run.factors)) for run in family if run.factors}),
        settings={method: len(found) for method, found in settings.items()},
    )


def _setting(run: RunManifest) -> str:
    """A run's settings apart from seed and factors, as text to compare."""
    data = run.model_dump(mode="json", include=_DEFINES_A_RUN)
    data["config"] = {k: v for k, v in data["config"].items() if k not in _NOT_A_SETTING}
    return json.dumps(data, sort_keys=True)
