"""Colours and chart layout: mid-tones that read on light and on dark, and to colour-blind eyes.

Every mark has a contrast of at least 3 to 1 against both page backgrounds, so figures need not
know which one is shown; only the ends of the sequential scale have less.  Text and grid lines are
left to Streamlit's chart theme.
"""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from dashboard.style.palette import (
    BLUE,
    CATEGORICAL,
    GREEN,
    GREY,
    MAGENTA,
    OCHRE,
    VERMILLION,
    VIOLET,
    distinct_colours,
)
from grasp.settings.methods import METHODS

BASE_COLOUR = GREY
ADAPTED_COLOUR = VERMILLION

# A picture of our own: with a named icon the browser would fetch a font from another server.
FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">'
    f'<rect width="32" height="32" rx="7" fill="{BLUE}"/>'
    '<path d="M7 25 V7 M7 25 H25" stroke="#fff" stroke-width="2.5" stroke-linecap="round"/>'
    '<circle cx="12" cy="11" r="2.5" fill="#fff"/><circle cx="18" cy="18" r="2.5" fill="#fff"/>'
    '<circle cx="24" cy="20" r="2.5" fill="#fff"/></svg>'
)

_METHODS = {
    "base": (GREY, "diamond"),
    "naive": (VERMILLION, "square"),
    "grasp": (BLUE, "circle"),
    "grasp-projection": (VIOLET, "circle-open"),
    "caft": (GREEN, "triangle-up"),
    "ablation": (OCHRE, "triangle-down"),
    "random": (MAGENTA, "x"),
}
_SYMBOLS = ("star", "pentagon", "hexagon", "cross", "triangle-left", "triangle-right", "hourglass")
_REPEATS = ("", "-open", "-dot", "-open-dot")


def _further_styles() -> dict[str, tuple[str, str]]:
    """Colours and markers of the methods that have none of their own, in the order of METHODS."""
    rest = [name for name in METHODS if name not in _METHODS]
    colours = distinct_colours(len(CATEGORICAL) + len(rest))[len(CATEGORICAL) :]
    symbols = [_SYMBOLS[position % len(_SYMBOLS)] for position in range(len(rest))]
    return dict(zip(rest, zip(colours, symbols, strict=True), strict=True))


_METHODS |= _further_styles()

SEQUENTIAL = [
    [0.0, "#A9C8E8"],
    [0.35, "#6FA6DA"],
    [0.7, "#2E75B9"],
    [1.0, "#17508F"],
]

_MARGIN = {"l": 64, "r": 16, "t": 44, "b": 40}


def arm_styles(methods: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Run → colour and marker, the same on every page.

    A method has its own colour; further runs of one method have that colour and another marker.

    Args:
        methods: run → method, in the order of the page; the base model's method is "" or "base".
    """
    unknown = [name for name in dict.fromkeys(methods.values()) if name not in _METHODS]
    spare = distinct_colours(len(_METHODS) + len(unknown))[len(_METHODS) :]
    known = _METHODS | {"": _METHODS["base"]}
    for position, name in enumerate(name for name in unknown if name):
        known[name] = (spare[position], _SYMBOLS[position % len(_SYMBOLS)])
    seen: dict[str, int] = {}
    styles = {}
    for run, method in methods.items():
        colour, symbol = known[method]
        turn = seen[method] = seen.get(method, -1) + 1
        plain = symbol.removesuffix("-open")
        styles[run] = (colour, plain + _REPEATS[turn % 4] if turn else symbol)
    return styles


def shades(colour: str, count: int) -> list[str]:
    """Colours from grey towards `colour`, for the earlier states of one arm, first to last."""
    ends = [[int(one[i : i + 2], 16) for i in (1, 3, 5)] for one in (GREY, colour)]
    found = []
    for step in range(1, count + 1):
        share = step / (count + 1)
        mixed = [round((1 - share) * a + share * b) for a, b in zip(*ends, strict=True)]
        found.append("#" + "".join(f"{one:02X}" for one in mixed))
    return found


def style_figure(
    figure: go.Figure, *, title: str, x: str, y: str, height: int = 340, legend: bool = True
) -> go.Figure:
    """Give a figure its title, axis titles with units, size and legend."""
    figure.update_layout(
        title={"text": title, "font": {"size": 15}, "x": 0, "xanchor": "left", "y": 0.98},
        height=height,
        margin=_MARGIN,
        showlegend=legend,
        legend={
            "orientation": "h",
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "x": 0,
            "xanchor": "left",
        },
        hoverlabel={"align": "left"},
        dragmode=False,
    )
    figure.update_xaxes(title_text=x, title_standoff=6, automargin=True)
    figure.update_yaxes(title_text=y, title_standoff=14, automargin=True)
    return figure
