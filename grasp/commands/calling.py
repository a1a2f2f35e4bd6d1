"""How a command is called, what it returns, and the exit codes."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from importlib import import_module

from analysis.errors import DatabaseUnavailable, GraspError, OutOfMemory
from analysis.values import Json

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Result:
    """Result of a command: `data` for --json, `text` for people, and the exit code."""

    data: Json
    text: str
    code: int = OK


def call(args: argparse.Namespace, **extra: object) -> Result | None:
    """Call the function of the command in `args`."""
    from grasp.model.out_of_memory import explain_shortage
    from grasp.settings.trust import consent

    function = getattr(import_module(f"grasp.commands.{args.where}"), args.what)
    # A job was written down by somebody; what it says is no consent.
    trusted = bool(getattr(args, "trust_remote_code", None)) and args.job is None
    with consent(trusted), explain_shortage(args.command):
        result: Result | None = function(args, **extra)
    return result


def exit_code(error: GraspError) -> int:
    """Exit code of a command that ended with an error: BAD_INPUT, or FAILED if memory ran out or the database is away."""
    return FAILED if isinstance(error, (OutOfMemory, DatabaseUnavailable)) else BAD_INPUT


def to_json(value: object) -> object:
    """A value made fit for JSON: NaN and infinities become null."""
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
