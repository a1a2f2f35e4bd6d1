"""The worker: claims queued jobs and runs them.

Training runs in a process and session of its own, so that it outlives its starter.  Short model
work runs in the worker itself, which keeps the last models loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from analysis.errors import GraspError
from analysis.interpreter import module_command
from analysis.store.workspace import Workspace
from grasp.commands.calling import FAILED, INTERRUPTED, OK, call, exit_code
from grasp.commands.parser import build_parser
from grasp.jobs import queue
from grasp.jobs.progress import JobProgress

TRAINING = ("train", "retrain", "validate")
_POLL_SECONDS = 0.5


def run_jobs(workspace: Workspace, *, idle_timeout: float | None = None) -> None:
    """Run jobs until stopped, or until there has been no job for `idle_timeout` seconds."""
    database = workspace.database
    if queue.worker_alive(database):
        print("A worker is already running for this workspace.", file=sys.stderr)
        return
    children: list[subprocess.Popen[bytes]] = []
    busy = time.monotonic()
    with queue.register_worker(database) as beat:
        while idle_timeout is None or time.monotonic() - busy < idle_timeout:
            beat()
            children = [child for child in children if child.poll() is None]
            queue.reconcile(database)
            training = queue.any_running(database, kinds=TRAINING)
            job = queue.claim(database, without=TRAINING if training else ())
            if job is None:
                time.sleep(_POLL_SECONDS)
            elif (args := _parsed(workspace, job.id, job.argv)) is None:
                error = f"`grasp {' '.join(job.argv)}` is not a command of this version."
                queue.finish(database, job.id, "failed", error=error)
            elif job.kind in TRAINING:
                children.append(_start(workspace, job.id, job.argv))
            else:
                _run_here(workspace, job.id, args)
            if training or job is not None:
                busy = time.monotonic()  # set after the job, which may take longer than the timeout


def run_attached(args: argparse.Namespace) -> int:
    """Run a command as job `args.job`, and record its progress and its outcome in the queue."""
    from grasp.commands.resolve import make_workspace

    database = make_workspace(args).database
    job_id: int = args.job
    queue.attach(database, job_id)
    try:
        result = call(args, progress=JobProgress(database, job_id))
    except queue.Cancelled:
        queue.finish(database, job_id, "cancelled")
        return INTERRUPTED
    except KeyboardInterrupt:
        queue.finish(database, job_id, "interrupted", error="Interrupted by a signal.")
        raise  # so that this process ends too
    except GraspError as error:
        queue.finish(database, job_id, "failed", error=str(error))
        return exit_code(error)
    except BaseException as error:
        queue.finish(database, job_id, "failed", error=_in_words(error))
        traceback.print_exc()
        return FAILED
    queue.finish(database, job_id, "succeeded")
    if result is not None:
        print(result.text)
    return OK


def log_path(workspace: Workspace, job_id: int) -> Path:
    """The file for a job's output."""
    folder = workspace.root / "jobs"
    folder.mkdir(exist_ok=True)
    return folder / f"{job_id}.log"


def _parsed(workspace: Workspace, job_id: int, argv: list[str]) -> argparse.Namespace | None:
    """The parsed command of a job; None if it is invalid, and the log says why."""
    with _logged(workspace, job_id):
        try:
            return build_parser().parse_args(_attached(workspace, job_id, argv))
        except SystemExit:
            return None


def _start(workspace: Workspace, job_id: int, argv: list[str]) -> subprocess.Popen[bytes]:
    command = module_command("grasp", *_attached(workspace, job_id, argv))
    with log_path(workspace, job_id).open("ab") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # The child attaches itself only after importing torch.  Until then the row would name this
    # process, and reconciling would judge the job by the wrong one.
    queue.attach(workspace.database, job_id, pid=child.pid)
    return child


def _run_here(workspace: Workspace, job_id: int, args: argparse.Namespace) -> None:
    with _logged(workspace, job_id):
        run_attached(args)


@contextlib.contextmanager
def _logged(workspace: Workspace, job_id: int) -> Iterator[None]:
    with (
        log_path(workspace, job_id).open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        yield


def _attached(workspace: Workspace, job_id: int, argv: list[str]) -> list[str]:
    return [*argv, "--workspace", str(workspace.root), "--job", str(job_id)]


def _in_words(error: BaseException) -> str:
    """One sentence about an unexpected error; the log has the traceback."""
    return f"{type(error).__name__}: {error}. The job's log has the details."
