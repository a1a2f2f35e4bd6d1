"""Whether the pages may write: not where the dashboard was started with --read-only.

Pages leave out or disable what writes.  That is for the eye: what holds is that the workspace is
opened to be read only, and that no job can be started.
"""

from __future__ import annotations

import os

from analysis.errors import InputError
from dashboard import READ_ONLY_VARIABLE

READ_ONLY = "Read-only: everything can be looked at here, and nothing can be changed or started."


def read_only() -> bool:
    """Whether no page may write."""
    return bool(os.environ.get(READ_ONLY_VARIABLE))


def refuse_if_read_only() -> None:
    """Refuse what would write.

    Raises:
        InputError: the dashboard is read-only.
    """
    if read_only():
        raise InputError("This dashboard is read-only, so nothing was changed or started.")
