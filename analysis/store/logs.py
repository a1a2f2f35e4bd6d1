"""Read what a running job writes line by line: the metrics of its run, and its log."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd


def read_metrics(file: Path) -> pd.DataFrame:
    """The lines of a run's metrics.jsonl as rows; `drift_by_layer` becomes `drift_layer_0`, ….

    Lines that are still being written, or are not objects with a step, are skipped.  Without a
    file the table is empty and has only the column step.
    """
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    rows = [row for line in lines if (row := _metrics_row(line)) is not None]
    return pd.DataFrame(rows) if rows else pd.DataFrame({"step": pd.Series(dtype=float)})


def _metrics_row(line: str) -> dict[str, float] | None:
    try:
        data = json.loads(line)
    except ValueError:
        return None
    if not isinstance(data, dict) or not _is_number(data.get("step")):
        return None
    row = {str(name): float(value) for name, value in data.items() if _is_number(value)}
    by_layer = data.get("drift_by_layer")
    for layer, value in enumerate(by_layer if isinstance(by_layer, list) else []):
        if _is_number(value):
            row[f"drift_layer_{layer}"] = float(value)
    return row


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_tail(file: Path, *, lines: int) -> str:
    """The last lines of a text file, from its last 64 KiB; "" if there is no file."""
    try:
        with file.open("rb") as handle:
            handle.seek(0, 2)
            handle.seek(max(0, handle.tell() - (1 << 16)))
            text = handle.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
