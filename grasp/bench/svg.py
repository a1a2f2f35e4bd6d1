"""Figures as SVG files that are legible on light and dark pages, and equal where the data are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")


@contextmanager
def svg_figure(
    path: Path, size: tuple[float, float], *, ink: str, style: dict[Any, Any] | None = None
) -> Iterator[Figure]:
    """A transparent figure that is saved at the end of the block.

    Args:
        path: of the file.
        size: width and height in inches.
        ink: colour of all text and axes.
        style: further settings of matplotlib.

    Raises:
        InputError: matplotlib is not installed, or the folder does not exist.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError(
            "Figures need matplotlib; install it with pip install 'grasp-workbench[bench]'."
        ) from None
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent} for the figure {path.name}; make it.")
    common: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": path.stem, "font.size": 9}
    with mpl.rc_context(common | dict.fromkeys(_INKED, ink) | (style or {})):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
