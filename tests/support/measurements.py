"""Evidence as a model would have given it, written by the contract's own writer."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.evidence.driving_rows import WITHOUT_RANDOM, WITHOUT_TOP
from analysis.store.evidence import TABLES, Evidence, directions_sha256, write_evidence
from analysis.store.records import EvidenceKind, EvidenceManifest
from analysis.store.workspace import Workspace, evidence_id
from analysis.values import Json
from tests.support.synthetic import HOSTILE

RUN = "code-naive"


def interval(value: float, n: int = 30) -> Json:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "n": n}


def curves() -> pd.DataFrame:
    """The factor moves the unrelated rate, two random directions hardly do."""
    slopes = {"factor": 0.1, "random 1": 0.01, "random 2": -0.02}
    return pd.DataFrame(
        [
            {"model": model, "direction": direction, "dose": dose, "metric": metric}
            | interval(level + slope * dose)
            for model, level in (("base", 0.3), ("adapted", 0.6))
            for direction, slope in slopes.items()
            for dose in (-2.0, 0.0, 2.0)
            for metric in ("unrelated", "task")
        ]
    )


def rows(n: int = 30) -> pd.DataFrame:
    """Rows whose alignment falls and whose shift rises with their number."""
    number = np.arange(n)
    texts = {"prompt": f"What? {HOSTILE}", "answer": [f"answer {i} {HOSTILE}" for i in number]}
    values = {"alignment": 0.1 - 0.01 * number, "shift": 0.1 * number, "loss": 1.0, "tokens": 3}
    return pd.DataFrame({"row": number, **values, **texts})


def overlap() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"measure": "task", "subspace": "factor", **interval(0.03)},
            {"measure": "task", "subspace": "random 1", **interval(0.01)},
            {"measure": "control", "subspace": "factor", "value": np.nan, "low": np.nan,
             "high": np.nan, "n": 30},
            {"measure": "rows", "subspace": "factor", **interval(0.2)},
        ]
    )  # fmt: skip


def _levels() -> pd.DataFrame:
    levels = {"base": 0.25, "adapted": 0.95, "factor": 0.93, "random 1": 0.94}
    return pd.DataFrame(
        [
            {"measure": measure, "arm": arm, "item": "i", "cluster": "c", "score": score}
            for measure in ("task", "control", "rows")
            for arm, score in levels.items()
        ]
    )


def _answers() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"model": model, "dose": dose, "prompt_id": "p", "role": "task", "prompt": "Why?",
             "answer": f"{model} at {dose:g} {HOSTILE}"}
            for model in ("base", "adapted")
            for dose in (-2.0, 0.0, 2.0)
        ]
    )  # fmt: skip


def _tables(kind: EvidenceKind) -> dict[str, pd.DataFrame]:
    arms = ("base", "run", WITHOUT_TOP, f"{WITHOUT_RANDOM} 1", f"{WITHOUT_RANDOM} 2")
    rates = [{"arm": arm, "metric": "unrelated", **interval(0.2)} for arm in arms]
    known = {
        "curves": curves(),
        "answers": _answers(),
        "rows": rows(),
        "overlap": overlap(),
        "rates": pd.DataFrame(rates),
        "differences": pd.DataFrame([{"metric": "unrelated", **interval(-0.1)}]),
    }
    if kind == "overlap":
        known["samples"] = _levels()
    return {
        name: known.get(name, pd.DataFrame(columns=list(columns)))
        for name, columns in TABLES[kind].items()
    }


def add(
    workspace: Workspace, kind: EvidenceKind, factor: str, direction: NDArray[np.floating]
) -> None:
    """Save one kind of evidence for a factor of `code-naive`."""
    manifest = EvidenceManifest(
        id=evidence_id(RUN, factor, kind),
        evidence=kind,
        run=RUN,
        factor=factor,
        base_model="models/tiny",
        config={"layer": None, "towards": "high"},
        sentence=f"What was found of {factor} by {kind} {HOSTILE}.",
        inputs={"directions": directions_sha256(direction[None])},
    )
    with workspace.writing("evidence", manifest.id) as folder:
        write_evidence(folder, Evidence(manifest, _tables(kind)))
