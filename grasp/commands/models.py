"""Commands that run a model: record, generate, evaluate.

Model code is imported only after the run has been found: importing takes seconds, and a misspelt
name should fail at once.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.comparison.arm_tests import MARGIN, arm_drift
from analysis.comparison.evaluation import (
    Evaluation,
    average_by_prompt,
    read_evaluation,
    samples_of,
)
from analysis.comparison.instruments import instrument_readings, text_lines
from analysis.comparison.measures import items_of, shared_metrics
from analysis.comparison.wording import listed_metrics, metric_name, power_text
from analysis.errors import InputError
from analysis.statistics.intervals import Interval
from analysis.store.layout import adapter_of
from analysis.store.records import Draws, Message, Prompt, RunManifest
from analysis.store.workspace import Workspace
from analysis.tables import align_columns
from analysis.text import interval_text, items_text, number_text
from analysis.values import Json
from grasp.commands.calling import Result
from grasp.commands.resolve import find_workspace, run_folder
from grasp.jobs.progress import Progress, TerminalProgress
from grasp.settings.model import model_options, settings_beside

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
    from grasp.evaluation.run import evaluate_run, read_questions

    asked = read_questions(workspace, run, prompts=args.prompts)
    few = power_text(items_of(asked.prompts, split="confirmation"), margin=MARGIN)
    if few:
        print(few, file=sys.stderr)
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
    found = evaluation_result(workspace, folder, base=f"{run.root}.base")
    return Result(found.data | {"few_items": few}, found.text)


def evaluation_result(workspace: Workspace, folder: Path, *, base: str) -> Result:
    """The saved evaluation of a run beside that of its base model: metrics and readings."""
    own, before = (
        read_evaluation(workspace.folder("evaluations", name)) for name in (folder.name, base)
    )
    readings, there = (
        instrument_readings(one.samples, split="confirmation") for one in (own, before)
    )
    splits = _plain_summary(own)
    data: Json = {
        "evaluation": folder.name,
        "metrics": splits["confirmation"],
        "splits": splits,
        "instruments": [one.plain() for one in readings],
        "base": {
            "evaluation": base,
            "metrics": _plain_summary(before)["confirmation"],
            "instruments": [one.plain() for one in there],
        },
        "drift": {name: asdict(one) for name, one in _drifts(before, own).items()},
    }
    if own.manifest.judge is not None:
        data["judge"] = own.manifest.judge
    return Result(data, "\n".join([_metric_lines(data), *text_lines(readings, base=there)]))


def _plain_summary(found: Evaluation) -> dict[str, Json]:
    return {s: {m: asdict(i) for m, i in part.items()} for s, part in found.summary.items()}


def _drifts(before: Evaluation, own: Evaluation) -> dict[str, Interval]:
    """Run minus base model by metric, paired by prompt, on the confirmation prompts."""
    tables = [average_by_prompt(samples_of(one.samples, "confirmation")) for one in (before, own)]
    return {metric: arm_drift(*tables, metric=metric) for metric in shared_metrics(tables)}


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
    """The workspace, folder and manifest of the run; creates the workspace if it is missing.

    Says where the tokenizer is not the base model's.
    """
    workspace = find_workspace(args, args.run)
    folder, run = run_folder(workspace, args.run)
    own = settings_beside(adapter_of(folder), run.base_model).tokenizer
    if own is not None:
        print(f"Chats are in the tokenizer and chat template of {own}.", file=sys.stderr)
    return Workspace.create(workspace.root), folder, run


def _metric_lines(data: Json) -> str:
    """Base model and run side by side, with what the run's interval rests on."""
    before, own, drifts = data["base"]["metrics"], data["metrics"], data["drift"]
    rows = [("confirmation prompts", "base model", data["evaluation"], "difference", "")]
    for name in (one for listed in listed_metrics(own).values() for one in listed):
        found = own[name]
        numbers = (_cell(before.get(name)), _cell(found), _cell(drifts.get(name), sign=True))
        rows.append((metric_name(name), *numbers, items_text(found["n"], found["items"])))
    return "\n".join(align_columns(rows, "<>>><"))


def _cell(found: Json | None, *, sign: bool = False) -> str:
    if found is None:
        return "–"
    show = partial(number_text, sign=sign)
    return interval_text(found["value"], found["low"], found["high"], show=show)
