"""Arms against each other: the frontier, and the intervals of one metric."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from analysis.comparison.wording import metric_name, metric_title
from analysis.text import items_text
from analysis.values import TableRow
from dashboard.style.theme import arm_styles, style_figure


def frontier(table: pd.DataFrame, *, x: str = "task", y: str = "unrelated") -> go.Figure:
    """Each arm at (task accuracy, unrelated rate), with both 95 % intervals.

    Args:
        table: long form: run, method, label, metric, value, low, high, n and n_items.
        x: the metric on the horizontal axis.
        y: the metric on the vertical axis.
    """
    figure = go.Figure()
    styles = arm_styles(run_methods(table))
    for run, rows in table.groupby("run", sort=False):
        by_metric = {row["metric"]: row for row in rows.to_dict("records")}
        if x not in by_metric or y not in by_metric:
            continue
        across, up = by_metric[x], by_metric[y]
        colour, symbol = styles[str(run)]
        figure.add_trace(
            go.Scatter(
                x=[across["value"]],
                y=[up["value"]],
                error_x=_bars(across, colour),
                error_y=_bars(up, colour),
                customdata=[str(run)],
                mode="markers",
                text=[str(rows["label"].iloc[0])],
                cliponaxis=False,
                name=str(rows["label"].iloc[0]),
                marker={"color": colour, "symbol": symbol, "size": 12},
                hovertemplate=(
                    f"%{{text}}<br>{metric_name(x)} %{{x:.3f}}, {_size(across)}"
                    f"<br>{metric_name(y)} %{{y:.3f}}, {_size(up)}<extra></extra>"
                ),
            )
        )
    style_figure(
        figure,
        title="Frontier",
        x=f"{metric_name(x)} (share)",
        y=f"{metric_name(y)} (share)",
        height=460,
    )
    return figure


def intervals(table: pd.DataFrame, *, metric: str) -> go.Figure:
    """One metric of every arm with its 95 % interval, first arm on top."""
    rows = table[table["metric"] == metric]
    figure = go.Figure()
    styles = arm_styles(run_methods(table))
    for row in rows.to_dict("records"):
        colour, symbol = styles[str(row["run"])]
        figure.add_trace(
            go.Scatter(
                x=[row["value"]],
                y=[row["label"]],
                error_x=_bars(row, colour),
                customdata=[row["run"]],
                mode="markers",
                name=str(row["label"]),
                marker={"color": colour, "symbol": symbol, "size": 11},
                hovertemplate=(
                    f"%{{y}}: %{{x:.3f}} [{row['low']:.3f}, {row['high']:.3f}], "
                    f"{_size(row)}<extra></extra>"
                ),
            )
        )
    name = metric_name(metric)
    height = 130 + 42 * len(rows)
    style_figure(
        figure, title=metric_title(metric), x=f"{name} (share)", y="", height=height, legend=False
    )
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def run_methods(table: pd.DataFrame) -> dict[str, str]:
    """Run → method, of a table in long form."""
    runs = table.drop_duplicates("run")
    return dict(zip(runs["run"].astype(str), runs["method"].astype(str), strict=True))


def _bars(row: TableRow, colour: str) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [row["high"] - row["value"]],
        "arrayminus": [row["value"] - row["low"]],
        "color": colour,
        "thickness": 1.5,
        "width": 5,
    }


def _size(row: TableRow) -> str:
    """What an interval rests on."""
    return "n = unknown" if pd.isna(row["n"]) else items_text(row["n"], row.get("n_items"))
