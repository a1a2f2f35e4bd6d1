"""The queue: jobs as rows of the workspace's database.  Torch-free, for pages and the worker.

A job is a typed request for a `grasp` command.  A page adds a row and polls it; a worker claims rows
and runs each in a process of its own, which keeps its row up to date.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Literal

import psutil
from sqlalchemy import Select, delete, select, update

from analysis.errors import InputError, NotFoundError
from analysis.store.database import Database, Job, Worker, now
from analysis.store.job_requests import JobRequest, load_request, read_request
from grasp.jobs.seal import is_sealed, make_seal

Status = Literal["held", "queued", "running", "succeeded", "failed", "cancelled", "interrupted"]
ACTIVE: tuple[Status, ...] = ("queued", "running")
ENDED_EARLY: tuple[Status, ...] = ("held", "failed", "cancelled", "interrupted")
"""What can be queued again."""

STALE = timedelta(seconds=15)
GONE = timedelta(minutes=2)
"""Without a heartbeat for so long, a job of another machine has lost its process."""

LOST = "The process that ran this job ended unexpectedly. Queue the job again."
HELD = (
    "This job was queued on another machine, or came with the workspace, so it was not run. Look at "
    "its command; to let it run here, queue it again."
)


class Cancelled(Exception):
    """Raised inside a job when a person has asked it to stop."""


def submit(
    database: Database, *, kind: str, title: str, argv: Sequence[str], output: str = ""
) -> Job:
    """Queue the command `grasp *argv`; `output` names the record it will make, such as "runs/x".

    Raises:
        InputError: no job may ask for it, or it is of another kind.
    """
    asked = read_request(argv)
    if asked.kind != kind:
        raise InputError(f"`grasp {argv[0]}` is a job of kind {asked.kind!r}, not {kind!r}.")
    short = title if len(title) <= 200 else f"{title[:199]}…"
    job = Job(workspace=database.workspace, kind=kind, title=short, output=output)
    job.request = asked.model_dump(mode="json", exclude_none=True)
    job.seal = make_seal(database, job)
    with database.session() as session:
        session.add(job)
    return job


def get(database: Database, job_id: int) -> Job:
    """One job.

    Raises:
        NotFoundError: no job has that number.
    """
    query = select(Job).where(Job.id == job_id, Job.workspace == database.workspace)
    with database.session() as session:
        job = session.scalar(query)
    if job is None:
        raise NotFoundError(f"There is no job {job_id}; `grasp jobs` lists all jobs.")
    return job


def asked_for(job: Job) -> JobRequest:
    """What a job asks for.

    Raises:
        InputError: it is not something that jobs may ask for, or of an earlier version.
    """
    return load_request(job.request)


def list_recent(database: Database, *, limit: int = 50) -> list[Job]:
    """The newest jobs, newest first."""
    query = select(Job).where(Job.workspace == database.workspace)
    with database.session() as session:
        return list(session.scalars(query.order_by(Job.id.desc()).limit(limit)))


def request_cancel(database: Database, job_id: int) -> None:
    """Ask a job to stop: a queued one ends at once, a running one at its next step.

    Raises:
        NotFoundError: no job has that number.
        InputError: it has ended already.
    """
    job = get(database, job_id)
    with database.session() as session:
        asked = session.scalar(
            update(Job)
            .where(Job.id == job.id, Job.status.in_(ACTIVE))
            .values(cancel_requested=True, cancelled=now())
            .returning(Job.id)
        )
        session.execute(
            update(Job)
            .where(Job.id == job.id, Job.status == "queued")
            .values(status="cancelled", finished=now())
        )
    if asked is None:
        raise InputError(f"Job {job_id} is {get(database, job_id).status}; there is nothing to cancel.")


def requeue(database: Database, job_id: int) -> None:
    """Queue a held, failed, cancelled or interrupted job again; it resumes if it can.

    Raises:
        NotFoundError: no job has that number.
        InputError: it is queued, running or has succeeded, or is not something jobs may ask for.
    """
    job = get(database, job_id)
    job.kind = asked_for(job).kind
    with database.session() as session:
        queued = session.scalar(
            update(Job)
            .where(Job.id == job_id, Job.status.in_(ENDED_EARLY))
            .values(
                status="queued",
                kind=job.kind,
                seal=make_seal(database, job),
                cancel_requested=False,
                error="",
                finished=None,
                pid=None,
            )
            .returning(Job.id)
        )
    if queued is None:
        raise InputError(
            f"Job {job_id} is {get(database, job_id).status}; only jobs that are "
            f"{', '.join(ENDED_EARLY)} can be queued again."
        )


def any_running(database: Database, *, kinds: Sequence[str]) -> bool:
    """Whether a job of one of these kinds is running on this machine."""
    query = _of(database, "running").where(Job.kind.in_(kinds), Job.host == socket.gethostname())
    with database.session() as session:
        return session.scalar(query.limit(1)) is not None


def claim(database: Database, *, without: Sequence[str] = ()) -> Job | None:
    """Take the oldest queued job for this process, or None; no job is taken twice.

    Jobs of the kinds in `without` stay in the queue; those that were not queued here are held.
    """
    wanted = _of(database, "queued").where(Job.kind.not_in(without)).order_by(Job.id).limit(1)
    while True:
        with database.session() as session:
            job = session.scalar(wanted)
            if job is None:
                return None
            sealed = is_sealed(database, job)
            values: dict[str, object] = {"status": "held", "error": HELD}
            if sealed:
                values = {"status": "running", "started": now(), "attempts": job.attempts + 1}
                values |= _here()
            # The status is asked for again, so that a process that loses a race gets the next one.
            same = (Job.id == job.id, Job.status == "queued", Job.seal == job.seal)
            taken = session.scalar(update(Job).where(*same).values(**values).returning(Job.id))
            if taken and sealed:
                session.refresh(job)
                return job


def attach(database: Database, job_id: int, *, pid: int | None = None) -> None:
    """Record that this process, or process `pid` of this machine, is running the job."""
    _set(database, job_id, **(_here() | ({} if pid is None else {"pid": pid})))


def beat(database: Database, job_id: int) -> None:
    """Record that the process of a job lives, also while it makes no steps."""
    _set(database, job_id, heartbeat=now())


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


def end_running(database: Database, job_id: int, status: Status, *, error: str = "") -> bool:
    """Record how a job ended if nobody has done so yet; whether it was this call."""
    still = (Job.id == job_id, Job.status == "running")
    ended = update(Job).where(*still).values(status=status, error=error, finished=now())
    with database.session() as session:
        return session.scalar(ended.returning(Job.id)) is not None


def overdue(database: Database, *, grace: timedelta) -> list[Job]:
    """Jobs of this machine that were asked to stop more than `grace` ago and still run."""
    query = _of(database, "running").where(
        Job.host == socket.gethostname(), Job.cancel_requested, Job.cancelled < now() - grace
    )
    with database.session() as session:
        return list(session.scalars(query))


def reconcile(database: Database) -> list[int]:
    """Mark running jobs as interrupted if their process is gone; return their ids.

    On this machine the process tells, elsewhere the age of the last heartbeat.  Rows of workers
    that are gone go too.
    """
    with database.session() as session:
        running = list(session.scalars(_of(database, "running")))
        workers = list(session.scalars(_workers(database)))
    lost = [job for job in running if not _job_alive(job)]
    found = []
    for job in lost:
        # It may have ended, or been taken again, since it was read.
        same = (Job.id == job.id, Job.status == "running", Job.attempts == job.attempts)
        stopped = update(Job).where(*same, Job.pid == job.pid if job.pid else Job.pid.is_(None))
        with database.session() as session:
            ended = {"status": "interrupted", "finished": now(), "error": LOST}
            taken = session.scalar(stopped.values(**ended).returning(Job.id))
        found += [taken] if taken else []
    dead = [worker.id for worker in workers if not _worker_alive(worker)]
    if dead:
        with database.session() as session:
            session.execute(delete(Worker).where(Worker.id.in_(dead)))
    return found


def worker_alive(database: Database) -> bool:
    """Whether a worker is running for this workspace."""
    with database.session() as session:
        return any(_worker_alive(worker) for worker in session.scalars(_workers(database)))


@contextmanager
def register_worker(database: Database) -> Iterator[Callable[[], None]]:
    """Register this process as a worker; yields a heartbeat function for the block to call."""
    here = {"workspace": database.workspace, "host": socket.gethostname(), "pid": os.getpid()}
    mine = [getattr(Worker, name) == value for name, value in here.items()]

    def beat() -> None:
        with database.session() as session:
            beaten = update(Worker).where(*mine).values(heartbeat=now()).returning(Worker.id)
            if session.scalar(beaten) is None:  # taken for dead while the machine slept
                session.add(Worker(device="local", **here))

    beat()
    try:
        yield beat
    finally:
        with database.session() as session:
            session.execute(delete(Worker).where(*mine))


def _of(database: Database, status: Status) -> Select[tuple[Job]]:
    return select(Job).where(Job.workspace == database.workspace, Job.status == status)


def _workers(database: Database) -> Select[tuple[Worker]]:
    return select(Worker).where(Worker.workspace == database.workspace)


def _set(database: Database, job_id: int, **values: object) -> None:
    with database.session() as session:
        session.execute(update(Job).where(Job.id == job_id).values(**values))


def _here() -> dict[str, object]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "heartbeat": now()}


def _job_alive(job: Job) -> bool:
    if job.host == socket.gethostname():
        return _alive(job.pid, job.heartbeat)
    return job.heartbeat is not None and now() - job.heartbeat < GONE


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
