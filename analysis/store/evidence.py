"""Saved evidence about factors, measured by running a model: a manifest and its tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.errors import SchemaError
from analysis.store.labels import direction_sha256
from analysis.store.records import EvidenceKind, EvidenceManifest, read_manifest
from analysis.values import Json

_BOUNDS = ("value", "low", "high", "n")

TABLES: dict[EvidenceKind, dict[str, tuple[str, ...]]] = {
    "dose": {
        # direction is "factor" or "random 1", "random 2", …; dose is in base standard deviations
        "curves": ("model", "direction", "dose", "metric", *_BOUNDS),
        "samples": (
            *("model", "direction", "dose", "prompt_id", "cluster", "role", "split"),
            *("score", "coherence"),
        ),
        "answers": ("model", "dose", "prompt_id", "role", "prompt", "answer"),
    },
    "rows": {
        # row is the line of the data file, from 0; loss and alignment are in nats per token,
        # shift is in base standard deviations
        "rows": ("row", "alignment", "shift", "loss", "tokens", "prompt", "answer"),
    },
    "validation": {
        # arm is "base", "run", "without top", "without random 1", "without random 2", …
        "rates": ("arm", "metric", *_BOUNDS),
        # "without top" minus the mean over the arms without random rows
        "differences": ("metric", *_BOUNDS),
        "samples": ("arm", "prompt_id", "cluster", "role", "split", "score", "coherence"),
    },
    "overlap": {
        # subspace is "factor" or "random 1", …; value is the share of the run's gain that is lost
        "overlap": ("measure", "subspace", *_BOUNDS),
        # arm is "base", "adapted", or the subspace that is set back
        "samples": ("measure", "arm", "item", "cluster", "score"),
    },
}


@dataclass(frozen=True)
class Evidence:
    """One piece of evidence; `tables` has the tables that TABLES lists for its kind."""

    manifest: EvidenceManifest
    tables: dict[str, pd.DataFrame]


def write_evidence(folder: Path, evidence: Evidence) -> None:
    """Write evidence into `folder`, each table with exactly the columns in TABLES."""
    for name, columns in TABLES[evidence.manifest.evidence].items():
        table = evidence.tables[name].loc[:, list(columns)]
        table.to_parquet(folder / f"{name}.parquet", index=False)
    manifest = evidence.manifest.model_dump_json(indent=2)
    (folder / "manifest.json").write_text(manifest, encoding="utf-8")


def read_evidence(folder: Path) -> Evidence:
    """Read what `write_evidence` wrote.

    Raises:
        SchemaError: a file is missing or damaged, or lacks a column.
    """
    manifest = read_manifest(folder / "manifest.json", EvidenceManifest)
    tables = {}
    for name, columns in TABLES[manifest.evidence].items():
        try:
            tables[name] = pd.read_parquet(folder / f"{name}.parquet")
        except (OSError, ValueError) as error:
            raise SchemaError(
                f"The evidence in {folder} cannot be read ({error}); measure it again."
            ) from None
        if missing := [column for column in columns if column not in tables[name]]:
            raise SchemaError(
                f"{folder / name}.parquet lacks the columns {', '.join(missing)}; "
                "measure the evidence again."
            )
    return Evidence(manifest, tables)


def was_measured_with(manifest: EvidenceManifest, directions: NDArray[np.floating]) -> bool:
    """Whether evidence was measured with exactly these directions (k, d_model)."""
    return manifest.inputs.get("directions") == directions_sha256(directions)


def directions_sha256(directions: NDArray[np.floating]) -> str:
    """SHA-256 of the directions (k, d_model) of one or more factors, in this order."""
    return direction_sha256(np.asarray(directions, np.float32).ravel())


def summarise_evidence(evidence: Evidence, *, tables: tuple[str, ...]) -> Json:
    """What `--json` prints: id, sentence and settings of the evidence, and the chosen tables."""
    manifest = evidence.manifest
    return {
        "evidence": manifest.id,
        "run": manifest.run,
        "factor": manifest.factor,
        "sentence": manifest.sentence,
        "config": manifest.config,
        "seconds": manifest.seconds,
        **{name: evidence.tables[name].to_dict("records") for name in tables},
    }
