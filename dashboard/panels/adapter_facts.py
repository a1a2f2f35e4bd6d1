"""What the loader found in an adapter, in words; and the one thing it may not decide alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import streamlit as st

from analysis.adapters.choices import uses_dora
from analysis.spectra.report import report_rows
from dashboard.state.selection import Key
from dashboard.style import notices
from dashboard.style.markup import escape, html_table

LOW_RANK = (
    "A DoRA also rescales by lengths that depend on the base weights, so that scaling · B A is a "
    "part of its update and not ΔW."
)


def in_short(report: Mapping[str, Any]) -> str:
    """One line: modules, ranks, parameters, dtype, what was saved beside and not used."""
    rows = dict(report_rows(report))
    parts = [rows["updates"], f"rank {rows['rank']}"]
    parts += ["only the low-rank part of a DoRA"] if report["low_rank_part"] else []
    beside = ", ".join(kind["meaning"] for kind in report["beside"].values())
    parts += [f"beside LoRA: {beside}"] if beside else []
    parts += [f"{len(report['unused'])} tensors not used"] if report["unused"] else []
    return " · ".join(parts)


def table(report: Mapping[str, Any], *, source: Mapping[str, str]) -> str:
    """The whole report as a table of HTML, with the commit of the Hub it came from."""
    rows = report_rows(report)
    if source:
        shown = f"{source.get('asked', '')}, commit {source.get('revision', '')}"
        rows.insert(1, ("from the Hub", shown))
    cells = [[escape(label), f'<span class="long">{escape(text)}</span>'] for label, text in rows]
    return html_table(
        ["Found", ""], cells, caption="What the adapter's folder holds; nothing else is read."
    )


def accepted_low_rank(adapter: Path, run: str) -> bool | None:
    """False for LoRA; for a DoRA whether its low-rank part is wanted, None while it is not."""
    if not uses_dora(adapter):
        return False
    notices.empty(
        f"{run} is a DoRA",
        f"{LOW_RANK} The base weights are not read here, so that its ΔW cannot be shown.",
    )
    accepted = st.checkbox(
        "Show the low-rank part scaling · B A alone",
        key=f"{Key.LOW_RANK}-{run}",
        persist_state="session",
    )
    return True if accepted else None
