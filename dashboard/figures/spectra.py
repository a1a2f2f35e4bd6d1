"""Layer × module map and scree plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from analysis.values import TableRow
from dashboard.style.palette import GREY, MAGENTA, VERMILLION
from dashboard.style.theme import SEQUENTIAL, style_figure

MEASURES = {
    "top": ("Largest singular value", "σ₁ (units of W)"),
    "energy_top1": ("Energy share of σ₁", "σ₁² / Σσ²"),
    "effective_rank": ("Effective rank (entropy of σ)", "effective rank"),
    "r": ("Rank of the adapter", "LoRA rank r"),
}


@dataclass(frozen=True)
class Scree:
    """One line of a scree plot: the singular values (k,) of a run or checkpoint, and its colour."""

    name: str
    singular_values: NDArray[np.float64]
    colour: str = GREY
    dash: str = "solid"


def module_map(cells: pd.DataFrame, *, measure: str, selected: str | None) -> go.Figure:
    """Squares by layer and kind of module, coloured by `measure`; each carries a module's name.

    Args:
        cells: from `analysis.spectra.module_groups.module_cells`; each is named after its
            strongest module.
        measure: one of MEASURES.
        selected: the name of the cell to ring.
    """
    title, unit = MEASURES[measure]
    places = list(dict.fromkeys(cells["place"]))
    rows = cells["position"]
    span = int(rows.max() - rows.min()) + 1
    height = max(330, min(760, 160 + (32 if span <= 16 else 16) * span))
    figure = go.Figure(
        go.Scatter(
            x=cells["place"],
            y=rows,
            customdata=cells["name"],
            text=[_cell_words(cell, measure) for cell in cells.to_dict("records")],
            mode="markers",
            marker={
                "symbol": "square",
                "size": _square(columns=len(places), pitch=(height - 160) / span),
                "color": cells[measure],
                "colorscale": SEQUENTIAL,
                "showscale": True,
                "colorbar": {"title": {"text": unit, "side": "right"}, "thickness": 12},
                "line": {
                    "width": [3 if name == selected else 0 for name in cells["name"]],
                    "color": VERMILLION,
                },
            },
            hovertemplate="%{text}<extra></extra>",
            selected={"marker": {"opacity": 1}},
            unselected={"marker": {"opacity": 1}},
        )
    )
    style_figure(figure, title=title, x="module", y="decoder layer", height=height, legend=False)
    figure.update_yaxes(**_layer_ticks(cells), showgrid=False, zeroline=False)
    figure.update_xaxes(showgrid=False, categoryorder="array", categoryarray=places)
    return figure


def member_strip(members: pd.DataFrame, *, measure: str, selected: str) -> go.Figure:
    """One measure of every module in a cell, such as the experts of a layer, by number.

    Args:
        members: rows of a module table with a column `number`.
        measure: one of MEASURES.
        selected: the name of the module to ring.
    """
    title, unit = MEASURES[measure]
    ringed = [name == selected for name in members["name"]]
    figure = go.Figure(
        go.Scatter(
            x=members["number"],
            y=members[measure],
            customdata=members["name"],
            mode="markers",
            marker={
                "color": GREY,
                "opacity": 1,
                "size": [12 if one else 7 for one in ringed],
                "line": {"width": [3 if one else 0 for one in ringed], "color": VERMILLION},
            },
            hovertemplate="%{customdata}<br>" + unit + " = %{y:.3g}<extra></extra>",
            selected={"marker": {"opacity": 1}},
            unselected={"marker": {"opacity": 1}},
        )
    )
    style_figure(
        figure, title=f"{title}, each expert", x="expert", y=unit, height=260, legend=False
    )
    figure.update_yaxes(rangemode="tozero")
    return figure


def module_scree(lines: Sequence[Scree], *, log: bool, module: str) -> go.Figure:
    """Singular values of one module's update, one line per run or checkpoint."""
    figure = go.Figure()
    for line in lines:
        figure.add_trace(scree_line(line))
    style_figure(figure, title=module, x="index", y="singular value (units of W)", height=320)
    scree_axes(figure, log)
    return figure


