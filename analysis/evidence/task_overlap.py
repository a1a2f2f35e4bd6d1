"""Overlap with the task: the share of a run's gain that goes when a subspace is set back."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from analysis.errors import InputError
from analysis.statistics.intervals import removal

BASE, ADAPTED, FACTOR = "base", "adapted", "factor"
ROWS = "rows"
"""The measure on training rows: mean log-probability of an answer's tokens, in nats a token."""


def overlap_table(samples: pd.DataFrame) -> pd.DataFrame:
    """(m_adapted − m_back) / (m_adapted − m_base) of each measure and subspace, m being means.

    0 where setting the subspace back costs nothing of what the fine-tune gained, 1 where it costs
    all of it.  Paired over items, intervals clustered; NaN where the run gained nothing, which is
    where the interval of its gain holds 0.

    Args:
        samples: measure, arm ("base", "adapted", or a subspace set back), item, cluster, score;
            items whose score is unknown in an arm are left out of that measure.

    Returns:
        Columns measure, subspace, value, low, high, n; in the order of the samples.

    Raises:
        InputError: a measure has no arm "base" or "adapted".
    """
    rows = []
    for measure, found in samples.groupby("measure", sort=False):
        arms = [arm for arm in found["arm"].unique() if arm not in (BASE, ADAPTED)]
        wide = found.pivot(index=["item", "cluster"], columns="arm", values="score").dropna()
        if missing := {BASE, ADAPTED} - set(wide.columns):
            raise InputError(f"Measure {measure!r} has no arm {', '.join(sorted(missing))}.")
        clusters = wide.index.get_level_values("cluster").to_numpy(str)
        base, adapted = (wide[arm].to_numpy(float) for arm in (BASE, ADAPTED))
        for arm in arms:
            share = removal(base, adapted, wide[arm].to_numpy(float), clusters=clusters)
            bounds = {"value": share.value, "low": share.low, "high": share.high, "n": share.n}
            rows.append({"measure": measure, "subspace": arm, **bounds})
    return pd.DataFrame(rows, columns=["measure", "subspace", "value", "low", "high", "n"])


def levels(samples: pd.DataFrame) -> pd.DataFrame:
    """Mean score of each measure in base and adapted model and with the factor set back."""
    chosen = samples[samples["arm"].isin([BASE, ADAPTED, FACTOR])]
    table = chosen.pivot_table(index="measure", columns="arm", values="score", sort=False)
    return table.reindex(columns=[BASE, ADAPTED, FACTOR]).reset_index()


def sentence(table: pd.DataFrame, *, name: str) -> str:
    """What setting `name` back is expected to cost of the task's gain, and of the drift."""
    known = table.dropna(subset="value")
    measures = set(known["measure"])
    task = next((one for one in ("task", ROWS) if one in measures), None)
    if task is None:
        return (
            "The run gained nothing on the task's exploration prompts that is above chance, so "
            "there is nothing that setting a factor back could cost."
        )
    what = "gain in the task" if task == "task" else "gain in likelihood of its training answers"
    own, low, high = _shares(known, task)
    words = (
        f"Setting {name} back costs {percent(own['value'])} of the {what} "
        f"[{percent(own['low'])} to {percent(own['high'])}]; random directions cost "
        f"{percent(low)} to {percent(high)}."
    )
    if "unrelated" in measures:
        own, low, high = _shares(known, "unrelated")
        words += (
            f" It takes away {percent(own['value'])} of the drift on unrelated prompts; random "
            f"directions take {percent(low)} to {percent(high)}."
        )
    return words


def percent(share: float) -> str:
    """A share as whole per cent, with a true minus sign; "unknown" where it is NaN."""
    if math.isnan(share):
        return "unknown"
    return f"{round(100 * share) + 0} %".replace("-", "\u2212")


def _shares(table: pd.DataFrame, measure: str) -> tuple[pd.Series, float, float]:
    rows = table[table["measure"] == measure]
    random = rows[rows["subspace"] != FACTOR]["value"]
    low, high = (random.min(), random.max()) if len(random) else (np.nan, np.nan)
    return rows[rows["subspace"] == FACTOR].iloc[0], float(low), float(high)
