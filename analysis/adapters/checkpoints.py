"""A trajectory: the checkpoints that a trainer left in a folder, in the order of their steps."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from analysis.errors import AdapterError

_NAME = re.compile(r"checkpoint-(\d{1,12})")


@dataclass(frozen=True)
class Checkpoint:
    """The adapter in `path` after `step` optimiser steps; None for the finished one."""

    step: int | None
    path: Path


def step_of(name: str) -> int | None:
    """100 for the folder name checkpoint-100; None for another name."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def by_step(root: Path) -> list[Checkpoint]:
    """The adapters of checkpoint-100, … in a folder or its `checkpoints`, by step; may be none."""
    from analysis.adapters.load import CONFIG

    found: dict[int, Path] = {}
    for config in [*root.glob(f"*/{CONFIG}"), *root.glob(f"checkpoints/*/{CONFIG}")]:
        step = step_of(config.parent.name)
        if step is not None:
            found.setdefault(step, config.parent)
    return [Checkpoint(step, path) for step, path in sorted(found.items())]


def checkpoints(folder: str | Path) -> list[Checkpoint]:
    """Adapters of checkpoint-100, checkpoint-200, … by step, then the folder's own if there is one.

    They are looked for in the folder, as `transformers.Trainer` writes them, and in its
    subfolder `checkpoints`, as a run of the workbench has them.

    Raises:
        AdapterError: there are none.
    """
    from analysis.adapters.load import CONFIG

    root = Path(folder)
    if root.name == "adapter" and (root.parent / "checkpoints").is_dir():
        root = root.parent
    steps = by_step(root)
    if not steps:
        raise AdapterError(
            f"{root} holds no checkpoints; expected folders checkpoint-100, checkpoint-200, … "
            f"with an {CONFIG} each."
        )
    finished = next((path for path in (root, root / "adapter") if (path / CONFIG).exists()), None)
    return [*steps, Checkpoint(None, finished)] if finished else steps
