"""What lies where in a run's folder, said once."""

from __future__ import annotations

from pathlib import Path

_ADAPTER = "adapter"


def adapter_of(run: Path) -> Path:
    """The folder of a run's adapter."""
    return run / _ADAPTER


def run_of(folder: Path) -> Path | None:
    """The run whose adapter a folder would be, by its name alone; None under another name."""
    return folder.parent if folder.name == _ADAPTER else None
