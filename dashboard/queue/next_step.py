"""What has been done with a fine-tune, and which step is missing next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from analysis.store.database import LabelEvent
from analysis.store.records import RunManifest
from analysis.store.workspace import Workspace, is_id
from dashboard.queue import commands, runs

Act = Literal["evaluate", "factors", "label", "retrain", "compare"]


@dataclass(frozen=True)
class Step:
    """One step of the way from a fine-tune to one without what it learned besides its task.

    `argv` is the `grasp` command that takes the step; [] if a person takes it on a page.
    """

    act: Act
    title: str
    why: str
    done: bool
    argv: list[str]


def list_steps(
    workspace: Workspace,
    run: RunManifest,
    family: Sequence[RunManifest],
    claims: Mapping[str, Mapping[str, LabelEvent]],
) -> list[Step]:
    """All steps in their order; the first that is not done is the next one.

    Args:
        workspace: of the runs.
        run: the naive run.
        family: all runs of its family.
        claims: the labels in force, by full factor id.
    """
    found = runs.grasp_runs(family)
    waiting = [one.id for one in found if not is_evaluated(workspace, one.id)]
    ours = [claim for factor in claims if factor.startswith(f"{run.id}/")
            for claim in claims[factor].values()]  # fmt: skip
    spurious = any(claim.spurious for claim in ours)
    return [
        Step(
            "evaluate",
            "Evaluate it",
            "Both models answer prompts on and off the task, which shows what changed.",
            is_measured(workspace, run),
            _evaluate(workspace, run),
        ),
        Step(
            "factors",
            "Find factors",
            "Finds the directions along which the fine-tune changed the model.",
            workspace.folder("factors", run.id).is_dir(),
            commands.factors_argv(run.id, workspace=workspace.root),
        ),
        Step(
            "label",
            "Label the factors",
            "Look at the evidence for each factor and say whether it should have been learned.",
            bool(ours),
            [],
        ),
        Step(
            "retrain",
            "Retrain with GRASP",
            "Fine-tunes again while the factors labelled spurious are held."
            if spurious or not ours
            else "No factor is labelled spurious so far, so there is nothing to hold.",
            bool(found),
            [],
        ),
        *(
            Step(
                "evaluate",
                f"Evaluate {name}",
                "The GRASP run answers the same prompts, so that it can be compared.",
                False,
                _evaluate(workspace, workspace.run(name)),
            )
            for name in waiting[:1]
        ),
        Step(
            "compare",
            "Compare",
            "Base model, fine-tune and GRASP side by side, with tests and answers.",
            False,
            [],
        ),
    ]


def is_measured(workspace: Workspace, run: RunManifest) -> bool:
    """Whether both a naive run and its base model have been evaluated."""
    return is_evaluated(workspace, run.id) and is_evaluated(workspace, f"{run.root}.base")


def is_evaluated(workspace: Workspace, evaluation_id: str) -> bool:
    """Whether an evaluation of that id has been saved."""
    return is_id(evaluation_id) and workspace.folder("evaluations", evaluation_id).is_dir()


def _evaluate(workspace: Workspace, run: RunManifest) -> list[str]:
    """The command; [] if the run names no prompts, which are chosen on the Compare page."""
    named = run.config.get("prompts")
    return commands.evaluate_argv(run.id, workspace=workspace.root) if named else []
