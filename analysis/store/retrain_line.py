"""The command line `grasp retrain …` of a job: built from typed values, and read back."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from analysis.errors import InputError


@dataclass(frozen=True)
class Retrain:
    """The arguments of a `grasp retrain` line; None, no factors and False are left out of it.

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
        """The arguments of `grasp`; factors of the run itself are written without the run."""
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
        # argparse would take a value that begins with a dash for an option.
        return [f"{option}={text}"] if text.startswith("-") else [option, text]


def read_retrain(argv: Sequence[str]) -> Retrain:
    """Read back the arguments of a line; options that `Retrain` lacks are ignored.

    Raises:
        InputError: it is another command, or cannot be parsed.
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


def number_text(value: float) -> str:
    """A number with as many digits as it needs to be read back exactly."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def split_names(text: str) -> tuple[str, ...]:
    """The names in a comma-separated list such as w1,w2."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


_READ: dict[str, Callable[[str], Any] | None] = {
    "factors": split_names,
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
"""How the value of each option is parsed; None for options without a value."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise InputError, as for any other bad input."""
        raise InputError(f"This is not a `grasp retrain` line: {message}.")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _text(value: Any, *, run: str) -> str:
    """A value as it is typed; a number gets as many digits as it needs to be read back exactly."""
    if isinstance(value, tuple):
        return ",".join(name.removeprefix(f"{run}/") for name in value)
    return number_text(value) if isinstance(value, float) else str(value)
