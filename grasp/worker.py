"""The worker: claims queued jobs and runs them.

Training runs in a process of its own, in a session of its own, so that it outlives whoever
started it.  Short model work runs in the worker itself, which keeps the last models loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
import traceback
from pathlib import Path

from analysis.errors import GraspError
from analysis.workspace import Workspace
from grasp import jobs
from grasp.cli import BAD_INPUT, FAILED, INTERRUPTED, OK, build_parser, call
from grasp.progress import JobProgress

TRAINING = ("train", "retrain")
_POLL_SECONDS = 0.5


def serve(workspace: Workspace, *, idle_timeout: float | None = None) -> None:
    """Run jobs until stopped, or until there was nothing to do for `idle_timeout` seconds."""
    database = workspace.database
    if jobs.worker_alive(database):
        print("A worker serves this workspace already.", file=sys.stderr)
        return
    children: list[subprocess.Popen[bytes]] = []
    busy = time.monotonic()
    with jobs.registered(database) as beat:
        while idle_timeout is None or time.monotonic() - busy < idle_timeout:
            beat()
            children = [child for child in children if child.poll() is None]
            jobs.reconcile(database)
            training = jobs.running(database, kinds=TRAINING)
            job = jobs.claim(database, without=TRAINING if training else ())
            if training or job is not None:
                busy = time.monotonic()
            if job is None:
                time.sleep(_POLL_SECONDS)
            elif job.kind in TRAINING:
                children.append(_start(workspace, job.id, job.argv))
            else:
                _run_here(workspace, job.id, job.argv)


def run_attached(args: argparse.Namespace) -> int:
    """Run a command as job `args.job`: its row is kept current, and says how it ended."""
    from grasp.commands.places import workspace_for

    database = workspace_for(args).database
    job_id: int = args.job
    jobs.attach(database, job_id)
    try:
        result = call(args, progress=JobProgress(database, job_id))
    except jobs.Cancelled:
        jobs.finish(database, job_id, "cancelled")
        return INTERRUPTED
    except GraspError as error:
        jobs.finish(database, job_id, "failed", error=str(error))
        return BAD_INPUT
    except BaseException as error:
        jobs.finish(database, job_id, "failed", error=_in_words(error))
        traceback.print_exc()
        return FAILED
    jobs.finish(database, job_id, "succeeded")
    if result is not None:
        print(result.text)
    return OK


def log_path(workspace: Workspace, job_id: int) -> Path:
    """Where a job's output goes."""
    folder = workspace.root / "jobs"
    folder.mkdir(exist_ok=True)
    return folder / f"{job_id}.log"


def _start(workspace: Workspace, job_id: int, argv: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "grasp", *_attached(workspace, job_id, argv)]
    with log_path(workspace, job_id).open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _run_here(workspace: Workspace, job_id: int, argv: list[str]) -> None:
    with (
        log_path(workspace, job_id).open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            args = build_parser().parse_args(_attached(workspace, job_id, argv))
        except SystemExit:
            error = f"`grasp {' '.join(argv)}` is no command of this version."
            jobs.finish(workspace.database, job_id, "failed", error=error)
            return
        run_attached(args)


def _attached(workspace: Workspace, job_id: int, argv: list[str]) -> list[str]:
    return [*argv, "--workspace", str(workspace.root), "--job", str(job_id)]


def _in_words(error: BaseException) -> str:
    """One sentence for an error that no one foresaw; the log has the rest."""
    if type(error).__name__ == "OutOfMemoryError":
        return (
            "The device ran out of memory. Use a smaller batch_size with more "
            "gradient_accumulation_steps, a shorter max_length, or gradient_checkpointing."
        )
    if isinstance(error, KeyboardInterrupt):
        return "Stopped from outside."
    return f"{type(error).__name__}: {error}. The job's log has the details."
