"""Commands that run a model: record, generate, evaluate.

Model code is imported only after the run has been found: importing takes seconds, and a misspelt
name should fail at once.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.comparison.evaluation import read_evaluation
from analysis.comparison.instruments import instrument_readings, text_lines
from analysis.errors import InputError
from analysis.store.layout import adapter_of
from analysis.store.records import Draws, Message, Prompt, RunManifest
from analysis.store.workspace import Workspace
from analysis.tables import align_columns
from analysis.text import interval_text
from analysis.values import Json
from grasp.commands.calling import Result
from grasp.commands.resolve import find_workspace, run_folder
from grasp.jobs.progress import Progress, TerminalProgress
from grasp.settings.model import model_options

if TYPE_CHECKING:
    from grasp.evaluation.run import JudgePlan


def record(args: argparse.Namespace, progress: Progress | None = None) -> Result:
    """Record activations of the base and the adapted model on the run's probes."""
    workspace, folder, run = _run(args)
    from grasp.evidence.record import record_run

    probes = Path(args.probes) if args.probes else None
    manifest = record_run(
        workspace,
        folder,
        run,
        probes=probes,
        layers=args.layers,
        options=model_options(args),
        progress=progress or TerminalProgress(),
    )
    data = {"recording": manifest.id, "layers": manifest.layers, "seconds": manifest.seconds}
    return Result(data, f"Recorded layers {manifest.layers} into recordings/{manifest.id}.")


def generate(args: argparse.Namespace, progress: Progress | None = None) -> Result:
    """Answer prompts with base model and run: greedily, or sampled if the options say so."""
    workspace, folder, run = _run(args)
    from grasp.evaluation.answers import answer_prompts, intervention
    from grasp.evaluation.sampling import change_sampling, repeat_prompts
    from grasp.model.loading import load_adapted

    asked = [
        Prompt(
            id=str(number),
            messages=[Message(role="user", content=text)],
            group="typed",
            role="unrelated",
            scorer="ended",
        )
        for number, text in enumerate(args.prompt)
    ]
    asked = repeat_prompts(change_sampling(asked, _sampling(args)))
    reference = workspace.resolve(run.base_model)
    loaded = load_adapted(reference, adapter_of(folder), options=model_options(args))
    model, tokenizer = loaded.model, loaded.tokenizer
    with intervention(model, folder, run):
        adapted = answer_prompts(model, tokenizer, asked)
    with model.disable_adapter():
        base = answer_prompts(model, tokenizer, asked)
    rows = [
        {"prompt": one.messages[-1].content, "base": before.text, "run": after.text}
        for one, before, after in zip(asked, base, adapted, strict=True)
    ]
    lines = [f"{row['prompt']}\n  base: {row['base']}\n  run:  {row['run']}" for row in rows]
    return Result({"run": folder.name, "answers": rows}, "\n".join(lines))


def evaluate(args: argparse.Namespace, progress: Progress | None = None) -> Result:
    """Evaluate a run on its prompt set: every metric on both splits, with intervals."""
    workspace, folder, run = _run(args)
    judge = _judge(workspace, run, args)
    from grasp.evaluation.run import evaluate_run

    evaluate_run(
        workspace,
        folder,
        run,
        prompts=args.prompts,
        sampling=_sampling(args),
        draws=_draws(args),
        judge=judge,
        options=model_options(args),
        progress=progress or TerminalProgress(),
    )
    return evaluation_result(workspace, folder)


def evaluation_result(workspace: Workspace, folder: Path) -> Result:
    """The saved evaluation of a run: its metrics, and the readings of each prompt set."""
    found = read_evaluation(workspace.folder("evaluations", folder.name))
    plain = {s: {m: asdict(i) for m, i in part.items()} for s, part in found.summary.items()}
    confirmed = instrument_readings(found.samples, split="confirmation")
    data: Json = {
        "evaluation": folder.name,
        "metrics": plain["confirmation"],
        "splits": plain,
        "instruments": [one.plain() for one in confirmed],
    }
    if found.manifest.judge is not None:
        data["judge"] = found.manifest.judge
    return Result(data, "\n".join([_metric_lines(data), *text_lines(confirmed)]))


def _sampling(args: argparse.Namespace) -> Json:
    """The sampling options that were given."""
    named = ("samples", "temperature", "max_new_tokens", "seed")
    return {name: getattr(args, name) for name in named if getattr(args, name) is not None}


def _draws(args: argparse.Namespace) -> Draws | None:
    """How whole answers are drawn, if that was given."""
    if args.draws is None:
        return None
    if args.draws < 1:
        raise InputError(f"Got --draws {args.draws}; expected at least 1.")
    return Draws(samples=args.draws)


def _judge(workspace: Workspace, run: RunManifest, args: argparse.Namespace) -> JudgePlan | None:
    """The judge of --judge, once the user has agreed to the highest cost."""
    from grasp.evaluation.run import JudgePlan, estimate_judging, read_questions
    from grasp.settings.judge import load_judge

    settings = load_judge(args.judge) if args.judge else None
    asked = read_questions(
        workspace, run, prompts=args.prompts, sampling=_sampling(args), draws=_draws(args)
    )
    needed = estimate_judging(workspace, run, asked, settings)
    if needed is None or settings is None:
        return None
    print(needed.text, file=sys.stderr)
    if args.max_requests is not None and needed.requests > args.max_requests and not args.yes:
        raise InputError(
            f"{needed.text} That is more than --max-requests {args.max_requests}; raise it, ask "
            "for fewer samples, or add --yes to start and stop at the limit."
        )
    if args.max_requests is None and not args.yes:
        raise InputError(f"{needed.text} Add --yes to go on, or set a limit with --max-requests N.")
    return JudgePlan(settings, args.max_requests)


def _run(args: argparse.Namespace) -> tuple[Workspace, Path, RunManifest]:
    """The workspace, folder and manifest of the run; creates the workspace if it is missing."""
    workspace = find_workspace(args, args.run)
    folder, run = run_folder(workspace, args.run)
    return Workspace.create(workspace.root), folder, run


def _metric_lines(data: Json) -> str:
    lines = [f"{data['evaluation']}, confirmation prompts"]
    rows = [
        (name, interval_text(m["value"], m["low"], m["high"]), f"n = {m['n']}")
        for name, m in data["metrics"].items()
    ]
    lines += [f"  {line}" for line in align_columns(rows)]
    return "\n".join(lines)
