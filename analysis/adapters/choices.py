"""What the user has to choose before a folder can be opened, such as one of several adapters.

Nothing is refused here: an unreadable folder gives no choices, and opening it says why.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from analysis.adapters.checkpoints import list_checkpoints
from analysis.adapters.files import CONFIG, read_json, stored_tensors
from analysis.adapters.place import adapter_home, adapters_within, is_adapter
from analysis.errors import AdapterError
from analysis.values import Json

_NAMED = re.compile(r".+\.lora_(?:embedding_)?[AB]\.([^.]+?)(?:\.weight)?")


@dataclass(frozen=True)
class Choices:
    """The choices of a folder.

    `names` are the adapters to choose from, if there are several; `itself` says that the folder
    is an adapter too, which is opened without a name; `steps` are those of its checkpoints;
    `dora` says that the update depends on the base weights.
    """

    names: tuple[str, ...] = ()
    itself: bool = True
    steps: tuple[int, ...] = ()
    dora: bool = False


def adapter_choices(folder: str | Path, *, name: str | None = None) -> Choices:
    """The choices of a folder; `dora` is about the adapter `name` in it."""
    root = adapter_home(Path(folder))
    itself = is_adapter(root)
    within = names_in_file(_keys(root)) if itself else ()
    below = adapters_within(root)
    named = root / name if name in below and name is not None else root
    return Choices(
        names=(*within, *below) if len(within) > 1 or below else (),
        itself=itself and len(within) < 2,
        steps=_steps(Path(folder)),
        dora=is_dora(_config(named)),
    )


def names_in_file(keys: Iterable[str]) -> tuple[str, ...]:
    """Names of adapters contained in names of tensors, such as `….lora_A.persona.weight`."""
    found = (_NAMED.fullmatch(key) for key in keys)
    names = {match[1] for match in found if match is not None and match[1] != "weight"}
    return tuple(sorted(names))


def uses_dora(folder: Path) -> bool:
    """Whether the adapter in a folder is a DoRA, according to its config."""
    return is_dora(_config(folder))


def is_dora(config: Mapping[str, object]) -> bool:
    """Whether a config says that the update depends on the base weights' norms."""
    return bool(config.get("use_dora"))


def _keys(folder: Path) -> Iterable[str]:
    try:
        return stored_tensors(folder)
    except AdapterError:
        return ()


def _config(folder: Path) -> Json:
    try:
        return read_json(folder, CONFIG)
    except AdapterError:
        return {}


def _steps(folder: Path) -> tuple[int, ...]:
    try:
        return tuple(one.step for one in list_checkpoints(folder) if one.step is not None)
    except AdapterError:
        return ()
