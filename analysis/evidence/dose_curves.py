"""Dose–response curves: the mean of each metric against the steering dose."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from functools import partial

import pandas as pd

from analysis.comparison.evaluation import summarise
from analysis.comparison.measures import METRICS, choose_headlines, split_metric
from analysis.text import interval_text, number_text, true_minus

FACTOR = "factor"
"""Name of the factor's own direction; the others are "random 1", "random 2" and so on."""


def dose_curves(samples: pd.DataFrame) -> pd.DataFrame:
    """Mean of each metric at each dose, with a 95 % interval clustered by item.

    Args:
        samples: one row per model, direction, dose and prompt, with the columns that
            `analysis.comparison.evaluation.summarise` reads; only exploration prompts count.

    Returns:
        Columns model, direction, dose (base standard deviations), metric, value, low, high, n.
    """
    rows = [
        {"model": model, "direction": direction, "dose": dose, "metric": metric}
        | {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
        for (model, direction, dose), cell in _cells(samples)
        for metric, found in summarise(cell, split="exploration").items()
    ]
    columns = ["model", "direction", "dose", "metric", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def metrics_of(curves: pd.DataFrame) -> list[str]:
    """The metrics present in the curves, in the order of `METRICS`."""
    there = [str(metric) for metric in dict.fromkeys(curves["metric"])]
    return sorted(there, key=lambda metric: METRICS.index(split_metric(metric)[0]))


def random_band(curves: pd.DataFrame, *, model: str, metric: str) -> pd.DataFrame:
    """Smallest and largest mean over the random directions, by dose: columns dose, low, high."""
    chosen = (curves["model"] == model) & (curves["metric"] == metric)
    random = curves[chosen & (curves["direction"] != FACTOR)]
    return random.groupby("dose")["value"].agg(low="min", high="max").reset_index()


def factor_curve(curves: pd.DataFrame, *, model: str, metric: str) -> pd.DataFrame:
    """The factor's own curve, sorted by dose."""
    chosen = (curves["model"] == model) & (curves["metric"] == metric)
    return curves[chosen & (curves["direction"] == FACTOR)].sort_values("dose")


def describe_dose_response(curves: pd.DataFrame, *, name: str) -> str:
    """What steering along factor `name` does to both models, compared with random directions.

    Reports the unrelated rate, of the first instrument, or else the first metric present.
    """
    there = metrics_of(curves)
    metric = (choose_headlines(there) or there)[0]
    doses = curves["dose"]
    ends = true_minus(f"{doses.min():+g} to {doses.max():+g}")
    parts = [
        f"{_ends(factor_curve(curves, model=model, metric=metric))} in the {model} model (random "
        f"directions: {_range(random_band(curves, model=model, metric=metric))})"
        for model in ("base", "adapted")
    ]
    return (
        f"From {ends} base standard deviations along {name} the {metric} rate goes from "
        f"{' and from '.join(parts)}."
    )


def _ends(own: pd.DataFrame) -> str:
    low, high = own.iloc[[0, -1]].to_dict("records")
    return f"{_interval(low)} to {_interval(high)}"


def _interval(row: dict[Hashable, float]) -> str:
    return interval_text(row["value"], row["low"], row["high"], show=partial(number_text, digits=2))


def _range(random: pd.DataFrame) -> str:
    return f"{random['low'].min():.2f} to {random['high'].max():.2f}"


def _cells(
    samples: pd.DataFrame,
) -> Iterator[tuple[tuple[Hashable, Hashable, Hashable], pd.DataFrame]]:
    for key, cell in samples.groupby(["model", "direction", "dose"], sort=False):
        assert isinstance(key, tuple)
        yield (key[0], key[1], key[2]), cell
