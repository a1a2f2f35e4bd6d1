"""Run tasks in several processes; a failed task does not stop the others."""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from analysis.errors import GraspError
from grasp.bench.plan.plan import Plan
from grasp.bench.plan.tasks import Task
from grasp.jobs.progress import Progress

Perform = Callable[[Path, Plan, Task, Progress], None]
"""What a process does with a task; a module-level function, because processes are spawned."""

TIMES, FAILURES = "times.jsonl", "failures.json"


@dataclass
class _Worker:
    """A process, our end of its pipe, and its current task."""

    process: BaseProcess
    pipe: Connection
    task: Task | None = None
    hundredths: int = 0


@dataclass
class _State:
    """Tasks by state."""

    waiting: list[Task]
    done: dict[str, Task] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def ready(self) -> list[Task]:
        """Tasks that can start now; a task that depends on a failed one fails as well."""
        for task in [task for task in self.waiting if task.after in self.failed]:
            self.waiting.remove(task)
            self.failed[task.id] = f"{task.after} failed"
        return [task for task in self.waiting if task.after is None or task.after in self.done]


def run_tasks(
    root: Path,
    plan: Plan,
    tasks: Sequence[Task],
    *,
    perform: Perform,
    processes: int,
    progress: Progress,
    threads: int = 1,
    seconds: tuple[float, float] = (0.0, 0.0),
) -> dict[str, str]:
    """Run all tasks, each after the task it depends on.

    Ctrl-C and errors end the processes.  Finished records are kept, and a training that was
    interrupted resumes from its last checkpoint when its task is run again.

    Args:
        root: the folder of the cells; processor times are appended to its `times.jsonl`.
        plan: passed to `perform`, as is `root`.
        tasks: with unique ids.
        perform: called in the processes for each task.
        processes: the largest number of processes.
        threads: threads per process.
        progress: called with the estimated seconds of work, done and in total.
        seconds: estimated seconds of work done before these tasks, and left after them.

    Returns:
        Task id → why the task failed, in words; empty if none did.
    """
    asked = {task.id for task in tasks}
    free = [task if task.after in asked else replace(task, after=None) for task in tasks]
    state = _State(waiting=free)
    context = multiprocessing.get_context("spawn")
    count = max(1, min(processes, len(tasks)))
    workers: list[_Worker] = []
    try:
        while state.waiting or any(worker.task for worker in workers):
            _hand_out(state, [worker for worker in workers if worker.task is None])
            while state.ready() and len(workers) < count:
                workers.append(_started(context, threads, root, plan, perform))
                _hand_out(state, workers[-1:])
            workers = _listen(root, state, workers)
            _show(state, workers, seconds, progress)
    except BaseException:
        for worker in workers:
            worker.process.terminate()
        raise
    finally:
        for worker in workers:
            worker.pipe.close()  # ends a process that is waiting for a task
            worker.process.join()
    return state.failed


def _started(
    context: SpawnContext, threads: int, root: Path, plan: Plan, perform: Perform
) -> _Worker:
    here, there = context.Pipe()
    process = context.Process(
        target=_serve, args=(there, threads, root, plan, perform), daemon=True
    )
    process.start()
    there.close()
    return _Worker(process, here)


def _hand_out(state: _State, idle: Sequence[_Worker]) -> None:
    for worker, task in zip(idle, state.ready(), strict=False):
        state.waiting.remove(task)
        worker.task, worker.hundredths = task, 0
        with suppress(OSError):  # _listen notices a process that has ended
            worker.pipe.send(task)


def _listen(root: Path, state: _State, workers: list[_Worker]) -> list[_Worker]:
    """Handle messages of the processes for up to a second; return those that are still alive."""
    busy = {worker.pipe: worker for worker in workers if worker.task is not None}
    for pipe in wait(list(busy), timeout=1.0):
        assert isinstance(pipe, Connection)
        worker = busy[pipe]
        try:
            kind, value = pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            kind, value = "failed", f"its process ended with code {worker.process.exitcode}"
            workers = [other for other in workers if other is not worker]
        if kind == "progress":
            worker.hundredths = max(worker.hundredths, value[0])
        else:
            _finished(root, state, worker, kind, value)
    return workers


def _finished(root: Path, state: _State, worker: _Worker, kind: str, value: object) -> None:
    task, worker.task = worker.task, None
    assert task is not None
    if kind == "failed":
        state.failed[task.id] = str(value)
        return
    state.done[task.id] = task
    with (root / TIMES).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"task": task.id, "processor_seconds": value}) + "\n")


def _show(
    state: _State, workers: Sequence[_Worker], seconds: tuple[float, float], progress: Progress
) -> None:
    before, after = seconds
    current = [worker for worker in workers if worker.task is not None]
    done = sum(task.seconds for task in state.done.values())
    done += sum(w.task.seconds * w.hundredths / 100 for w in current if w.task)
    left = sum(task.seconds for task in state.waiting)
    left += sum(w.task.seconds * (100 - w.hundredths) / 100 for w in current if w.task)
    names = ", ".join(w.task.id for w in current if w.task)
    failed = f", {len(state.failed)} failed" if state.failed else ""
    total = before + done + left + after
    progress(int(before + done), max(int(total), 1), f"bench: {names}{failed}")


def _serve(pipe: Connection, threads: int, root: Path, plan: Plan, perform: Perform) -> None:
    """The main function of a process: perform tasks until the other end closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    import torch

    torch.set_num_threads(threads)
    shown = [0.0]

    def progress(step: int, total: int, message: str) -> None:
        if time.monotonic() - shown[0] >= 1.0:
            shown[0] = time.monotonic()
            pipe.send(("progress", (100 * step // max(total, 1), message)))

    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        started = time.process_time()
        try:
            perform(root, plan, task, progress)
        except GraspError as error:
            pipe.send(("failed", str(error)))
        except Exception as error:
            pipe.send(("failed", f"{type(error).__name__}: {error}"))
        else:
            pipe.send(("done", time.process_time() - started))
