"""Progress of a long action: on standard error, and in the job's row if it is a job."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from analysis.errors import DatabaseUnavailable
from analysis.store.database import Database
from analysis.text import duration_text
from grasp.jobs import queue


_PAUSE = 5.0
"""Seconds without progress after the database did not take it."""


class Progress(Protocol):
    """Called with steps done, total steps and a short message; may raise `queue.Cancelled`."""

    def __call__(self, step: int, total: int, message: str) -> None:
        """Report progress."""


def silent(step: int, total: int, message: str) -> None:
    """Report nothing."""


class TimeLeft:
    """Seconds until the present stage ends, at its pace since its first report.

    An action may have several stages, each counted from 0: loading a model or an earlier stage says
    nothing about the pace of the next.
    """

    def __init__(self) -> None:
        self._total = self._last = self._first = 0
        self._since = 0.0

    def __call__(self, step: int, total: int, *, moment: float) -> float | None:
        """The estimate at `moment`, in seconds of a steady clock; None at a stage's first item."""
        if total != self._total or step < self._last:
            self._total, self._first, self._since = total, step, moment
        self._last = step
        done = step - self._first
        return (moment - self._since) * (total - step) / done if done > 0 else None


class TerminalProgress:
    """One line on standard error, with the time since the start and what is left of this stage."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._shown = 0.0
        self._left = TimeLeft()

    def __call__(self, step: int, total: int, message: str) -> None:
        """Report five times a second on a terminal, else every five seconds, and at the end."""
        moment = time.monotonic()
        elapsed, seconds = moment - self._start, self._left(step, total, moment=moment)
        if step < total and elapsed - self._shown < (0.2 if sys.stderr.isatty() else 5.0):
            return
        self._shown = elapsed
        left = "" if seconds is None else f"{seconds:4.0f} s left"
        line = f"{message:<40} {step:>5}/{total} {elapsed:5.0f} s {left:<12}"
        sys.stderr.write(f"\r{line}" if sys.stderr.isatty() else f"{line.rstrip()}\n")
        if step >= total and sys.stderr.isatty():
            sys.stderr.write("\n")
        sys.stderr.flush()


class JobProgress:
    """Progress in a job's row, written at most twice a second.

    It is left out while the database does not take it: that is no reason to stop the work.
    """

    def __init__(self, database: Database, job_id: int) -> None:
        self._database = database
        self._job_id = job_id
        self._written = 0.0
        self._left = TimeLeft()

    def __call__(self, step: int, total: int, message: str) -> None:
        """Report progress; raises Cancelled once a person has asked the job to stop."""
        moment = time.monotonic()
        seconds = self._left(step, total, moment=moment)
        if step < total and moment - self._written < 0.5:
            return
        self._written = moment
        if seconds is not None and step < total:
            message = f"{message}, about {duration_text(seconds)} left of this stage"
        try:
            queue.report_progress(
                self._database, self._job_id, step=step, total=total, message=message
            )
        except DatabaseUnavailable as error:
            print(f"Progress is not recorded for now. {error}", file=sys.stderr)
            self._written = time.monotonic() + _PAUSE
