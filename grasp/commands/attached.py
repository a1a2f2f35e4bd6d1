"""A command that runs as a job: its progress, its heartbeat and its outcome go into the queue.

The database may be away for a while, and nothing of that stops the work: progress is left out, and
the outcome is tried again and again.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from analysis.errors import DatabaseUnavailable, GraspError
from analysis.store.database import Database
from analysis.store.workspace import Workspace
from grasp.commands.calling import FAILED, INTERRUPTED, OK, call, exit_code
from grasp.commands.parser import build_parser
from grasp.jobs import queue
from grasp.jobs.progress import JobProgress

DONE = "done"
"""What the process of short jobs says after each."""

_BEAT_SECONDS = 5.0
_PATIENCE_SECONDS = 600.0


def run_attached(args: argparse.Namespace) -> int:
    """Run a command as job `args.job`, and record its progress and its outcome in the queue."""
    from grasp.commands.resolve import make_workspace

    database = make_workspace(args).database
    job_id: int = args.job
    _insist(lambda: queue.attach(database, job_id))
    with _heartbeat(database, job_id):
        return _run(args, database, job_id)


def serve_jobs(workspace: Workspace) -> None:
    """Run the jobs whose numbers come on standard input, and say so after each.

    The models of one are kept for the next.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    said = sys.stdout
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        for line in sys.stdin:
            job_id = int(line)
            with _logged(workspace, job_id):
                request = queue.asked_for(queue.get(workspace.database, job_id))
                run_attached(parse_attached(workspace, job_id, request.argv()))
            print(DONE, file=said, flush=True)


def parse_attached(workspace: Workspace, job_id: int, argv: list[str]) -> argparse.Namespace:
    """The parsed command of a job, in its workspace, whichever one its request names."""
    return build_parser().parse_args(attached_argv(workspace, job_id, argv))


def attached_argv(workspace: Workspace, job_id: int, argv: list[str]) -> list[str]:
    """The arguments of a command that runs as a job."""
    return [*argv, "--workspace", str(workspace.root), "--job", str(job_id)]


def log_path(workspace: Workspace, job_id: int) -> Path:
    """The file for a job's output."""
    folder = workspace.root / "jobs"
    folder.mkdir(exist_ok=True)
    return folder / f"{job_id}.log"


def _run(args: argparse.Namespace, database: Database, job_id: int) -> int:
    def finish(status: queue.Status, error: str = "") -> None:
        _insist(lambda: queue.finish(database, job_id, status, error=error))

    try:
        result = call(args, progress=JobProgress(database, job_id))
    except queue.Cancelled:
        finish("cancelled")
        return INTERRUPTED
    except KeyboardInterrupt:
        finish("interrupted", "Interrupted by a signal.")
        raise  # so that this process ends too
    except GraspError as error:
        finish("failed", str(error))
        return exit_code(error)
    except BaseException as error:
        finish("failed", _in_words(error))
        traceback.print_exc()
        return FAILED
    finish("succeeded")
    if result is not None:
        print(result.text)
    return OK


def _insist(write: Callable[[], None]) -> None:
    """Write to the database, again after a while if it is away; what stays away is only said."""
    tries = Retrying(
        retry=retry_if_exception_type(DatabaseUnavailable),
        wait=wait_exponential(multiplier=0.5, max=20),
        stop=stop_after_delay(_PATIENCE_SECONDS),
        reraise=True,
    )
    try:
        tries(write)
    except DatabaseUnavailable as error:
        print(error, file=sys.stderr)


@contextlib.contextmanager
def _heartbeat(database: Database, job_id: int) -> Iterator[None]:
    """Say every few seconds that this process lives, also while it loads a model."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(_BEAT_SECONDS):
            with contextlib.suppress(DatabaseUnavailable):
                queue.beat(database, job_id)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def _logged(workspace: Workspace, job_id: int) -> Iterator[None]:
    with (
        log_path(workspace, job_id).open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        yield


def _in_words(error: BaseException) -> str:
    """One sentence about an unexpected error; the log has the traceback."""
    return f"{type(error).__name__}: {error}. The job's log has the details."