def factor_scree(
    table: pd.DataFrame,
    *,
    log: bool,
    colour: str = VERMILLION,
    overlays: Sequence[Scree] = (),
    selected: str | None = None,
) -> go.Figure:
    """Singular values of the residual stream's factors, their null band, and other runs.

    Filled points lie above the band; those of the run's colour are significant.  The two differ:
    significance asks for an effect as well, where effects were measured.

    Args:
        table: the rows of a factor table for one side and layer limit, by index.
        log: a logarithmic vertical axis.
        colour: of the run.
        overlays: checkpoints and other runs of the family.
        selected: the id of the factor to ring.
    """
    figure = go.Figure()
    _add_band(figure, table)
    for line in overlays:
        figure.add_trace(scree_line(line, thin=True))
    known, above = table["null_high"].notna(), above_band(table)
    significant = table["significant"].astype(bool)
    for name, mask, fill, symbol in (
        ("above the band, significant", above & significant, colour, "circle"),
        ("above the band, not significant", above & ~significant, GREY, "circle"),
        ("within the band, significant", known & ~above & significant, colour, "circle-open"),
        ("within the band", known & ~above & ~significant, GREY, "circle-open"),
        ("significant, no band known", ~known & significant, colour, "diamond-open"),
        ("not significant, no band known", ~known & ~significant, GREY, "diamond-open"),
    ):
        rows = table[mask]
        if rows.empty:
            continue
        figure.add_trace(
            go.Scatter(
                x=rows["index"],
                y=rows["singular_value"],
                customdata=rows["id"],
                mode="markers",
                name=name,
                marker={
                    "color": fill,
                    "symbol": symbol,
                    "size": 10,
                    "line": {"width": 1.5, "color": fill},
                },
                hovertemplate=f"%{{customdata}}, {name}: σ = %{{y:.3g}}<extra></extra>",
            )
        )
    if len(chosen := table[table["id"] == selected]):
        figure.add_trace(
            go.Scatter(
                x=chosen["index"],
                y=chosen["singular_value"],
                mode="markers",
                name=f"{_plain(str(selected))}, selected",
                marker={
                    "color": MAGENTA,
                    "symbol": "circle-open",
                    "size": 18,
                    "line": {"width": 2.5},
                },
                hoverinfo="skip",
            )
        )
    style_figure(
        figure, title="Spectrum of the factors", x="index", y="singular value (units of W)"
    )
    scree_axes(figure, log)
    return figure


def above_band(table: pd.DataFrame) -> pd.Series[bool]:
    """Which factors of a table are stronger than 95 % of random updates; False if not known."""
    return table["singular_value"] > table["null_high"]


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


def scree_line(line: Scree, *, thin: bool = False) -> go.Scatter:
    """The line of one run or checkpoint."""
    dash = "dash" if thin and line.dash == "solid" else line.dash
    return go.Scatter(
        x=np.arange(1, len(line.singular_values) + 1),
        y=line.singular_values,
        mode="lines" if thin else "lines+markers",
        name=line.name,
        line={"color": line.colour, "width": 1.5 if thin else 2, "dash": dash},
        hovertemplate=f"{_plain(line.name)}: σ = %{{y:.3g}}<extra></extra>",
    )


def _plain(text: str) -> str:
    """Escape text for Plotly, whose labels understand a little HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def scree_axes(figure: go.Figure, log: bool) -> None:
    """Set up the axes of singular values by index, wide enough for all traces."""
    figure.update_yaxes(type="log" if log else "linear")
    if not log:
        figure.update_yaxes(rangemode="tozero")
    longest = max((max(trace.x, default=1) for trace in figure.data), default=1)
    figure.update_xaxes(dtick=max(1, round(longest / 12)), tick0=1, range=[0.5, longest + 0.5])


def _square(*, columns: int, pitch: float) -> float:
    """Size of a square such that neighbours do not touch; `pitch` is the row height in pixels."""
    return max(3.0, min(26.0, 420 / max(columns, 1), 0.85 * pitch))


def _cell_words(cell: TableRow, measure: str) -> str:
    """The hover text of a square."""
    value = f"{MEASURES[measure][1]} = {cell[measure]:.3g}"
    if cell["modules"] == 1:
        return f"{_plain(cell['name'])}<br>{value}"
    how = "largest" if measure in ("top", "r") else "median"
    return (
        f"{cell['modules']} modules, {_plain(cell['place'])}<br>{how} {value}<br>"
        f"strongest: {_plain(cell['name'])}"
    )


def _layer_ticks(cells: pd.DataFrame) -> dict[str, list[object]]:
    """Tick labels: layer numbers, and words for the rows before the first and after the last."""
    inside = sorted(cells["layer"].dropna().unique())
    outside = sorted(cells.loc[cells["layer"].isna(), "position"].unique())
    every = 1 if len(inside) <= 16 else 4 if len(inside) <= 64 else 10
    shown = {layer: f"{layer:.0f}" for layer in inside if layer % every == 0 or len(inside) <= 3}
    words = {
        row: "before" if inside and row < inside[0] else "after" if inside else "outside"
        for row in outside
    }
    ticks = shown | words
    return {"tickvals": list(ticks), "ticktext": list(ticks.values())}
