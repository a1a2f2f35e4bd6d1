"""Tasks over processes: order, failures that stay their own, processes that die."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grasp.bench.make import pool
from grasp.bench.make.pool import run_tasks
from grasp.bench.plan.plan import Plan
from grasp.bench.plan.tasks import Task
from tests.support.bench_performers import write_down


@pytest.fixture(autouse=True)
def _found_by_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[3])  # processes get this one's path


PLAN = Plan(title="empty")


def run(root: Path, *tasks: Task, processes: int = 2, progress: Any = None) -> dict[str, str]:
    return run_tasks(
        root,
        PLAN,
        tasks,
        perform=write_down,
        processes=processes,
        progress=progress or (lambda *_: None),
    )


def order(root: Path) -> list[str]:
    return [line.split()[0] for line in (root / "order.txt").read_text().splitlines()]


def test_failures_and_deaths_stop_nothing_but_what_waits_for_them(tmp_path: Path) -> None:
    failed = run(
        tmp_path,
        Task("late", after="base"),
        Task("refused"),
        Task("broken"),
        Task("killed"),
        Task("orphan", after="refused"),
        Task("base"),
        Task("free", after="elsewhere"),
    )
    assert failed == {
        "refused": "this cell is refused",
        "broken": "ZeroDivisionError: no such number",
        "killed": "its process ended with code 9",
        "orphan": "refused failed",
    }
    done = order(tmp_path)
    assert sorted(done) == ["base", "free", "late"]
    assert done.index("base") < done.index("late")
    times = [json.loads(line) for line in (tmp_path / "times.jsonl").read_text().splitlines()]
    assert sorted(entry["task"] for entry in times) == ["base", "free", "late"]
    assert all(entry["processor_seconds"] >= 0 for entry in times)


def test_no_more_processes_than_asked_for_and_progress_ends_at_the_whole(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    failed = run(
        tmp_path,
        *(Task(f"t{i}") for i in range(4)),
        processes=1,
        progress=lambda step, total, _: seen.append((step, total)),
    )
    assert failed == {}
    assert len({line.split()[1] for line in (tmp_path / "order.txt").read_text().splitlines()}) == 1
    assert [step for step, _ in seen] == sorted(step for step, _ in seen)
    assert seen[-1][0] == seen[-1][1] == 4 * int(Task("t").seconds)


def test_an_interrupt_ends_the_processes(tmp_path: Path) -> None:
    started = []

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    real = pool._started

    def remembered(*args: Any) -> Any:
        started.append(real(*args))
        return started[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "_started", remembered)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, Task("a"), Task("b"), progress=interrupted)
    assert started
    assert not any(worker.process.is_alive() for worker in started)
