"""Where an adapter lies: in a folder, in the `adapter/` of a run, or as one of several in either.

A word on a command line, a run of the workbench and a page all come here in the end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from analysis.adapters.files import CONFIG, INDEX, PICKLE, WEIGHTS, refuse
from analysis.errors import AdapterError
from analysis.store.layout import adapter_of

_CHECKPOINT = re.compile(r"checkpoint-(\d{1,12})")


@dataclass(frozen=True)
class Place:
    """The folder with an adapter's files; `name` is one still to be found inside of them."""

    folder: Path
    name: str | None = None


def find_adapter(path: str | Path, name: str | None = None) -> Place:
    """The adapter in a folder or a run, and of several that which is named.

    Raises:
        AdapterError: there is none, or there are several and none of them is named.
    """
    path = Path(path)
    if not path.is_dir():
        refuse(path, "is not a folder", "give the folder that holds " + CONFIG)
    path = home(path)
    named = named_within(path)
    if name in named:
        return Place(path / name)
    if _has_files(path):
        return Place(path, name)
    if not named:
        raise AdapterError(f"{path} has no {CONFIG}; give a folder written by save_pretrained.")
    raise AdapterError(
        f"{path} holds no adapter itself but subfolders do ({', '.join(named)}); give one of them."
    )


def home(folder: Path) -> Path:
    """A folder, or its `adapter/` where it is that which holds the files, as in a run."""
    if _has_files(folder) or not (within := adapter_of(folder) / CONFIG).is_file():
        return folder
    return within.parent


def is_adapter(folder: Path) -> bool:
    """Whether a folder has an adapter's config."""
    return (folder / CONFIG).is_file()


def named_within(folder: Path) -> list[str]:
    """Subfolders that hold an adapter each, numbers in their names in order."""
    found = (config.parent.name for config in folder.glob("*/" + CONFIG))
    return sorted(found, key=lambda one: (step_of(one) or 0, one))


def step_of(name: str) -> int | None:
    """100 for the folder name checkpoint-100; None for another name."""
    found = _CHECKPOINT.fullmatch(name)
    return int(found[1]) if found else None


def _has_files(folder: Path) -> bool:
    return any((folder / file).exists() for file in (CONFIG, WEIGHTS, INDEX, PICKLE))
