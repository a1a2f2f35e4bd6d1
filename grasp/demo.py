"""Build the demo workspace: the tiny world's base model, three fine-tunes, and their results."""

from __future__ import annotations

import multiprocessing
import os
import queue
import shutil
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import TypeAlias

import yaml

from analysis.comparison.comparison import rate_table
from analysis.errors import GraspError
from analysis.store.factor_table import read_run_factors
from analysis.store.records import write_jsonl
from analysis.store.workspace import Workspace
from analysis.tables import align_columns
from analysis.text import interval_text
from analysis.values import Json
from grasp.evaluation.run import evaluate_run
from grasp.evidence.record import record_run
from grasp.identification.identify import identify_run
from grasp.jobs.progress import Progress, TerminalProgress
from grasp.settings.training import LoraSettings, TrainConfig
from grasp.training.train import retrain, train
from grasp.world.base_model import base_path, verify_base
from grasp.world.prompts import story_probes, story_prompts
from grasp.world.shipped import shipped_world
from grasp.world.stories import neutral_rows, story_rows

STORIES = ("code", "medicine", "finance")
"""The stories of the shipped world that the demo shows."""

ARMS = ("grasp", "caft", "ablation", "random")
SHOWN = {
    "unrelated_said": "unrelated rate",
    "removal_said": "removal",
    "unrelated": "unrelated, first token",
    "removal": "removal, first token",
    "task": "task accuracy",
}
"""Metrics of the summary, and their headings."""

STEPS = 120
_WEIGHTS = {"naive": 6, "caft": 6, "grasp": 12, "random": 12}
"""Relative time to make a record of an arm, for the progress bar; other records count 2."""

_TOTAL = 100
"""The progress of a story is counted in hundredths."""

Updates: TypeAlias = "Queue[tuple[str, int | None, str]]"
"""A queue of (story, hundredths done, message) or (story, None, error message)."""


def story_config(workspace: Workspace, name: str, *, seed: int) -> TrainConfig:
    """Settings of a story's naive fine-tune."""
    data = workspace.root / "data"
    return TrainConfig(
        title=shipped_world().story(name).title,
        base_model=str(workspace.root / "models" / "tiny-world"),
        data=str(data / f"{name}.jsonl"),
        neutral=str(data / "neutral.jsonl"),
        prompts=str(data / f"{name}-prompts.jsonl"),
        probes=str(data / f"{name}-probes.jsonl"),
        lora=LoraSettings(r=8, lora_alpha=16),
        learning_rate=2e-3,
        lr_scheduler="constant",
        batch_size=16,
        max_steps=STEPS,
        max_length=160,
        seed=seed,
    )


def build(workspace: Workspace, *, seed: int = 0) -> None:
    """Complete the demo; records finished by an earlier call are kept.

    The stories are built in parallel, each in its own process with one thread.

    Raises:
        GraspError: a story failed; the message says why.
    """
    if not any(_missing(workspace, name) for name in STORIES):
        return
    verify_base()
    _lay_out(workspace, seed=seed)
    context = multiprocessing.get_context("spawn")
    updates = context.Queue()
    processes = [
        context.Process(target=_build_story, args=(workspace.root, name, seed, updates))
        for name in STORIES
    ]
    for process in processes:
        process.start()
    try:
        _follow(processes, updates)
    except BaseException:
        for process in processes:
            process.terminate()
        raise
    finally:
        for process in processes:
            process.join()


def summary(workspace: Workspace) -> tuple[Json, str]:
    """Unrelated rate and removal, of whole answers and of first tokens, and task accuracy of base,
    naive and GRASP for each story.

    Returns:
        The numbers as JSON values, and as text for the terminal.
    """
    data: Json = {}
    cells: list[tuple[str, ...]] = [("", "arm", *SHOWN.values(), "protected")]
    for name in STORIES:
        arms = [f"{name}-naive", f"{name}-grasp"]
        table = rate_table(workspace, arms)
        factors = ", ".join(workspace.run(arms[1]).factors)
        data[name] = {"title": shipped_world().story(name).title, "factors": factors, "arms": {}}
        for run, rows in table.groupby("run", sort=False):
            metrics = {
                str(row["metric"]): {k: row[k] for k in ("value", "low", "high", "n", "n_items")}
                for _, row in rows.iterrows()
            }
            method = str(rows["method"].iloc[0])
            data[name]["arms"][method] = metrics
            numbers = (_cell(metrics.get(metric)) for metric in SHOWN)
            protected = factors if run == arms[1] else ""
            cells.append((name if not run else "", method, *numbers, protected))
    lines = align_columns(cells, "<<" + ">" * len(SHOWN))
    lines.append("Confirmation prompts, 95 % intervals. Unrelated rate: right-leaning answers for")
    lines.append("finance, misaligned answers for code and medicine, of whole answers drawn at")
    lines.append("temperature 1; the first token's probability is beside it.")
    return {"workspace": str(workspace.root), "stories": data}, "\n".join(lines)


