"""The figures of the results page, as SVG that is legible on light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analysis.statistics.intervals import Interval
from grasp.bench.plan.plan import Plan
from grasp.bench.svg import svg_figure
from grasp.bench.tables.phase import Point, points
from grasp.bench.tables.removal import core_table
from grasp.bench.tables.rivals import rivals_table
from grasp.bench.tables.tables import Row

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

GREY = "#808890"
COLOURS = ("#2f9e6e", "#d9633a", "#4c83d6", "#b56cc4", "#b8930a", "#3aa5b8", "#d05a86", "#8a8f3c")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
PER_ROW = 3


def draw_figures(root: Path, plan: Plan, out: Path) -> list[Path]:
    """Write `<stem>-frontier.svg` and `<stem>-phase.svg` next to `out`, as far as there is data.

    Returns:
        The paths of the files written.

    Raises:
        InputError: matplotlib is not installed.
    """
    written = []
    table = rivals_table(root, plan) if plan.rivals else core_table(root, plan)
    rows = [row for row in table.rows if isinstance(row.get("removal"), Interval)]
    if rows:
        written.append(_frontier(rows, out.with_name(f"{out.stem}-frontier.svg")))
    found = points(root, plan)
    if plan.phase is not None and len(plan.phase.crossed) == 2 and found:
        axes = tuple(plan.phase.crossed)
        written.append(_phase(found, (axes[0], axes[1]), out.with_name(f"{out.stem}-phase.svg")))
    return written


def _frontier(rows: Sequence[Row], path: Path) -> Path:
    """Removal against task accuracy with intervals: one panel per story, one colour per arm."""
    stories = list(dict.fromkeys(row["group"] for row in rows))
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    across = min(len(stories), PER_ROW)
    down = -(-len(stories) // across)
    with svg_figure(path, (3.0 * across + 2.2, 2.8 * down + 0.3), ink=GREY) as figure:
        panels = figure.subplots(down, across, sharey=True, squeeze=False)
        for panel, story in zip(panels.flat, stories, strict=False):
            for row in (row for row in rows if row["group"] == story):
                number = arms.index(row["arm"])
                _cross(panel, row["task"], row["removal"], number, row["arm"])
            panel.set_title(story, loc="left", fontsize=9)
            panel.set_xlabel("task accuracy")
            panel.spines[["top", "right"]].set_visible(False)
        for panel in list(panels.flat)[len(stories) :]:
            panel.set_axis_off()
        panels[0, 0].set_ylabel("share of drift removed")
        named: dict[str, Artist] = {}
        for panel in panels.flat:
            drawn, names = panel.get_legend_handles_labels()
            named |= dict(zip(names, drawn, strict=True))
        figure.legend(
            named.values(), named.keys(), loc="outside right upper", frameon=False, fontsize=8
        )
    return path


def _cross(panel: Axes, x: Interval, y: Interval, number: int, label: str) -> None:
    panel.errorbar(
        x.value,
        y.value,
        xerr=_arms(x),
        yerr=_arms(y),
        fmt=MARKERS[number % len(MARKERS)],
        color=COLOURS[number % len(COLOURS)],
        markerfacecolor="none" if number >= len(COLOURS) else None,
        markersize=5,
        linewidth=1,
        label=label,
    )


def _arms(interval: Interval) -> NDArray[np.float64]:
    """Distances (2, 1) to both ends of an interval; 0 if an end is unknown."""
    low, high = interval.value - interval.low, interval.high - interval.value
    ends: NDArray[np.float64] = np.maximum(np.nan_to_num([[low], [high]]), 0.0)
    return ends


def _phase(found: Sequence[Point], axes: tuple[str, str], path: Path) -> Path:
    """One row per story: cosine and removal over two settings, the others at their defaults."""
    across, up = axes[1], axes[0]
    others = _defaults(found, axes)
    stories = list(dict.fromkeys(point.story for point in found))
    with svg_figure(path, (7.6, 2.7 * len(stories) + 0.4), ink=GREY) as figure:
        panels = figure.subplots(len(stories), 2, squeeze=False)
        for row, story in zip(panels, stories, strict=True):
            those = [
                point
                for point in found
                if point.story == story
                and all(point.values.get(name) == value for name, value in others.items())
            ]
            marks = {_at(p, axes): "" if p.hit.value >= 0.5 else " ✕" for p in those}
            _heat(row[0], {_at(p, axes): p.cosine for p in those}, marks)
            _heat(row[1], {_at(p, axes): p.removal.value for p in those}, {})
            row[0].set_title(f"{story}: |cos|; ✕ not found", loc="left", fontsize=9)
            row[1].set_title(f"{story}: removal", loc="left", fontsize=9)
            for panel in row:
                panel.set_xlabel(across)
            row[0].set_ylabel(f"spurious {up}" if up == "strength" else up)
    return path


def _defaults(found: Sequence[Point], axes: tuple[str, str]) -> dict[str, float]:
    """The most common value of every setting that is not an axis, at which the grid was run."""
    names = [name for name in found[0].values if name not in axes]
    every = {name: [point.values[name] for point in found] for name in names}
    return {name: max(set(values), key=values.count) for name, values in every.items()}


def _at(point: Point, axes: tuple[str, str]) -> tuple[float, float]:
    return point.values[axes[0]], point.values[axes[1]]


def _heat(
    panel: Axes, values: dict[tuple[float, float], float], marks: dict[tuple[float, float], str]
) -> None:
    """Coloured cells with their numbers; "–" if a value is unknown."""
    rows, columns = (sorted({place[i] for place in values}) for i in (0, 1))
    grid = np.array([[values.get((r, c), np.nan) for c in columns] for r in rows])
    panel.imshow(np.clip(grid, 0, 1), cmap="viridis", vmin=0, vmax=1, origin="lower", aspect="auto")
    panel.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
    panel.set_yticks(range(len(rows)), [f"{value:g}" for value in rows])
    for i, j in np.ndindex(grid.shape):
        value = grid[i, j]
        known = bool(np.isfinite(value))
        text = f"{value:.2f}{marks.get((rows[i], columns[j]), '')}" if known else "–"
        ink = GREY if not known else "black" if value > 0.6 else "white"
        panel.text(j, i, text, ha="center", va="center", color=ink, fontsize=8)
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0)
