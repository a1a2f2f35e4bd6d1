"""Workspace: families of runs and their origin, a form to add adapters, and jobs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

from analysis.adapters.choices import uses_dora
from analysis.comparison.measures import choose_headlines
from analysis.comparison.settings import settings_table
from analysis.comparison.wording import metric_title
from analysis.errors import GraspError
from analysis.spectra.report import AdapterReport
from analysis.store.records import RunManifest
from analysis.store.workspace import Workspace
from dashboard.figures.lineage import lineage
from dashboard.panels import adapter_facts, add_adapter, job_panel
from dashboard.queue import commands, runs
from dashboard.state import adapter_cache, caches
from dashboard.state.access import read_only
from dashboard.state.selection import FAMILY, RUN, Key
from dashboard.style import notices
from dashboard.style.markup import escape, html_table, interval, literal
from dashboard.style.theme import arm_styles

JOBS = "jobs"
"""Anchor of the jobs on the page."""

SHOWN = ("unrelated", "removal", "task")
"""Measures of a family, of which the headline is shown, by instrument."""

LINKS = (
    ("spectra", "Spectra", ":material/bar_chart:", RUN),
    ("factors", "Factors", ":material/explore:", RUN),
    ("compare", "Compare", ":material/compare_arrows:", FAMILY),
)


def draw_page() -> None:
    """Draw the page."""
    workspace = caches.workspace()
    st.title("Workspace", anchor=False)
    listing = workspace.runs()
    notices.show_broken([*listing.broken, *workspace.evaluations().broken])
    if not listing.records:
        notices.show_empty(
            "No runs yet",
            "Build the demo's three fine-tunes into this workspace, or add an adapter below.",
            command=commands.command_line(
                ["demo", "--workspace", str(workspace.root), "--no-serve"]
            ),
        )
    families = runs.families(listing.records)
    if len(families) > 1:
        adding = "" if read_only() else f"[Add an adapter](#{add_adapter.ANCHOR}) · "
        st.markdown(f"{adding}[Jobs](#{JOBS})")
    for root, family in families.items():
        _family(workspace, root, family)
    if not read_only():
        add_adapter.show(workspace)
    st.subheader("Jobs", anchor=JOBS)
    job_panel.show_recent(workspace)


def _family(workspace: Workspace, root: str, family: list[RunManifest]) -> None:
    naive = next((run for run in family if run.id == root), family[0])
    with st.container(border=True, key=f"family-{root}"):
        st.subheader(literal(naive.title), anchor=False)
        base = literal(naive.base_model)
        runs_of = "1 run of" if len(family) == 1 else f"{len(family)} runs of"
        st.caption(f"{runs_of} {literal(root)} on {base}")
        _adapter_in_short(workspace, naive)
        st.html(_arms(workspace, family))
        with st.container(horizontal=True):
            for view, label, icon, parameter in LINKS:
                st.page_link(
                    f"views/{view}.py", label=label, icon=icon, query_params={parameter: root}
                )
        with st.expander("Origin of these runs", key=f"origin-{root}"):
            _origin(root, family)
            _reports(workspace, root, family)


def _adapter_in_short(workspace: Workspace, run: RunManifest) -> None:
    """One line about the adapter of a family's first run, or why it cannot be read."""
    if run.intervention is not None:
        return
    try:
        report = _report(workspace.adapter(run.id))
        st.caption(literal(adapter_facts.summarise_report(report)))
    except GraspError as error:
        notices.show_problem(f"The adapter of {run.id} cannot be read.", str(error))


def _report(adapter: Path) -> AdapterReport:
    return adapter_cache.load_report(adapter, low_rank_part=uses_dora(adapter))


def _reports(workspace: Workspace, root: str, family: list[RunManifest]) -> None:
    """The loader's report on the adapter of one of the runs."""
    with_adapter = {run.id: run for run in family if runs.has_adapter(workspace, run.id)}
    if not with_adapter:
        return
    names = list(with_adapter)
    chosen = names[0]
    if len(names) > 1:
        chosen = st.selectbox("Adapter of run", names, key=f"{Key.REPORT_OF}-{root}")
    try:
        report = _report(workspace.adapter(chosen))
    except GraspError as error:
        notices.show_problem(f"The adapter of {chosen} cannot be read.", str(error))
        return
    st.html(adapter_facts.report_table(report, source=with_adapter[chosen].source))


def _arms(workspace: Workspace, family: list[RunManifest]) -> str:
    metrics = _metrics(workspace, family)
    there = list(dict.fromkeys(metrics["metric"])) or list(SHOWN)
    shown = [metric for measure in SHOWN for metric in choose_headlines(there, measure)]
    rows = []
    styles = arm_styles({run.id: run.method for run in family})
    for run in family:
        colour, _ = styles[run.id]
        name = f'<span class="swatch" style="background:{colour}"></span>{escape(run.id)}'
        held = ", ".join(factor.rpartition("/")[2] for factor in run.factors) or "none"
        numbers = [_metric(metrics, run.id, metric) for metric in shown]
        rows.append([name, escape(runs.method_label(run.method)), escape(held), *numbers])
    header = ["Run", "Method", "Protected", *(metric_title(one) for one in shown)]
    how = (
        "Measured on the confirmation prompts, with 95 % intervals. Better: a lower unrelated "
        "rate, higher removal, higher task accuracy."
    )
    without = "Nothing has been evaluated yet; run grasp evaluate RUN --prompts FILE."
    return html_table(header, rows, caption=without if metrics.empty else how)


def _metrics(workspace: Workspace, family: list[RunManifest]) -> pd.DataFrame:
    """Metrics of the runs whose evaluations can be read; the others are shown without numbers."""
    names = [run.id for run in family if _is_evaluated(workspace, run.id)]
    try:
        return caches.rates(workspace, names, split="confirmation")
    except GraspError:
        return pd.DataFrame({"run": [], "metric": []})


def _is_evaluated(workspace: Workspace, run: str) -> bool:
    try:
        return bool(len(caches.evaluation(workspace, run).samples))
    except GraspError:
        return False


def _metric(metrics: pd.DataFrame, run: str, metric: str) -> str:
    found = metrics[(metrics["run"] == run) & (metrics["metric"] == metric)]
    if found.empty:
        return '<span class="absent">not evaluated</span>'
    row = found.iloc[0]
    return interval(row["value"], row["low"], row["high"], row["n"], row["n_items"])


def _origin(root: str, family: list[RunManifest]) -> None:
    st.mermaid_chart(lineage(family), alt=f"Lineage of {root}")
    notices.explain(
        "From left to right: the base model, the naive run, the factors found in it, and the "
        "runs that protect them."
    )
    everything = st.toggle(
        "All settings, versions and hashes", key=f"{Key.ALL_SETTINGS}-{root}", value=False
    )
    table = settings_table(family, only_different=not everything)
    if table.empty:
        st.caption("These runs have the same settings.")
        return
    st.dataframe(table, hide_index=True, placeholder="", alt=f"Settings of the runs of {root}")
    if not everything:
        notices.explain("Shows only settings that differ between these runs.")


if __name__ == "__main__":
    draw_page()
