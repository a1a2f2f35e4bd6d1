"""What is measured on a table of samples: rows of one role and one instrument, and their values.

A metric is named by its measure, such as "unrelated_said".  Where several instruments (prompt sets,
or ends of one set) count towards a role, each has a metric of its own, such as
"unrelated_said [politics 1]", and they are never averaged: a mean over what persona and politics
show says nothing about either.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.store.records import ROLES, Prompt, Role, Split

POOLED = ("world", "story", "seed")
"""Columns of pooled tables.

Items of different worlds are different; each world, story and seed is one fine-tune."""

WHOLE_COLUMNS = (
    "said",  # share of the drawn answers that show the drifted value, of those that show either
    "said_greedy",  # 1 or 0 for the greedy answer; NaN if it shows neither
    "incoherent",  # share of the drawn answers that show neither value
    "drawn",  # texts of the drawn answers
)
"""Columns about whole answers; NaN without markers, absent in evaluations of earlier versions."""

APART = "apart"
"""Column of what keeps a row apart from others of its role; "" if nothing has to."""

UNNAMED = "unnamed"
"""Stands for prompts without an instrument, next to prompts with one."""

AGREEMENT = "agreement"
"""Agreement bias of prompt sets that ask both ways; see `analysis.comparison.instruments`."""

MEASURES: dict[str, tuple[str, str]] = {
    **{role: (role, "score") for role in ROLES},
    "coherence": ("unrelated", "coherence"),
    **{f"{role}_said": (role, "said") for role in ROLES},
    **{f"{role}_greedy": (role, "said_greedy") for role in ROLES},
    "incoherent": ("unrelated", "incoherent"),
    AGREEMENT: ("unrelated", "score"),
}
"""Measure → its role and column."""

METRICS = tuple(MEASURES)

DRIFTS = {
    "": "unrelated",
    "_said": "unrelated_said",
    "_greedy": "unrelated_greedy",
    "_agreement": AGREEMENT,
}
"""Suffix of a removal (as in "removal_said") → the measure whose drift is removed."""

VALUES = ("score", "coherence", *WHOLE_COLUMNS[:3])
"""Columns of numbers, which may be averaged over answers."""


ZERO_OR_ONE = ("contains", "ended", "pattern", "lexicon", "judge")
"""Scorers that say yes or no about an answer; the others give a probability."""


def name_metric(measure: str, apart: str) -> str:
    """The metric of a measure and of what it is kept apart by."""
    return f"{measure} [{apart}]" if apart else measure


def split_metric(metric: str) -> tuple[str, str]:
    """The measure of a metric, and the instrument it is kept apart by, else ""."""
    measure, _, apart = metric.partition(" [")
    return measure, apart.removesuffix("]")


def keep_apart(samples: pd.DataFrame) -> pd.DataFrame:
    """The samples with the column APART, which is kept where it is already there."""
    if APART in samples or "role" not in samples:
        return samples
    if "instrument" not in samples or samples.empty:
        return samples.assign(**{APART: ""})
    labels = samples["instrument"].replace("", UNNAMED)
    ends = samples["end"] if "end" in samples else labels.map(lambda _: "")
    several = ends.groupby([samples["role"], labels]).transform("nunique") > 1
    labels = labels.where(~several, labels + ", " + ends)
    alone = labels.groupby(samples["role"]).transform("nunique") == 1
    return samples.assign(**{APART: labels.where(~alone, "")})


def metrics_in(samples: pd.DataFrame, *, among: Sequence[str] = METRICS) -> list[str]:
    """The metrics that some sample has a value of, in the order of MEASURES."""
    table = keep_apart(samples)
    found = []
    for measure in among:
        role, column = MEASURES[measure]
        if column not in table:
            continue
        there = (table["role"] == role) & table[column].notna()
        for apart in table.loc[there, APART].unique():
            metric = name_metric(measure, apart)
            if measure != AGREEMENT or len(metric_rows(table, metric)):
                found.append(metric)
    return found


def metric_rows(samples: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows that a metric is the mean over: prompt_id, cluster, POOLED as far as known, value.

    For agreement, one row per item that was asked both ways.
    """
    measure, apart = split_metric(metric)
    role, column = MEASURES[measure]
    table = keep_apart(samples)
    keys = ["prompt_id", "cluster", *(name for name in POOLED if name in table)]
    if column not in table:
        return pd.DataFrame(columns=[*keys, "value"])
    there = (table["role"] == role) & (table[APART] == apart) & table[column].notna()
    if measure == AGREEMENT:
        return _agreement_rows(table[there], keys[1:])
    return table.loc[there, [*keys, column]].rename(columns={column: "value"})


def items_of(prompts: Sequence[Prompt], *, split: Split) -> dict[str, int]:
    """The number of items of each metric of whole, 0/1 scores in a set of prompts of one split."""
    table = pd.DataFrame(
        {
            "prompt_id": prompt.id,
            "cluster": prompt.cluster,
            "role": prompt.role,
            "instrument": prompt.instrument or "",
            "end": prompt.end or "",
            "score": 0.0,
            "counts": prompt.split == split and prompt.scorer in ZERO_OR_ONE,
        }
        for prompt in prompts
    )
    chosen = keep_apart(table)[table["counts"]]
    metrics = metrics_in(chosen, among=ROLES)
    return {metric: metric_rows(chosen, metric)["cluster"].nunique() for metric in metrics}


def shared_metrics(tables: Sequence[pd.DataFrame], *, among: Sequence[str] = METRICS) -> list[str]:
    """The metrics that all tables have values of."""
    found = [metrics_in(table, among=among) for table in tables]
    return [metric for metric in found[0] if all(metric in each for each in found)]


def headline_metrics(tables: Sequence[pd.DataFrame], role: Role = "unrelated") -> list[str]:
    """By what a role is reported, one metric for each of its instruments.

    The rate of whole answers where all tables have it, else the mean score.
    """
    return choose_headlines(shared_metrics(tables, among=[role, f"{role}_said"]), role)


def choose_headlines(metrics: Sequence[str], role: str = "unrelated") -> list[str]:
    """Of the metrics, those by which a role is reported."""
    found: dict[str, str] = {}
    for metric in metrics:
        measure, apart = split_metric(metric)
        if measure == f"{role}_said" or (measure == role and apart not in found):
            found[apart] = metric
    return list(found.values())


def _agreement_rows(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Half the difference of an item's mean scores as a statement and as a reversal."""
    ways = ["statement", "reversal"]
    if "direction" not in rows or not set(ways) <= set(rows["direction"]):
        return pd.DataFrame(columns=["prompt_id", *keys, "value"])
    means = rows.pivot_table(index=keys, columns="direction", values="score", aggfunc="mean")
    means = means.reindex(columns=ways).dropna()
    halves = np.asarray(means["statement"] - means["reversal"], dtype=np.float64) / 2
    table = means.index.to_frame(index=False)
    return table.assign(prompt_id=table["cluster"], value=halves)
