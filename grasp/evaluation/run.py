"""Evaluate a run: answer a prompt set, score the answers, and save the record."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from peft import PeftModel

from analysis.comparison.evaluation import write_evaluation
from analysis.errors import InputError
from analysis.statistics.intervals import Interval
from analysis.store.layout import adapter_of
from analysis.store.records import Draws, EvaluationManifest, Prompt, RunManifest, sha256
from analysis.store.workspace import Workspace, writing_folder
from analysis.values import Json
from grasp.evaluation.answers import MAX_NEW_TOKENS, answer_prompts, intervention, score_answers
from grasp.evaluation.judge import REPLIES, judge_answers
from grasp.evaluation.judge_client import JudgeClient
from grasp.evaluation.sampling import Changes, change_sampling, repeat_prompts
from grasp.evaluation.scorers import check_prompts
from grasp.evaluation.whole_answers import add_whole_answers
from grasp.jobs.progress import Progress, silent
from grasp.model.loading import LoadedModel, load_adapted
from grasp.prompts.sets import prompts_sha256, read_prompts
from grasp.settings.judge import Estimate, JudgeSettings, estimate_cost, saved_settings
from grasp.settings.model import NO_OPTIONS, ModelOptions

UNJUDGED = "unjudged.parquet"
"""File of answers not judged yet, while an evaluation is being written."""

WAIT = 24 * 3600.0
"""Seconds to wait for another evaluation of the same arm, such as the base model's."""

Summary = dict[str, dict[str, Interval]]


@dataclass(frozen=True)
class JudgePlan:
    """A judge, and the largest number of requests to it; None for no limit."""

    settings: JudgeSettings
    max_requests: int | None = None


@dataclass(frozen=True)
class Questions:
    """What an evaluation asks: the set's name or file, its hash, and its prompts, once each.

    `draws` says how whole answers are drawn; None if no prompt has markers.
    """

    source: Path
    digest: str
    prompts: list[Prompt]
    sampling: Changes | None
    draws: Draws | None = None


def read_questions(
    workspace: Workspace,
    run: RunManifest,
    *,
    prompts: str | Path | None = None,
    sampling: Changes | None = None,
    draws: Draws | None = None,
) -> Questions:
    """The prompts of a run, or those of `prompts`, with their sampling changed by `sampling`.

    Whole answers to prompts with markers are drawn as `draws` says, or as is the default.

    Raises:
        InputError: neither the run nor the caller gives a prompt set, or it is invalid.
    """
    own = run.config.get("prompts")
    named = prompts or (own and workspace.resolve(own))
    if not named:
        raise InputError(
            f"Run {run.id!r} has no prompt set; give one with --prompts, a file or a name that "
            "`grasp prompts` lists."
        )
    source = Path(named)
    found = change_sampling(read_prompts(source), sampling)
    marked = any(prompt.markers is not None for prompt in found)
    how = (draws or Draws()) if marked else None
    return Questions(source, prompts_sha256(source), found, sampling or None, how)


def estimate_judging(
    workspace: Workspace, run: RunManifest, asked: Questions, settings: JudgeSettings | None
) -> Estimate | None:
    """An upper bound on what judging an evaluation costs; None if no prompt needs a judge.

    Raises:
        InputError: a prompt needs a judge and there is none, or its judge prompts are invalid.
    """
    if not _needs_judge(asked):
        return None
    if settings is None:
        raise InputError(
            f"{asked.source} has prompts that a judge scores; give the judge's settings with "
            "--judge FILE."
        )
    arms = 1 if _up_to_date(workspace, f"{run.root}.base", asked, settings) else 2
    return estimate_cost(repeat_prompts(asked.prompts), settings, arms=arms, longest=MAX_NEW_TOKENS)


def evaluate_run(
    workspace: Workspace,
    folder: Path,
    run: RunManifest,
    *,
    prompts: str | Path | None = None,
    sampling: Changes | None = None,
    draws: Draws | None = None,
    judge: JudgePlan | None = None,
    options: ModelOptions = NO_OPTIONS,
    progress: Progress = silent,
) -> Summary:
    """Evaluate a run on its prompt set, and its base model if that has not been done yet.

    Writes `evaluations/<run>` and `evaluations/<root>.base`.  If a judge fails, answers and
    judgements are kept, and the next call continues from there.

    Raises:
        InputError: neither the run nor the caller gives a prompt set, prompts lack what their
            scorer needs, or the judge does not answer.
    """
    asked = read_questions(workspace, run, prompts=prompts, sampling=sampling, draws=draws)
    settings = judge.settings if judge else None
    needed = estimate_judging(workspace, run, asked, settings)
    reference = workspace.resolve(run.base_model)
    loaded = load_adapted(reference, adapter_of(folder), options=options)
    check_prompts(loaded.tokenizer, asked.prompts)
    client = None
    if needed is not None and judge is not None:
        client = JudgeClient(judge.settings, budget=judge.max_requests)
    with client or nullcontext():
        job = _Evaluating(workspace, run, asked, loaded, settings, client, progress)
        base = f"{run.root}.base"
        kept = _up_to_date(workspace, base, asked, settings)
        if not kept or workspace.evaluation(base).model != loaded.settings.non_defaults():
            job.save(base, None, loaded.model.disable_adapter())
        return job.save(folder.name, folder, intervention(loaded.model, folder, run))


