"""Run a benchmark from its plan to saved cells; an interrupted one can be continued."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from analysis.errors import InputError
from grasp.bench.make.pool import FAILURES, Perform, run_tasks
from grasp.bench.make.work import do_task as perform_task
from grasp.bench.make.work import is_done
from grasp.bench.plan.cells import cell_workspace
from grasp.bench.plan.plan import Measure, Plan
from grasp.bench.plan.tasks import Task, first_tasks, later_seconds, later_tasks
from grasp.bench.saved.choices import chosen_arms
from grasp.jobs.progress import Progress
from grasp.settings.training import check_settings

PLAN = "plan.json"


def run_plan(
    root: Path,
    plan: Plan,
    measure: Measure,
    *,
    processes: int | None = None,
    progress: Progress,
    perform: Perform = perform_task,
) -> dict[str, str]:
    """Complete a benchmark's cells under `root`.

    For tiny worlds the default is one process per core with one thread each.  A plan with stories
    of its own has larger models, so it gets one process with all cores, or with the accelerator.

    Returns:
        Task id → why the task failed.  `failures.json` keeps the same until the task succeeds.

    Raises:
        InputError: `root` has cells with other training settings.
    """
    keep_plan(root, plan)
    cores = os.cpu_count() or 1
    processes = processes or (1 if plan.stories else cores)
    threads = max(1, cores // processes) if plan.stories else 1
    later = later_seconds(plan) if measure == "removal" else 0.0
    first = _unfinished(root, first_tasks(plan, measure))
    failed = run_tasks(
        root,
        plan,
        first,
        perform=perform,
        processes=processes,
        threads=threads,
        progress=progress,
        seconds=(0.0, later),
    )
    if measure == "removal" and plan.rivals is not None:
        before = sum(task.seconds for task in first)
        every = _unfinished(root, later_tasks(plan, chosen_arms(root, plan)))
        rest = [task for task in every if task.id not in failed]
        failed |= run_tasks(
            root,
            plan,
            rest,
            perform=perform,
            processes=processes,
            threads=threads,
            progress=progress,
            seconds=(before, 0.0),
        )
    known = {**read_failures(root), **failed}
    unfinished = {task.id for task in _unfinished(root, first_tasks(plan, measure))}
    kept = {task: why for task, why in known.items() if task in failed or task in unfinished}
    (root / FAILURES).write_text(json.dumps(kept, indent=2), encoding="utf-8")
    return failed


def _unfinished(root: Path, tasks: Sequence[Task]) -> list[Task]:
    """The incomplete tasks, and before them the base models they need."""

    def missing(task: Task) -> bool:
        cell = task.cell
        return cell is not None and not all(
            is_done(cell_workspace(root, cell), demand) for demand in task.demands
        )

    found = [task for task in tasks if missing(task)]
    needed = {task.after for task in found}
    return [task for task in tasks if task.id in needed] + found


def keep_plan(root: Path, plan: Plan) -> None:
    """Save the plan under `root`.

    Raises:
        InputError: `root` has cells with other training settings.
    """
    file = root / PLAN
    if file.exists() and read_plan(root).digest() != plan.digest():
        raise InputError(
            f"{root} has a benchmark with other training settings, whose cells could not be told "
            "from the new ones; give another --root."
        )
    root.mkdir(parents=True, exist_ok=True)
    file.write_text(plan.model_dump_json(indent=2), encoding="utf-8")


def read_plan(root: Path) -> Plan:
    """The plan last run under `root`.

    Raises:
        InputError: there is none.
    """
    try:
        data = json.loads((root / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{root} has no benchmark ({error}); run one with `grasp bench removal --root {root}`."
        ) from None
    return check_settings(Plan, data, str(root / PLAN))


def read_failures(root: Path) -> dict[str, str]:
    """Task id → why the task failed when it was last run."""
    file = root / FAILURES
    found: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found
