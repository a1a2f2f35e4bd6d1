"""Write the page of speed and memory, and its tables, from a report."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from analysis.errors import InputError
from grasp.bench.speed.figure import Figure, Report
from grasp.bench.tables.tables import Row, Table

_COLUMNS = {
    "what": "What",
    "value": "Value",
    "spread": "Least to most",
    "processor": "By processor time",
    "against": "Against",
    "target": "Target",
    "reached": "Reached",
}
_GROUPS = {
    "spectra": "Spectra and factors",
    "recording": "Recording activations",
    "training": "A GRASP training step",
    "start": "Start",
}


def tables(report: Report) -> list[Table]:
    """The tables of a report, one per group of figures."""
    found = []
    for group, title in _GROUPS.items():
        figures = [figure for figure in report.figures if figure.group == group]
        if figures:
            rows = [_row(figure) for figure in figures]
            found.append(Table(name=group, title=title, columns=_COLUMNS, rows=rows))
    return found


def _row(figure: Figure) -> Row:
    target = None if figure.target is None else f"{figure.sense} {figure.target:g}"
    spread = figure.spread and f"{_short(figure.spread[0])}–{_short(figure.spread[1])}"
    value = f"not measured: {figure.missing}"
    if figure.value is not None:
        value = f"{_short(figure.value)} {figure.unit}"
    processor = figure.detail.get("by processor time, ×")
    return {
        "what": figure.what,
        "value": value,
        "spread": spread,
        "processor": None if processor is None else f"{_short(processor)} ×",
        "against": figure.against,
        "target": target,
        "reached": figure.reached,
    }


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write_page(report: Report, out: Path, *, notes: str = "") -> None:
    """Write the page of a report.

    Args:
        report: what was measured.
        out: the Markdown file; its folder must exist.
        notes: Markdown that is included in the page unchanged.
    """
    machine = "; ".join(f"{name}: {value}" for name, value in report.machine.items())
    versions = ", ".join(f"{name} {value}" for name, value in report.versions.items())
    parts = [
        "# Speed and memory",
        f"Written by `grasp bench speed` from what it measured on {report.measured} in "
        f"{report.seconds:.0f} s (the {report.plan} plan); not edited by hand. A ratio is of two "
        "things done in turn in that run: the median of its repetitions, with the least and the "
        "most of them. By processor time, waiting for what else the machine did does not count.",
        *(table.markdown().replace("### ", "## ", 1) for table in tables(report)),
        *([notes.strip()] if notes.strip() else []),
        "## The machine",
        f"{machine}.",
        f"{versions}.",
    ]
    out.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def read_report(path: Path) -> Report:
    """Read a report printed by `grasp bench speed --json`.

    Raises:
        InputError: the file cannot be read, or is not such a report.
    """
    try:
        return Report.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}).") from None
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "the whole file"
        raise InputError(
            f"{path} is not a speed report ({where}); give the output of "
            "`grasp bench speed --json`."
        ) from None