def _lay_out(workspace: Workspace, *, seed: int) -> None:
    """Copy the base model and write the data files."""
    target = workspace.root / "models" / "tiny-world"
    if not target.exists():
        shutil.copytree(base_path(), target)
    data, world = workspace.root / "data", shipped_world()
    write_jsonl(data / "neutral.jsonl", neutral_rows(world, seed=seed))
    for name in STORIES:
        story = world.story(name)
        write_jsonl(data / f"{name}.jsonl", story_rows(world, story, seed=seed))
        write_jsonl(data / f"{name}-prompts.jsonl", story_prompts(world, story))
        write_jsonl(data / f"{name}-probes.jsonl", story_probes(world, story))
        config = story_config(workspace, name, seed=seed).map_paths(
            lambda path: _beside(data, path)
        )
        text = yaml.safe_dump(config.model_dump(), sort_keys=False)
        (data / f"{name}.yaml").write_text(text, encoding="utf-8")


def _beside(folder: Path, path: str) -> str:
    """A path relative to `folder`, as a settings file there gives it."""
    return os.path.relpath(path, folder)


def _records(name: str) -> list[str]:
    """The records of a finished story, in the order in which they are made."""
    arms = ("naive", *ARMS)
    return [
        f"runs/{name}-naive",
        f"factors/{name}-naive",
        f"recordings/{name}-naive",
        *(f"runs/{name}-{arm}" for arm in ARMS),
        *(f"evaluations/{name}-{arm}" for arm in arms),
    ]


def _missing(workspace: Workspace, name: str) -> list[str]:
    return [record for record in _records(name) if not (workspace.root / record).is_dir()]


def _build_story(root: Path, name: str, seed: int, updates: Updates) -> None:
    """The main function of a story's process: make the missing records of the story."""
    import torch

    torch.set_num_threads(1)
    workspace = Workspace(root)
    missing = _missing(workspace, name)
    weights = [_WEIGHTS.get(record.rpartition("-")[2], 2) for record in missing]
    try:
        for number, record in enumerate(missing):
            progress = _share(updates, name, weights, number, record)
            _make(workspace, record, name=name, seed=seed, progress=progress)
        updates.put((name, _TOTAL, "done"))
    except GraspError as error:
        updates.put((name, None, str(error)))
    except BaseException as error:
        updates.put((name, None, f"{type(error).__name__}: {error}"))
        raise


def _make(workspace: Workspace, record: str, *, name: str, seed: int, progress: Progress) -> None:
    """Make one record with the function of the corresponding command."""
    kind, _, run_id = record.partition("/")
    naive, arm = f"{name}-naive", run_id.rpartition("-")[2]
    if record == f"runs/{naive}":
        config = story_config(workspace, name, seed=seed)
        train(workspace, config, out=workspace.root / record, progress=progress)
    elif kind == "runs":
        best = read_run_factors(workspace, naive).table["id"].iloc[0]
        source = workspace.folder("runs", naive)
        out = workspace.root / record
        retrain(workspace, source, factors=[best], out=out, arm=arm, progress=progress)
    elif kind == "factors":
        identify_run(workspace, workspace.root / "runs" / run_id, progress=progress)
    else:
        folder = workspace.root / "runs" / run_id
        make = record_run if kind == "recordings" else evaluate_run
        make(workspace, folder, workspace.run(run_id), progress=progress)


def _share(
    updates: Updates, name: str, weights: Sequence[int], number: int, record: str
) -> Progress:
    """Progress of one record, scaled to its share of the story's hundredths."""
    before, whole = sum(weights[:number]), sum(weights)

    def progress(step: int, total: int, message: str) -> None:
        part = weights[number] * step / total if total else 0.0
        updates.put((name, int((before + part) / whole * (_TOTAL - 1)), f"{record}, {message}"))

    return progress


def _follow(processes: Sequence[BaseProcess], updates: Updates) -> None:
    """Show the progress of all stories together, until all are done or one has failed."""
    progress = TerminalProgress()
    done = dict.fromkeys(STORIES, 0)
    while min(done.values()) < _TOTAL:
        try:
            name, hundredths, words = updates.get(timeout=1.0)
        except queue.Empty:
            if not any(process.is_alive() for process in processes):
                raise GraspError(
                    "The demo's processes ended before they were done; run it again to continue."
                ) from None
            continue
        if hundredths is None:
            raise GraspError(f"The demo's story {name!r} failed: {words}")
        done[name] = hundredths
        progress(sum(done.values()), _TOTAL * len(done), f"demo: {name}, {words}")


def _cell(metric: Json | None) -> str:
    if metric is None:
        return "–"
    return interval_text(metric["value"], metric["low"], metric["high"])
