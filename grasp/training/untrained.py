"""Finished runs: what is written beside an adapter, and arms that start from a finished one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel
from safetensors.numpy import save_file

from analysis.store.records import RunManifest
from analysis.store.workspace import Workspace, writing_folder
from grasp.evaluation.answers import LAYER
from grasp.foreign.settings import settings_of
from grasp.model.loading import load_base
from grasp.settings.methods import method
from grasp.settings.protection import parse_protection
from grasp.training.edits import edited
from grasp.training.model_card import model_card
from grasp.training.setup import naive_footprint, naive_steering, neutral_text

INTERVENTIONS: dict[str, Literal["ablate", "steer"]] = {
    "ablation": "ablate",
    "ablation-footprint": "ablate",
    "steering": "steer",
}
"""What a method also does at inference time."""


def finished_adapter(
    workspace: Workspace,
    run: RunManifest,
    source_folder: Path,
    directions: NDArray[np.float32] | None,
    *,
    out: Path,
) -> RunManifest:
    """An arm that keeps the source's adapter and intervenes when it answers, or edits it.

    Raises:
        GraspError: the base model cannot be loaded, or the edit does not fit the adapter.
    """
    chosen = method(run.method)
    source = source_folder / "adapter"
    adapted = steering = followed = None
    width = (run.protection or {}).get("footprint", 0)
    if chosen.kind == "edit" or run.intervention == "steer" or width:
        config = settings_of(run, source).located(workspace.resolve)
        base, tokenizer = load_base(config.base_model, config.model)
        adapted = PeftModel.from_pretrained(base, str(source), is_trainable=True).eval()
        if chosen.kind == "edit":
            assert run.strength is not None
            edited(adapted, run.method, strength=run.strength, directions=directions)
        else:
            assert directions is not None
            neutral = neutral_text(config, tokenizer)
            if width:
                protection = parse_protection(run.protection or {}, source=f"run {run.id!r}")
                followed = naive_footprint(adapted, directions, neutral, protection)
            else:
                steering = naive_steering(adapted, directions, neutral).cpu().numpy()
    Workspace.create(workspace.root)  # only now, since what is refused should leave nothing behind
    with writing_folder(out) as folder:
        if chosen.kind == "edit" and adapted is not None:
            adapted.save_pretrained(str(folder / "adapter"))
        else:
            shutil.copytree(source, folder / "adapter")
        said = f"{chosen.description} {chosen.knob.name} = {run.strength:g}." if chosen.knob else ""
        run = run.model_copy(update={"seconds": 0.0, "verdict": said or chosen.description})
        finish(folder, run, directions, steering=steering, followed=followed)
    return run


def finish(
    folder: Path,
    run: RunManifest,
    directions: NDArray[np.float32] | None,
    *,
    steering: NDArray[np.float32] | None = None,
    followed: Sequence[NDArray[np.float32]] | None = None,
) -> None:
    """Write what lies beside a run's adapter; its manifest last."""
    by_layer = {f"{LAYER}{layer}": rows for layer, rows in enumerate(followed or [])}
    arrays = {"directions": directions, "steering": steering, **by_layer}
    saved = {name: array for name, array in arrays.items() if array is not None}
    if saved:
        save_file(saved, folder / "subspace.safetensors")
    (folder / "adapter" / "README.md").write_text(model_card(run), encoding="utf-8")
    (folder / "manifest.json").write_text(run.model_dump_json(indent=2), encoding="utf-8")
