"""The line `grasp retrain …`, as jobs keep it: built from typed values, and read back."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from analysis.errors import InputError


@dataclass(frozen=True)
class Retrain:
    """What a line asks for; None, no factors and False are left out of it.

    The fields are the options of `grasp retrain`, in the order in which they are written.
    """

    run: str
    factors: tuple[str, ...] = ()
    method: str = "grasp"
    strength: float | None = None
    tolerance: float | None = None
    inoculation: str | None = None
    seed: int | None = None
    data: str | None = None
    config: str | None = None
    dry_run: bool = False
    out: str | None = None
    evaluate: bool = False

    def argv(self, workspace: Path | None = None) -> list[str]:
        """The arguments of `grasp`; factors of the run itself are named without it."""
        argv = ["retrain", self.run]
        for name in _READ:
            argv += self._words(name)
        return argv if workspace is None else [*argv, "--workspace", str(workspace)]

    def _words(self, name: str) -> list[str]:
        value, option = getattr(self, name), _option(name)
        if value is None or value is False or value == ():
            return []
        if value is True:
            return [option]
        text = _text(value, run=self.run)
        # What begins with a dash would be taken for an option.
        return [f"{option}={text}"] if text.startswith("-") else [option, text]


def read_retrain(argv: Sequence[str]) -> Retrain:
    """What a line asks for, but for options that a `Retrain` has not.

    Raises:
        InputError: it is another command, or cannot be read.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("command", choices=["retrain"])
    parser.add_argument("run")
    for name, read in _READ.items():
        if read is None:
            parser.add_argument(_option(name), action="store_true")
        else:
            parser.add_argument(_option(name), type=read, default=getattr(Retrain, name))
    found, _ = parser.parse_known_args(argv)
    return Retrain(**{name: getattr(found, name) for name in ("run", *_READ)})


def names_of(text: str) -> tuple[str, ...]:
    """The names in a list such as w1,w2."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


_READ: dict[str, Callable[[str], Any] | None] = {
    "factors": names_of,
    "method": str,
    "strength": float,
    "tolerance": float,
    "inoculation": str,
    "seed": int,
    "data": str,
    "config": str,
    "dry_run": None,
    "out": str,
    "evaluate": None,
}
"""How each option's value is read; None has no value."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise what any other bad input raises."""
        raise InputError(f"This is no line of grasp retrain: {message}.")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _text(value: Any, *, run: str) -> str:
    """A value as it is typed; a number to as many digits as it takes to be read as itself."""
    if isinstance(value, tuple):
        return ",".join(name.removeprefix(f"{run}/") for name in value)
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)
