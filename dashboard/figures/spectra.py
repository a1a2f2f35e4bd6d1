"""Layer × module map and scree plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from dashboard.theme import BLUE, CATEGORICAL, GREY, SEQUENTIAL, VERMILLION, styled

MEASURES = {
    "top": ("Largest singular value", "σ₁ (units of W)"),
    "energy_top1": ("Share of energy in the first", "σ₁² / Σσ²"),
    "effective_rank": ("Effective rank (entropy of σ)", "effective rank"),
}


@dataclass(frozen=True)
class Scree:
    """One line of a scree plot: singular values (k,) of a run or checkpoint."""

    name: str
    singular_values: NDArray[np.float64]


def module_map(modules: pd.DataFrame, *, measure: str, selected: str | None) -> go.Figure:
    """Squares by layer and module, coloured by `measure`; each carries its module's name.

    Args:
        modules: one row a module, with name, layer, place (its path in the layer), top,
            energy_top1 and effective_rank.
        measure: one of MEASURES.
        selected: the module that is ringed.
    """
    title, unit = MEASURES[measure]
    places = list(dict.fromkeys(modules["place"]))
    rings = [3 if name == selected else 0 for name in modules["name"]]
    figure = go.Figure(
        go.Scatter(
            x=modules["place"],
            y=modules["layer"],
            customdata=modules["name"],
            mode="markers",
            marker={
                "symbol": "square",
                "size": _square(len(places), modules["layer"].nunique()),
                "color": modules[measure],
                "colorscale": SEQUENTIAL,
                "showscale": True,
                "colorbar": {"title": {"text": unit, "side": "right"}, "thickness": 12},
                "line": {"width": rings, "color": VERMILLION},
            },
            hovertemplate="%{customdata}<br>" + unit + " = %{marker.color:.3g}<extra></extra>",
            selected={"marker": {"opacity": 1}},
            unselected={"marker": {"opacity": 1}},
        )
    )
    height = max(330, min(640, 120 + 36 * modules["layer"].nunique()))
    styled(figure, title=title, x="module", y="decoder layer", height=height, legend=False)
    dtick = 1 if modules["layer"].nunique() <= 16 else None
    figure.update_yaxes(dtick=dtick, showgrid=False, zeroline=False)
    figure.update_xaxes(showgrid=False, categoryorder="array", categoryarray=places)
    return figure


def module_scree(lines: Sequence[Scree], *, log: bool, module: str) -> go.Figure:
    """Singular values of one module's update, one line a run or checkpoint."""
    figure = go.Figure()
    for position, line in enumerate(lines):
        figure.add_trace(_line(line, position))
    styled(figure, title=module, x="index", y="singular value (units of W)", height=320)
    _axes(figure, log)
    return figure


def factor_scree(
    table: pd.DataFrame, *, log: bool, overlays: Sequence[Scree] = (), selected: str | None = None
) -> go.Figure:
    """Singular values of the residual stream's factors, their null band, and other runs.

    Args:
        table: rows of one side and layer limit of a factor table, by index.
        log: a logarithmic vertical axis.
        overlays: checkpoints and other runs of the family.
        selected: id of the factor that is ringed.
    """
    figure = go.Figure()
    _add_band(figure, table)
    for position, line in enumerate(overlays, start=2):
        figure.add_trace(_line(line, position, thin=True))
    for name, mask, colour, symbol in (
        ("above the band", table["significant"].astype(bool), BLUE, "circle"),
        ("within the band", ~table["significant"].astype(bool), GREY, "circle-open"),
    ):
        rows = table[mask]
        figure.add_trace(
            go.Scatter(
                x=rows["index"],
                y=rows["singular_value"],
                customdata=rows["id"],
                mode="markers",
                name=name,
                marker={
                    "color": colour,
                    "symbol": symbol,
                    "opacity": 1,  # Plotly's own is 0.7 where sizes differ
                    "size": [15 if one == selected else 10 for one in rows["id"]],
                    "line": {
                        "width": [3 if one == selected else 1 for one in rows["id"]],
                        "color": [VERMILLION if one == selected else colour for one in rows["id"]],
                    },
                },
                hovertemplate="%{customdata}: σ = %{y:.3g}<extra></extra>",
            )
        )
    styled(figure, title="Spectrum of the factors", x="index", y="singular value (units of W)")
    _axes(figure, log)
    return figure


def _add_band(figure: go.Figure, table: pd.DataFrame) -> None:
    known = table.dropna(subset=["null_median", "null_high"])
    if known.empty:
        return
    edge = {"x": known["index"], "mode": "lines", "hoverinfo": "skip"}
    figure.add_trace(
        go.Scatter(
            **edge,
            y=known["null_median"],
            name="random updates, median",
            line={"color": GREY, "dash": "dot", "width": 1.5},
        )
    )
    figure.add_trace(
        go.Scatter(
            **edge,
            y=known["null_high"],
            name="random updates, 95 %",
            line={"color": GREY, "width": 1},
            fill="tonexty",
            fillcolor="rgba(125, 133, 143, 0.22)",
        )
    )


def _line(line: Scree, position: int, *, thin: bool = False) -> go.Scatter:
    colour = CATEGORICAL[position % len(CATEGORICAL)]
    return go.Scatter(
        x=np.arange(1, len(line.singular_values) + 1),
        y=line.singular_values,
        mode="lines" if thin else "lines+markers",
        name=line.name,
        line={"color": colour, "width": 1.5 if thin else 2, "dash": "dash" if thin else "solid"},
        hovertemplate=f"{_plain(line.name)}: σ = %{{y:.3g}}<extra></extra>",
    )


def _plain(text: str) -> str:
    """Text that Plotly shows as it stands: its labels understand a little HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _axes(figure: go.Figure, log: bool) -> None:
    figure.update_yaxes(type="log" if log else "linear")
    if not log:
        figure.update_yaxes(rangemode="tozero")
    longest = max((max(trace.x, default=1) for trace in figure.data), default=1)
    figure.update_xaxes(dtick=max(1, round(longest / 12)), tick0=1, range=[0.5, longest + 0.5])


def _square(columns: int, rows: int) -> float:
    return max(6.0, min(26.0, 420 / max(columns, 1), 460 / max(rows, 1)))
