"""Rates before and after a fine-tune, and after GRASP, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from dashboard.style.theme import arm_styles, style_figure

SPREAD = 0.7
"""The part of a metric's row over which its marks are spread."""


def before_after(table: pd.DataFrame, metrics: Mapping[str, str], arms: Sequence[str]) -> go.Figure:
    """One row a metric, one mark an arm, in per cent.

    Args:
        table: long form: run, method, label, metric, value, low and high.
        metrics: metric → its name on the axis, from top to bottom.
        arms: runs to draw; "" for the base model.
    """
    figure = go.Figure()
    order = list(metrics)
    methods = table.drop_duplicates("run").set_index("run")["method"]
    styles = arm_styles({run: str(methods[run]) for run in arms if run in methods})
    for position, run in enumerate(arms):
        rows = table[(table["run"] == run) & table["metric"].isin(order)]
        if rows.empty:
            continue
        colour, symbol = styles[run]
        percent = 100 * rows[["value", "low", "high"]].astype(float)
        # Marks of one metric lie one above the other, so that none hides another.
        aside = (position - (len(arms) - 1) / 2) * SPREAD / max(len(arms), 1)
        figure.add_trace(
            go.Scatter(
                x=percent["value"],
                y=[order.index(metric) + aside for metric in rows["metric"]],
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": (percent["high"] - percent["value"]).fillna(0),
                    "arrayminus": (percent["value"] - percent["low"]).fillna(0),
                    "color": colour,
                    "thickness": 2,
                    "width": 4,
                },
                mode="markers",
                name=str(rows["label"].iloc[0]),
                marker={"color": colour, "symbol": symbol, "size": 11},
                customdata=percent[["low", "high"]],
                hovertemplate="%{x:.0f} % [%{customdata[0]:.0f}, %{customdata[1]:.0f}]"
                "<extra>%{fullData.name}</extra>",
                cliponaxis=False,
            )
        )
    height = 130 + len(order) * (24 + 22 * len(arms))
    style_figure(figure, title="Before and after", x="share or mean score, %", y="", height=height)
    figure.update_xaxes(range=[0, 100], tickvals=[0, 25, 50, 75, 100])
    figure.update_yaxes(
        range=[len(order) - 0.5, -0.5],
        tickvals=list(range(len(order))),
        ticktext=list(metrics.values()),
        title_text=None,
        ticklabelstandoff=10,
        showgrid=False,
        zeroline=False,
    )
    figure.update_layout(margin={"l": 8})
    return figure
