"""Identify the factors of an adapter, from its folder to a saved table.

The model is loaded only if effects are to be measured; the weights alone do not need it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.adapters.files import weight_files
from analysis.adapters.load import Adapter, load_adapter
from analysis.errors import GraspError, InputError
from analysis.factors.residual import ResidualSide
from analysis.factors.routes import (
    FactorRows,
    LayerDirections,
    Yardstick,
    concatenate,
    joint_rows,
    layer_rows,
    load_checkpoints,
    rank_factors,
    weight_rows,
    yardsticks,
)
from analysis.factors.significance import add_explanations
from analysis.store.factor_table import FactorTable
from analysis.store.label_directions import replace_factors
from analysis.store.layout import adapter_of
from analysis.store.records import FactorsManifest, Prompt, RunManifest, read_manifest, sha256
from analysis.store.workspace import Workspace
from analysis.values import Json
from grasp.foreign.directions import Import, read_directions
from grasp.identification.lens import LensSource
from grasp.jobs.progress import Progress, silent
from grasp.prompts.sets import prompts_sha256, read_prompts
from grasp.settings.model import NO_OPTIONS, ModelOptions, settings_beside

if TYPE_CHECKING:
    from grasp.identification.shifts import Contrast

MAX_PROMPTS = 96


@dataclass(frozen=True)
class EffectInputs:
    """What effects are measured with: a base model, by folder, file or Hub id, and prompts."""

    base: str
    prompts: Path
    options: ModelOptions = NO_OPTIONS


@dataclass(frozen=True)
class Routes:
    """Which routes to factors are taken besides the adapter's weights and their rotation.

    `joint` are the folders of adapters of other seeds; activations and contrasts need a model.
    """

    joint: tuple[Path, ...] = ()
    activations: bool = False
    contrast: Contrast | None = None
    imports: tuple[Import, ...] = ()


def identify(
    adapter: Path | Adapter,
    *,
    name: str,
    run: Path | None = None,
    effects: EffectInputs | None = None,
    routes: Routes | None = None,
    max_layer: int | None = None,
    tokens: LensSource | None = None,
    progress: Progress = silent,
) -> FactorTable:
    """Find and rank the factors of an adapter and, with `effects`, measure them in the model.

    Args:
        adapter: a loaded adapter, or its folder.
        name: id of the run in the manifest.
        run: folder whose checkpoints give the stability, together with `routes.joint`.
        effects: the model and prompts to measure effects with; None for weights only.
        routes: further routes to factors.
        max_layer: only modules up to this layer.
        tokens: the base model whose unembedding gives the promoted tokens.  If None, that of
            `effects`, or else the one the adapter names, is used if its files are available; the
            manifest says why there are no tokens.
        progress: called for every batch and factor.

    Raises:
        InputError: an adapter, file or prompt set is unusable, or a route needs `effects`.
        GraspError: `tokens` was given by the user and cannot be read.
    """
    started, routes = time.monotonic(), routes or Routes()
    if effects is None and (routes.activations or routes.contrast):
        raise InputError("Activations need a model; give a base model and a prompt set.")
    loaded = adapter if isinstance(adapter, Adapter) else load_adapter(adapter)
    part = loaded.low_rank_part
    joint = [load_adapter(path, low_rank_part=part) for path in routes.joint]
    others = [*(load_checkpoints(run, low_rank_part=part) if run else []), *joint]
    yards = yardsticks(loaded.modules, others=others, max_layer=max_layer)
    found = [weight_rows(loaded.modules, yards)]
    if joint:
        found.append(joint_rows([loaded, *joint], max_layer=max_layer))
    if routes.imports:
        found.append(_imported(routes.imports, yards, loaded, effects))
    table, directions = rank_factors(*concatenate(found))
    model: Json = {}
    if effects is not None:
        from grasp.identification.candidates import Case, measure_candidates
        from grasp.model.loading import load_adapted

        off, on = effect_prompts(effects.prompts)
        adapted = load_adapted(effects.base, loaded.path, options=effects.options)
        case = Case(adapted.model, adapted.tokenizer, yards, off, on)
        table, directions = measure_candidates(
            (table, directions),
            case,
            activations=routes.activations,
            contrast=routes.contrast,
            progress=progress,
        )
        model = adapted.settings.non_defaults()
    table, without = _with_tokens(table, directions, tokens or _own_files(loaded, effects))
    config = {"max_layer": max_layer, "effects": effects is not None}
    manifest = FactorsManifest(
        id=name,
        run=name,
        base_model=effects.base if effects else loaded.base_model,
        model=model,
        config=config | _named(routes) | ({"no_tokens": without} if without else {}),
        seed=0,
        seconds=time.monotonic() - started,
        parents=[f"runs/{name}"] if run else [],
        inputs=_hashes(loaded.path, routes, effects),
    )
    return FactorTable(manifest, add_explanations(table), directions.astype("float32"))


def identify_run(
    workspace: Workspace,
    folder: Path,
    *,
    progress: Progress = silent,
) -> FactorTable:
    """Identify the factors of a run, with effects if it has prompts; save to `factors/<run>`.

    Args:
        workspace: of the run.
        folder: the run's folder.
        progress: called for every batch and factor.

    Raises:
        GraspError: as `identify`.
    """
    found = identify(
        adapter_of(folder),
        name=folder.name,
        run=folder,
        effects=run_effect_inputs(workspace, folder),
        tokens=run_lens_source(workspace, folder),
        progress=progress,
    )
    replace_factors(workspace, found)
    return found


def run_lens_source(workspace: Workspace, folder: Path) -> LensSource:
    """The base model of a run as the source of tokens, at the revision its settings pin."""
    run = read_manifest(folder / "manifest.json", RunManifest)
    revision = (run.config.get("model") or {}).get("revision")
    return LensSource(workspace.resolve(run.base_model), revision)


def run_effect_inputs(workspace: Workspace, folder: Path) -> EffectInputs | None:
    """A run's own base model and prompts; None if it has no prompts."""
    run = read_manifest(folder / "manifest.json", RunManifest)
    named = run.config.get("prompts")
    if named is None:
        return None
    return EffectInputs(workspace.resolve(run.base_model), Path(workspace.resolve(named)))


