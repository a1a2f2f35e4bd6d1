"""Rates before and after a fine-tune, and after GRASP, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from dashboard.style.theme import method_style, style_figure

ROW = 62
"""Pixels of a metric."""


def before_after(table: pd.DataFrame, metrics: Mapping[str, str], arms: Sequence[str]) -> go.Figure:
    """One row a metric, one mark an arm, in per cent.

    Args:
        table: long form: run, method, label, metric, value, low and high.
        metrics: metric → its name on the axis, from top to bottom.
        arms: runs to draw; "" for the base model.
    """
    figure = go.Figure()
    for position, run in enumerate(arms):
        rows = table[(table["run"] == run) & table["metric"].isin(list(metrics))]
        if rows.empty:
            continue
        rows = rows.set_index("metric").reindex(
            [one for one in metrics if one in set(rows["metric"])]
        )
        colour, symbol = method_style(str(rows["method"].iloc[0]), position=position)
        percent = 100 * rows[["value", "low", "high"]].astype(float)
        figure.add_trace(
            go.Scatter(
                x=percent["value"],
                y=[metrics[str(one)] for one in rows.index],
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": (percent["high"] - percent["value"]).fillna(0),
                    "arrayminus": (percent["value"] - percent["low"]).fillna(0),
                    "color": colour,
                    "thickness": 2,
                    "width": 5,
                },
                mode="markers",
                name=str(rows["label"].iloc[0]),
                marker={"color": colour, "symbol": symbol, "size": 12},
                customdata=percent[["low", "high"]],
                hovertemplate="%{x:.0f} % [%{customdata[0]:.0f}, %{customdata[1]:.0f}]"
                "<extra>%{fullData.name}</extra>",
                cliponaxis=False,
            )
        )
    style_figure(
        figure, title="Before and after", x="share or mean score, %", y="",
        height=150 + ROW * len(metrics),
    )  # fmt: skip
    figure.update_xaxes(range=[0, 100], tickvals=[0, 25, 50, 75, 100])
    figure.update_yaxes(autorange="reversed", title_text=None, ticklabelstandoff=10)
    figure.update_layout(scattermode="group", scattergap=0.45, margin={"l": 8})
    return figure
