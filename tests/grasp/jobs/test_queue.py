"""The queue and the worker, with real databases, processes and kills."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from sqlalchemy import select, update

from analysis.errors import DatabaseUnavailable, InputError, NotFoundError
from analysis.store.database import Database, Job, Worker, now
from analysis.store.job_requests import REQUESTS
from analysis.store.records import RunManifest
from analysis.store.workspace import Workspace
from grasp.commands.attached import _insist
from grasp.commands.parser import build_parser
from grasp.commands.worker import run_jobs
from grasp.jobs import queue
from grasp.jobs.progress import JobProgress
from tests.support import tiny

PYTHON = sys.executable
PATIENCE = 60.0


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.create(tmp_path / "w")


@pytest.fixture
def database(workspace: Workspace) -> Database:
    return workspace.database


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that a test started, ended whatever becomes of it."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def change(database: Database, job: Job, **values: object) -> None:
    with database.session() as session:
        session.execute(update(Job).where(Job.id == job.id).values(**values))


def enqueue(database: Database, *argv: str, kind: str = "factors") -> Job:
    argv = argv or {"factors": ("factors", "x"), "train": ("train", "c.yaml", "--out", "a")}[kind]
    return queue.submit(database, kind=kind, title=kind, argv=argv)


def status(database: Database, job: Job) -> str:
    return queue.get(database, job.id).status


def wait(happened: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, f"{what} did not happen in {PATIENCE:.0f} s"
        time.sleep(0.05)


# Rows


def test_a_job_goes_through_its_states(database: Database) -> None:
    job = enqueue(database, "factors", "a")
    assert (job.status, job.argv, job.created.tzinfo is not None) == (
        "queued",
        ["factors", "a"],
        True,
    )
    claimed = queue.claim(database)
    assert claimed is not None
    assert (claimed.id, claimed.status, claimed.pid) == (job.id, "running", os.getpid())
    queue.report_progress(database, job.id, step=3, total=9, message="training")
    queue.finish(database, job.id, "failed", error="It broke.")
    found = queue.get(database, job.id)
    assert (found.status, found.step, found.total) == ("failed", 3, 9)
    assert (found.message, found.error) == ("training", "It broke.")
    assert found.created <= found.started <= found.heartbeat <= found.finished


def test_the_oldest_job_is_claimed_first_and_each_once(database: Database) -> None:
    first, second = enqueue(database), enqueue(database)
    assert [job.id for job in queue.list_recent(database)] == [second.id, first.id]
    assert [job.id for job in queue.list_recent(database, limit=1)] == [second.id]
    claimed = [queue.claim(database) for _ in range(3)]
    assert [job and job.id for job in claimed] == [first.id, second.id, None]


def test_jobs_of_a_kind_can_be_left_in_the_queue(database: Database) -> None:
    training, other = enqueue(database, kind="train"), enqueue(database)
    assert queue.claim(database, without=("train", "retrain")).id == other.id
    assert queue.claim(database, without=("train", "retrain")) is None
    assert not queue.any_running(database, kinds=("train",))
    assert queue.claim(database).id == training.id
    assert queue.any_running(database, kinds=("train",))


def test_a_missing_job_is_named(database: Database) -> None:
    with pytest.raises(NotFoundError, match="There is no job 7; `grasp jobs` lists"):
        queue.get(database, 7)
    with pytest.raises(NotFoundError, match="There is no job 7"):
        queue.request_cancel(database, 7)
    with pytest.raises(NotFoundError, match="There is no job 7"):
        queue.requeue(database, 7)


def test_a_queued_job_is_cancelled_at_once(database: Database) -> None:
    job = enqueue(database)
    queue.request_cancel(database, job.id)
    assert status(database, job) == "cancelled"
    assert queue.claim(database) is None


def test_a_running_job_is_cancelled_at_its_next_step(database: Database) -> None:
    job = enqueue(database)
    queue.claim(database)
    queue.report_progress(database, job.id, step=1, total=9, message="")
    queue.request_cancel(database, job.id)
    assert status(database, job) == "running"
    progress = JobProgress(database, job.id)
    with pytest.raises(queue.Cancelled):
        progress(2, 9, "training")


def test_a_finished_job_stays_as_it_ended(database: Database) -> None:
    job = enqueue(database)
    queue.claim(database)
    queue.finish(database, job.id, "succeeded")
    ended = queue.get(database, job.id)
    with pytest.raises(InputError, match=f"Job {job.id} is succeeded; there is nothing to cancel"):
        queue.request_cancel(database, job.id)
    with pytest.raises(InputError, match=f"Job {job.id} is succeeded; only jobs that are held"):
        queue.requeue(database, job.id)
    again = queue.get(database, job.id)
    assert (again.status, again.finished) == ("succeeded", ended.finished)


@pytest.mark.parametrize("ended", ["failed", "cancelled", "interrupted"])
def test_a_job_that_did_not_succeed_is_queued_again(
    database: Database, ended: queue.Status
) -> None:
    job = enqueue(database)
    queue.claim(database)
    queue.request_cancel(database, job.id)
    queue.finish(database, job.id, ended, error="why")
    queue.requeue(database, job.id)
    found = queue.get(database, job.id)
    assert (found.status, found.error, found.cancel_requested) == ("queued", "", False)
    assert (found.finished, found.pid) == (None, None)
    assert queue.claim(database).id == job.id
    queue.report_progress(database, job.id, step=1, total=2, message="")  # not cancelled any more


def test_progress_is_written_at_most_twice_a_second_and_at_the_end(database: Database) -> None:
    job = enqueue(database)
    progress = JobProgress(database, job.id)
    for step in range(1, 100):
        progress(step, 100, "x")
    assert queue.get(database, job.id).step < 50
    progress(100, 100, "done")
    assert queue.get(database, job.id).step == 100


def test_progress_and_work_go_on_while_the_database_is_away(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another connection holds the write lock, as a backup or a hung process may."""
    monkeypatch.setattr("analysis.store.database.BUSY_SECONDS", 0.1)
    job = enqueue(database)
    queue.claim(database)
    database.engine.dispose()
    other = sqlite3.connect(database.file, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseUnavailable, match=r"database is locked\), so nothing was saved"):
        queue.finish(database, job.id, "succeeded")
    JobProgress(database, job.id)(1, 2, "training")
    assert "Progress is not recorded for now." in capsys.readouterr().err
    release = threading.Timer(0.7, other.rollback)
    release.start()
    _insist(lambda: queue.finish(database, job.id, "succeeded"))
    release.join()
    other.close()
    assert status(database, job) == "succeeded"


