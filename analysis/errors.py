"""Errors shown to the user as one sentence, never as a traceback.

The command line prints the message of a `GraspError` and exits with code 2; the dashboard
shows it as a notice on the page.  The subclasses also derive from built-in errors, so that
code which does not know this package can still catch a ValueError or a LookupError.
"""

from __future__ import annotations


class GraspError(Exception):
    """An error the user can fix; the message says what was wrong and what to do."""


class InputError(GraspError, ValueError):
    """A value, file or record is invalid."""


class NotFoundError(GraspError, LookupError):
    """The named run, factor, recording, evaluation or job does not exist."""


class DatabaseUnavailable(GraspError):
    """The database cannot be reached, is locked or damaged, or has no room; nothing was saved."""


class OutOfMemory(GraspError):
    """The device has less memory than the work needs; the message gives both numbers."""


class AdapterError(InputError):
    """A folder is not a LoRA adapter whose delta weights can be read exactly."""


class SchemaError(InputError):
    """A saved record has a schema version or a layout that this version cannot read."""
