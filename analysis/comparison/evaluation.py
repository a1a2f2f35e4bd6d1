"""Saved evaluations: one row per answer, and metrics with their intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from analysis.errors import SchemaError
from analysis.statistics.intervals import Interval, rate
from analysis.store.records import ROLES, EvaluationManifest, Split, read_manifest
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

METRICS = (*ROLES, "coherence")


@dataclass(frozen=True)
class Evaluation:
    """Scores of one arm: `samples` has COLUMNS; `summary` is split → metric → interval."""

    manifest: EvaluationManifest
    samples: pd.DataFrame
    summary: dict[str, dict[str, Interval]]


def summarise(samples: pd.DataFrame, *, split: Split) -> dict[str, Interval]:
    """The mean of each metric over the answers to the prompts of `split`, with a 95 % interval.

    Intervals are clustered by item: items are resampled, not prompts or answers.  Coherence is
    the mean over prompts of role "unrelated".
    """
    chosen = samples[samples["split"] == split].dropna(subset="score")
    metrics = {
        str(role): rate(rows["score"].to_numpy(float), rows["cluster"].to_numpy(str))
        for role, rows in sorted(chosen.groupby("role"), key=_by_role)
    }
    valid = chosen[chosen["role"] == "unrelated"].dropna(subset="coherence")
    if len(valid):
        clusters = valid["cluster"].to_numpy(str)
        metrics["coherence"] = rate(valid["coherence"].to_numpy(float), clusters)
    return metrics


def average_by_prompt(samples: pd.DataFrame, keys: Sequence[str] = ("prompt_id",)) -> pd.DataFrame:
    """One row per prompt, identified by `keys`: mean score and coherence, and its first answer.

    Means are over the answers with a score.  Tables with one answer per prompt are returned
    unchanged.
    """
    if "sample" not in samples or not samples["sample"].any():
        return samples
    groups = samples.groupby([*keys], sort=False)
    first = groups.head(1).set_index([*keys])
    means = groups[["score", "coherence"]].mean()
    return first.assign(**means).reset_index()[list(samples.columns)]


def _by_role(entry: tuple[object, pd.DataFrame]) -> int:
    return METRICS.index(str(entry[0]))


def write_evaluation(
    folder: Path, *, manifest: EvaluationManifest, samples: pd.DataFrame
) -> dict[str, dict[str, Interval]]:
    """Write an evaluation into `folder` and return its summary: split → metric → interval."""
    splits: tuple[Split, ...] = ("confirmation", "exploration")
    summary: dict[str, dict[str, Interval]] = {
        split: summarise(samples, split=split) for split in splits
    }
    columns = [*COLUMNS, *(name for name in MORE_COLUMNS if name in samples)]
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
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SchemaError(
            f"The evaluation in {folder} cannot be read ({error}); evaluate the run again."
        ) from None
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
