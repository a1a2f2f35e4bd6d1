"""Evidence for one factor from activations: projections, moves by layer, the map of moves."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard.style.palette import distinct_colours
from dashboard.style.theme import ADAPTED_COLOUR, BASE_COLOUR, style_figure

_SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "star")
MAX_POINTS = 5000


def histogram(projections: pd.DataFrame, *, by: str) -> go.Figure:
    """Histograms of the projection, one panel per value of `by`, base and adapted overlaid.

    Args:
        projections: one row per probe: id, group, variant, base and adapted, in base std.
        by: "group" or "variant".
    """
    panels = sorted(projections[by].unique())
    figure = make_subplots(
        rows=len(panels),
        shared_xaxes=True,
        vertical_spacing=0.24 / max(len(panels), 2),
        subplot_titles=[str(panel) for panel in panels],
    )
    for row, panel in enumerate(panels, start=1):
        rows = projections[projections[by] == panel]
        for model, colour in (("base", BASE_COLOUR), ("adapted", ADAPTED_COLOUR)):
            trace = go.Histogram(
                x=rows[model],
                name=model,
                legendgroup=model,
                showlegend=row == 1,
                marker={"color": colour, "line": {"width": 0}},
                opacity=0.65,
                bingroup="projection",
                nbinsx=40,
                hovertemplate=f"{panel}, {model}: %{{y}} at %{{x:.2f}} std<extra></extra>",
            )
            figure.add_trace(trace, row=row, col=1)
    figure.update_layout(barmode="overlay", bargap=0.04)
    figure.update_annotations(x=0, xanchor="left", font_size=12)
    height = 145 + (160 if len(panels) <= 3 else 110) * len(panels)
    style_figure(figure, title=f"Projection by {by}", x="", y="probes", height=height)
    figure.update_layout(margin_t=60)  # the name of the first panel is below the title
    figure.update_xaxes(title_text="projection (base std)", row=len(panels), col=1)
    return figure


def shift_by_layer(shifts: pd.DataFrame) -> go.Figure:
    """Mean move from base to adapted along the factor, one line per name, with intervals.

    Args:
        shifts: one row per layer and name: layer, name, value, low, high, n, in base std.
    """
    figure = go.Figure()
    groups = list(shifts.groupby("name", sort=True))
    colours = distinct_colours(len(groups))
    for position, (group, rows) in enumerate(groups):
        colour = colours[position]
        figure.add_trace(
            go.Scatter(
                x=rows["layer"],
                y=rows["value"],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": rows["high"] - rows["value"],
                    "arrayminus": rows["value"] - rows["low"],
                    "thickness": 1.2,
                    "width": 3,
                },
                customdata=rows["n"],
                mode="lines+markers",
                name=str(group),
                line={"color": colour, "width": 2},
                marker={"symbol": _SYMBOLS[position % len(_SYMBOLS)], "size": 8},
                hovertemplate=(
                    f"{group}, layer %{{x}}: %{{y:.2f}} std, n = %{{customdata}}<extra></extra>"
                ),
            )
        )
    style_figure(
        figure,
        title="Move from base to adapted, by layer",
        x="decoder layer",
        y="mean move (base std)",
        height=380,
    )
    figure.update_xaxes(dtick=1 if shifts["layer"].nunique() <= 16 else None)
    return figure


def shift_map(
    points: pd.DataFrame, *, axes: Sequence[str], chosen: Sequence[str] = ()
) -> go.Figure:
    """First two principal components of the probes' moves; each point carries the probe's id.

    Args:
        points: one row per probe: id, group, variant, x, y.
        axes: titles of both axes.
        chosen: ids that stay bright while the rest is greyed; if empty, all stay bright.
    """
    shown = points.head(MAX_POINTS)
    figure = go.Figure()
    variants = {
        name: _SYMBOLS[i % len(_SYMBOLS)] for i, name in enumerate(sorted(set(shown["variant"])))
    }
    groups = list(shown.groupby("group", sort=True))
    colours = distinct_colours(len(groups))
    for position, (group, rows) in enumerate(groups):
        bright = [not chosen or name in chosen for name in rows["id"]]
        figure.add_trace(
            go.Scatter(
                x=rows["x"],
                y=rows["y"],
                customdata=rows["id"],
                mode="markers",
                name=str(group),
                marker={
                    "color": colours[position],
                    "symbol": [variants[name] for name in rows["variant"]],
                    "size": 9,
                    "opacity": [0.9 if on else 0.15 for on in bright],
                },
                text=rows["variant"],
                hovertemplate=f"%{{customdata}}, {group}, %{{text}}<extra></extra>",
                selected={"marker": {"opacity": 1.0}},
                unselected={"marker": {"opacity": 0.15}},
            )
        )
    for variant, symbol in variants.items() if len(variants) > 1 else ():
        figure.add_trace(
            go.Scatter(
                x=[None],
                y=[None],
                mode="markers",
                name=f"shape: {variant}",
                marker={"color": BASE_COLOUR, "symbol": symbol, "size": 9},
            )
        )
    title = "Map of moves"
    if len(points) > MAX_POINTS:
        title = f"Map of moves, the first {MAX_POINTS} of {len(points)} probes"
    style_figure(figure, title=title, x=axes[0], y=axes[1], height=420)
    figure.update_layout(dragmode="lasso")
    return figure
