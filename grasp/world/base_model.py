"""Base models of tiny worlds: the packaged one, those made for other worlds, whether one is whole.

Torch is imported only by what runs the model, so `base_path` and `verify` are cheap.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.errors import InputError, SchemaError
from analysis.store.records import sha256
from analysis.store.workspace import writing_folder
from grasp.world.shipped import shipped_world
from grasp.world.topics import World

if TYPE_CHECKING:
    from grasp.world.pretraining import Progress, Recipe, Trained

SCHEMA = 1
SEED = 0
TOLERANCE = 0.03
"""Largest accepted difference of a behaviour figure, a rate in [0, 1], after a rebuild."""

WEIGHTS = "model.safetensors"
PROVENANCE = "provenance.json"
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def base_path() -> Path:
    """The folder of the packaged base model, as `from_pretrained` takes it."""
    return Path(__file__).parent / "base"


def read_provenance(folder: Path) -> dict[str, Any]:
    """How the base model in `folder` was made.

    Raises:
        SchemaError: the record has a version this code does not know.
        InputError: there is no record.
    """
    path = folder / PROVENANCE
    if not path.is_file():
        raise InputError(f"no {PROVENANCE} in {folder}; is it a base model of the tiny world?")
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if record.get("schema") != SCHEMA:
        raise SchemaError(
            f"{path} has schema {record.get('schema')!r}, expected {SCHEMA}; "
            "rebuild it with this version or update the workbench"
        )
    return record


def verify(folder: Path | None = None) -> dict[str, Any]:
    """Checks the weights of a base model against its record and returns the record.

    Args:
        folder: the packaged model where absent.

    Raises:
        InputError: the weights are missing or are not those recorded.
    """
    folder = folder or base_path()
    record = read_provenance(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(f"no {WEIGHTS} in {folder}; reinstall, or rebuild the base model")
    found = sha256(path)
    if found != record["weights_sha256"]:
        raise InputError(
            f"{path} has sha256 {found}, expected {record['weights_sha256']}; "
            "the file was changed or damaged: reinstall, or rebuild the base model"
        )
    return record


def rebuild(
    output_dir: str | Path,
    *,
    seed: int = SEED,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
) -> Path:
    """Trains the base model again and saves it to `output_dir` with its provenance.

    One thread. On one machine with the same packages the weights come out the same to the bit;
    elsewhere `compare` says whether the behaviour does.

    Args:
        output_dir: made where absent; files of a model already in it are replaced.
        seed: seeds the corpus, the weights and the order of batches.
        recipe: steps, sizes and rates, where they should differ from the packaged model's.
        progress: called after each step with (step, steps, smoothed loss in nats).
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
    """The base model of a world, trained where `folder` does not hold it yet.

    Args:
        world: what it is trained on; its stories do not matter.
        folder: a cache that may hold base models of other worlds, recipes and seeds too.
        seed: as for `rebuild`, like `recipe` and `progress`.
        recipe: the packaged model's where absent.
        progress: not called where the model is there.

    Returns:
        The model's own folder in `folder`, as `from_pretrained` takes it. It appears when the
        model is whole, so an interrupted training leaves nothing that is taken for one.

    Raises:
        InputError: the model is there, but its weights are not those recorded.
    """
    from grasp.world.pretraining import Recipe

    recipe = recipe or Recipe()
    made_of = json.dumps([world.digest(), asdict(recipe), seed])
    final = Path(folder) / f"{world.name}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"
    if final.is_dir():
        verify(final)
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
    """Train, and save into an existing folder with the provenance."""
    from grasp.world.behaviour import base_figures
    from grasp.world.pretraining import Recipe, train_base

    recipe = recipe or Recipe()
    trained = train_base(world, seed=seed, recipe=recipe, progress=progress)
    _save(trained, folder)
    figures = base_figures(world, trained.model, trained.tokenizer)
    record = _record(world, trained, seed=seed, recipe=recipe, weights=folder / WEIGHTS)
    record["figures"] = {name: round(value, 6) for name, value in figures.items()}
    (folder / PROVENANCE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _save(trained: Trained, folder: Path) -> None:
    trained.model.save_pretrained(folder)
    trained.tokenizer.save_pretrained(folder)


def _record(
    world: World, trained: Trained, *, seed: int, recipe: Recipe, weights: Path
) -> dict[str, Any]:
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


def compare(rebuilt_dir: str | Path) -> dict[str, Any]:
    """Holds a rebuilt base model against the packaged one.

    Returns:
        `identical`: the same weights to the bit. `same_corpus`: trained on the same documents.
        `figures`: for each behaviour figure the packaged and the rebuilt rate and their difference.
        `within_tolerance`: no difference is above `tolerance`, and the corpus is the same.
    """
    packaged, rebuilt = verify(), verify(Path(rebuilt_dir))
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
