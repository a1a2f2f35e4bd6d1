"""Tables of results, as text, Markdown and plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.statistics.intervals import Interval
from analysis.tables import align_columns, markdown_table
from analysis.text import interval_text, number_text, true_minus
from analysis.values import Json

Row = Json
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
    def data(self) -> Json:
        """The table as JSON values."""
        rows = [{key: to_json_value(row.get(key)) for key in self.columns} for row in self.rows]
        return {"title": self.title, "rows": rows, "notes": list(self.notes)}

    def text(self) -> str:
        """Aligned columns for a terminal."""
        return "\n".join([self.title, *align_columns(self._lines()), *self.notes])

    def markdown(self) -> str:
        """A third-level heading, the table, and its notes."""
        head, *body = self._lines()
        return "\n\n".join([f"### {self.title}", markdown_table(head, body), *self.notes])

    def _lines(self) -> list[list[str]]:
        rows = [[format_value(row.get(key)) for key in self.columns] for row in self.rows]
        return [list(self.columns.values()), *rows]


def format_value(value: object) -> str:
    """A value as text: three decimals, an interval in brackets, "–" if unknown."""
    if isinstance(value, Interval):
        return interval_text(value.value, value.low, value.high, show=_number)
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    if 0 < abs(value) < 0.0005:
        return true_minus(f"{value:.0e}")
    return number_text(value, unknown="–")


def to_json_value(value: object) -> object:
    """A value as JSON values; an interval becomes value, low, high, n and items."""
    if isinstance(value, Interval):
        named = ("value", "low", "high", "n", "items")
        return {name: getattr(value, name) for name in named}
    return value
