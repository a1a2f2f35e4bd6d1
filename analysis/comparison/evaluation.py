"""Saved evaluations: one row per answer, and metrics with their intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from analysis.comparison.measures import VALUES, WHOLE_COLUMNS, keep_apart, metric_rows, metrics_in
from analysis.errors import SchemaError
from analysis.statistics.intervals import Interval, rate
from analysis.store.records import EvaluationManifest, Split, read_manifest
from analysis.values import Json

COLUMNS = (
    "prompt_id",
    "cluster",  # what the prompt is about: prompts of one cluster are not independent
    "role",  # the metric it counts towards
    "group",
    "split",  # exploration or confirmation
    "scorer",
    "score",  # 0–1
    "coherence",  # 0–1: probability of any valid answer, or a judge's rating; NaN if neither
    "prompt",
    "expected",
    "answer",  # for a pair, the likelier of its answers
)

MORE_COLUMNS = (
    "sample",  # number of the answer among those to its prompt
    "instrument",  # prompt set and version; "" if the set has no name
    "direction",  # statement or reversal; "" if the prompt is neither
    "paraphrase",  # which wording of the item
    "end",  # what a score of 1 means, in a word
)
"""Columns that evaluations of earlier versions lack."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of one arm: `samples` has COLUMNS and, as far as known, MORE_COLUMNS and those of
    `analysis.comparison.measures`; `summary` is split → metric → interval.
    """

    manifest: EvaluationManifest
    samples: pd.DataFrame
    summary: dict[str, dict[str, Interval]]


def summarise(samples: pd.DataFrame, *, split: Split) -> dict[str, Interval]:
    """The mean of each metric over the answers to the prompts of `split`, with a 95 % interval.

    Intervals are clustered by item: items are resampled, not prompts or answers.  Metrics are
    those of `analysis.comparison.measures`; the rate of whole answers weighs all prompts alike.
    """
    chosen = samples_of(samples, split)
    rows = {metric: metric_rows(chosen, metric) for metric in metrics_in(chosen)}
    return {
        metric: rate(found["value"].to_numpy(float), found["cluster"].to_numpy(str))
        for metric, found in rows.items()
    }


def samples_of(samples: pd.DataFrame, split: Split) -> pd.DataFrame:
    """The samples of one split, with the column APART of `analysis.comparison.measures`."""
    # Before the split is chosen, so that both splits of a prompt set have the same metrics.
    table = keep_apart(samples)
    return table[table["split"] == split]


def average_by_prompt(samples: pd.DataFrame, keys: Sequence[str] = ("prompt_id",)) -> pd.DataFrame:
    """One row per prompt, identified by `keys`: the means of its numbers, and its first answer.

    Means are over the answers with a value.  Tables with one answer per prompt are returned
    unchanged.
    """
    if "sample" not in samples or not samples["sample"].any():
        return samples
    groups = samples.groupby([*keys], sort=False)
    first = groups.head(1).set_index([*keys])
    means = groups[[name for name in VALUES if name in samples]].mean()
    return first.assign(**means).reset_index()[list(samples.columns)]


def write_evaluation(
    folder: Path, *, manifest: EvaluationManifest, samples: pd.DataFrame
) -> dict[str, dict[str, Interval]]:
    """Write an evaluation into `folder` and return its summary: split → metric → interval."""
    splits: tuple[Split, ...] = ("confirmation", "exploration")
    summary: dict[str, dict[str, Interval]] = {
        split: summarise(samples, split=split) for split in splits
    }
    columns = [*COLUMNS, *(name for name in (*MORE_COLUMNS, *WHOLE_COLUMNS) if name in samples)]
    samples.loc[:, columns].to_parquet(folder / "samples.parquet", index=False)
    plain = {s: {m: _plain(i) for m, i in metrics.items()} for s, metrics in summary.items()}
    text = json.dumps(plain, indent=2, allow_nan=False)
    (folder / "summary.json").write_text(text, encoding="utf-8")
    (folder / "manifest.json").write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
    return summary


def read_evaluation(folder: Path) -> Evaluation:
    """Read what `write_evaluation` wrote.

    Raises:
        SchemaError: a file is missing or damaged.
    """
    manifest = read_manifest(folder / "manifest.json", EvaluationManifest)
    try:
        samples = pd.read_parquet(folder / "samples.parquet")
        plain = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        summary = {
            split: {metric: _interval(saved) for metric, saved in metrics.items()}
            for split, metrics in plain.items()
        }
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise SchemaError(
            f"The evaluation in {folder} cannot be read ({error}); evaluate the run again."
        ) from None
    wrong = [name for name in COLUMNS if name not in samples]
    numbers = [name for name in ("score", "coherence") if name in samples]
    wrong += [name for name in numbers if not pd.api.types.is_numeric_dtype(samples[name])]
    if wrong:
        raise SchemaError(
            f"The evaluation in {folder} lacks the columns {', '.join(wrong)}, or has others in "
            "their place; evaluate the run again."
        )
    return Evaluation(manifest, samples, summary)


def _plain(interval: Interval) -> Json:
    """The interval as JSON values; JSON has no NaN, so unknown numbers are null."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in asdict(interval).items()
    }


def _interval(saved: Json) -> Interval:
    values: Json = {k: math.nan if v is None else v for k, v in saved.items()}
    return Interval(**values)
