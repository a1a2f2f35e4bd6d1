"""How a command opens an adapter: which of several, by whose sides, and what is allowed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from analysis.adapters.architectures import read_family
from analysis.adapters.files import CONFIG
from analysis.adapters.load import Adapter, load_adapter
from analysis.store.workspace import is_id
from grasp.foreign.pickled import readable_adapter


@contextmanager
def opened_adapter(folder: Path, args: argparse.Namespace) -> Iterator[Adapter]:
    """The adapter in a folder, as the options `--name`, `--sides` and the like say.

    A pickle is read from a copy, which lasts as long as the context.

    Raises:
        AdapterError: as `load_adapter`, or the pickle is not plain tensors.
        InputError: the file of sides is not one.
    """
    family = read_family(args.sides) if args.sides else None
    own = args.name is not None and is_id(args.name) and (folder / args.name / CONFIG).exists()
    place, name = (folder / args.name, None) if own else (folder, args.name)
    with readable_adapter(place, allow_pickle=args.allow_pickle) as readable:
        yield load_adapter(readable, name=name, family=family, low_rank_part=args.low_rank_part)


def as_named(adapter: Adapter, folder: Path) -> Adapter:
    """The adapter, under the path that was named where it was read from a copy."""
    return adapter if adapter.path.is_relative_to(folder) else replace(adapter, path=folder)
