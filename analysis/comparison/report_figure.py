"""The figure of a static report: rates with their intervals, as an SVG that needs nothing else.

The dashboard's charts need their library's scripts, megabytes of them; a report is to be sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

from analysis.comparison.wording import metric_name

NAMES, PANEL, GAP, ROW, TOP = 190, 200, 44, 30, 40  # px


def intervals_svg(table: pd.DataFrame, labels: Mapping[str, str], metrics: Sequence[str]) -> str:
    """One row an arm, one panel a metric: the mean as a point, the 95 % interval as a bar.

    Args:
        table: as `analysis.comparison.comparison.comparison` gives it.
        labels: run id → name.
        metrics: those to draw; what the table does not have is left out.
    """
    shown = [metric for metric in metrics if (table["metric"] == metric).any()]
    runs = list(dict.fromkeys(table["run"]))
    width = NAMES + len(shown) * (PANEL + GAP)
    height = TOP + ROW * len(runs) + 30
    names = [
        f'<text x="0" y="{_y(row) + 4}">{escape(labels.get(run, run))}</text>'
        for row, run in enumerate(runs)
    ]
    panels = [
        _panel(table[table["metric"] == metric], runs, metric, NAMES + number * (PANEL + GAP))
        for number, metric in enumerate(shown)
    ]
    described = ", ".join(metric_name(metric) for metric in shown)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Means and 95 % intervals of {escape(described)}">'
        f"{''.join(names)}{''.join(panels)}</svg>"
    )


def _panel(rows: pd.DataFrame, runs: Sequence[str], metric: str, left: float) -> str:
    low, high = _limits(rows)

    def x(value: float) -> float:
        return round(left + PANEL * (value - low) / (high - low), 1)

    bottom = TOP + ROW * len(runs)
    parts = [f'<text x="{left}" y="16" class="head">{escape(metric_name(metric))}</text>']
    for tick in (low, (low + high) / 2, high):
        parts.append(f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{x(tick)}" y="{bottom + 18}" class="tick">{_tick(tick)}</text>')
    by_run: dict[str, dict[Any, Any]] = {str(r["run"]): r for r in rows.to_dict("records")}
    for number, run in enumerate(runs):
        if run in by_run and math.isfinite(by_run[run]["value"]):
            parts.append(_mark(by_run[run], x, _y(number)))
    return "".join(parts)


def _mark(row: Mapping[Any, Any], x: Any, y: float) -> str:
    bar = ""
    if math.isfinite(row["low"]) and math.isfinite(row["high"]):
        bar = f'<line class="bar" x1="{x(row["low"])}" x2="{x(row["high"])}" y1="{y}" y2="{y}"/>'
    return f'{bar}<circle cx="{x(row["value"])}" cy="{y}" r="4.5"/>'


def _limits(rows: pd.DataFrame) -> tuple[float, float]:
    """0 to 1, wider by halves where an interval leaves it (removal may)."""
    ends = rows[["value", "low", "high"]].to_numpy(float)
    finite = ends[pd.notna(ends)]
    low = min(0.0, math.floor(2 * finite.min(initial=0.0)) / 2)
    return low, max(1.0, math.ceil(2 * finite.max(initial=1.0)) / 2)


def _y(row: int) -> float:
    return TOP + ROW * (row + 0.5)


def _tick(value: float) -> str:
    return f"{value:g}".replace("-", "−")
