"""Tables as plain text and as Markdown; as HTML they are in `analysis.markup`."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], columns: str = "") -> list[str]:
    """A line a row, with columns as wide as their widest cell and two spaces between them.

    Args:
        rows: as many cells each, the header first where there is one.
        columns: one mark a column, "<" to the left or ">" to the right; what has none is left.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    marks = columns.ljust(len(widths), "<")
    return [
        "  ".join(
            f"{cell:{mark}{width}}" for cell, mark, width in zip(row, marks, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; a bar in a cell is escaped."""
    return "\n".join(_between_bars(row) for row in (header, ["---"] * len(header), *rows))


def _between_bars(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", r"\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"
