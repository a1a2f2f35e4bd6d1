"""The figure of a static report: rates with their intervals, as a self-contained SVG.

The dashboard's charts need megabytes of scripts, too much for a report that is sent to people.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
from markupsafe import Markup

from analysis.comparison.wording import metric_name
from analysis.markup import render
from analysis.text import true_minus
from analysis.values import TableRow

NAMES, PANEL, GAP, ROW, TOP = 190, 200, 44, 30, 40  # px


def intervals_svg(table: pd.DataFrame, labels: Mapping[str, str], metrics: Sequence[str]) -> Markup:
    """One row per arm, one panel per metric: the mean as a point, the 95 % interval as a bar.

    Args:
        table: from `analysis.comparison.comparison.compare_arms`.
        labels: run id → display name.
        metrics: the metrics to draw, as far as the table has them.
    """
    shown = [metric for metric in metrics if (table["metric"] == metric).any()]
    runs = list(dict.fromkeys(table["run"]))
    return render(
        "comparison/templates/intervals.svg.jinja",
        width=NAMES + len(shown) * (PANEL + GAP),
        height=TOP + ROW * len(runs) + 30,
        top=TOP,
        bottom=TOP + ROW * len(runs),
        described=", ".join(metric_name(metric) for metric in shown),
        names=[(labels.get(run, run), _y(row)) for row, run in enumerate(runs)],
        panels=[
            _panel(table[table["metric"] == metric], runs, metric, NAMES + number * (PANEL + GAP))
            for number, metric in enumerate(shown)
        ],
    )


def _panel(rows: pd.DataFrame, runs: Sequence[str], metric: str, left: float) -> dict[str, object]:
    low, high = _limits(rows)

    def x(value: float) -> float:
        return round(left + PANEL * (value - low) / (high - low), 1)

    by_run: dict[str, TableRow] = {str(r["run"]): r for r in rows.to_dict("records")}
    return {
        "left": left,
        "title": metric_name(metric),
        "ticks": [(x(tick), _tick(tick)) for tick in (low, (low + high) / 2, high)],
        "marks": [
            _mark(by_run[run], x, _y(number))
            for number, run in enumerate(runs)
            if run in by_run and math.isfinite(by_run[run]["value"])
        ],
    }


def _mark(row: TableRow, x: Callable[[float], float], y: float) -> dict[str, object]:
    known = math.isfinite(row["low"]) and math.isfinite(row["high"])
    return {"x": x(row["value"]), "y": y, "bar": (x(row["low"]), x(row["high"])) if known else None}


def _limits(rows: pd.DataFrame) -> tuple[float, float]:
    """0 to 1, extended in steps of ½ if an interval exceeds it, as for removal."""
    ends = rows[["value", "low", "high"]].to_numpy(float)
    finite = ends[pd.notna(ends)]
    low = min(0.0, math.floor(2 * finite.min(initial=0.0)) / 2)
    return low, max(1.0, math.ceil(2 * finite.max(initial=1.0)) / 2)


def _y(row: int) -> float:
    return TOP + ROW * (row + 0.5)


def _tick(value: float) -> str:
    return true_minus(f"{value:g}")
