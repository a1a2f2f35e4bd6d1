"""Training rows that drive a factor, and what retraining without them changes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd

from analysis.comparison.evaluation import summarise
from analysis.comparison.measures import (
    APART,
    choose_headlines,
    keep_apart,
    metrics_in,
    split_metric,
)
from analysis.errors import InputError
from analysis.statistics.intervals import bootstrap_difference
from analysis.text import interval_text, number_text, percent_text

Measure = Literal["alignment", "shift"]
WITHOUT_TOP = "without top"
WITHOUT_RANDOM = "without random"


def top_rows(rows: pd.DataFrame, *, n: int, by: Measure = "alignment") -> list[int]:
    """Numbers of the n rows with the largest value, largest first.

    Raises:
        InputError: n is below 1, or leaves no row.
    """
    if not 1 <= n < len(rows):
        raise InputError(f"Got n = {n}; expected 1 to {len(rows) - 1} of the {len(rows)} rows.")
    return [int(row) for row in rows.sort_values(by, ascending=False, kind="stable")["row"][:n]]


def random_rows(rows: pd.DataFrame, *, n: int, seed: int) -> list[int]:
    """Numbers of n rows drawn without replacement, in the order drawn.

    Raises:
        InputError: n is below 1, or leaves no row.
    """
    if not 1 <= n < len(rows):
        raise InputError(f"Got n = {n}; expected 1 to {len(rows) - 1} of the {len(rows)} rows.")
    drawn = np.random.default_rng(seed).choice(rows["row"].to_numpy(), size=n, replace=False)
    return [int(row) for row in drawn]


def rows_to_show(rows: pd.DataFrame, *, n: int, by: Measure, seed: int = 0) -> pd.DataFrame:
    """The top n rows, the bottom n, and n drawn at random, told apart by the column `which`.

    With fewer than 2 n + 1 rows, each list has half as many as there are rows.
    """
    count = max(1, min(n, (len(rows) - 1) // 2))
    ordered = rows.sort_values(by, ascending=False, kind="stable")
    parts = {
        "top": ordered.head(count),
        "random": rows.set_index("row").loc[random_rows(rows, n=count, seed=seed)].reset_index(),
        "bottom": ordered.tail(count).iloc[::-1],
    }
    return pd.concat([part.assign(which=name) for name, part in parts.items()], ignore_index=True)


def arm_rates(samples: pd.DataFrame) -> pd.DataFrame:
    """The metrics of each arm on the exploration prompts: arm, metric, value, low, high, n."""
    rows = [
        {"arm": arm, "metric": metric, "value": i.value, "low": i.low, "high": i.high, "n": i.n}
        for arm, found in samples.groupby("arm", sort=False)
        for metric, i in summarise(found, split="exploration").items()
    ]
    return pd.DataFrame(rows, columns=["arm", "metric", "value", "low", "high", "n"])


def rate_differences(samples: pd.DataFrame, *, roles: Sequence[str]) -> pd.DataFrame:
    """Score without the top rows minus the mean score without random rows, paired by prompt.

    Args:
        samples: arm, prompt_id, cluster, role and score of the arm WITHOUT_TOP and of the arms
            whose names begin with WITHOUT_RANDOM.
        roles: metrics to compare.

    Returns:
        Columns metric, value, low, high, n.  Intervals are over prompts, clustered by item; they
        do not cover the variation between draws of random rows or between training seeds.
    """
    rows = []
    table = keep_apart(samples)
    for metric in metrics_in(table, among=roles):
        role, apart = split_metric(metric)
        found = table[(table["role"] == role) & (table[APART] == apart)]
        wide = found.pivot(index=["prompt_id", "cluster"], columns="arm", values="score").dropna()
        random = wide.loc[:, [str(arm).startswith(WITHOUT_RANDOM) for arm in wide.columns]]
        if wide.empty or random.empty or WITHOUT_TOP not in wide:
            continue
        clusters = wide.index.get_level_values("cluster").to_numpy(str)
        i = bootstrap_difference(wide[WITHOUT_TOP], random.mean(axis=1), clusters=clusters)
        rows.append({"metric": metric, "value": i.value, "low": i.low, "high": i.high, "n": i.n})
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "n"])


def describe_rows(rows: pd.DataFrame, *, name: str, end: str) -> str:
    """How concentrated the push is: how many rows make up half of it, in words."""
    push = rows["alignment"].clip(lower=0).sort_values(ascending=False).to_numpy()
    whole = push.sum()
    moved = f"The fine-tune moved its training answers towards the {end} end of {name} by "
    moved += f"{abs(rows['shift'].mean()):.2f} base standard deviations."
    if whole <= 0:
        return f"{moved} No row's gradient pushes that way."
    half = int(np.searchsorted(np.cumsum(push), whole / 2) + 1)
    share = float((rows["alignment"] > 0).mean())
    return (
        f"{moved} {percent_text(share)} of its {len(rows)} rows push that way at the base "
        f"model; {half} of them make up half of the push."
    )


def describe_validation(rates: pd.DataFrame, compared: pd.DataFrame, *, n: int) -> str:
    """What leaving out the top n rows changed on unrelated prompts, for each instrument, compared
    with leaving out n random rows.
    """
    there = [str(metric) for metric in dict.fromkeys(compared["metric"])]
    metrics = choose_headlines(there) or ["unrelated"]
    return " ".join(_describe(rates, compared, n, metric) for metric in metrics)


def _describe(rates: pd.DataFrame, compared: pd.DataFrame, n: int, metric: str) -> str:
    chosen = rates[rates["metric"] == metric].set_index("arm")["value"]
    gap = compared[compared["metric"] == metric]
    if gap.empty:
        return f"Retrained without the top {n} rows, but there are no {metric} prompts to compare."
    row = gap.iloc[0]
    random = chosen[[arm for arm in chosen.index if arm.startswith(WITHOUT_RANDOM)]]
    told = "" if row["low"] > 0 or row["high"] < 0 else " The interval includes 0."
    show = partial(number_text, digits=2, sign=True)
    difference = interval_text(row["value"], row["low"], row["high"], show=show)
    return (
        f"Without its top {n} rows the {metric} rate is {chosen[WITHOUT_TOP]:.2f}; without {n} "
        f"random rows {random.min():.2f} to {random.max():.2f} ({chosen['run']:.2f} with all rows, "
        f"{chosen['base']:.2f} in the base model): a difference of {difference}.{told}"
    )
