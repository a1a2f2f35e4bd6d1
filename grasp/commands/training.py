"""Commands that train: train, retrain.

Model code is imported only after the arguments have been checked: importing takes seconds, and a
misspelt name should fail at once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from analysis.errors import GraspError, InputError
from analysis.store.layout import adapter_of
from analysis.store.records import RunManifest
from analysis.store.workspace import Workspace
from analysis.values import Json
from grasp.commands.calling import Result
from grasp.commands.models import evaluation_result
from grasp.commands.resolve import find_workspace, out_folder, run_folder
from grasp.data.report import DataReport
from grasp.foreign.settings import (
    LENGTH,
    complete_run,
    read_given,
    run_settings,
    save_manifest,
    training_settings,
)
from grasp.jobs import queue
from grasp.jobs.progress import Progress, TerminalProgress
from grasp.settings.methods import find_method
from grasp.settings.protection import Method
from grasp.settings.training import TrainConfig, load_config


def train(args: argparse.Namespace, progress: Progress | None = None) -> Result:
    """Train a naive fine-tune from a file of settings."""
    config = load_config(args.config)
    if args.dry_run:
        return _dry_run(config)
    workspace = find_workspace(args, _named(args))
    again = _is_again(workspace, args)
    out = out_folder(workspace, args.out, overwrite=args.overwrite, again=again)
    _prompts_there(config, args)
    progress = progress or TerminalProgress()
    from grasp.training.train import train as fit

    run = fit(
        workspace,
        config,
        out=out,
        overwrite=args.overwrite,
        again=again,
        progress=progress,
        show=_show,
    )
    return _trained(workspace, out, run, args, progress)


def retrain(args: argparse.Namespace, progress: Progress | None = None) -> Result:
    """Fine-tune a run again from its base, protecting factors by one of the methods.

    Settings that an adapter made elsewhere lacks come from the command line and are saved with
    its run.
    """
    chosen = find_method(args.method)
    if not args.factors and "factors" in chosen.needs:
        raise InputError(
            f"Method {args.method!r} needs factors to protect; name them with --factors ID[,ID…]. "
            f"`grasp factors {args.run}` lists them."
        )
    strength, overrides = _strength(args, chosen)
    workspace = find_workspace(args, args.run, *([args.out] if args.out else []))
    source, run = run_folder(workspace, args.run)
    again = _is_again(workspace, args)
    out = None
    if not args.dry_run:
        out = out_folder(workspace, _named(args), overwrite=args.overwrite, again=again)
    run = _with_given(workspace, source, run, args, whole=chosen.trains)
    read = training_settings if chosen.trains else run_settings
    config = read(run, adapter_of(source)).map_paths(workspace.resolve)
    if out is None:
        return _dry_run(chosen.config_at(config, strength))
    _prompts_there(config, args)
    progress = progress or TerminalProgress()
    from grasp.training.train import retrain as fit

    made = fit(
        workspace,
        source,
        factors=args.factors,
        out=out,
        arm=chosen.name,
        strength=strength,
        overrides=overrides,
        inoculation=args.inoculation,
        seed=args.seed,
        overwrite=args.overwrite,
        again=again,
        progress=progress,
        show=_show,
    )
    return _trained(workspace, out, made, args, progress)


def _with_given(
    workspace: Workspace, folder: Path, run: RunManifest, args: argparse.Namespace, *, whole: bool
) -> RunManifest:
    """The run completed with settings from the command line; saved unless --dry-run."""
    given = read_given(args.config, args.data, args.set)
    if not given and not args.training_args:
        return run
    adapter = adapter_of(folder)
    if args.training_args:
        from grasp.foreign.training_args import training_arguments

        found = training_arguments(adapter)
        if any(name in given for name in LENGTH):
            found = {name: value for name, value in found.items() if name not in LENGTH}
        given = found | given
    run = complete_run(workspace, run, adapter, given, whole=whole)
    if not args.dry_run:
        save_manifest(folder, run)
    return run


def _dry_run(config: TrainConfig) -> Result:
    """Report on the data without training; the model is not loaded."""
    from grasp.data.dataset import dry_report

    report = dry_report(config)
    memory = _memory(config)
    data = report.model_dump() | {"memory": memory}
    return Result(data, "\n".join([*report.lines(), memory]))


def _memory(config: TrainConfig) -> str:
    """The memory a fine-tune needs, if the base model's files are on this machine."""
    from analysis.base_model.memory_estimate import describe_memory_needs
    from grasp.hub.repository import find_cached

    base = Path(config.base_model)
    try:
        folder = base if base.exists() else find_cached(config.base_model, config.model.revision)
    except GraspError as error:
        return f"The memory needed is not known. {error}"
    return describe_memory_needs(folder, config.model_dump())


def _show(report: DataReport) -> None:
    print("\n".join(report.lines()), file=sys.stderr)


def _is_again(workspace: Workspace, args: argparse.Namespace) -> bool:
    """Whether this is a job that was started before: what it has trained already is kept."""
    return args.job is not None and queue.get(workspace.database, args.job).attempts > 1


def _named(args: argparse.Namespace) -> str:
    if not args.out:
        raise InputError("The new run has no name; name it with --out RUN.")
    return str(args.out)


def _prompts_there(config: TrainConfig, args: argparse.Namespace) -> None:
    """Refuse to train with --evaluate but without prompts."""
    if args.evaluate and config.prompts is None:
        raise InputError(
            "--evaluate needs a prompt set, but the settings name none; add `prompts`, or omit "
            "--evaluate."
        )


def _strength(args: argparse.Namespace, chosen: Method) -> tuple[float | None, Json]:
    """The knob's value, and overrides of the protection's settings.

    If the knob is a tolerance, --strength fixes the anchor's weight λ instead.
    """
    if args.strength is not None and args.tolerance is not None:
        raise InputError("--strength fixes λ and --tolerance adapts it; give only one of them.")
    if args.strength is not None and chosen.knob and chosen.knob.setting == "tolerance":
        return None, {"strength": args.strength, "tolerance": None}
    overrides = {} if args.tolerance is None else {"tolerance": args.tolerance}
    return args.strength, overrides


def _trained(
    workspace: Workspace,
    out: Path,
    run: RunManifest,
    args: argparse.Namespace,
    progress: Progress,
) -> Result:
    if out.is_relative_to(workspace.root):
        Workspace.create(workspace.root)
    data: Json = {"run": str(out), "results": run.results, "verdict": run.verdict}
    text = f"{out}: {run.verdict}"
    if args.evaluate:
        from grasp.evaluation.run import evaluate_run

        evaluate_run(workspace, out, run, progress=progress)
        found = evaluation_result(workspace, out, base=f"{run.root}.base")
        data["evaluation"] = found.data
        text += "\n" + found.text
    return Result(data, text)