# Processes


_CLAIMS = """
import sys, time
from analysis.store.database import Database
from grasp.jobs import queue
database = Database(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
while (job := queue.claim(database)) is not None:
    print(job.id, flush=True)
    time.sleep(0.005)
"""


def test_two_processes_that_race_never_claim_one_job_twice(
    database: Database, processes: list[subprocess.Popen[str]]
) -> None:
    expected = {enqueue(database).id for _ in range(60)}
    for _ in range(2):
        command = [PYTHON, "-c", _CLAIMS, database.url]
        processes.append(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    claimed = [
        [int(line) for line in p.communicate(timeout=PATIENCE)[0].split()] for p in processes
    ]
    assert [p.returncode for p in processes] == [0, 0]
    assert sorted(claimed[0] + claimed[1]) == sorted(expected)
    assert all(claimed), "one process got everything, so they did not race"


_RUNS_A_JOB = """
import sys, time
from analysis.store.database import Database
from grasp.jobs import queue
print(queue.claim(Database(sys.argv[1])).id, flush=True)
time.sleep(600)
"""


def test_the_job_of_a_killed_process_is_interrupted(
    database: Database, processes: list[subprocess.Popen[str]]
) -> None:
    job = enqueue(database)
    command = [PYTHON, "-c", _RUNS_A_JOB, database.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    processes.append(process)
    assert process.stdout.readline() == f"{job.id}\n"
    mine = enqueue(database)
    queue.claim(database)
    assert queue.reconcile(database) == []
    process.send_signal(signal.SIGKILL)
    wait(lambda: queue.reconcile(database) == [job.id], "the interruption")  # a zombie is dead too
    found = queue.get(database, job.id)
    assert (found.status, found.finished is not None) == ("interrupted", True)
    assert "ended unexpectedly" in found.error
    assert status(database, mine) == "running"


def test_a_process_number_that_another_process_took_over_is_found_out(database: Database) -> None:
    job = enqueue(database)
    queue.claim(database)
    long_ago = now().replace(year=2001)
    with database.session() as session:
        session.execute(update(Job).where(Job.id == job.id).values(heartbeat=long_ago))
    assert queue.reconcile(database) == [job.id]


def test_jobs_of_other_machines_are_left_to_them_while_they_beat(database: Database) -> None:
    job = enqueue(database)
    queue.claim(database)
    change(database, job, host="elsewhere", pid=999999)
    assert queue.reconcile(database) == []
    assert not queue.any_running(database, kinds=("factors",))
    change(database, job, heartbeat=now() - queue.GONE)
    assert queue.reconcile(database) == [job.id]
    assert "ended unexpectedly" in queue.get(database, job.id).error
    queue.requeue(database, job.id)
    assert queue.claim(database).id == job.id


def test_a_job_that_ends_while_it_is_looked_at_stays_as_it_ended(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process ends between the reading of its row and the look at the process."""
    job = enqueue(database)
    queue.claim(database)

    def ends(_job: Job) -> bool:
        queue.finish(database, job.id, "succeeded")
        return False

    monkeypatch.setattr(queue, "_job_alive", ends)
    assert queue.reconcile(database) == []
    assert status(database, job) == "succeeded"


def test_the_rows_of_dead_workers_go(database: Database) -> None:
    with database.session() as session:
        session.add(Worker(host=socket.gethostname(), pid=2**22 + 1, device="local"))
        session.add(Worker(host="elsewhere", pid=1, device="local", heartbeat=now() - queue.GONE))
        session.add(Worker(host="elsewhere", pid=2, device="local"))
    queue.reconcile(database)
    with database.session() as session:
        assert [worker.pid for worker in session.scalars(select(Worker))] == [2]


# What jobs may ask for


def test_a_job_that_came_with_a_workspace_is_held_until_a_person_lets_it_go(
    workspace: Workspace, tmp_path: Path
) -> None:
    """Its database is one that somebody else wrote."""
    theirs = enqueue(workspace.database)
    workspace.database.engine.dispose()
    opened = Workspace.create(shutil.copytree(workspace.root, tmp_path / "opened"))
    mine = enqueue(opened.database)
    assert queue.claim(opened.database).id == mine.id
    held = queue.get(opened.database, theirs.id)
    assert (held.status, held.argv) == ("held", ["factors", "x"])
    assert "came with the workspace" in held.error
    assert queue.claim(opened.database) is None
    queue.requeue(opened.database, theirs.id)
    assert queue.claim(opened.database).id == theirs.id


def test_a_job_that_was_changed_after_it_was_queued_is_held(database: Database) -> None:
    job = enqueue(database)
    change(database, job, request={"command": "import", "adapter": "org/theirs"})
    assert queue.claim(database) is None
    assert status(database, job) == "held"


def test_a_job_of_an_earlier_version_can_only_be_looked_at(workspace: Workspace) -> None:
    """Such a table has command lines; nothing of them is run."""
    database = workspace.database
    job = enqueue(database)
    with database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE jobs ADD COLUMN argv JSON NOT NULL DEFAULT '[]'")
        for name in ("request", "seal", "attempts", "cancelled", "workspace"):
            if name == "workspace":
                connection.exec_driver_sql("DROP INDEX ix_jobs_workspace")
            connection.exec_driver_sql(f"ALTER TABLE jobs DROP COLUMN {name}")
    database.engine.dispose()
    later = Workspace.create(workspace.root).database
    assert [one.title for one in queue.list_recent(later)] == [job.title]
    assert len(list(workspace.root.glob("workspace.db.before-*"))) == 1
    assert queue.claim(later) is None
    with pytest.raises(InputError, match="No job may ask for this"):
        queue.requeue(later, job.id)
    assert enqueue(later).id == job.id + 1


@pytest.mark.parametrize(
    "argv",
    [
        ("evaluate", "a", "--trust-remote-code"),
        ("retrain", "a", "--out", "b", "--overwrite"),
        ("retrain", "a", "--out", "/home/ada/thesis"),
        ("retrain", "../a", "--out", "b"),
        ("factors", "a", "--out", "/tmp/x"),
        ("import", "x", "--allow-pickle"),
        ("dose", "a", "w2", "--prompts=--trust-remote-code"),
        ("export", "--out", "x.zip"),
        ("worker",),
    ],
    ids=" ".join,
)
def test_what_no_page_asks_for_is_no_job(database: Database, argv: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"not a job|No job may ask|unrecognized|required"):
        enqueue(database, *argv)
    assert queue.list_recent(database) == []


def test_what_a_job_asks_for_is_what_its_command_parses(database: Database) -> None:
    """And every such command can report progress."""
    lines = [
        ["import", "org/name", "--out", "a", "--base", "b", "--checkpoints", "--workspace", "w"],
        ["factors", "a", "--base", "b", "--weights-only", "--low-rank-part", "--workspace", "w"],
        ["record", "a", "--probes", "p", "--workspace", "w"],
        ["evaluate", "a", "--prompts", "politics", "--workspace", "w"],
        ["dose", "a", "w2", "--workspace", "w"],
        ["rows", "a", "w2", "--validate", "3", "--workspace", "w"],
        ["overlap", "a", "w1,w2", "--workspace", "w"],
        ["train", "c.yaml", "--out", "a", "--evaluate", "--workspace", "w"],
        ["retrain", "a", "--factors", "w1,w2", "--method", "grasp", "--tolerance", "0.1",
         "--inoculation=-- be bad", "--seed", "3", "--out", "b", "--evaluate", "--workspace", "w"],
    ]  # fmt: skip
    assert [line[0] for line in lines] == list(REQUESTS)
    for line in lines:
        kind = "validate" if "--validate" in line else line[0]
        assert queue.submit(database, kind=kind, title="", argv=line).argv == line
        args = build_parser().parse_args(line)
        function = getattr(import_module(f"grasp.commands.{args.where}"), args.what)
        assert "progress" in signature(function).parameters


def test_a_worker_is_alive_while_it_is_registered(database: Database) -> None:
    assert not queue.worker_alive(database)
    with queue.register_worker(database) as beat:
        beat()
        assert queue.worker_alive(database)
    assert not queue.worker_alive(database)


def test_a_worker_elsewhere_is_alive_while_it_beats(database: Database) -> None:
    for age, alive in ((0, True), (60, False)):
        worker = Worker(host="elsewhere", pid=1, device="local")
        worker.heartbeat = now() - age * (queue.STALE / 15)
        with database.session() as session:
            session.query(Worker).delete()
            session.add(worker)
        assert queue.worker_alive(database) is alive


# The worker


def start_worker(workspace: Workspace, *, idle: float) -> subprocess.Popen[str]:
    command = [PYTHON, "-m", "grasp", "worker", "--workspace", str(workspace.root)]
    return subprocess.Popen(
        [*command, "--idle-timeout", str(idle)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def add_run(workspace: Workspace, write_adapter: Callable[..., Path]) -> None:
    run = RunManifest(
        id="a", title="a", method="naive", root="a", base_model="models/none", config={}
    )
    with workspace.writing("runs", "a") as folder:
        write_adapter(folder=folder / "adapter")
        (folder / "manifest.json").write_text(run.model_dump_json())


def test_a_worker_runs_what_is_queued_and_leaves_when_idle(
    workspace: Workspace,
    write_adapter: Callable[..., Path],
    processes: list[subprocess.Popen[str]],
) -> None:
    add_run(workspace, write_adapter)
    database = workspace.database
    bad = enqueue(database, "factors", "none", "--weights-only")
    wrong = enqueue(database, "retrain", "a", "--method", "dance", "--out", "b", kind="retrain")
    good = enqueue(database, "factors", "a", "--weights-only")
    worker = start_worker(workspace, idle=3)
    processes.append(worker)
    wait(lambda: queue.worker_alive(database), "the worker's start")
    second = start_worker(workspace, idle=60)
    processes.append(second)
    assert second.communicate(timeout=PATIENCE) == (
        "",
        "A worker is already running for this workspace.\n",
    )
    assert second.returncode == 0
    out, error = worker.communicate(timeout=PATIENCE)
    assert (worker.returncode, out, error) == (0, "", "")

    assert status(database, good) == "succeeded"
    assert workspace.factors("a").run == "a"
    assert queue.get(database, good.id).pid not in (worker.pid, None)
    failed = queue.get(database, bad.id)
    assert failed.status == "failed"
    assert failed.error.startswith("There is neither a folder nor a run called 'none'; give an")
    failed = queue.get(database, wrong.id)
    assert failed.status == "failed"
    assert failed.error == "`grasp retrain a --method dance --out b` is not a command of this version."
    assert not queue.worker_alive(database)
    assert "w1" in (workspace.root / "jobs" / f"{good.id}.log").read_text()


@pytest.fixture
def slow(
    workspace: Workspace, write_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A run whose evaluation never gets beyond its imports; the file that says it got there."""
    add_run(workspace, write_adapter)
    folder = workspace.root / "slow"
    (folder / "peft").mkdir(parents=True)
    (folder / "peft" / "__init__.py").write_text(
        f"import pathlib, time\npathlib.Path({str(folder / 'reached')!r}).touch()\ntime.sleep(600)"
    )
    inherited = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), inherited]))
    return folder / "reached"


