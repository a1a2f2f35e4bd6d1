"""The arms of a cell: which factors they protect, and their training."""

from __future__ import annotations

from analysis.store.factor_table import read_run_factors
from analysis.store.workspace import Workspace
from grasp.bench.make.labels import labelled_factors
from grasp.bench.plan.cells import NAIVE
from grasp.bench.plan.plan import Arm
from grasp.bench.plan.tasks import BEST
from grasp.jobs.progress import Progress
from grasp.settings.methods import find_method


def protected_factors(workspace: Workspace, protect: str) -> list[str]:
    """Ids of the factors an arm protects: the best-ranked one, or those with a latent's label.

    Raises:
        GraspError: no significant factor has that label.
    """
    if protect == BEST:
        return [str(read_run_factors(workspace, NAIVE).table["id"].iloc[0])]
    return labelled_factors(workspace, protect)


def train_arm(
    workspace: Workspace, arm: Arm, factors: list[str], *, run: str, progress: Progress
) -> None:
    """Retrain the naive run with an arm's method, as the run with id `run`."""
    from grasp.training.train import retrain

    retrain(
        workspace,
        workspace.folder("runs", NAIVE),
        factors=factors if "factors" in find_method(arm.method).needs else [],
        out=workspace.folder("runs", run),
        arm=arm.method,
        strength=arm.strength,
        overrides=arm.settings,
        progress=progress,
    )
