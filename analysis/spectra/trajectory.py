"""How the modules of an adapter changed from one checkpoint to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Stage:
    """A checkpoint or the finished adapter: its place on the axis of steps, and its name.

    `modules` is its table, as `analysis.spectra.module_table.module_table` gives it.
    """

    step: int
    shown: str
    modules: pd.DataFrame


def finished_step(steps: Sequence[int]) -> int:
    """Where the finished adapter is drawn: as far after the last checkpoint as that one is."""
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
