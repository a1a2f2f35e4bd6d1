"""Finished runs: what is written beside an adapter, and arms that start from a finished one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.store.layout import adapter_of
from analysis.store.records import RunManifest
from analysis.store.workspace import Workspace, writing_folder
from grasp.data.dataset import read_task, tokenise_task
from grasp.data.tokenise import split_neutral
from grasp.evaluation.answers import LAYER
from grasp.foreign.settings import run_settings
from grasp.guard.naive import follow_naive
from grasp.guard.plan import GuardPlan
from grasp.model.attach import attach_adapter
from grasp.model.forward import without_adapter
from grasp.model.loading import load_base
from grasp.model.parts import base_of
from grasp.settings.methods import find_method
from grasp.settings.protection import Protection
from grasp.settings.training import TrainConfig
from grasp.training.edits import Given, edit_adapter
from grasp.training.guard_text import let_speak, neutral_texts
from grasp.training.model_card import model_card
from grasp.training.texts import make_batches, read_neutral

INTERVENTIONS: dict[str, Literal["ablate", "steer"]] = {
    "ablation": "ablate",
    "ablation-footprint": "ablate",
    "steering": "steer",
}
"""What a method also does at inference time."""


def make_untrained(
    workspace: Workspace,
    run: RunManifest,
    source_folder: Path,
    plan: GuardPlan,
    *,
    out: Path,
    overwrite: bool = False,
) -> RunManifest:
    """An arm that keeps the source's adapter and intervenes when it answers, or edits it.

    Raises:
        GraspError: the base model cannot be loaded, or the edit does not fit the adapter.
    """
    chosen = find_method(run.method)
    source = adapter_of(source_folder)
    changed: PeftModel | None = None
    if chosen.kind == "edit":
        changed, config, tokenizer = _naive_model(workspace, run, source)
        assert run.strength is not None
        given = _given(changed, config, tokenizer, plan)
        edit_adapter(changed, run.method, strength=run.strength, given=given)
    measured = _measured(workspace, run, source, plan)
    Workspace.create(workspace.root)  # only now, since what is refused should leave nothing behind
    with writing_folder(out, replace=overwrite) as folder:
        if changed is not None:
            changed.save_pretrained(str(adapter_of(folder)))
        else:
            shutil.copytree(source, adapter_of(folder))
        said = f"{chosen.description} {chosen.knob.name} = {run.strength:g}." if chosen.knob else ""
        run = run.model_copy(update={"seconds": 0.0, "verdict": said or chosen.description})
        write_run(folder, run, plan.factors, measured=measured)
    return run


def _given(model: PeftModel, config: TrainConfig, tokenizer: Tokenizer, plan: GuardPlan) -> Given:
    """What an edit looks at: the factors and, where it has a protection, neutral and task text."""
    if plan.protection == Protection():
        return Given(plan.factors)
    task = tokenise_task(config, tokenizer, read_task(config))
    with without_adapter(model):
        said = let_speak(base_of(model), tokenizer, plan.protection, task, seed=config.seed)
    neutral, _ = neutral_texts(config, tokenizer, plan.protection, said, task)
    forget, retain = (make_batches(tokenizer, text, config) for text in (neutral, task.texts()))
    return Given(plan.factors, forget, retain, plan.protection.site)


def _measured(
    workspace: Workspace, run: RunManifest, source: Path, plan: GuardPlan
) -> dict[str, NDArray[np.float32]]:
    """What an intervention needs besides the factors: steering vectors, or a layer's own rows."""
    if run.intervention is None:
        return {}
    if run.intervention == "steer":
        plan = replace(plan, protection=Protection(steering=1.0))
    if not plan.follows_naive:
        return {}
    naive, config, tokenizer = _naive_model(workspace, run, source)
    kept, _ = split_neutral(read_neutral(tokenizer, config), at_least=config.batch_size)
    neutral = make_batches(tokenizer, kept, config)
    plan = follow_naive(replace(plan, neutral=neutral), naive, seed=run.seed or 0)
    if plan.steering is not None:
        return {"steering": plan.steering.cpu().numpy()}
    return {f"{LAYER}{layer}": rows for layer, rows in enumerate(plan.directions or ())}


def _naive_model(
    workspace: Workspace, run: RunManifest, adapter: Path
) -> tuple[PeftModel, TrainConfig, Tokenizer]:
    config = run_settings(run, adapter).map_paths(workspace.resolve)
    base = load_base(config.base_model, config.model)
    model = attach_adapter(base.model, adapter, trainable=True)
    return model, config, base.tokenizer


def write_run(
    folder: Path,
    run: RunManifest,
    factors: NDArray[np.floating] | None,
    *,
    measured: Mapping[str, NDArray[np.float32]] | None = None,
) -> None:
    """Write what lies beside a run's adapter; its manifest last."""
    saved = dict(measured or {})
    if factors is not None:
        saved["directions"] = factors
    if saved:
        save_file(saved, folder / "subspace.safetensors")
    (adapter_of(folder) / "README.md").write_text(model_card(run), encoding="utf-8")
    (folder / "manifest.json").write_text(run.model_dump_json(indent=2), encoding="utf-8")
