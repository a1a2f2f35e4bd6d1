"""What pages read from adapters, cached by the hash of their files.

The same weights at another path, or written again, are not read a second time.  A folder that
cannot be read raises AdapterError each time, because errors are not cached.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from analysis.adapters.load import load_adapter
from analysis.errors import InputError
from analysis.spectra.module_table import module_table
from analysis.spectra.report import adapter_report
from analysis.spectra.spectrum import ModuleSpectrum, module_spectra
from dashboard.state.caches import Stamp, stamp
from grasp.hub.repository import HubName, Pinned, hub_name

if TYPE_CHECKING:
    from analysis.factors.residual import ResidualSide
    from grasp.hub.outline import Listing, Outline

_BLOCK = 1 << 20


def load_report(
    adapter: Path, *, name: str | None = None, low_rank_part: bool = False
) -> dict[str, Any]:
    """The loader's report on a folder, as in `analysis.spectra.report`; reads headers only."""
    folders = (stamp(adapter), stamp(adapter / (name or "adapter")))
    return _report(str(adapter), folders, name, low_rank_part)


@st.cache_data(max_entries=256, show_spinner=False)
def _report(
    adapter: str, files: tuple[Stamp, ...], name: str | None, low_rank_part: bool
) -> dict[str, Any]:
    return adapter_report(load_adapter(adapter, name=name, low_rank_part=low_rank_part))


def hub_listing(word: str) -> Listing:
    """The adapters in a repository on the Hub; cached for a minute."""
    return _hub_listing(word)


@st.cache_data(max_entries=32, ttl=60, show_spinner="Asking the Hub …")
def _hub_listing(word: str) -> Listing:
    from grasp.hub.outline import list_adapters

    return list_adapters(_hub_name(word))


def hub_outline(word: str, at: Pinned, *, low_rank_part: bool = False) -> Outline:
    """What an adapter on the Hub holds at a commit; a commit never changes."""
    return _hub_outline(word, at, low_rank_part)


@st.cache_data(max_entries=32, show_spinner="Asking the Hub …")
def _hub_outline(word: str, at: Pinned, low_rank_part: bool) -> Outline:
    from grasp.hub.outline import read_outline

    return read_outline(_hub_name(word), at, low_rank_part=low_rank_part)


def _hub_name(word: str) -> HubName:
    name = hub_name(word)
    if name is None:
        raise InputError(f"{word} is not a Hub id; expected org/name or org/name@revision.")
    return name


def spectra(adapter: Path, *, low_rank_part: bool = False) -> list[ModuleSpectrum]:
    """Spectra of all modules of an adapter folder; shared, so do not modify them."""
    return _spectra(digest(adapter), low_rank_part, str(adapter))


# Not copied: copies of thousands of modules would take longer than drawing them.
@st.cache_resource(max_entries=64, show_spinner="Reading the adapter …")
def _spectra(digest: str, low_rank_part: bool, _adapter: str) -> list[ModuleSpectrum]:
    return module_spectra(load_adapter(_adapter, low_rank_part=low_rank_part))


def modules(adapter: Path, *, low_rank_part: bool = False) -> pd.DataFrame:
    """One row a module, as `analysis.spectra.module_table.module_table` has them."""
    return _modules(digest(adapter), low_rank_part, str(adapter))


@st.cache_data(max_entries=256, show_spinner=False)
def _modules(digest: str, low_rank_part: bool, _adapter: str) -> pd.DataFrame:
    return module_table(_spectra(digest, low_rank_part, _adapter))


def factor_spectrum(
    adapter: Path, *, side: ResidualSide, max_layer: int | None, low_rank_part: bool = False
) -> list[float]:
    """Singular values of an adapter's residual-stream factors, strongest first."""
    return _factor_spectrum(digest(adapter), side, max_layer, low_rank_part, str(adapter))


@st.cache_data(max_entries=128, show_spinner="Reading the adapter …")
def _factor_spectrum(
    digest: str, side: ResidualSide, max_layer: int | None, low_rank_part: bool, _adapter: str
) -> list[float]:
    from analysis.factors.residual import residual_factors

    modules = load_adapter(_adapter, low_rank_part=low_rank_part).modules
    found = residual_factors(modules, side=side, max_layer=max_layer, k=40)
    return [float(value) for value in found.singular_values]


def digest(adapter: Path) -> str:
    """Hex SHA-256 of an adapter's config and weight files with their names, "" if it has none.

    Files are read again only if their size or modification time has changed.
    """
    return _digest(str(adapter), stamp(adapter), ("adapter_config", "adapter_model"))


def weights_digest(adapter: Path) -> str:
    """As `digest`, of the weights only: a checkpoint's config may be written differently."""
    return _digest(str(adapter), stamp(adapter), ("adapter_model",))


@st.cache_data(max_entries=1024, show_spinner="Reading the adapter …")
def _digest(adapter: str, files: Stamp, beginnings: tuple[str, ...]) -> str:
    found = hashlib.sha256()
    names = [name for name, _, _ in files if name.startswith(beginnings)]
    for name in names:
        found.update(name.encode())
        with open(os.path.join(adapter, name), "rb") as file:
            while block := file.read(_BLOCK):
                found.update(block)
    return found.hexdigest() if names else ""
