"""The worker: claims queued jobs and starts each in a process of its own.

Training gets a process and session for itself, so that it outlives its starter.  Short model work
shares one process, which keeps the last models loaded, and is ended if a job in it hangs.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from datetime import timedelta
from types import TracebackType

import psutil
from filelock import FileLock, Timeout

from analysis.errors import DatabaseUnavailable, InputError
from analysis.interpreter import module_command
from analysis.store.database import Database, Job
from analysis.store.job_requests import REQUESTS
from analysis.store.workspace import Workspace
from grasp.commands.attached import attached_argv, log_path, parse_attached
from grasp.jobs import queue

TRAINING = ("train", "retrain", "validate")
SHORT = tuple(kind for kind in REQUESTS if kind not in TRAINING)
LIMIT_HOURS = 24.0
"""Hours after which a job that is no training is ended."""

GRACE = timedelta(seconds=60)
"""How long a cancelled job may take to stop by itself."""

_POLL_SECONDS = 0.5
_LONGEST_PAUSE = 30.0


def run_jobs(
    workspace: Workspace, *, idle_timeout: float | None = None, limit_hours: float = LIMIT_HOURS
) -> None:
    """Run jobs until stopped, or until there has been no job for `idle_timeout` seconds."""
    lock = FileLock(workspace.root / ".worker.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        print("A worker is already running for this workspace.", file=sys.stderr)
        return
    try:
        queue.reconcile(workspace.database)
        if queue.worker_alive(workspace.database):  # on another machine
            print("A worker is already running for this workspace.", file=sys.stderr)
            return
        _Worker(workspace, limit_hours).serve(idle_timeout)
    finally:
        lock.release()


class _ShortJobs:
    """The process that runs short jobs, one after another."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._process: subprocess.Popen[bytes] | None = None
        self._since = 0.0
        self.job_id: int | None = None

    def start(self, job_id: int) -> None:
        """Hand a job to the process; it is started if there is none."""
        if self._process is not None and self._process.poll() is not None:
            self._close()
        if self._process is None:
            place = ["--workspace", str(self._workspace.root)]
            self._process = subprocess.Popen(
                module_command("grasp", "worker", "--serve", *place),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        queue.attach(self._workspace.database, job_id, pid=self._process.pid)
        self.job_id, self._since = job_id, time.monotonic()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has just died; the job's row will tell
            self._process.stdin.write(b"%d\n" % job_id)
            self._process.stdin.flush()

    def busy_for(self) -> float | None:
        """Seconds that the job has been running; None if none is."""
        if self.job_id is None or self._process is None:
            return None
        assert self._process.stdout is not None
        said = select.select([self._process.stdout], [], [], 0)[0]
        if said and (self._process.stdout.readline() or self._process.wait() is not None):
            self.job_id = None  # it is done, or its process has ended
            return None
        return time.monotonic() - self._since

    def kill(self) -> None:
        """End the process with the job in it."""
        if self._process is not None:
            _kill(self._process.pid)
            self._process.wait()
            self._close()
        self.job_id = None

    def _close(self) -> None:
        """Let go of a process that has ended."""
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process = None

    def __enter__(self) -> _ShortJobs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Let the process end: at once after a signal, which the job in it records."""
        if self._process is None or self._process.stdin is None:
            return
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        if kind is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(timeout=10)
            self._close()
        except subprocess.TimeoutExpired:
            self.kill()


class _Worker:
    """The loop: one training at a time on this machine, and one short job beside it."""

    def __init__(self, workspace: Workspace, limit_hours: float) -> None:
        self._workspace = workspace
        self._database: Database = workspace.database
        self._limit_hours = limit_hours
        self._training: list[subprocess.Popen[bytes]] = []

    def serve(self, idle_timeout: float | None) -> None:
        busy, pause = time.monotonic(), _POLL_SECONDS
        with _ShortJobs(self._workspace) as short, queue.register_worker(self._database) as beat:
            while idle_timeout is None or time.monotonic() - busy < idle_timeout:
                try:
                    beat()
                    active = self._turn(short)
                except DatabaseUnavailable as error:
                    if pause == _POLL_SECONDS:
                        print(f"Waiting for the database. {error}", file=sys.stderr)
                    time.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
                    continue
                pause = _POLL_SECONDS
                if active:
                    busy = time.monotonic()
                else:
                    time.sleep(_POLL_SECONDS)

    def _turn(self, short: _ShortJobs) -> bool:
        """Look after what runs, and start one more job if there is room; whether any runs."""
        self._training = [child for child in self._training if child.poll() is None]
        taken = short.busy_for()
        queue.reconcile(self._database)
        self._end_overdue(short, taken)
        training = queue.any_running(self._database, kinds=TRAINING)
        without = (*(TRAINING if training else ()), *(SHORT if taken is not None else ()))
        job = queue.claim(self._database, without=without)
        if job is not None:
            self._start(job, short)
        elif training or taken is not None:
            time.sleep(_POLL_SECONDS)
        return training or taken is not None or job is not None

    def _start(self, job: Job, short: _ShortJobs) -> None:
        try:
            argv = queue.asked_for(job).argv()
            with (
                log_path(self._workspace, job.id).open("a", encoding="utf-8") as log,
                contextlib.redirect_stderr(log),
            ):
                parse_attached(self._workspace, job.id, argv)
        except (InputError, SystemExit) as error:
            said = f"`grasp {' '.join(job.argv)}` is not a command of this version."
            why = str(error) if isinstance(error, InputError) else said
            queue.finish(self._database, job.id, "failed", error=why)
            return
        if job.kind not in TRAINING:
            short.start(job.id)
            return
        with log_path(self._workspace, job.id).open("ab") as log:
            child = subprocess.Popen(
                module_command("grasp", *attached_argv(self._workspace, job.id, argv)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._training.append(child)
        # The child attaches itself only after importing torch.  Until then the row would name this
        # process, and reconciling would judge the job by the wrong one.
        queue.attach(self._database, job.id, pid=child.pid)

    def _end_overdue(self, short: _ShortJobs, taken: float | None) -> None:
        """End jobs that were cancelled and did not stop, and short ones that take too long."""
        for job in queue.overdue(self._database, grace=GRACE):
            if job.id == short.job_id:
                short.kill()
            elif job.pid is not None and _runs(job.pid, self._workspace, job.id):
                _kill(job.pid)
            said = f"Ended by force, since it did not stop by itself in {GRACE.seconds} s."
            queue.end_running(self._database, job.id, "cancelled", error=said)
        if taken is not None and taken > self._limit_hours * 3600 and short.job_id is not None:
            job_id = short.job_id
            short.kill()
            said = f"Ended after {self._limit_hours:g} h; `grasp worker --limit-hours H` allows more."
            queue.end_running(self._database, job_id, "failed", error=said)


def _runs(pid: int, workspace: Workspace, job_id: int) -> bool:
    """Whether a process is that of a job; a row of the database alone is not believed."""
    try:
        command = psutil.Process(pid).cmdline()
    except psutil.Error:
        return False
    return command[-4:] == attached_argv(workspace, job_id, [])


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
