"""The layout of a run's folder, defined once."""

from __future__ import annotations

from pathlib import Path

_ADAPTER = "adapter"


def adapter_of(run: Path) -> Path:
    """The folder of a run's adapter."""
    return run / _ADAPTER


def run_of(folder: Path) -> Path | None:
    """The run's folder, if a folder has the name of a run's adapter folder; else None."""
    return folder.parent if folder.name == _ADAPTER else None
