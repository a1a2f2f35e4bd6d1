"""Evidence for one factor from running the model: dose–response, driving rows, overlap."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from analysis.comparison.wording import metric_name, metric_title
from analysis.evidence.dose_curves import factor_curve, random_band
from analysis.evidence.task_overlap import FACTOR
from dashboard.style.palette import BLUE, GREY, VERMILLION
from dashboard.style.theme import ADAPTED_COLOUR, BASE_COLOUR, style_figure

MODELS = {"base": (BASE_COLOUR, "circle"), "adapted": (ADAPTED_COLOUR, "square")}
WHICH = {"top": (VERMILLION, "triangle-up"), "random": (GREY, "circle"), "bottom": (BLUE, "x")}


def dose_response(curves: pd.DataFrame, *, metric: str, layer: int | None) -> go.Figure:
    """One metric against the dose for both models, each over the band of random directions.

    Args:
        curves: from `analysis.evidence.dose_curves.dose_curves`.
        metric: a metric in `curves`.
        layer: the steered layer; None for all layers.
    """
    figure = go.Figure()
    for model, (colour, symbol) in MODELS.items():
        random = random_band(curves, model=model, metric=metric)
        edge = {"x": random["dose"], "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
        figure.add_trace(go.Scatter(y=random["low"], showlegend=False, **edge))
        figure.add_trace(
            go.Scatter(
                y=random["high"],
                name=f"{model}, random directions",
                fill="tonexty",
                fillcolor=_faint(colour),
                **edge,
            )
        )
        own = factor_curve(curves, model=model, metric=metric)
        figure.add_trace(
            go.Scatter(
                x=own["dose"],
                y=own["value"],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": own["high"] - own["value"],
                    "arrayminus": own["value"] - own["low"],
                    "thickness": 1.2,
                    "width": 3,
                },
                customdata=own[["low", "high", "n"]],
                mode="lines+markers",
                name=model,
                line={"color": colour, "width": 2},
                marker={"symbol": symbol, "size": 8},
                hovertemplate=(
                    f"{model}, %{{x:+g}} std: %{{y:.3f}} [%{{customdata[0]:.3f}}, "
                    "%{customdata[1]:.3f}], n = %{customdata[2]}<extra></extra>"
                ),
            )
        )
    where = "all layers" if layer is None else f"layer {layer}"
    style_figure(
        figure,
        title=f"{metric_title(metric)} against dose",
        x=f"dose at {where} (base std)",
        y=f"{metric_name(metric)} (share)",
        height=420,
    )
    figure.update_yaxes(range=[-0.03, 1.03])
    return figure


def row_values(values: pd.DataFrame, shown: pd.DataFrame, *, by: str, unit: str) -> go.Figure:
    """Histogram of a measure over all training rows, with the listed rows marked below it.

    Args:
        values: all rows.
        shown: the listed rows; their column `which` is "top", "random" or "bottom".
        by: the column to draw.
        unit: the unit of that column.
    """
    figure = go.Figure(
        go.Histogram(
            x=values[by],
            name="all rows",
            nbinsx=50,
            marker={"color": GREY, "line": {"width": 0}},
            opacity=0.55,
            hovertemplate="%{y} rows at %{x}<extra></extra>",
        )
    )
    for which, (colour, symbol) in WHICH.items():
        rows = shown[shown["which"] == which]
        figure.add_trace(
            go.Scatter(
                x=rows[by],
                y=[0.0] * len(rows),
                customdata=rows["row"],
                mode="markers",
                name=which,
                cliponaxis=False,
                marker={"color": colour, "symbol": symbol, "size": 10},
                hovertemplate=f"{which}, row %{{customdata}}: %{{x:.4f}} {unit}<extra></extra>",
            )
        )
    style_figure(
        figure,
        title=f"{by.capitalize()} of {len(values)} training rows",
        x=f"{by} ({unit})",
        y="rows",
        height=340,
    )
    figure.update_layout(bargap=0.04)
    return figure


def overlap_shares(table: pd.DataFrame, *, names: Sequence[str], factor: str) -> go.Figure:
    """Share of each change undone with the factor, with its interval, beside random subspaces.

    Args:
        table: measure, subspace, value, low, high, n; rows without a value are left out.
        names: display names of the measures, in the order they first appear in `table`.
        factor: the name of the factor.
    """
    known = table.dropna(subset="value")
    written = dict(zip(table["measure"].unique(), names, strict=True))
    figure = go.Figure()
    random = known[known["subspace"] != FACTOR]
    figure.add_trace(
        go.Scatter(
            x=random["value"],
            y=random["measure"].map(written),
            customdata=random["subspace"],
            mode="markers",
            name="random directions",
            marker={"color": GREY, "symbol": "line-ns-open", "size": 14},
            hovertemplate="%{customdata}: %{x:.1%}<extra></extra>",
        )
    )
    own = known[known["subspace"] == FACTOR]
    figure.add_trace(
        go.Scatter(
            x=own["value"],
            y=own["measure"].map(written),
            error_x={
                "type": "data",
                "symmetric": False,
                "array": own["high"] - own["value"],
                "arrayminus": own["value"] - own["low"],
                "thickness": 1.5,
                "width": 5,
            },
            customdata=own[["low", "high", "n"]],
            mode="markers",
            name=factor,
            marker={"color": BLUE, "symbol": "circle", "size": 11},
            hovertemplate=(
                "%{x:.1%} [%{customdata[0]:.1%}, %{customdata[1]:.1%}], n = %{customdata[2]}"
                "<extra></extra>"
            ),
        )
    )
    shown = [written[measure] for measure in known["measure"].unique()]
    style_figure(
        figure,
        title=f"Change undone when {factor} is set back",
        x="share of the change",
        y="",
        height=150 + 44 * len(shown),
    )
    figure.update_xaxes(tickformat=".0%", zeroline=True)
    figure.update_yaxes(categoryorder="array", categoryarray=shown[::-1])
    return figure


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"
