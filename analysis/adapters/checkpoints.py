"""The checkpoints that a trainer left in a folder, in order of their steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from analysis.adapters.files import CONFIG, INDEX, WEIGHTS
from analysis.adapters.place import adapter_home, is_adapter, step_of
from analysis.errors import AdapterError
from analysis.store.layout import run_of


@dataclass(frozen=True)
class Checkpoint:
    """The adapter in `path` after `step` optimiser steps; `step` is None for the finished one."""

    step: int | None
    path: Path


def adapters_by_step(root: Path) -> dict[int, Path]:
    """Step → adapter of checkpoint-100, … in a folder or its `checkpoints`, earliest first."""
    found: dict[int, Path] = {}
    for config in [*root.glob(f"*/{CONFIG}"), *root.glob(f"checkpoints/*/{CONFIG}")]:
        step = step_of(config.parent.name)
        if step is not None:
            found.setdefault(step, config.parent)
    return dict(sorted(found.items()))


def saved_adapters_by_step(root: Path) -> dict[int, Path]:
    """Those of `adapters_by_step` that have weights, so not one that a trainer is still writing."""
    return {step: path for step, path in adapters_by_step(root).items() if _has_weights(path)}


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (WEIGHTS, INDEX))


def list_checkpoints(folder: str | Path) -> list[Checkpoint]:
    """Adapters of checkpoint-100, checkpoint-200, … by step, then the folder's own if it has one.

    Checkpoints are looked for in the folder, where `transformers.Trainer` writes them, and in its
    subfolder `checkpoints`, where runs of the workbench have them.

    Raises:
        AdapterError: there are none.
    """
    root = Path(folder)
    run = run_of(root)
    if run is not None and (run / "checkpoints").is_dir():
        root = run
    steps = [Checkpoint(step, path) for step, path in adapters_by_step(root).items()]
    if not steps:
        raise AdapterError(
            f"{root} has no checkpoints; expected folders checkpoint-100, checkpoint-200, … "
            f"each with an {CONFIG}."
        )
    finished = adapter_home(root)
    return [*steps, Checkpoint(None, finished)] if is_adapter(finished) else steps