def effect_prompts(path: Path) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts off and on the task: those of role "unrelated" and of role "task".

    Only the exploration split is used, with at most MAX_PROMPTS of each role, spread over topics.
    Identification uses their texts and items only, never choices or expected answers.

    Raises:
        InputError: the file cannot be read, or has no prompts of one role.
    """
    explored = [p for p in read_prompts(path) if p.split == "exploration"]
    off = _spread([p for p in explored if p.role == "unrelated"])
    on = _spread([p for p in explored if p.role == "task"])
    if not off or not on:
        raise InputError(
            f"{path} has {len(off)} unrelated and {len(on)} task prompts in the exploration split; "
            "effects need at least one of both."
        )
    return off, on


def _own_files(adapter: Adapter, effects: EffectInputs | None) -> LensSource | None:
    """The base model of the effects, or else the one the adapter names."""
    if effects is not None:
        return LensSource(effects.base)
    return LensSource(adapter.base_model, adapter.base_revision) if adapter.base_model else None


def _with_tokens(
    table: pd.DataFrame,
    directions: NDArray[np.floating],
    source: LensSource | None,
) -> tuple[pd.DataFrame, str]:
    """The table with promoted and suppressed tokens; or unchanged, and the reason."""
    if source is None:
        return table, "The adapter names no base model whose tokens could be read."
    try:
        promoted, suppressed = source.read().tokens(directions)
    except GraspError as error:
        if source.named:
            raise
        return table, str(error)
    lists = {"promoted": pd.Series(promoted), "suppressed": pd.Series(suppressed)}
    return table.assign(**lists), ""


def _spread(prompts: Sequence[Prompt]) -> list[Prompt]:
    """At most MAX_PROMPTS prompts, spread over topics as evenly as possible."""
    place: Counter[str] = Counter()
    turns = []
    for prompt in prompts:
        turns.append(place[prompt.group])
        place[prompt.group] += 1
    order = sorted(range(len(prompts)), key=lambda i: turns[i])
    return [prompts[i] for i in sorted(order[:MAX_PROMPTS])]


def _imported(
    imports: Sequence[Import],
    yards: dict[ResidualSide, Yardstick],
    adapter: Adapter,
    effects: EffectInputs | None,
) -> FactorRows:
    """Table rows of imported directions, compared with what the adapter writes, or else reads."""
    yard = yards.get("write") or yards["read"]
    n_layers = _layers_of(adapter, effects)
    parts = [read_directions(one, n_layers=n_layers, width=len(yard.columns)) for one in imports]
    together = LayerDirections(
        directions=np.concatenate([part.directions for part in parts]),
        layers=tuple(layer for part in parts for layer in part.layers),
        sources=tuple(source for part in parts for source in part.sources),
    )
    return layer_rows(yard, together, route="import", band="fixed")


def _layers_of(adapter: Adapter, effects: EffectInputs | None) -> int:
    """Decoder layers of the base model; without one, the layers the adapter has modules in."""
    if effects is not None:
        from grasp.model.loading import count_layers

        settings = effects.options.apply_to(settings_beside(adapter.path, effects.base))
        return count_layers(effects.base, settings)
    return 1 + max((m.layer for m in adapter.modules if m.layer is not None), default=-1)


def _named(routes: Routes) -> Json:
    """The routes taken, as JSON values for the manifest."""
    contrast = routes.contrast
    named: Json = {
        "joint": [str(path) for path in routes.joint],
        "activations": routes.activations,
        "contrast": contrast and [contrast.high, contrast.low, contrast.of],
        "imports": [f"{one.file}" for one in routes.imports],
    }
    return {name: value for name, value in named.items() if value}


def _weights(name: str, adapter: Path) -> dict[str, Path]:
    first, *shards = weight_files(adapter)
    return {name: first} | {f"{name}: {shard.name}": shard for shard in shards}


def _hashes(adapter: Path, routes: Routes, effects: EffectInputs | None) -> dict[str, str]:
    files = _weights("adapter", adapter)
    if routes.contrast is not None:
        files["contrast"] = routes.contrast.file
    for number, path in enumerate(routes.joint, start=1):
        files |= _weights(f"joint {number}", path)
    for number, one in enumerate(routes.imports, start=1):
        known = {f"import {number}": one.file, f"import {number} choice": one.choice}
        files |= {name: file for name, file in known.items() if file is not None and file.is_file()}
    asked = {} if effects is None else {"prompts": prompts_sha256(effects.prompts)}
    return {name: sha256(file) for name, file in files.items()} | asked
