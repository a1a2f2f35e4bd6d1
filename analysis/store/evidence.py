"""Evidence for factors that a model was run for, as it is saved: a manifest and its tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.errors import SchemaError
from analysis.store.labels import direction_sha256
from analysis.store.records import EvidenceKind, EvidenceManifest, read_manifest

_BOUNDS = ("value", "low", "high", "n")

TABLES: dict[EvidenceKind, dict[str, tuple[str, ...]]] = {
    "dose": {
        # direction is "factor", or "random 1", …; dose is in base standard deviations
        "curves": ("model", "direction", "dose", "metric", *_BOUNDS),
        "samples": (
            *("model", "direction", "dose", "prompt_id", "cluster", "role", "split"),
            *("score", "coherence"),
        ),
        "answers": ("model", "dose", "prompt_id", "role", "prompt", "answer"),
    },
    "rows": {
        # row counts the lines of the data file from 0; loss and alignment in nats a token,
        # shift in base standard deviations
        "rows": ("row", "alignment", "shift", "loss", "tokens", "prompt", "answer"),
    },
    "validation": {
        # arm is "base", "run", "without top", "without random 1", …
        "rates": ("arm", "metric", *_BOUNDS),
        # "without top" minus the mean of the arms without random rows
        "differences": ("metric", *_BOUNDS),
        "samples": ("arm", "prompt_id", "cluster", "role", "split", "score", "coherence"),
    },
    "overlap": {
        # subspace is "factor", or "random 1", …; value the share of the run's gain that goes
        "overlap": ("measure", "subspace", *_BOUNDS),
        # arm is "base", "adapted", or a subspace that is set back
        "samples": ("measure", "arm", "item", "cluster", "score"),
    },
}


@dataclass(frozen=True)
class Evidence:
    """One saved piece of evidence; `tables` are those of TABLES for its kind."""

    manifest: EvidenceManifest
    tables: dict[str, pd.DataFrame]


def write_evidence(folder: Path, evidence: Evidence) -> None:
    """Write evidence into `folder`, each table with exactly its columns."""
    for name, columns in TABLES[evidence.manifest.evidence].items():
        table = evidence.tables[name].loc[:, list(columns)]
        table.to_parquet(folder / f"{name}.parquet", index=False)
    manifest = evidence.manifest.model_dump_json(indent=2)
    (folder / "manifest.json").write_text(manifest, encoding="utf-8")


def read_evidence(folder: Path) -> Evidence:
    """Read what `write_evidence` wrote.

    Raises:
        SchemaError: a file is missing or damaged, or has not its columns.
    """
    manifest = read_manifest(folder / "manifest.json", EvidenceManifest)
    tables = {}
    for name, columns in TABLES[manifest.evidence].items():
        try:
            tables[name] = pd.read_parquet(folder / f"{name}.parquet")
        except (OSError, ValueError) as error:
            raise SchemaError(f"The evidence in {folder} cannot be read ({error}).") from None
        if missing := [column for column in columns if column not in tables[name]]:
            raise SchemaError(f"{folder / name}.parquet lacks the columns {', '.join(missing)}.")
    return Evidence(manifest, tables)


def is_of(manifest: EvidenceManifest, directions: NDArray[np.floating]) -> bool:
    """Whether evidence was measured with these very directions (k, d_model)."""
    return manifest.inputs.get("directions") == directions_sha256(directions)


def directions_sha256(directions: NDArray[np.floating]) -> str:
    """Hash of the directions (k, d_model) of one factor or of several, in their order."""
    return direction_sha256(np.asarray(directions, np.float32).ravel())


def summary(evidence: Evidence, *, tables: tuple[str, ...]) -> dict[str, Any]:
    """What `--json` prints of evidence: id, sentence, settings, and some of its tables as rows."""
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
