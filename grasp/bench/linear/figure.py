"""The figure of the linear world in the docs, and its numbers, as a command.

Points are means over worlds, bars two standard errors, lines closed forms.  Needs the `bench`
extra (matplotlib).  The same seeds give the same file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from analysis.errors import GraspError
from grasp.bench.linear.curves import Curve, all_curves, wrong_choices
from grasp.bench.svg import svg_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURE = Path(__file__).resolve().parents[3] / "docs" / "method" / "identifiability.svg"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#767676")
"""Four colours with a contrast of at least 3 to 1 on white and on near-black."""

AXES = {
    "recovery": ("a  s in the span of the factors", "spurious strength β", "squared cosine"),
    "rotation": (
        "b  the nearer factor, ρ = 0.5",
        "spurious over task strength, β/τ",
        "squared cosine",
    ),
    "anchor": ("c  what still writes s", "anchor weight", "effect on s"),
    "removal": ("d  removal by one factor", "spurious strength β", "removal"),
}
LEGENDS: dict[str, Literal["lower right", "upper right", "center right"]] = {
    "recovery": "lower right",
    "rotation": "lower right",
    "anchor": "upper right",
    "removal": "center right",
}


def main() -> None:
    """Simulate, write the figure, and print the numbers as one JSON object."""
    size = (8.4, 6.2)
    with svg_figure(
        FIGURE, size, ink=COLOURS[-1], style={"path.simplify_threshold": 0.5}
    ) as figure:
        panels = all_curves()
        for axes, (name, curves) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
            draw_panel(axes, name, curves)
    numbers = {name: {one.label: one.points() for one in found} for name, found in panels.items()}
    print(json.dumps(numbers | {"wrong_choice": wrong_choices()}, indent=2, ensure_ascii=False))


def draw_panel(axes: Axes, name: str, curves: list[Curve]) -> None:
    """Draw one panel: lines are closed forms, points means with two standard errors."""
    for drawn, colour in zip(curves, COLOURS, strict=False):
        axes.plot(drawn.fine_x, drawn.fine, color=colour, linewidth=1.3, label=drawn.label)
        axes.errorbar(
            drawn.x,
            drawn.mean,
            2 * drawn.standard_error,
            fmt="o",
            color=colour,
            markersize=3,
            linewidth=1,
        )
    title, x, y = AXES[name]
    axes.set_title(title, loc="left", fontsize=10)
    axes.set(xlabel=x, ylabel=y, ylim=(-0.05, 1.08))
    if name in ("rotation", "anchor"):
        axes.set_xscale("log")
    if name == "rotation":
        axes.set_xticks([0.25, 0.5, 1, 2, 4], ["¼", "½", "1", "2", "4"])
        axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc=LEGENDS[name])


if __name__ == "__main__":
    try:
        main()
    except GraspError as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
