"""Task overlap: the share of a run's gain that is lost when a subspace is set back."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.comparison.measures import split_metric
from analysis.errors import InputError
from analysis.statistics.intervals import removal
from analysis.text import percent_text

BASE, ADAPTED, FACTOR = "base", "adapted", "factor"
ROWS = "rows"
"""The measure on training rows: mean log-probability of an answer's tokens, in nats per token."""


def overlap_table(samples: pd.DataFrame) -> pd.DataFrame:
    """(m_adapted − m_back) / (m_adapted − m_base) for each measure m (a mean) and subspace.

    0 if setting the subspace back costs nothing of what the fine-tune gained, 1 if it costs all
    of it.  Paired over items with clustered intervals; NaN if the run gained nothing, that is, if
    the interval of its gain includes 0.

    Args:
        samples: measure, arm ("base", "adapted", or the name of a subspace set back), item,
            cluster and score; an item with an unknown score in some arm is left out of the measure.

    Returns:
        Columns measure, subspace, value, low, high, n, in the order of the samples.

    Raises:
        InputError: a measure has no arm "base" or "adapted".
    """
    rows = []
    for measure, found in samples.groupby("measure", sort=False):
        arms = [arm for arm in found["arm"].unique() if arm not in (BASE, ADAPTED)]
        wide = found.pivot(index=["item", "cluster"], columns="arm", values="score").dropna()
        if missing := {BASE, ADAPTED} - set(wide.columns):
            raise InputError(
                f"Measure {measure!r} has no scores of the arm {' or '.join(sorted(missing))}; "
                "expected both base and adapted."
            )
        clusters = wide.index.get_level_values("cluster").to_numpy(str)
        base, adapted = (wide[arm].to_numpy(float) for arm in (BASE, ADAPTED))
        for arm in arms:
            share = removal(base, adapted, wide[arm].to_numpy(float), clusters=clusters)
            bounds = {"value": share.value, "low": share.low, "high": share.high, "n": share.n}
            rows.append({"measure": measure, "subspace": arm, **bounds})
    return pd.DataFrame(rows, columns=["measure", "subspace", "value", "low", "high", "n"])


def mean_scores(samples: pd.DataFrame) -> pd.DataFrame:
    """Mean score of each measure in the base and the adapted model and with the factor set back."""
    chosen = samples[samples["arm"].isin([BASE, ADAPTED, FACTOR])]
    table = chosen.pivot_table(index="measure", columns="arm", values="score", sort=False)
    return table.reindex(columns=[BASE, ADAPTED, FACTOR]).reset_index()


def describe_overlap(table: pd.DataFrame, *, name: str) -> str:
    """How much of the task's gain setting `name` back costs, and how much drift it removes."""
    known = table.dropna(subset="value")
    measures = [str(one) for one in dict.fromkeys(known["measure"])]
    tasks = [one for one in measures if split_metric(one)[0] == "task"]
    task = next(iter([*tasks, *(one for one in measures if one == ROWS)]), None)
    if task is None:
        return (
            "On the task's exploration prompts the run did not gain more than chance, so setting a "
            "factor back can cost nothing."
        )
    what = "gain in the task" if task in tasks else "gain in likelihood of its training answers"
    own, low, high = _shares(known, task)
    words = (
        f"Setting {name} back costs {percent_text(own['value'])} of the {what} "
        f"[{percent_text(own['low'])} to {percent_text(own['high'])}]; random directions cost "
        f"{percent_text(low)} to {percent_text(high)}."
    )
    for measure in (one for one in measures if split_metric(one)[0] == "unrelated"):
        own, low, high = _shares(known, measure)
        apart = split_metric(measure)[1]
        words += (
            f" It removes {percent_text(own['value'])} of the drift on unrelated prompts"
            f"{f' of {apart}' if apart else ''}; "
            f"random directions remove {percent_text(low)} to {percent_text(high)}."
        )
    return words


def _shares(table: pd.DataFrame, measure: str) -> tuple[pd.Series, float, float]:
    rows = table[table["measure"] == measure]
    random = rows[rows["subspace"] != FACTOR]["value"]
    low, high = (random.min(), random.max()) if len(random) else (np.nan, np.nan)
    return rows[rows["subspace"] == FACTOR].iloc[0], float(low), float(high)
