"""Validate driving rows: retrain without the top rows, and without as many random rows."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from peft import PeftModel

from analysis.errors import InputError
from analysis.evidence.driving_rows import (
    WITHOUT_RANDOM,
    WITHOUT_TOP,
    arm_rates,
    describe_validation,
    random_rows,
    rate_differences,
    top_rows,
)
from analysis.store.evidence import Evidence, read_evidence, was_measured_with
from analysis.store.layout import adapter_of
from analysis.store.records import ROLES, Prompt, sha256
from grasp.data.dataset import read_task
from grasp.data.examples import write_examples
from grasp.evaluation.answers import generate
from grasp.evidence.attribution import measure_rows
from grasp.evidence.subject import (
    Subject,
    data_files,
    exploration_prompts,
    read_training_settings,
    score_replies,
)
from grasp.jobs.progress import Progress, silent
from grasp.model.loading import LoadedModel, load_adapted
from grasp.settings.model import ModelSettings
from grasp.settings.training import TrainConfig
from grasp.training.train import train

DRAWS = 2


def validate_rows(
    subject: Subject,
    *,
    n: int,
    layer: int | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    prompts: Path | None = None,
    progress: Progress = silent,
) -> Evidence:
    """Fine-tune again without the top n rows, and `draws` times without n random rows.

    All use the run's own settings, seed and base model; rows are ranked by alignment.  The
    reduced data files are saved in the workspace's `data`, the fine-tunes (without checkpoints)
    in the record `evidence/<run>.<factor>.validation`.

    Raises:
        InputError: there are no draws, n leaves no rows, or the run is not a naive one.
    """
    started = time.monotonic()
    if subject.run.method != "naive" or draws < 1:
        raise InputError(
            f"Run {subject.folder.name!r} has method {subject.run.method!r}, and {draws} draws "
            "were asked for; rows are validated on a naive run, with at least one random draw."
        )
    settings = read_training_settings(subject)
    file, chosen = exploration_prompts(subject, prompts)
    rows = _measured_rows(subject, settings, layer, progress).tables["rows"]
    left_out = {WITHOUT_TOP: top_rows(rows, n=n)}
    for draw in range(1, draws + 1):
        left_out[f"{WITHOUT_RANDOM} {draw}"] = random_rows(rows, n=n, seed=1000 * seed + draw)
    workspace, record = subject.workspace, subject.id("validation")
    with workspace.writing("evidence", record) as folder:
        tables, model = _own_scores(subject, chosen)
        files = {}
        for number, (arm, dropped) in enumerate(left_out.items()):
            files[arm] = _reduced(subject, settings, arm, dropped)
            out = folder / arm.replace(" ", "-")
            part = _part(progress, number, len(left_out), arm)
            _train(subject, settings, files[arm], out=out, progress=part)
            tables.append(_arm_scores(subject, out, chosen).assign(arm=arm))
        samples = pd.concat(tables, ignore_index=True)
        rates, compared = arm_rates(samples), rate_differences(samples, roles=ROLES)
        return subject.save(
            "validation",
            model=model,
            tables={"rates": rates, "differences": compared, "samples": samples},
            config={
                "n": n,
                "layer": layer,
                "draws": draws,
                "left_out": left_out,
                "data": {arm: workspace.reference(path) for arm, path in files.items()},
            },
            seed=seed,
            inputs={**data_files(settings), "prompts": file, **files},
            sentence=describe_validation(rates, compared, n=n),
            seconds=time.monotonic() - started,
            folder=folder,
        )


def _measured_rows(
    subject: Subject, settings: TrainConfig, layer: int | None, progress: Progress
) -> Evidence:
    """The saved measures of this factor's rows; measured now if missing or out of date."""
    folder = subject.workspace.folder("evidence", subject.id("rows"))
    if folder.is_dir():
        saved = read_evidence(folder)
        hashes = {name: sha256(path) for name, path in data_files(settings).items()}
        same_data = saved.manifest.inputs.get("data") == hashes.get("data")
        same_layer = saved.manifest.config.get("layer") == layer
        if same_data and same_layer and was_measured_with(saved.manifest, subject.directions):
            return saved
    return measure_rows(subject, layer=layer, progress=progress)


def _reduced(subject: Subject, settings: TrainConfig, arm: str, dropped: Sequence[int]) -> Path:
    """Write the data without the `dropped` rows, counted from 0, to a file of the workspace."""
    name = f"{subject.folder.name}.{subject.name}.{arm.replace(' ', '-')}-{len(dropped)}.jsonl"
    out = subject.workspace.root / "data" / name
    gone = set(dropped)
    kept = [row for row in read_task(settings).rows if row.number - 1 not in gone]
    out.parent.mkdir(exist_ok=True)
    write_examples(out, kept)
    return out


def _train(
    subject: Subject, settings: TrainConfig, data: Path, *, out: Path, progress: Progress
) -> None:
    changed = {
        "data": str(data),
        "columns": None,
        "title": f"{settings.title}, {out.name}",
        "model": subject.options.apply_to(settings.model),
    }
    train(subject.workspace, settings.model_copy(update=changed), out=out, progress=progress)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)


def _own_scores(
    subject: Subject, prompts: Sequence[Prompt]
) -> tuple[list[pd.DataFrame], ModelSettings]:
    """Scores of the base model and of the run, and what they were loaded with.

    The model itself stays in here, so that the memory is free for those that are trained.
    """
    own = subject.load()
    with own.model.disable_adapter():
        base = _scores(own, prompts).assign(arm="base")
    return [base, _scores(own, prompts).assign(arm="run")], own.settings


def _arm_scores(subject: Subject, folder: Path, prompts: Sequence[Prompt]) -> pd.DataFrame:
    reference = subject.workspace.resolve(subject.run.base_model)
    loaded = load_adapted(reference, adapter_of(folder), options=subject.options)
    return _scores(loaded, prompts)


def _scores(loaded: LoadedModel[PeftModel], prompts: Sequence[Prompt]) -> pd.DataFrame:
    model, tokenizer = loaded.model, loaded.tokenizer
    return score_replies(
        tokenizer,
        prompts,
        lambda chats, limit: generate(model, tokenizer, chats, max_new_tokens=limit),
    )


def _part(progress: Progress, number: int, count: int, arm: str) -> Progress:
    """Progress of one of `count` fine-tunes as progress of all of them."""

    def report(step: int, total: int, message: str) -> None:
        progress(number * total + step, count * total, f"{arm}: {message}")

    return report
