"""Find an adapter: in a folder, in the `adapter/` of a run, or as one of several in either.

Command-line arguments, runs of the workbench and pages are all resolved here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from analysis.adapters.files import CONFIG, INDEX, PICKLE, WEIGHTS, refuse
from analysis.errors import AdapterError
from analysis.store.layout import adapter_of

TOKENIZER = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"

_CHECKPOINT = re.compile(r"checkpoint-(\d{1,12})")


@dataclass(frozen=True)
class Place:
    """The folder with an adapter's files; `name` chooses one of several within the files."""

    folder: Path
    name: str | None = None


def find_adapter(path: str | Path, name: str | None = None) -> Place:
    """The adapter in a folder or a run; `name` chooses one of several.

    Raises:
        AdapterError: there is none, or there are several and none of them is chosen.
    """
    path = Path(path)
    if not path.is_dir():
        refuse(path, "is not a folder", "give the folder that contains " + CONFIG)
    path = adapter_home(path)
    named = adapters_within(path)
    if name in named:
        return Place(path / name)
    if _has_files(path):
        return Place(path, name)
    if not named:
        raise AdapterError(f"{path} has no {CONFIG}; give a folder written by save_pretrained.")
    raise AdapterError(
        f"{path} is not an adapter, but its subfolders are ({', '.join(named)}); give one of them."
    )


def adapter_home(folder: Path) -> Path:
    """The folder itself, or its `adapter/` if the files are there, as in a run."""
    if _has_files(folder) or not (within := adapter_of(folder) / CONFIG).is_file():
        return folder
    return within.parent


def is_adapter(folder: Path) -> bool:
    """Whether a folder has an adapter's config."""
    return (folder / CONFIG).is_file()


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer, or a chat template alone, lies in an adapter's folder."""
    return any((folder / name).is_file() for name in (TOKENIZER, TEMPLATE))


def adapters_within(folder: Path) -> list[str]:
    """Subfolders with an adapter each; checkpoints are sorted by step."""
    found = (config.parent.name for config in folder.glob("*/" + CONFIG))
    return sorted(found, key=lambda one: (step_of(one) or 0, one))


def step_of(name: str) -> int | None:
    """The step in a folder name such as checkpoint-100; None for any other name."""
    found = _CHECKPOINT.fullmatch(name)
    return int(found[1]) if found else None


def _has_files(folder: Path) -> bool:
    return any((folder / file).exists() for file in (CONFIG, WEIGHTS, INDEX, PICKLE))
