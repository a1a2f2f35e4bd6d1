"""Colours and chart layout: mid-tones that read on light and on dark, and to colour-blind eyes.

Every mark has a contrast of at least 3 to 1 against both page backgrounds, so figures need not
know which one is shown; only the ends of the sequential scale have less.  Text and grid lines are
left to Streamlit's chart theme.
"""

from __future__ import annotations

import plotly.graph_objects as go

BLUE = "#1F77C9"
VERMILLION = "#D55E00"
GREEN = "#009E73"
MAGENTA = "#C2609A"
OCHRE = "#B3820A"
VIOLET = "#7A6AD0"
GREY = "#7D858F"

CATEGORICAL = (BLUE, VERMILLION, GREEN, MAGENTA, OCHRE, VIOLET, GREY)

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

SEQUENTIAL = [
    [0.0, "#A9C8E8"],
    [0.35, "#6FA6DA"],
    [0.7, "#2E75B9"],
    [1.0, "#17508F"],
]

_MARGIN = {"l": 64, "r": 16, "t": 44, "b": 40}


def method_style(method: str, *, position: int = 0) -> tuple[str, str]:
    """Colour and marker of a method; for an unknown method they depend on `position`."""
    return _METHODS.get(method, (CATEGORICAL[position % len(CATEGORICAL)], "star"))


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
