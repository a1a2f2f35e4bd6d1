"""Read YAML (and so JSON) files written by people, with the same error messages everywhere."""

from __future__ import annotations

from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from analysis.errors import InputError
from analysis.values import Json


def read_yaml(path: Path | Traversable, *, what: str) -> Any:
    """The content of a file: a mapping, a list, a plain value, or None if it is empty.

    Args:
        path: of the file.
        what: what it should hold, for the message: "settings", "a prompt set".

    Raises:
        InputError: the file is missing, or is not text, or is not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _unreadable(str(path), what, "there is no such file") from None
    except UnicodeDecodeError:
        raise _unreadable(str(path), what, "it is not UTF-8 text") from None
    except OSError as error:
        raise _unreadable(str(path), what, error.strerror or type(error).__name__) from None
    return parse_yaml(text, source=str(path), what=what)


def parse_yaml(text: str, *, source: str, what: str) -> Any:
    """The content of a text; `source` says in the message where it came from.

    Raises:
        InputError: the text is not YAML.
    """
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise _unreadable(source, what, line + problem) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        # A date that does not exist is a ValueError.
        problem = " ".join(str(error).split())[:160]
        raise _unreadable(source, what, problem) from None


def read_mapping(path: Path | Traversable, *, what: str, example: str) -> Json:
    """Read a file of names and values.

    Raises:
        InputError: as `read_yaml` and `as_mapping`.
    """
    return as_mapping(read_yaml(path, what=what), source=str(path), what=what, example=example)


def as_mapping(data: object, *, source: str, what: str, example: str) -> Json:
    """The data, checked to be a mapping with text keys; `example` is a line of such a file.

    Raises:
        InputError: the data is something else, or a name is not text.
    """
    if not isinstance(data, dict):
        raise InputError(
            f"{source} is not a mapping; expected {what}, in lines such as {example!r}."
        )
    odd = [name for name in data if not isinstance(name, str)]
    if odd:
        # YAML takes `on` for True and 2024 for a number.
        raise InputError(
            f"{source} has the name {odd[0]!r}, which is not text; put the name in quotes."
        )
    return data


def _unreadable(source: str, what: str, problem: str) -> InputError:
    return InputError(f"{source} cannot be read ({problem}); expected {what} in YAML.")
