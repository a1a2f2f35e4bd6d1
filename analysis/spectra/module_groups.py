"""Group modules by layer and kind, so that a map of them stays readable: experts share a cell."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from analysis.adapters.architectures import module_layer

_EXPERT = re.compile(r"\.experts\.(\d{1,6})(?:\.|$)")


def module_kind(name: str) -> str:
    """A module's path without its numbers: the same for all layers, and for all experts."""
    return ".".join(part for part in name.split(".") if not part.isdecimal())


def expert_number(name: str) -> int | None:
    """Which expert of its layer a module belongs to, counted from 0; None if it is no expert's."""
    found = _EXPERT.search(name)
    return int(found[1]) if found else None


def kind_labels(kinds: Iterable[str]) -> dict[str, str]:
    """The shortest unique ending of each kind; at least two parts for experts."""
    paths = {kind: kind.split(".") for kind in kinds}
    endings = Counter(
        ".".join(parts[-length:]) for parts in paths.values() for length in range(1, len(parts) + 1)
    )
    return {kind: _shortest(parts, endings) for kind, parts in paths.items()}


def module_cells(modules: pd.DataFrame) -> pd.DataFrame:
    """One row per layer and kind of module, in order of first appearance.

    Args:
        modules: one row a module, as `analysis.spectra.module_table.module_table` has them.

    Returns:
        Columns `cell` (its number), `layer` (NaN outside the layers), `place` (the kind's
        label), `position` (of its row on a map: the layer, or one step beyond the first or
        last), `modules` (how many), `name` (of the module with the largest singular value),
        `r` and `top` (both maxima), `energy_top1` and `effective_rank` (medians over the
        modules that were updated).
    """
    labels = kind_labels(dict.fromkeys(module_kind(name) for name in modules["name"]))
    keyed = modules.assign(
        place=[labels[module_kind(name)] for name in modules["name"]], cell=cell_numbers(modules)
    )
    groups = keyed.groupby("cell", sort=True)
    strongest = keyed.loc[groups["top"].idxmax()].set_index("cell")
    cells = strongest[["name", "layer", "place", "top"]].assign(
        modules=groups.size(),
        r=groups["r"].max(),
        energy_top1=groups["energy_top1"].median(),
        effective_rank=groups["effective_rank"].median(),
    )
    return cells.assign(position=_positions(cells["layer"])).reset_index()


def cell_numbers(modules: pd.DataFrame) -> list[int]:
    """For each module of a table, the number of its cell in `module_cells`."""
    numbers: dict[tuple[int | None, str], int] = {}
    return [
        numbers.setdefault((module_layer(name), module_kind(name)), len(numbers))
        for name in modules["name"]
    ]


def number_members(members: pd.DataFrame) -> pd.DataFrame:
    """Modules of one cell with a column `number`: the expert's, or their position in the table."""
    experts = [expert_number(name) for name in members["name"]]
    places = range(len(members))
    return members.assign(
        number=[place if one is None else one for one, place in zip(experts, places, strict=True)]
    )


def _shortest(parts: list[str], endings: Mapping[str, int]) -> str:
    for length in range(2 if "experts" in parts[:-1] else 1, len(parts)):
        ending = ".".join(parts[-length:])
        if endings[ending] == 1:
            return ending
    return ".".join(parts)


def _positions(layers: pd.Series) -> np.ndarray:
    """Layers as they are; modules outside them go below the first or above the last."""
    values = layers.to_numpy(dtype=float)
    inside = np.flatnonzero(~np.isnan(values))
    if not inside.size:
        return np.zeros(len(values))
    low, high = values[inside].min() - 1, values[inside].max() + 1
    outside = np.where(np.arange(len(values)) < inside[0], low, high)
    return np.where(np.isnan(values), outside, values)
