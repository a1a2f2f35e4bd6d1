"""The steps of a cell, each done by the function behind the corresponding command."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from analysis.errors import GraspError
from analysis.store.records import sha256
from analysis.store.workspace import Workspace, writing_folder
from grasp.bench.make.labels import LABELS, label_latents
from grasp.bench.make.protected import protected_factors, train_arm
from grasp.bench.make.residue import measure_residue, residue_file
from grasp.bench.plan.cells import BASE, NAIVE, cell_workspace, find_world, lay_out_cell, world_base
from grasp.bench.plan.plan import Cell, Plan
from grasp.bench.plan.tasks import Demand, Task
from grasp.jobs.progress import Progress
from grasp.settings.training import TrainConfig


def do_task(root: Path, plan: Plan, task: Task, progress: Progress) -> None:
    """Do the missing steps of a task; `progress` counts in hundredths of the task.

    Raises:
        GraspError: some steps failed; the other steps were done.
    """
    if task.cell is None:
        assert task.world is not None
        world_base(root, plan, find_world(task.world), progress=_of_base(progress, task.id))
        return
    workspace = cell_workspace(root, task.cell)
    steps = [demand for demand in task.demands if not is_done(workspace, demand)]
    if not steps:
        return
    cell = _Making(root, plan, task.cell, workspace, lay_out_cell(root, plan, task.cell))
    failed = []
    for number, demand in enumerate(steps):
        try:
            cell.make(demand, _share(progress, number, len(steps), f"{task.id}: {demand.run}"))
        except GraspError as error:
            failed.append(f"{demand.kind} {demand.run}: {error}")
    if failed:
        raise GraspError("; ".join(failed))


def is_done(workspace: Workspace, demand: Demand) -> bool:
    """Whether the records of a step exist."""
    return all((workspace.root / record).exists() for record in step_records(demand))


def step_records(demand: Demand) -> list[str]:
    """The records a step writes, as paths in the workspace."""
    run = demand.run
    return {
        "naive": [f"runs/{run}"],
        "identify": [f"factors/{run}"],
        "record": [f"recordings/{run}"],
        "evaluate": [f"evaluations/{run}"],
        "label": [LABELS],
        "arm": [f"runs/{run}", f"evaluations/{run}"],
        "residue": [residue_file(run)],
    }[demand.kind]


class _Making:
    """A cell whose steps are being done."""

    def __init__(
        self, root: Path, plan: Plan, cell: Cell, workspace: Workspace, config: TrainConfig
    ) -> None:
        self.plan, self.cell, self.workspace, self.config = plan, cell, workspace, config
        self.siblings = [path for path in (root / "cells").iterdir() if path != workspace.root]
        (workspace.root / "bench").mkdir(exist_ok=True)

    def make(self, demand: Demand, progress: Progress) -> None:
        """Do one step; the records it needs must exist."""
        if demand.kind == "naive":
            from grasp.training.train import train

            train(self.workspace, self.config, out=self._folder(NAIVE), progress=progress)
        elif demand.kind == "identify":
            from grasp.identification.identify import identify_run

            identify_run(self.workspace, self._folder(demand.run), progress=progress)
        elif demand.kind == "record":
            from grasp.evidence.record import record_run

            run = self.workspace.run(demand.run)
            record_run(self.workspace, self._folder(demand.run), run, progress=progress)
        elif demand.kind == "label":
            label_latents(self.workspace, self.plan, self.cell, progress=progress)
        elif demand.kind == "residue":
            measure_residue(self.workspace, self.plan, self.cell, demand, progress=progress)
        else:
            self._arm(demand, progress)

    def _arm(self, demand: Demand, progress: Progress) -> None:
        from grasp.evaluation.run import evaluate_run

        folder = self._folder(demand.run)
        if demand.arm is not None and not folder.is_dir():
            factors = protected_factors(self.workspace, demand.protect)
            train_arm(self.workspace, demand.arm, factors, run=demand.run, progress=progress)
        run = self.workspace.run(demand.run)
        self._take_over_base()
        evaluate_run(self.workspace, folder, run, progress=progress)

    def _take_over_base(self) -> None:
        """Copy the base model's evaluation from a cell with the same model and prompts."""
        target = self.workspace.folder("evaluations", BASE)
        if target.is_dir() or self.config.prompts is None:
            return
        prompts = sha256(Path(self.config.prompts))
        model = self.workspace.reference(self.config.base_model)
        for sibling in map(Workspace, self.siblings):
            if not sibling.folder("evaluations", BASE).is_dir():
                continue
            there = sibling.evaluation(BASE)
            if there.inputs.get("prompts") == prompts and there.base_model == model:
                with writing_folder(target) as folder:
                    shutil.copytree(sibling.folder("evaluations", BASE), folder, dirs_exist_ok=True)
                return

    def _folder(self, run: str) -> Path:
        return self.workspace.folder("runs", run)


def _share(progress: Progress, number: int, steps: int, words: str) -> Progress:
    """Progress within one of several steps, in hundredths of all of them."""

    def shared(step: int, total: int, message: str) -> None:
        part = min(step / total, 1.0) if total else 0.0
        progress(int(100 * (number + part) / steps), 100, f"{words}, {message}")

    return shared


def _of_base(progress: Progress, words: str) -> Callable[[int, int, float], None]:
    def shared(step: int, steps: int, loss: float) -> None:
        progress(int(100 * step / steps), 100, f"{words}, loss {loss:.2f}")

    return shared
