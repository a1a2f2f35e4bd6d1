"""Evaluations as they are saved: one row a prompt, and metrics with their intervals."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.errors import SchemaError
from analysis.records import ROLES, EvaluationManifest, Split, read_manifest
from analysis.statistics import Interval, rate

COLUMNS = (
    "prompt_id",
    "cluster",  # what the prompt is about: prompts of one cluster are not independent
    "role",  # the metric it counts towards
    "group",
    "split",  # exploration or confirmation
    "scorer",
    "score",  # 0–1
    "coherence",  # 0–1: probability of any valid answer; NaN where the scorer has none
    "prompt",
    "expected",
    "answer",  # greedy
)

METRICS = (*ROLES, "coherence")


@dataclass(frozen=True)
class Evaluation:
    """Scores of one arm: `samples` has COLUMNS; `summary` is split → metric → interval."""

    manifest: EvaluationManifest
    samples: pd.DataFrame
    summary: dict[str, dict[str, Interval]]


def summarise(samples: pd.DataFrame, *, split: Split) -> dict[str, Interval]:
    """Each metric's mean over the prompts of `split`, with a 95 % interval.

    Intervals are clustered: what is resampled is the item that prompts are about, not the
    prompt.  Coherence is the mean over the prompts of role "unrelated".
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


def _by_role(entry: tuple[object, pd.DataFrame]) -> int:
    return METRICS.index(str(entry[0]))


def write_evaluation(
    folder: Path, *, manifest: EvaluationManifest, samples: pd.DataFrame
) -> dict[str, dict[str, Interval]]:
    """Write an evaluation into `folder` and give back its summary."""
    splits: tuple[Split, ...] = ("confirmation", "exploration")
    summary: dict[str, dict[str, Interval]] = {
        split: summarise(samples, split=split) for split in splits
    }
    samples.loc[:, list(COLUMNS)].to_parquet(folder / "samples.parquet", index=False)
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
        raise SchemaError(f"The evaluation in {folder} cannot be read ({error}).") from None
    return Evaluation(manifest, samples, summary)


def _plain(interval: Interval) -> dict[str, Any]:
    """As JSON has it, which has no NaN: what is unknown is null."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in asdict(interval).items()
    }


def _interval(saved: dict[str, Any]) -> Interval:
    values: dict[str, Any] = {k: math.nan if v is None else v for k, v in saved.items()}
    return Interval(**values)
