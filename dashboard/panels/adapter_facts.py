"""What the loader found in an adapter, and the one choice it leaves to the user: DoRA."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import streamlit as st

from analysis.adapters.choices import uses_dora
from analysis.spectra.report import AdapterReport, report_rows
from dashboard.state.selection import Key
from dashboard.style import notices
from dashboard.style.markup import escape, html_table

LOW_RANK = (
    "DoRA also rescales by norms that depend on the base weights, so scaling · B A is only a part "
    "of its update, not ΔW."
)


def summarise_report(report: AdapterReport) -> str:
    """One line: modules, ranks, parameters, dtype, and what else was saved or left unused."""
    rows = dict(report_rows(report))
    parts = [rows["updates"], f"rank {rows['rank']}"]
    parts += ["only the low-rank part of a DoRA"] if report["low_rank_part"] else []
    beside = ", ".join(kind["meaning"] for kind in report["beside"].values())
    parts += [f"besides LoRA: {beside}"] if beside else []
    parts += [f"unused tensors: {len(report['unused'])}"] if report["unused"] else []
    return " · ".join(parts)


def report_table(report: AdapterReport, *, source: Mapping[str, str]) -> str:
    """The whole report as an HTML table, with the commit on the Hub that it came from."""
    rows = report_rows(report)
    if source:
        shown = f"{source.get('asked', '')}, commit {source.get('revision', '')}"
        rows.insert(1, ("from the Hub", shown))
    cells = [[escape(label), f'<span class="long">{escape(text)}</span>'] for label, text in rows]
    return html_table(
        ["Found", ""], cells, caption="Contents of the adapter's folder; nothing else is read."
    )


def ask_low_rank(adapter: Path, run: str) -> bool | None:
    """False for a LoRA; for a DoRA, True once its low-rank part is accepted, None until then."""
    if not uses_dora(adapter):
        return False
    notices.show_empty(
        f"{run} is a DoRA",
        f"{LOW_RANK} The base weights are not read here, so ΔW cannot be shown.",
    )
    accepted = st.checkbox(
        "Show only the low-rank part, scaling · B A",
        key=f"{Key.LOW_RANK}-{run}",
        persist_state="session",
    )
    return True if accepted else None
