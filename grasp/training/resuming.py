"""A training run that was interrupted goes on from its last checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from analysis.store.records import RunManifest
from grasp.training.trainer import GUARD_FILE

_RESUME_FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", GUARD_FILE)
_LAST_FILE = "trainer_state.json"
"""The last file that a checkpoint gets, so one that has it is whole."""
_PLAN = "plan.json"


def find_resumable(folder: Path, run: RunManifest) -> str | None:
    """The last checkpoint of an earlier attempt at the very same run; others are cleared away."""
    made = {"method", "config", "protection", "factors", "base_model"}
    plan = run.model_dump_json(include=made)
    plan_file = folder / _PLAN
    checkpoints = folder / "checkpoints"
    same = plan_file.exists() and json.loads(plan_file.read_text()) == json.loads(plan)
    for checkpoint in checkpoints.glob("checkpoint-*"):
        if not (checkpoint / _LAST_FILE).exists():
            shutil.rmtree(checkpoint)
    last = get_last_checkpoint(str(checkpoints)) if same and checkpoints.is_dir() else None
    if last is None:
        shutil.rmtree(folder)
        folder.mkdir()
    else:
        _truncate(folder / "metrics.jsonl", int(last.rpartition("-")[2]))
    plan_file.write_text(plan)
    return last


def _truncate(path: Path, step: int) -> None:
    """Drop the lines after `step`, and a last one that is not whole."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        path.write_text("".join(line for line in whole if json.loads(line)["step"] <= step))


def forget_resuming(folder: Path) -> None:
    """Take away what only an unfinished run needs."""
    for name in _RESUME_FILES:
        for file in folder.glob(f"checkpoints/*/{name}"):
            file.unlink()
    (folder / _PLAN).unlink(missing_ok=True)
