"""The modules of an adapter as a table: one row each, with the measures of its spectrum."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from analysis.spectra.spectrum import ModuleSpectrum

_WITHIN_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.\d+\.(.+)$")


def module_table(spectra: Sequence[ModuleSpectrum]) -> pd.DataFrame:
    """One row per module: name, layer, place (path within its layer), side, rank, and measures.

    `layer` is NaN outside the layers.  `top` is the largest singular value in the units of W;
    `energy_top1` and `effective_rank` are those of `analysis.spectra.spectrum`.
    """
    rows = [
        {
            "name": one.name,
            "layer": one.layer,
            "place": module_place(one.name),
            "side": one.side,
            "r": one.r,
            "top": float(one.singular_values.max(initial=0.0)),
            "energy_top1": one.energy_top1,
            "effective_rank": one.effective_rank,
        }
        for one in spectra
    ]
    return pd.DataFrame(rows)


def module_place(name: str) -> str:
    """A module's path within its layer, such as `o_proj`; its whole path outside the layers."""
    match = _WITHIN_LAYER.search(name)
    if match is None:
        return name
    place = match[1]
    return place.split(".", 1)[1] if place.count(".") == 1 else place
