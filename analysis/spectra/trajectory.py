"""How the modules of an adapter changed from one checkpoint to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.adapters.checkpoints import step_of


@dataclass(frozen=True)
class Stage:
    """A checkpoint or the finished adapter: its place on the axis of steps, and its name.

    `modules` is its table from `analysis.comparison.evidence_tables.module_table`.
    """

    step: int
    shown: str
    modules: pd.DataFrame


def finished_step(names: Sequence[str]) -> int:
    """Where to draw the finished adapter: one checkpoint interval after the last checkpoint.

    Args:
        names: at least one folder name such as checkpoint-100, in order of steps.
    """
    steps = [step_of(name) or 0 for name in names]
    return steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else steps[-1])


def trajectory_table(
    stages: Sequence[Stage], module: str, *, measures: Sequence[str]
) -> pd.DataFrame:
    """One row per stage: `step`, `shown`, each measure of one module, and the median over all.

    The medians are in columns `<measure>:median`; a stage that lacks the module has NaN.
    """
    rows = []
    for stage in stages:
        own = stage.modules.loc[stage.modules["name"] == module, list(measures)]
        row = {"step": stage.step, "shown": stage.shown}
        for measure in measures:
            row[measure] = float(own[measure].iloc[0]) if len(own) else float("nan")
            row[f"{measure}:median"] = float(stage.modules[measure].median())
        rows.append(row)
    return pd.DataFrame(rows)