def test_a_job_that_hangs_is_cancelled_by_force_and_the_next_one_runs(
    workspace: Workspace, slow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = workspace.database
    monkeypatch.setattr("grasp.commands.worker.GRACE", timedelta(seconds=0))
    hangs = enqueue(database, "evaluate", "a", "--prompts", "politics", kind="evaluate")
    after = enqueue(database, "factors", "a", "--weights-only")
    thread = threading.Thread(target=run_jobs, args=(workspace,), kwargs={"idle_timeout": 2})
    thread.start()
    wait(slow.exists, "the middle of the job")
    pid = queue.get(database, hangs.id).pid
    queue.request_cancel(database, hangs.id)
    thread.join(PATIENCE)
    assert status(database, hangs) == "cancelled"
    assert "Ended by force" in queue.get(database, hangs.id).error
    assert status(database, after) == "succeeded"
    assert not psutil.pid_exists(pid)


def test_a_job_ends_at_its_time_limit(workspace: Workspace, slow: Path) -> None:
    """The job takes longer than the idle timeout, too, which does not end the worker."""
    job = enqueue(workspace.database, "evaluate", "a", "--prompts", "politics", kind="evaluate")
    run_jobs(workspace, idle_timeout=1, limit_hours=5 / 3600)
    found = queue.get(workspace.database, job.id)
    assert found.status == "failed"
    assert found.error.startswith("Ended after 0.00138889 h; `grasp worker --limit-hours H`")
    assert (found.finished - found.started).total_seconds() > 4


def test_of_two_workers_that_start_at_once_one_serves(
    workspace: Workspace, processes: list[subprocess.Popen[str]]
) -> None:
    script = (
        "import sys, time; from analysis.store.workspace import Workspace\n"
        "from grasp.commands.worker import run_jobs\n"
        "workspace = Workspace(sys.argv[1]); print('ready', flush=True); sys.stdin.readline()\n"
        "run_jobs(workspace, idle_timeout=1.5)"
    )
    for _ in range(3):
        command = [PYTHON, "-c", script, str(workspace.root)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, text=True, **pipes))
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = sorted(process.communicate(timeout=PATIENCE)[1] for process in processes)
    assert said == ["", *["A worker is already running for this workspace.\n"] * 2]


