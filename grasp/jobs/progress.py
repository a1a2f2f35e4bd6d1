"""Progress of a long action: on standard error, and in the job's row if it is a job."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from analysis.errors import DatabaseUnavailable
from analysis.store.database import Database
from grasp.jobs import queue

_PAUSE = 5.0
"""Seconds without progress after the database did not take it."""


class Progress(Protocol):
    """Called with steps done, total steps and a short message; may raise `queue.Cancelled`."""

    def __call__(self, step: int, total: int, message: str) -> None:
        """Report progress."""


def silent(step: int, total: int, message: str) -> None:
    """Report nothing."""


class TerminalProgress:
    """One line on standard error, with the time left."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._shown = 0.0

    def __call__(self, step: int, total: int, message: str) -> None:
        """Report five times a second on a terminal, every five seconds elsewhere, and at the end.

        There is no estimate during the first twentieth, which is mostly loading.
        """
        elapsed = time.monotonic() - self._start
        if step < total and elapsed - self._shown < (0.2 if sys.stderr.isatty() else 5.0):
            return
        self._shown = elapsed
        known = step * 20 >= total > 0
        left = f"{elapsed * (total - step) / step:4.0f} s left" if known else ""
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

    def __call__(self, step: int, total: int, message: str) -> None:
        """Report progress; raises Cancelled once a person has asked the job to stop."""
        moment = time.monotonic()
        if step < total and moment - self._written < 0.5:
            return
        self._written = moment
        try:
            queue.report_progress(
                self._database, self._job_id, step=step, total=total, message=message
            )
        except DatabaseUnavailable as error:
            print(f"Progress is not recorded for now. {error}", file=sys.stderr)
            self._written = time.monotonic() + _PAUSE
