"""Write tables as plain text and as Markdown; `analysis.markup` writes HTML."""

from __future__ import annotations

from collections.abc import Sequence


def align_columns(rows: Sequence[Sequence[str]], columns: str = "") -> list[str]:
    """One line per row, with columns as wide as their widest cell and two spaces between them.

    Args:
        rows: with equally many cells; a header, if any, is the first row.
        columns: one mark per column, "<" to align left or ">" to align right; columns without a
            mark are aligned left.
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
    """A Markdown table; vertical bars in cells are escaped."""
    return "\n".join(_between_bars(row) for row in (header, ["---"] * len(header), *rows))


def _between_bars(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", r"\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"
