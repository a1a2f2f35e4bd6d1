"""Base models of tiny worlds: the packaged one, and those trained for other worlds.

Only functions that run the model import torch, so `base_path` and `verify_base` are cheap.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.errors import InputError, SchemaError
from analysis.store.records import sha256
from analysis.store.workspace import writing_folder
from analysis.values import Json
from grasp.world.shipped import shipped_world
from grasp.world.topics import World

if TYPE_CHECKING:
    from grasp.world.pretraining import Progress, Recipe, TrainedBase

SCHEMA = 1
SEED = 0
TOLERANCE = 0.03
"""Largest accepted difference between a behaviour rate, in [0, 1], before and after a rebuild."""

WEIGHTS = "model.safetensors"
PROVENANCE = "provenance.json"
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def base_path() -> Path:
    """The folder of the packaged base model, which `from_pretrained` can load."""
    return Path(__file__).parent / "base"


def read_provenance(folder: Path) -> Json:
    """The record of how the base model in `folder` was made.

    Raises:
        SchemaError: the record has a version this code cannot read.
        InputError: there is no record.
    """
    path = folder / PROVENANCE
    if not path.is_file():
        raise InputError(
            f"{folder} has no {PROVENANCE}; expected the folder of a tiny world's base model."
        )
    record: Json = json.loads(path.read_text(encoding="utf-8"))
    if record.get("schema") != SCHEMA:
        raise SchemaError(
            f"{path} has schema {record.get('schema')!r}; expected {SCHEMA}. "
            "Rebuild the model with this version, or update the workbench."
        )
    return record


def verify_base(folder: Path | None = None) -> Json:
    """Check the weights of a base model against its record, and return the record.

    Args:
        folder: of the base model; None for the packaged one.

    Raises:
        InputError: the weights are missing, or differ from the record.
    """
    folder = folder or base_path()
    record = read_provenance(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(f"{folder} has no {WEIGHTS}; reinstall, or rebuild the base model.")
    found = sha256(path)
    if found != record["weights_sha256"]:
        raise InputError(
            f"{path} has SHA-256 {found}; expected {record['weights_sha256']}. "
            "The file was changed or damaged: reinstall, or rebuild the base model."
        )
    return record


def rebuild_base(
    output_dir: str | Path,
    *,
    seed: int = SEED,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train the base model again and save it to `output_dir` with its provenance.

    Runs on one thread.  On the same machine with the same packages the weights are reproduced
    bit by bit; elsewhere `compare_bases` says whether the behaviour is.

    Args:
        output_dir: created if missing; a model already in it is overwritten.
        seed: of the corpus, the weights and the order of batches.
        recipe: steps, sizes and rates; None for those of the packaged model.
        progress: called after each step with (step, steps, smoothed loss in nats per token).
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    _build(shipped_world(), folder, seed=seed, recipe=recipe, progress=progress)
    return folder


def ensure_base(
    world: World,
    folder: str | Path,
    *,
    seed: int = SEED,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
) -> Path:
    """The base model of a world, trained if `folder` does not contain it yet.

    Args:
        world: what it is trained on; its stories do not matter.
        folder: a cache, which may contain base models of other worlds, recipes and seeds.
        seed: as for `rebuild_base`.
        recipe: as for `rebuild_base`.
        progress: as for `rebuild_base`; not called if the model exists.

    Returns:
        The model's own folder in `folder`, which `from_pretrained` can load.  It appears only
        when the model is complete, so an interrupted training never passes for a model.

    Raises:
        InputError: the model exists, but its weights differ from its record.
    """
    from grasp.world.pretraining import Recipe

    recipe = recipe or Recipe()
    made_of = json.dumps([world.digest(), asdict(recipe), seed])
    final = Path(folder) / f"{world.name}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"
    if final.is_dir():
        verify_base(final)
        return final
    with writing_folder(final) as partial:
        _build(world, partial, seed=seed, recipe=recipe, progress=progress)
    return final


def _build(
    world: World,
    folder: Path,
    *,
    seed: int,
    recipe: Recipe | None,
    progress: Progress | None,
) -> None:
    """Train and save into an existing folder, with the provenance."""
    from grasp.world.behaviour import base_figures
    from grasp.world.pretraining import Recipe, train_base

    recipe = recipe or Recipe()
    trained = train_base(world, seed=seed, recipe=recipe, progress=progress)
    _save(trained, folder)
    figures = base_figures(world, trained.model, trained.tokenizer)
    record = _record(world, trained, seed=seed, recipe=recipe, weights=folder / WEIGHTS)
    record["figures"] = {name: round(value, 6) for name, value in figures.items()}
    (folder / PROVENANCE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _save(trained: TrainedBase, folder: Path) -> None:
    trained.model.save_pretrained(folder)
    trained.tokenizer.save_pretrained(folder)


def _record(
    world: World, trained: TrainedBase, *, seed: int, recipe: Recipe, weights: Path
) -> Json:
    return {
        "schema": SCHEMA,
        "world": world.name,
        "world_sha256": world.digest(),
        "seed": seed,
        "recipe": asdict(recipe),
        "weights_sha256": sha256(weights),
        "corpus_sha256": trained.corpus_sha256,
        "final_loss": round(trained.final_loss, 6),
        "tolerance": TOLERANCE,
        "packages": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def compare_bases(rebuilt_dir: str | Path) -> Json:
    """Compare a rebuilt base model with the packaged one.

    Returns:
        `identical`: the weights are equal bit by bit.  `same_corpus`: both were trained on the
        same documents.  `figures`: each behaviour rate in both models and the difference.
        `within_tolerance`: no difference exceeds `tolerance`, and the corpus is the same.
    """
    packaged, rebuilt = verify_base(), verify_base(Path(rebuilt_dir))
    figures = {
        name: {
            "packaged": value,
            "rebuilt": rebuilt["figures"][name],
            "difference": round(rebuilt["figures"][name] - value, 6),
        }
        for name, value in packaged["figures"].items()
    }
    same_corpus = packaged["corpus_sha256"] == rebuilt["corpus_sha256"]
    near = all(abs(row["difference"]) <= TOLERANCE for row in figures.values())
    return {
        "identical": packaged["weights_sha256"] == rebuilt["weights_sha256"],
        "same_corpus": same_corpus,
        "within_tolerance": near and same_corpus,
        "tolerance": TOLERANCE,
        "figures": figures,
    }
