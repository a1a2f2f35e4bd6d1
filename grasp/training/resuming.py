"""A training run that was interrupted goes on from its last whole checkpoint.

A checkpoint is whole once it has its seal, which is written last and has the hash of every other
file.  Whatever a kill, a full disk or a power cut leaves behind is passed over for the one before.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from analysis.errors import SchemaError
from analysis.store.records import RunManifest, read_manifest, sha256
from grasp.training.trainer import GUARD_FILE, MOMENTS_FILE, read_metrics_lines

SEAL_FILE = "checkpoint.json"
"""In a checkpoint: the hashes of its other files."""

_RESUME_FILES = (
    *("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"),
    *(GUARD_FILE, MOMENTS_FILE, SEAL_FILE),
)
_PLAN = "plan.json"


class SealCheckpoints(TrainerCallback):
    """Seal each checkpoint; it has to be the last callback, after those that write into it."""

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Write the seal, whole or not at all."""
        if state.is_world_process_zero:
            assert args.output_dir is not None  # the library sets it where nobody does
            seal_checkpoint(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def seal_checkpoint(folder: Path) -> None:
    """Write the hashes of a checkpoint's files into it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    new = folder / f".{SEAL_FILE}"
    new.write_text(json.dumps({"files": hashes}), encoding="utf-8")
    new.replace(folder / SEAL_FILE)


def find_damage(folder: Path) -> str:
    """What is wrong with a checkpoint, in words; "" if it is whole."""
    try:
        files = json.loads((folder / SEAL_FILE).read_text(encoding="utf-8"))["files"]
        wrong = [
            name
            for name, digest in files.items()
            if not (folder / name).is_file() or sha256(folder / name) != digest
        ]
    except FileNotFoundError:
        return "it was not written to the end"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{SEAL_FILE} is damaged"
    return f"{', '.join(wrong)} is missing or damaged" if wrong else ""


def find_resumable(folder: Path, run: RunManifest) -> tuple[str | None, list[str]]:
    """The last whole checkpoint of an earlier attempt at the very same run, and what was passed over.

    Checkpoints that are not whole are removed, and so is everything if none is left.
    """
    plan = _plan(run)
    passed = []
    last: Path | None = None
    if _read_plan(folder) == plan:
        for checkpoint in _checkpoints(folder):
            if not (damage := find_damage(checkpoint)):
                last = checkpoint
                break
            passed.append(f"{checkpoint.name} cannot be resumed from: {damage}")
            shutil.rmtree(checkpoint)
    if last is None:
        shutil.rmtree(folder)
        folder.mkdir()
    else:
        _truncate(folder / "metrics.jsonl", _step(last))
    (folder / _PLAN).write_text(json.dumps(plan), encoding="utf-8")
    return (None if last is None else str(last)), passed


def find_finished(out: Path, run: RunManifest) -> RunManifest | None:
    """The run in `out`, if it is the very one that is asked for, made before; else None."""
    try:
        found = read_manifest(out / "manifest.json", RunManifest)
    except SchemaError:
        return None
    asked, made = _plan(run), _plan(found)
    model = asked["config"].get("model") or {}
    if model.get("revision") is None and "revision" in (made["config"].get("model") or {}):
        made["config"]["model"]["revision"] = None  # the commit that it was pinned to
    return found if asked == made else None


def forget_resuming(folder: Path) -> None:
    """Take away what only an unfinished run needs."""
    for name in _RESUME_FILES:
        for file in folder.glob(f"checkpoints/*/{name}"):
            file.unlink()
    (folder / _PLAN).unlink(missing_ok=True)


def _plan(run: RunManifest) -> Any:
    made = {"method", "config", "protection", "factors", "base_model"}
    return json.loads(run.model_dump_json(include=made))


def _read_plan(folder: Path) -> Any:
    try:
        return json.loads((folder / _PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the last one first."""
    found = (folder / "checkpoints").glob("checkpoint-*")
    numbered = [path for path in found if path.is_dir() and path.name[11:].isdecimal()]
    return sorted(numbered, key=_step, reverse=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _truncate(path: Path, step: int) -> None:
    """Drop the lines after `step`, and those that are not whole."""
    kept = [row for row in read_metrics_lines(path) if row["step"] <= step]
    if path.exists():
        path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
