"""Tables of results, as text, Markdown and plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis.statistics.intervals import Interval

Row = dict[str, Any]
"""Column → value: text, a number, a bool, None, or an Interval."""


@dataclass(frozen=True)
class Table:
    """One table: `columns` maps keys of rows to headings; `notes` are sentences."""

    name: str
    title: str
    columns: dict[str, str]
    rows: Sequence[Row]
    notes: Sequence[str] = ()

    @property
    def data(self) -> dict[str, Any]:
        """The table as JSON values."""
        rows = [{key: plain(row.get(key)) for key in self.columns} for row in self.rows]
        return {"title": self.title, "rows": rows, "notes": list(self.notes)}

    def text(self) -> str:
        """Aligned columns for a terminal."""
        lines = self._lines()
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        body = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, *body, *self.notes])

    def markdown(self) -> str:
        """A third-level heading, the table, and its notes."""
        head, *body = self._lines()
        lines = [_pipes(head), _pipes(["---"] * len(head)), *(_pipes(line) for line in body)]
        parts = [f"### {self.title}", "\n".join(lines), *self.notes]
        return "\n\n".join(parts)

    def _lines(self) -> list[list[str]]:
        rows = [[shown(row.get(key)) for key in self.columns] for row in self.rows]
        return [list(self.columns.values()), *rows]


def _pipes(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", r"\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def shown(value: Any) -> str:
    """A value as text: three decimals, an interval in brackets, "–" if unknown."""
    if isinstance(value, Interval):
        bounds = f" [{_number(value.low)}, {_number(value.high)}]"
        return _number(value.value) + (bounds if math.isfinite(value.low) else "")
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    if value != 0 and abs(value) < 0.0005:
        return f"{value:.0e}".replace("-", "−")
    return f"{value:.3f}".replace("-", "−")


def plain(value: Any) -> Any:
    """A value as JSON values; an interval becomes value, low, high and n."""
    if isinstance(value, Interval):
        return {"value": value.value, "low": value.low, "high": value.high, "n": value.n}
    return value