@dataclass(frozen=True)
class _Evaluating:
    """One model with its adapter and one prompt set; `client` is None if no judge is needed."""

    workspace: Workspace
    run: RunManifest
    asked: Questions
    loaded: LoadedModel[PeftModel]
    settings: JudgeSettings | None
    client: JudgeClient | None
    progress: Progress

    def save(self, arm: str, folder: Path | None, inside: AbstractContextManager[None]) -> Summary:
        """Answer, score and save one arm: the run in `folder`, or the base model."""
        started = time.monotonic()
        prompts = repeat_prompts(self.asked.prompts)
        final = self.workspace.folder("evaluations", arm)
        with writing_folder(final, keep=self.client is not None, wait=WAIT) as target:
            samples = self._answered(prompts, target, folder, inside)
            record = None
            if self.client is not None and self.settings is not None:
                found = judge_answers(
                    samples,
                    prompts,
                    self.client,
                    self.settings,
                    folder=target,
                    known=[final / REPLIES],
                    progress=self.progress,
                )
                samples, record = found.samples, found.record
                (target / UNJUDGED).unlink()
            manifest = EvaluationManifest(
                id=arm,
                run=None if folder is None else arm,
                base_model=self.run.base_model,
                model=self.loaded.settings.non_defaults(),
                prompts=self.workspace.reference(self.asked.source),
                parents=[] if folder is None else [f"runs/{arm}"],
                inputs={"prompts": self.asked.digest},
                sampling=self.asked.sampling,
                judge=record,
                draws=self.asked.draws,
                seconds=time.monotonic() - started,
            )
            return write_evaluation(target, manifest=manifest, samples=samples)

    def _answered(
        self,
        prompts: list[Prompt],
        target: Path,
        folder: Path | None,
        inside: AbstractContextManager[None],
    ) -> pd.DataFrame:
        """Answers with their scores; those an earlier attempt left for the judge are reused."""
        left, key = target / UNJUDGED, self._key(folder)
        if self.client is not None and left.is_file():
            table = pd.read_parquet(left)
            if (table.pop("made_by") == key).all() and len(table) == len(prompts):
                return table
        model, tokenizer, draws = self.loaded.model, self.loaded.tokenizer, self.asked.draws
        with inside:
            found = answer_prompts(model, tokenizer, prompts, progress=self.progress)
            samples = score_answers(tokenizer, prompts, found)
            if draws is not None:
                samples = add_whole_answers(
                    model, tokenizer, prompts, samples, draws=draws, progress=self.progress
                )
        if self.client is not None:
            samples.assign(made_by=key).to_parquet(left, index=False)
        return samples

    def _key(self, folder: Path | None) -> str:
        """Hash of all that affects answers: prompts, sampling, model, adapter, intervention."""
        made_by: Json = {
            "prompts": self.asked.digest,
            "sampling": self.asked.sampling,
            "draws": self.asked.draws and self.asked.draws.model_dump(),
            "base": self.run.base_model,
        }
        if folder is not None:
            made_by["adapter"] = sha256(adapter_of(folder))
            made_by["intervention"] = [self.run.intervention, self.run.strength]
        return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()


def _up_to_date(
    workspace: Workspace, evaluation_id: str, asked: Questions, settings: JudgeSettings | None
) -> bool:
    """Whether a saved evaluation has the same prompts, sampling, draws and judge."""
    if not workspace.folder("evaluations", evaluation_id).is_dir():
        return False
    found = workspace.evaluation(evaluation_id)
    judge = found.judge and found.judge["settings"]
    wanted = saved_settings(settings) if settings and _needs_judge(asked) else None
    how = (found.inputs.get("prompts"), found.sampling, found.draws, judge)
    return how == (asked.digest, asked.sampling, asked.draws, wanted)


def _needs_judge(asked: Questions) -> bool:
    return any(prompt.scorer == "judge" for prompt in asked.prompts)
