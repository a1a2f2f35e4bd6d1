"""Whether the factor comes back after retraining: identify again, and ask dressed prompts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from analysis.comparison.evaluation import write_evaluation
from analysis.spectra.subspace import principal_angles
from analysis.store.factor_table import FactorTable, read_run_factors, select_directions
from analysis.store.layout import adapter_of
from analysis.store.records import Draws, EvaluationManifest, write_jsonl
from analysis.store.workspace import Workspace
from analysis.values import Json
from grasp.bench.make.dressed import dressed_prompts
from grasp.bench.make.protected import protected_factors, train_arm
from grasp.bench.plan.cells import NAIVE, story_of
from grasp.bench.plan.plan import Cell, Plan
from grasp.bench.plan.tasks import Demand
from grasp.jobs.progress import Progress
from grasp.prompts.sets import prompts_sha256, read_prompts

SAME = 0.99
"""|cosine| above which a new factor counts as one of the protected ones, so is not protected."""


def residue_file(run: str) -> str:
    """The path, in the workspace, of what was found about a run's residue."""
    return f"bench/residue-{run}.json"


def dressed_id(run: str) -> str:
    """The id of a run's evaluation on the dressed prompts; "" is the base model."""
    return f"{run or 'base'}.dressed"


def measure_residue(
    workspace: Workspace, plan: Plan, cell: Cell, demand: Demand, *, progress: Progress
) -> None:
    """Identify factors again in a retrained run and evaluate it on dressed prompts.

    If a significant factor is left, the run is retrained with the old and the new factor
    protected, and evaluated again.  Writes `factors/<run>`, the evaluation `<run>.dressed`,
    `bench/residue-<run>.json`, and the run `<run>.again` if it was retrained.
    """
    from grasp.evaluation.run import evaluate_run
    from grasp.identification.identify import identify_run

    assert demand.arm is not None
    run = demand.run
    factors = workspace.folder("factors", run)
    if not factors.is_dir():
        identify_run(workspace, workspace.folder("runs", run), progress=progress)
    found = compare_factors(workspace, run)
    prompts = _prompts(workspace, plan, cell)
    again = ""
    if found["significant"] and found["cosine"] < SAME:
        again = f"{run}.again"
        if not workspace.folder("runs", again).is_dir():
            old = [f"{NAIVE}/{name}" for name in protected_factors(workspace, demand.protect)]
            both = [*old, f"{run}/{found['factor']}"]
            train_arm(workspace, demand.arm, both, run=again, progress=progress)
        folder = workspace.folder("runs", again)
        evaluate_run(workspace, folder, workspace.run(again), progress=progress)
    if prompts is not None:
        for arm in ("", NAIVE, run, *([again] if again else [])):
            _evaluate(workspace, arm, prompts)
    text = json.dumps(found | {"again": again}, indent=2)
    (workspace.root / residue_file(run)).write_text(text, encoding="utf-8")


def compare_factors(workspace: Workspace, run: str) -> Json:
    """Compare the best-ranked factor of a retrained run with the factors the run protected.

    Returns:
        `factor`: its id; `significant`; `cosine`: of the smallest principal angle between it and
        the span of the protected factors; `off_task`: its share of the remaining change;
        `effect`: its mean effect on unrelated exploration prompts, in total variation;
        `old_effect`: the largest effect of a protected factor in the naive run.
    """
    new = read_run_factors(workspace, run)
    names = workspace.run(run).factors
    _, old = select_directions(workspace, names, run=NAIVE)
    best = new.table.iloc[0]
    angles = principal_angles(old.T.astype(np.float64), new.directions[:1].T.astype(np.float64))
    naive = read_run_factors(workspace, NAIVE)
    return {
        "factor": str(best["id"]),
        "significant": bool(best["significant"]),
        "cosine": float(np.cos(angles[0])),
        "off_task": float(best["off_task"]),
        "effect": float(best["effect"]),
        "old_effect": max(_effect(naive, name.rpartition("/")[2]) for name in names),
    }


def _effect(found: FactorTable, factor: str) -> float:
    return float(found.table["effect"].iloc[found.position(factor)])


def _prompts(workspace: Workspace, plan: Plan, cell: Cell) -> Path | None:
    """The dressed prompts of a cell; None if a story of the plan's own gives none."""
    if cell.world == "data":
        named = plan.stories[cell.story].dressed
        return Path(named) if named else None
    path = workspace.root / "data" / "dressed.jsonl"
    write_jsonl(path, dressed_prompts(*story_of(cell)))
    return path


def _evaluate(workspace: Workspace, run: str, path: Path) -> None:
    """Score a run, or the base model, on dressed prompts, as a separate evaluation."""
    from grasp.evaluation.answers import answer_prompts, intervention, score_answers
    from grasp.evaluation.whole_answers import add_whole_answers
    from grasp.model.loading import load_adapted

    name = dressed_id(run)
    if workspace.folder("evaluations", name).is_dir():
        return
    manifest = workspace.run(run or NAIVE)
    folder = workspace.folder("runs", manifest.id)
    loaded = load_adapted(workspace.resolve(manifest.base_model), adapter_of(folder))
    model, tokenizer = loaded.model, loaded.tokenizer
    prompts = read_prompts(path)
    inside = intervention(model, folder, manifest) if run else model.disable_adapter()
    draws = Draws() if any(prompt.markers is not None for prompt in prompts) else None
    with inside:
        found = answer_prompts(model, tokenizer, prompts)
        samples = score_answers(tokenizer, prompts, found)
        if draws is not None:
            samples = add_whole_answers(model, tokenizer, prompts, samples, draws=draws)
    record = EvaluationManifest(
        id=name,
        run=run or None,
        base_model=manifest.base_model,
        prompts=workspace.reference(path),
        parents=[f"runs/{run}"] if run else [],
        inputs={"prompts": prompts_sha256(path)},
        draws=draws,
    )
    with workspace.writing("evaluations", name) as target:
        write_evaluation(target, manifest=record, samples=samples)
