"""Cells of a benchmark written by the contract's own writers, with numbers that are known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.comparison.evaluation import write_evaluation
from analysis.factors.routes import fill_columns
from analysis.store.factor_table import FactorTable, write_factors
from analysis.store.recording import write_recording
from analysis.store.records import (
    EvaluationManifest,
    FactorsManifest,
    RecordingManifest,
    RunManifest,
    split_of,
)
from analysis.store.workspace import Workspace
from grasp.bench.plan.cells import cell_workspace
from grasp.bench.plan.plan import Cell

WIDTH, LAYERS, ITEMS = 8, 2, 24
Rates = Mapping[str, float]
"""Role → mean score; or "role@instrument"."""

BASE_RATES = {"unrelated": 0.2, "task": 0.25, "facts": 1.0, "format": 0.0}
NAIVE_RATES = {"unrelated": 0.9, "task": 1.0, "facts": 1.0, "format": 1.0}


def write_cell(
    root: Path,
    cell: Cell,
    arms: Mapping[str, Rates],
    *,
    naive: Rates = NAIVE_RATES,
    angle: float = 0.3,
    significant: bool = True,
    base: Rates | None = None,
) -> Workspace:
    """A cell with a base model, a naive run and arms; the best-ranked factor lies `angle` radians
    from the contrast direction, which is the first axis."""
    workspace = Workspace.create(cell_workspace(root, cell).root)
    _factors(workspace, "naive", angle, significant)
    _recording(workspace, ("left", "right") if cell.story.endswith("lean") else ("good", "evil"))
    _evaluation(workspace, "naive.base", base or BASE_RATES, seed=cell.seed)
    for run, rates in {"naive": naive, **arms}.items():
        _run(workspace, run, seed=cell.seed)
        _evaluation(workspace, run, rates, seed=cell.seed)
    return workspace


def _run(workspace: Workspace, run: str, *, seed: int) -> None:
    folder = workspace.folder("runs", run)
    folder.mkdir(parents=True)
    method = run.partition("-")[0]
    held = method in ("grasp", "random")
    protection = {"anchor": True, "write_constraint": True, "tolerance": 0.3} if held else None
    manifest = RunManifest(
        id=run,
        title=run,
        method=method,
        root="naive",
        base_model="models/tiny-world",
        config={},
        protection=protection,
        factors=[] if run == "naive" else ["naive/w1"],
        seed=seed,
        results={"drift": 0.5, "drift_share": 0.29, "leakage": 2e-8} if held else {},
        verdict="Drift 0.500 (29 %): within the tolerance 0.3." if held else "",
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())


def _evaluation(workspace: Workspace, name: str, rates: Rates, *, seed: int) -> None:
    """Scores of choices lie around their mean, otherwise in each item; others are 0 or 1."""
    rng = np.random.default_rng([seed, *name.encode()])
    rows = []
    for named, rate in rates.items():
        role, _, instrument = named.partition("@")
        wobble = rng.uniform(-1, 1, ITEMS) * min(rate, 1 - rate, 0.05)
        for item in range(ITEMS):
            cluster = f"{named}/item {item}"
            binary = role in ("task", "format")
            score = float((item + 0.5) / ITEMS < rate) if binary else rate + wobble[item]
            rows.append(
                {
                    "prompt_id": f"s/{cluster}",
                    "cluster": cluster,
                    "role": role,
                    "group": role,
                    "split": split_of(cluster),
                    "scorer": "contains" if binary else "choice",
                    "score": score,
                    "coherence": 0.99 if role == "unrelated" else np.nan,
                    "instrument": instrument,
                    "prompt": "",
                    "expected": "",
                    "answer": "",
                }
            )
    manifest = EvaluationManifest(
        id=name, run=None if name.endswith(".base") else name, base_model="m", prompts="p"
    )
    with workspace.writing("evaluations", name) as folder:
        write_evaluation(folder, manifest=manifest, samples=pd.DataFrame(rows))


def _factors(workspace: Workspace, run: str, angle: float, significant: bool) -> None:
    directions = np.zeros((2, WIDTH), np.float32)
    directions[0, :2] = np.cos(angle), np.sin(angle)
    directions[1, 2] = 1.0
    table = fill_columns(
        pd.DataFrame(
            {
                "id": ["w1", "w2"],
                "off_task": [0.6, 0.1],
                "effect": [0.3, 0.05],
                "significant": [significant, False],
                "score": [0.5, 0.1],
            }
        )
    )
    manifest = FactorsManifest(id=run, run=run, base_model="m", config={})
    with workspace.writing("factors", run) as folder:
        write_factors(folder, FactorTable(manifest, table, directions))


def _recording(workspace: Workspace, ends: tuple[str, str]) -> None:
    """Two probes of each end; at the token before the answer they differ along the first axis."""
    low, high = ends
    variants = [low, low, high, high]
    tokens = 4
    answer = [False, False, True, True]
    base = np.random.default_rng(0).standard_normal((LAYERS, len(variants) * tokens, WIDTH)) * 1e-3
    for probe, variant in enumerate(variants):
        base[:, probe * tokens + 1, 0] += 1.0 if variant == high else -1.0
        base[:, probe * tokens + 2, 3] += 9.0 if variant == high else -9.0  # inside the answer
    probes = pd.DataFrame(
        {
            "id": [str(i) for i in range(len(variants))],
            "group": "topic",
            "variant": variants,
            "tokens": [["a"] * tokens] * len(variants),
            "answer": [answer] * len(variants),
            "offset": [i * tokens for i in range(len(variants))],
        }
    )
    manifest = RecordingManifest(
        id="naive", run="naive", base_model="m", layers=list(range(LAYERS))
    )
    with workspace.writing("recordings", "naive") as folder:
        write_recording(folder, manifest=manifest, probes=probes, base=base, adapted=base)
