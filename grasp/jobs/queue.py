"""The queue: jobs as rows of the workspace's database.  Torch-free, for pages and the worker.

A job is a `grasp` command.  A page adds a row and polls it; a worker claims rows and runs them; the
process that runs a job keeps its row up to date.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Literal

import psutil
from sqlalchemy import delete, select, update

from analysis.errors import NotFoundError
from analysis.store.database import Database, Job, Worker, now

Status = Literal["queued", "running", "succeeded", "failed", "cancelled", "interrupted"]
ACTIVE: tuple[Status, ...] = ("queued", "running")
STALE = timedelta(seconds=15)


class Cancelled(Exception):
    """Raised inside a job when a person has asked it to stop."""


def submit(
    database: Database, *, kind: str, title: str, argv: Sequence[str], output: str = ""
) -> Job:
    """Queue the command `grasp *argv`; `output` names the record it will make, such as "runs/x"."""
    job = Job(kind=kind, title=title, argv=list(argv), output=output)
    with database.session() as session:
        session.add(job)
    return job


def get(database: Database, job_id: int) -> Job:
    """One job.

    Raises:
        NotFoundError: no job has that number.
    """
    with database.session() as session:
        job = session.get(Job, job_id)
    if job is None:
        raise NotFoundError(f"There is no job {job_id}; `grasp jobs` lists all jobs.")
    return job


def list_recent(database: Database, *, limit: int = 50) -> list[Job]:
    """The newest jobs, newest first."""
    with database.session() as session:
        return list(session.scalars(select(Job).order_by(Job.id.desc()).limit(limit)))


def request_cancel(database: Database, job_id: int) -> None:
    """Ask a job to stop: a queued one ends at once, a running one at its next step."""
    job = get(database, job_id)
    with database.session() as session:
        session.execute(update(Job).where(Job.id == job.id).values(cancel_requested=True))
        session.execute(
            update(Job)
            .where(Job.id == job.id, Job.status == "queued")
            .values(status="cancelled", finished=now())
        )


def requeue(database: Database, job_id: int) -> None:
    """Queue a failed, cancelled or interrupted job again; it resumes if it can."""
    get(database, job_id)
    with database.session() as session:
        session.execute(
            update(Job)
            .where(Job.id == job_id, Job.status.in_(("failed", "cancelled", "interrupted")))
            .values(status="queued", cancel_requested=False, error="", finished=None, pid=None)
        )


def any_running(database: Database, *, kinds: Sequence[str]) -> bool:
    """Whether a job of one of these kinds is running on this machine."""
    query = select(Job.id).where(
        Job.status == "running", Job.kind.in_(kinds), Job.host == socket.gethostname()
    )
    with database.session() as session:
        return session.scalar(query.limit(1)) is not None


def claim(database: Database, *, without: Sequence[str] = ()) -> Job | None:
    """Take the oldest queued job for this process, or None; no job is taken twice.

    Jobs of the kinds in `without` stay in the queue.
    """
    queued = Job.status == "queued"
    wanted = select(Job.id).where(queued, Job.kind.not_in(without)).order_by(Job.id).limit(1)
    with database.session() as session:
        # One statement, so that a process that loses a race for a job gets the next one.
        taken = session.scalar(
            update(Job)
            .where(Job.id == wanted.scalar_subquery(), queued)
            .values(status="running", started=now(), **_here())
            .returning(Job.id)
        )
        return session.get(Job, taken) if taken else None


def attach(database: Database, job_id: int, *, pid: int | None = None) -> None:
    """Record that this process, or process `pid` of this machine, is running the job."""
    _set(database, job_id, **(_here() | ({} if pid is None else {"pid": pid})))


def report_progress(
    database: Database, job_id: int, *, step: int, total: int, message: str
) -> None:
    """Record the progress of a job.

    Raises:
        Cancelled: a person has asked it to stop.
    """
    _set(database, job_id, step=step, total=total, message=message, heartbeat=now())
    if get(database, job_id).cancel_requested:
        raise Cancelled


def finish(database: Database, job_id: int, status: Status, *, error: str = "") -> None:
    """Record how a job ended."""
    _set(database, job_id, status=status, error=error, finished=now())


def _set(database: Database, job_id: int, **values: object) -> None:
    with database.session() as session:
        session.execute(update(Job).where(Job.id == job_id).values(**values))


def _here() -> dict[str, object]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "heartbeat": now()}


def reconcile(database: Database) -> list[int]:
    """Mark jobs of this machine as interrupted if their process is gone; return their ids."""
    with database.session() as session:
        running = session.scalars(
            select(Job).where(Job.status == "running", Job.host == socket.gethostname())
        )
        lost = [job for job in running if not _alive(job.pid, job.heartbeat)]
        for job in lost:
            job.status, job.finished = "interrupted", now()
            job.error = "The process that ran this job ended unexpectedly. Queue the job again."
        return [job.id for job in lost]


def worker_alive(database: Database) -> bool:
    """Whether a worker is running for this workspace."""
    with database.session() as session:
        return any(_worker_alive(worker) for worker in session.scalars(select(Worker)))


@contextmanager
def register_worker(database: Database) -> Iterator[Callable[[], None]]:
    """Register this process as a worker; yields a heartbeat function for the block to call."""
    with database.session() as session:
        worker = Worker(host=socket.gethostname(), pid=os.getpid(), device="local")
        session.add(worker)
    alive = update(Worker).where(Worker.id == worker.id)

    def beat() -> None:
        with database.session() as session:
            session.execute(alive.values(heartbeat=now()))

    try:
        yield beat
    finally:
        with database.session() as session:
            session.execute(delete(Worker).where(Worker.id == worker.id))


def _worker_alive(worker: Worker) -> bool:
    if worker.host == socket.gethostname():
        return _alive(worker.pid, worker.heartbeat)
    return now() - worker.heartbeat < STALE


def _alive(pid: int | None, heartbeat: datetime | None) -> bool:
    """Whether a process lives: not a zombie, and not a later one that got the same pid."""
    try:
        process = psutil.Process(pid) if pid else None
        if process is None or process.status() == psutil.STATUS_ZOMBIE:
            return False
        return heartbeat is None or process.create_time() <= heartbeat.timestamp() + 1
    except psutil.NoSuchProcess:
        return False
