"""Rows of data as plain objects, from JSON, Parquet, CSV, folders and the Hub.  Torch-free."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from urllib.parse import parse_qs, urlencode

from analysis.errors import InputError
from grasp.prompts.trait_files import refuse_trait_file

HUB = "hub:"
"""Prefix of the reference to a data set on the Hub."""

Raw = dict[str, object]
"""A row as it was read; `grasp.data.examples` checks its values."""

_HUB_NAME = re.compile(r"([\w.-]+/)?[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LARGEST_CELL = 1 << 26
_WRAPPERS = ("data", "rows", "examples", "instances", "train")
"""Names under which an object of a JSON file holds the rows; as the Hub's viewer, each may lie in
an object of its own under `row`."""


@dataclass(frozen=True)
class HubData:
    """A data set on the Hub, such as `hub:org/name@revision?split=train&config=main`."""

    name: str
    revision: str | None = None
    split: str | None = None
    config: str | None = None

    @classmethod
    def parse(cls, reference: str) -> HubData:
        """Parse a reference.

        Raises:
            InputError: the reference is malformed.
        """
        place, _, query = reference.removeprefix(HUB).partition("?")
        name, _, revision = place.partition("@")
        asked = parse_qs(query, keep_blank_values=True)
        known = set(asked) <= {"split", "config"} and all(
            len(v) == 1 and v[0] for v in asked.values()
        )
        if not _HUB_NAME.fullmatch(name) or not known:
            raise InputError(
                f"{reference!r} does not name a data set; expected a reference such as "
                "hub:org/name@revision?split=train&config=main; only the name is required."
            )
        single = {key: values[0] for key, values in asked.items()}
        return cls(name, revision or None, single.get("split"), single.get("config"))

    def __str__(self) -> str:
        """The reference that parses to this data set."""
        asked = {k: v for k, v in (("split", self.split), ("config", self.config)) if v}
        revision = f"@{self.revision}" if self.revision else ""
        return f"{HUB}{self.name}{revision}" + (f"?{urlencode(asked)}" if asked else "")


def pin_reference(reference: str) -> str:
    """The same reference with a data set on the Hub pinned to its commit; others unchanged.

    Raises:
        InputError: the Hub cannot resolve the revision.
    """
    if not reference.startswith(HUB):
        return reference
    data = HubData.parse(reference)
    if data.revision and _COMMIT.fullmatch(data.revision):
        return reference
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(data.name, revision=data.revision).sha
    except Exception as error:  # the network and the library may raise anything
        raise InputError(
            f"The revision of {reference} cannot be looked up ({_first_line(error)}); name a "
            "data set that can be reached, or give its commit: hub:org/name@COMMIT."
        ) from None
    return str(HubData(data.name, commit, data.split, data.config))


def read_rows(reference: str) -> list[Raw]:
    """All rows of a file, a folder or a data set on the Hub, in order.

    A folder is either written by `datasets.save_to_disk`, or holds data files of one format.

    Raises:
        InputError: the source cannot be read, or holds no rows.
    """
    if reference.startswith(HUB):
        rows = _hub(HubData.parse(reference))
    else:
        path = Path(reference)
        rows = _folder(path) if path.is_dir() else _file(path)
    if not rows:
        raise InputError(f"{reference} holds no rows; expected at least one.")
    return rows


def _file(path: Path) -> list[Raw]:
    reader = _READERS.get(path.suffix.lower())
    if not path.is_file():
        raise InputError(
            f"There is no file or folder {path}; name a data file, or a data set as hub:org/name."
        )
    if reader is None:
        raise InputError(
            f"{path} has {f'the suffix {path.suffix}' if path.suffix else 'no suffix'}; expected "
            f"one of {', '.join(_READERS)}."
        )
    return reader(path)


def _folder(path: Path) -> list[Raw]:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return _saved(path)
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in _READERS and p.is_file())
    endings = sorted({file.suffix.lower() for file in files})
    if len(endings) != 1:
        there = f"{len(endings)} formats ({', '.join(endings)})" if endings else "no data files"
        raise InputError(
            f"The folder {path} holds {there}; expected data files of one format "
            f"({', '.join(_READERS)}), or a folder that datasets.save_to_disk wrote."
        )
    return [row for file in files for row in _file(file)]


def _saved(path: Path) -> list[Raw]:
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(path))
    except Exception as error:  # a damaged folder fails in many ways
        raise InputError(
            f"{path} cannot be read as a saved data set ({_first_line(error)})."
        ) from None
    if isinstance(found, DatasetDict):
        splits = sorted(found)
        if len(splits) != 1:
            raise InputError(
                f"{path} holds the splits {', '.join(splits)}; name one of them, such as "
                f"{path / splits[0]}."
            )
        found = found[splits[0]]
    return cast(list[Raw], found.to_list())


def _hub(data: HubData) -> list[Raw]:
    from datasets import DatasetDict, load_dataset

    try:
        found = load_dataset(data.name, data.config, split=data.split, revision=data.revision)
    except Exception as error:  # as in `pin_reference`
        raise InputError(f"{data} cannot be read ({_first_line(error)}).") from None
    if isinstance(found, DatasetDict):
        splits = sorted(found)
        if len(splits) != 1:
            raise InputError(
                f"{data} has the splits {', '.join(splits)}; name one, such as "
                f"{HubData(data.name, data.revision, splits[0], data.config)}."
            )
        found = found[splits[0]]
    return cast(list[Raw], found.to_list())


def _json(path: Path) -> list[Raw]:
    """A JSON array of objects, or one object per line, whatever the file's suffix.

    The array may be the one value of an object that has one of the names of `_WRAPPERS`.
    """
    text = _text(path)
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip()[:1] != "[":
            return _json_lines(path, text)
        raise InputError(f"{path} cannot be read as JSON ({_first_line(error)}).") from None
    refuse_trait_file(rows, path)
    rows = _unwrapped(rows) if isinstance(rows, dict) else rows
    if not isinstance(rows, list):
        return _json_lines(path, text)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InputError(f"{path}, row {number} is {_shown(row)}; expected an object.")
    return cast(list[Raw], rows)


def _unwrapped(found: Raw) -> object:
    """The rows in an object around them; the object itself, as one row, where it has none."""
    wrapped = [found[name] for name in _WRAPPERS if isinstance(found.get(name), list)]
    if len(wrapped) != 1:
        return [found]
    (rows,) = wrapped
    inner = [row.get("row") if isinstance(row, dict) else None for row in cast(list[Raw], rows)]
    return inner if inner and all(isinstance(row, dict) for row in inner) else rows


def _json_lines(path: Path, text: str) -> list[Raw]:
    rows: list[Raw] = []
    # Not splitlines, since JSON strings may contain other line separators, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number} cannot be read as JSON ({_first_line(error)}); expected "
                "one object per line, or one array of objects."
            ) from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number} is {_shown(row)}; expected an object.")
        rows.append(row)
    return rows


def _parquet(path: Path) -> list[Raw]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            return cast(list[Raw], file.read().to_pylist())
    except (ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as Parquet ({_first_line(error)}).") from None


def _csv(path: Path) -> list[Raw]:
    return _separated(path, ",")


def _tsv(path: Path) -> list[Raw]:
    return _separated(path, "\t")


def _separated(path: Path, separator: str) -> list[Raw]:
    """A table whose first line names the columns; all cells are text."""
    csv.field_size_limit(_LARGEST_CELL)
    _text(path)
    rows: list[Raw] = []
    # With newline="" the reader handles line ends inside quotes.
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
        try:
            names = next(reader, [])
            if len(set(names)) != len(names):
                raise InputError(f"{path} names a column twice; rename one.")
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(names):
                    raise InputError(
                        f"{path}, line {reader.line_num} has {len(cells)} cells; the first line "
                        f"names {len(names)} columns."
                    )
                rows.append(dict(zip(names, cells, strict=True)))
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: {error}.") from None
    return rows


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text ({error}).") from None


_READERS: dict[str, Callable[[Path], list[Raw]]] = {
    ".jsonl": _json,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
    ".tsv": _tsv,
}


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"
