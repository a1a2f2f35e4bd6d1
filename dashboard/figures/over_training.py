"""The singular values of one module from checkpoint to checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard.figures.spectra import MEASURES, Scree, scree_axes, scree_line
from dashboard.style.palette import GREY, VERMILLION
from dashboard.style.theme import style_figure

OVER_STEPS = ("top", "effective_rank")
"""Measures drawn over the checkpoints."""

_MOST_NAMES = 8


def trajectory(steps: pd.DataFrame, *, colour: str = VERMILLION) -> go.Figure:
    """The selected module's σ₁ and effective rank at each checkpoint, and the median module's.

    Args:
        steps: one row per checkpoint: `step`, `shown` (its name), and for every measure of
            OVER_STEPS the module's value under its name and the median under `<name>:median`.
        colour: of the run.
    """
    figure = make_subplots(rows=len(OVER_STEPS), cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for row, measure in enumerate(OVER_STEPS, start=1):
        for column, name, drawn, dash in (
            (measure, "this module", colour, "solid"),
            (f"{measure}:median", "median of all modules", GREY, "dot"),
        ):
            figure.add_trace(
                go.Scatter(
                    x=steps["step"],
                    y=steps[column],
                    customdata=steps["shown"],
                    mode="lines+markers",
                    name=name,
                    legendgroup=name,
                    showlegend=row == 1,
                    line={"color": drawn, "width": 2, "dash": dash},
                    hovertemplate="%{customdata}: %{y:.3g}<extra></extra>",
                ),
                row=row,
                col=1,
            )
    style_figure(figure, title="Over training", x="", y="", height=400)
    for row, measure in enumerate(OVER_STEPS, start=1):
        unit = MEASURES[measure][1]
        figure.update_yaxes(title_text=unit, rangemode="tozero", row=row, col=1)
    last = " (last point: the finished adapter)" if "finished" in set(steps["shown"]) else ""
    figure.update_xaxes(rangemode="tozero", title_text="")
    figure.update_xaxes(title_text=f"optimiser step{last}", row=len(OVER_STEPS), col=1)
    return figure


def checkpoint_scree(lines: Sequence[Scree], *, log: bool, module: str) -> go.Figure:
    """Singular values of one module at each checkpoint, in the colours that the lines have."""
    figure = go.Figure()
    for position, line in enumerate(lines):
        trace = scree_line(line)
        trace.mode = "lines+markers" if len(lines) <= _MOST_NAMES else "lines"
        trace.showlegend = len(lines) <= _MOST_NAMES or position in (0, len(lines) - 1)
        figure.add_trace(trace)
    title = f"{module} at each checkpoint"
    style_figure(figure, title=title, x="index", y="singular value (units of W)", height=400)
    scree_axes(figure, log)
    return figure