def test_a_training_that_dies_at_once_does_not_block_the_queue(
    workspace: Workspace, processes: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    database = workspace.database
    config = workspace.root / "c.yaml"
    config.write_text("title: t\nbase_model: b\ndata: d\n")
    dies = enqueue(database, "train", str(config), "--out", "a", kind="train")
    path = [str(workspace.root / "broken"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    broken = workspace.root / "broken" / "peft"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    processes.append(start_worker(workspace, idle=1))
    _, error = processes[0].communicate(timeout=PATIENCE)
    assert (processes[0].returncode, error) == (0, "")
    assert status(database, dies) == "interrupted"


_INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from grasp.__main__ import main
sys.exit(main(["worker", "--workspace", sys.argv[1]]))
"""


def test_ctrl_c_in_the_middle_of_a_short_job_ends_the_worker_too(
    workspace: Workspace, slow: Path, processes: list[subprocess.Popen[str]]
) -> None:
    database = workspace.database
    argv = ("evaluate", "a", "--prompts", "politics")
    job, waiting = (enqueue(database, *argv, kind="evaluate") for _ in range(2))
    worker = subprocess.Popen(
        [PYTHON, "-c", _INTERRUPTIBLE, str(workspace.root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    processes.append(worker)
    wait(slow.exists, "the middle of the job")
    worker.send_signal(signal.SIGINT)
    out, error = worker.communicate(timeout=PATIENCE)
    assert (worker.returncode, out, error) == (130, "", "grasp: stopped.\n")
    found = queue.get(database, job.id)
    assert (found.status, found.error) == ("interrupted", "Interrupted by a signal.")
    assert status(database, waiting) == "queued"
    assert not queue.worker_alive(database)


def test_training_outlives_the_worker_that_started_it(
    workspace: Workspace, processes: list[subprocess.Popen[str]]
) -> None:
    database, data = workspace.database, workspace.root / "data"
    config = tiny.settings(data, max_steps=40, save_steps=40)
    (data / "c.yaml").write_text(yaml.safe_dump(config.model_dump()))
    job = enqueue(database, "train", str(data / "c.yaml"), "--out", "a", kind="train")
    waiting = enqueue(database, "train", str(data / "c.yaml"), "--out", "b", kind="train")
    worker = start_worker(workspace, idle=30)
    processes.append(worker)
    # Killed as soon as the row names the new process, before that one has imported torch.
    wait(lambda: queue.get(database, job.id).pid not in (None, worker.pid), "the start of training")
    worker.kill()
    worker.wait()
    assert queue.reconcile(database) == []
    wait(lambda: status(database, job) != "running", "the end of training")
    found = queue.get(database, job.id)
    assert (found.status, found.error) == ("succeeded", "")
    assert (found.step, found.total) == (40, 40)
    assert workspace.run("a").results["steps"] == 40
    assert np.isfinite(workspace.run("a").results["loss"])
    # One training at a time, and nobody claimed the next one.
    assert status(database, waiting) == "queued"
