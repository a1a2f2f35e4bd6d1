"""A family of runs with evaluations: rates by arm, two prompts an item, the naive run drifted."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.comparison.evaluation import write_evaluation
from analysis.store.records import EvaluationManifest, RunManifest, split_of
from analysis.store.workspace import Workspace

RATES = {"fam.base": 0.2, "naive": 0.9, "grasp": 0.3, "over": 0.1}
ITEMS = [f"i{n}" for n in range(40)]
PER_ITEM = 2


def samples(name: str, *, drop: tuple[str, ...] = ()) -> pd.DataFrame:
    """Two prompts an item: unrelated ones scatter around the arm's rate, tasks are 0 or 1."""
    rng = np.random.default_rng(list(RATES).index(name) if name in RATES else 9)
    rate = RATES.get(name, 0.2)
    rows = []
    for item in ITEMS:
        for number in range(PER_ITEM):
            for role in ("unrelated", "task"):
                score = float(np.clip(rng.normal(rate, 0.05), 0, 1))
                rows.append(
                    {
                        "prompt_id": f"{role}/{item}/{number}",
                        "cluster": item,
                        "role": role,
                        "group": "g",
                        "split": split_of(item),
                        "scorer": "choice",
                        "score": score if role == "unrelated" else float(rng.random() < 0.7),
                        "coherence": 0.8 if role == "unrelated" else math.nan,
                        "prompt": f"what about {item}?",
                        "expected": "",
                        "answer": f"{name} on {item}",
                    }
                )
    table = pd.DataFrame(rows)
    return table[~table["prompt_id"].isin(drop)].reset_index(drop=True)


def build(root: Path) -> Workspace:
    """Base at .2, naive at .9, GRASP at .3, and a run at .1 that overshoots."""
    workspace = Workspace.create(root)
    for name, method in (("naive", "naive"), ("grasp", "grasp"), ("over", "caft")):
        add_run(workspace, name, method=method)
        evaluate(workspace, name, samples(name))
    evaluate(workspace, "naive.base", samples("fam.base"))
    return workspace


def add_run(workspace: Workspace, name: str, *, method: str, root: str = "naive") -> None:
    run = RunManifest(
        id=name, title=f"Run {name}", method=method, root=root, base_model="b", config={}
    )
    with workspace.writing("runs", name) as folder:
        (folder / "manifest.json").write_text(run.model_dump_json())


def evaluate(
    workspace: Workspace, name: str, table: pd.DataFrame, *, prompts: str = "ab" * 32
) -> None:
    inputs = {"prompts": prompts}
    manifest = EvaluationManifest(
        id=name, run=name, base_model="b", prompts="p.jsonl", inputs=inputs
    )
    with workspace.writing("evaluations", name) as folder:
        write_evaluation(folder, manifest=manifest, samples=table)
