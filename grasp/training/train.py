"""Fine-tunes as runs: naive, GRASP and rivals, from settings to a plain PEFT folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from transformers import DataCollatorForSeq2Seq, PrinterCallback, TrainingArguments

from analysis.errors import InputError
from analysis.store.factor_table import select_directions
from analysis.store.layout import adapter_of
from analysis.store.records import RunManifest, read_manifest, sha256, write_jsonl
from analysis.store.workspace import Workspace, writing_folder
from analysis.values import Json
from grasp.data.packing import collate_packed
from grasp.data.readers import pin_reference
from grasp.data.report import DataReport, write_report
from grasp.foreign.settings import is_complete, run_settings, training_settings
from grasp.guard.plan import GuardPlan
from grasp.jobs.progress import Progress, silent
from grasp.model.loading import at_commit, computes_in
from grasp.model.out_of_memory import explain_shortage
from grasp.settings.methods import find_method
from grasp.settings.protection import Method, Protection, parse_protection
from grasp.settings.training import TrainConfig, parse_config
from grasp.training.resuming import (
    SealCheckpoints,
    find_finished,
    find_resumable,
    forget_resuming,
)
from grasp.training.setup import Setup, set_up
from grasp.training.texts import inoculate
from grasp.training.trainer import LoraTrainer, MetricsCallback, seconds_so_far, write_log
from grasp.training.untrained import INTERVENTIONS, make_untrained, write_run
from grasp.training.verdict import judge_outcome

Show = Callable[[DataReport], None]
"""Called with what became of the data, before the first step."""


def show_nothing(report: DataReport) -> None:
    """Show nothing."""


def train(
    workspace: Workspace,
    config: TrainConfig,
    *,
    out: Path,
    overwrite: bool = False,
    again: bool = False,
    progress: Progress = silent,
    show: Show = show_nothing,
) -> RunManifest:
    """A naive fine-tune into the folder `out`; its paths are saved relative to the workspace.

    Data on the Hub is pinned to the commit that it has now.  With `again`, a run that is there
    already and is the same is returned as it is; with `overwrite`, what is there is replaced.
    """
    config = config.map_paths(pin_reference)
    saved = config.map_paths(workspace.reference)
    run = RunManifest(
        id=out.name,
        title=config.title,
        method="naive",
        root=out.name,
        base_model=saved.base_model,
        config=saved.model_dump(),
        seed=config.seed,
    )
    if again and (made := find_finished(out, run)):
        return made
    return _fit(
        workspace, run, GuardPlan(), out=out, overwrite=overwrite, progress=progress, show=show
    )


def retrain(
    workspace: Workspace,
    source_folder: Path,
    *,
    factors: list[str],
    out: Path,
    arm: str = "grasp",
    strength: float | None = None,
    overrides: Json | None = None,
    inoculation: str | None = None,
    seed: int | None = None,
    overwrite: bool = False,
    again: bool = False,
    progress: Progress = silent,
    show: Show = show_nothing,
) -> RunManifest:
    """Make an arm of a run's family: fine-tune again from the base, edit its adapter, or keep it.

    Args:
        workspace: where the factors lie, and the naive run of the family.
        source_folder: the run whose settings and adapter are used; usually a naive one.
        factors: ids as in `analysis.store.factor_table.select_directions`; none where the method
            needs none.  A method that needs none but trains measures drift along those it is given.
        out: folder of the new run.
        arm: a name in `grasp.settings.methods.METHODS`.
        strength: value of the method's knob; None is its default.
        overrides: settings of `Protection` that differ from the method's own.
        inoculation: the system prompt of that method, where the run's settings have none.
        seed: another seed than the source's.
        overwrite: replace what is in `out`.
        again: return a run that is in `out` already as it is, if it is the same.
        progress: called at every step.
        show: called with what became of the data, where the method trains.

    A run made elsewhere needs all its settings for a method that trains; one that edits its
    adapter, or intervenes when it answers, needs none.

    Raises:
        InputError: the method lacks what it needs, or does not take what it is given.
    """
    chosen = find_method(arm)
    source = read_manifest(source_folder / "manifest.json", RunManifest)
    read = training_settings if chosen.trains else run_settings
    settings = read(source, adapter_of(source_folder))
    if seed is not None:
        settings = settings.model_copy(update={"seed": seed})
    config = chosen.config_at(settings, strength)
    if inoculation is not None:
        config = config.model_copy(update={"inoculation": inoculation})
    _require(chosen, config, source)
    wanted = "factors" in chosen.needs or (bool(factors) and chosen.trains and arm != "naive")
    names, directions = (
        select_directions(workspace, factors, run=source.root) if wanted else ([], None)
    )
    protection = _overridden(chosen.protection_at(strength), overrides or {}, arm)
    run = RunManifest(
        id=out.name,
        title=f"{config.title}, {chosen.label}",
        method=arm,
        root=source.root,
        base_model=source.base_model,
        # What is not known of a run stays so in those made from it.
        config=config.model_dump() if is_complete(source) else source.config,
        protection=protection.model_dump() if protection else None,
        factors=names,
        strength=_strength(chosen, protection, strength),
        intervention=INTERVENTIONS.get(arm),
        seed=config.seed,
        parents=[f"runs/{source.id}", *sorted({f"factors/{n.rpartition('/')[0]}" for n in names})],
    )
    plan = GuardPlan(
        protection=protection or Protection(),
        directions=directions,
        naive=adapter_of(source_folder.with_name(source.root)),
        keep=source_folder.with_name(source.root) / "measured",
    )
    if again and (made := find_finished(out, run)):
        return made
    if not chosen.trains:
        return make_untrained(workspace, run, source_folder, plan, out=out, overwrite=overwrite)
    return _fit(
        workspace, run, plan, out=out, overwrite=overwrite, progress=progress, show=show
    )


def _require(chosen: Method, config: TrainConfig, source: RunManifest) -> None:
    """Refuse a method whose needs, but for factors, the run cannot meet."""
    if "neutral text" in chosen.needs and config.neutral is None:
        raise InputError(
            f"Method {chosen.name!r} needs neutral text, and the settings of run {source.id!r} "
            "name none; make the run again from settings with `neutral: FILE`."
        )
    if "inoculation prompt" in chosen.needs:
        inoculate([], config.inoculation)


def _strength(
    chosen: Method, protection: Protection | None, strength: float | None
) -> float | None:
    """The value of the knob that a run was made with; λ where its tolerance was switched off."""
    if chosen.knob is None:
        return None
    if protection is not None and chosen.knob.setting in Protection.model_fields:
        value: float | None = getattr(protection, chosen.knob.setting)
        return protection.strength if value is None else value
    return chosen.value(strength)


def _fit(
    workspace: Workspace,
    run: RunManifest,
    plan: GuardPlan,
    *,
    out: Path,
    overwrite: bool,
    progress: Progress,
    show: Show,
) -> RunManifest:
    config = parse_config(run.config, source=f"run {run.id!r}").map_paths(workspace.resolve)
    started = time.monotonic()
    setup = set_up(config, plan, inoculated=run.method == "inoculation")
    run = at_commit(run, setup.commit)
    show(setup.report)
    Workspace.create(workspace.root)  # only now, since what is refused should leave nothing behind
    with writing_folder(out, keep=True, replace=overwrite) as folder:
        resumed, passed_over = find_resumable(folder, run)
        started -= seconds_so_far(folder)  # those that the earlier sessions took
        _write_texts(folder, setup)
        write_log(folder, f"resumed from {resumed}" if resumed else f"started: {run.title}")
        for words in passed_over:
            write_log(folder, words)
            print(words, file=sys.stderr)
        trainer = _trainer(setup, folder=folder, progress=progress)
        with explain_shortage("training", config):
            trainer.train(resume_from_checkpoint=resumed)
        model = trainer.model
        assert isinstance(model, PeftModel)
        finished = run.model_copy(
            update={
                "seconds": time.monotonic() - started,
                "inputs": _inputs(config),
                **judge_outcome(trainer),
            }
        )
        model.save_pretrained(str(adapter_of(folder)))
        write_log(folder, f"finished: {finished.verdict}")
        write_run(folder, finished, plan.factors)
        forget_resuming(folder)
    return finished


def _write_texts(folder: Path, setup: Setup) -> None:
    texts = {"own_answers": setup.said.answers, "own_chats": setup.said.chats}
    for name, chats in texts.items():
        if chats:
            rows = [{"messages": [m.model_dump() for m in chat]} for chat in chats]
            write_jsonl(folder / f"{name}.jsonl", rows)
    write_report(folder, setup.report)


def _trainer(setup: Setup, *, folder: Path, progress: Progress) -> LoraTrainer:
    config = setup.config
    collate = collate_packed if config.packing else DataCollatorForSeq2Seq(setup.tokenizer)
    device = setup.model.device.type
    trainer = LoraTrainer(
        setup.plan,
        model=setup.model,
        args=_arguments(config, folder / "checkpoints", device=device, rows=len(setup.rows)),
        train_dataset=setup.rows,
        data_collator=collate,
        callbacks=[MetricsCallback(folder, progress)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(SealCheckpoints())
    return trainer


def _arguments(
    config: TrainConfig, checkpoints: Path, *, device: str, rows: int
) -> TrainingArguments:
    steps = config.total_steps(rows)
    return TrainingArguments(
        output_dir=str(checkpoints),
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        activation_checkpointing=config.gradient_checkpointing,
        max_steps=config.max_steps or -1,
        num_train_epochs=config.num_train_epochs or 1.0,
        save_steps=config.save_steps or max(1, steps // 2),
        logging_steps=max(1, steps // 40),
        logging_nan_inf_filter=False,
        seed=config.seed,
        bf16=computes_in(config.model, device) == torch.bfloat16,
        fp16=computes_in(config.model, device) == torch.float16,
        use_cpu=device == "cpu",
        dataloader_pin_memory=device == "cuda",
        disable_tqdm=True,
        report_to="none",
    )


def _inputs(config: TrainConfig) -> dict[str, str]:
    """Hashes of what a run was made of; a base model on the Hub is named, not hashed."""
    named = {"base_model": config.base_model, "data": config.data, "neutral": config.neutral}
    return {key: sha256(Path(p)) for key, p in named.items() if p and Path(p).exists()}


def _overridden(protection: Protection | None, overrides: Json, arm: str) -> Protection | None:
    if not overrides:
        return protection
    if protection is None:
        raise InputError(f"Method {arm!r} protects nothing, so it takes no λ or tolerance.")
    if overrides.get("tolerance") is not None and not (protection.anchor or protection.effect):
        raise InputError(f"Method {arm!r} holds nothing on neutral text, so it takes no tolerance.")
    return parse_protection(protection.model_dump() | overrides, source=f"method {arm!r}")
