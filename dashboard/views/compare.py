"""Compare: the arms of one family, their trade-off, their differences and their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pandas as pd
import streamlit as st

from analysis.comparison.measures import choose_headlines, split_metric
from analysis.comparison.wording import (
    WHAT_IS_COUNTED,
    domination_text,
    listed_metrics,
    metric_name,
    metric_title,
)
from analysis.store.label_files import guarded_csv
from analysis.store.records import RunManifest, Split
from analysis.store.workspace import Workspace
from analysis.values import TableRow
from dashboard.figures import comparison as figures
from dashboard.panels import job_panel
from dashboard.panels.against_naive import show_tests
from dashboard.panels.arm_answers import BASE, show_answers, show_flips
from dashboard.panels.frame import show_no_runs
from dashboard.panels.instruments import show_instruments
from dashboard.panels.prompt_sets import choose_set
from dashboard.panels.verdict import show_verdict, show_without_base
from dashboard.queue import commands, runs
from dashboard.queue.needs import missing_base
from dashboard.state import caches
from dashboard.state.access import read_only
from dashboard.state.selection import FAMILY, RUN, SPLIT, Key, pick, read_parameter
from dashboard.style import notices
from dashboard.style.markup import escape, html_table, interval, literal
from dashboard.style.theme import arm_styles

SPLITS = {"confirmation": "Confirmation", "exploration": "Exploration"}


def draw_page() -> None:
    """Draw the page."""
    workspace = caches.workspace()
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    with left:
        st.title("Compare", anchor=False)
    listing = workspace.runs()
    notices.show_broken([*listing.broken, *workspace.evaluations().broken])
    families = runs.families(listing.records)
    if not families:
        show_no_runs(workspace)
        return
    with right:
        family = _family(families)
    split = _split()
    arms = _evaluated(workspace, families[family])
    if not arms:
        return
    with notices.catch_errors("The comparison"):
        _comparison(workspace, family, arms, split)


def _family(families: dict[str, list[RunManifest]]) -> str:
    roots = {run.id: root for root, group in families.items() for run in group}
    wanted = read_parameter(RUN) or st.session_state.get("selected:run", "")
    titles = {root: group[0].title if group[0].id == root else root
              for root, group in families.items()}  # fmt: skip
    return str(
        pick(
            "Family",
            FAMILY,
            list(families),
            key=Key.FAMILY,
            default=roots.get(str(wanted)),
            format_func=lambda root: titles[root],
            hidden_label=True,
        )
    )


def _split() -> Split:
    split = pick(
        "Prompts",
        SPLIT,
        list(SPLITS),
        key=Key.SPLIT,
        format_func=lambda name: SPLITS[name],
        hidden_label=True,
        widget="buttons",
    )
    if split == "exploration":
        st.warning(
            "These are the exploration prompts: settings may have been tuned on them. Report "
            "results on the confirmation prompts."
        )
    return cast(Split, split)


def _evaluated(workspace: Workspace, family: Sequence[RunManifest]) -> list[RunManifest]:
    """Runs with a readable evaluation; lists the others with the command that evaluates them."""
    found, missing = [], []
    for run in family:
        folder = workspace.root / "evaluations" / run.id
        if not folder.is_dir():
            missing.append(run.id)
            continue
        with notices.catch_errors(f"The evaluation of {run.id}"):
            caches.evaluation(workspace, run.id)
            found.append(run)
    if missing:
        _offer_to_evaluate(workspace, [run for run in family if run.id in missing])
    return found


def _offer_to_evaluate(workspace: Workspace, missing: Sequence[RunManifest]) -> None:
    """The commands that evaluate runs, and a button that queues them."""
    names = ", ".join(run.id for run in missing)
    if read_only():
        st.caption(literal(f"Not evaluated yet: {names}"))
        return
    with st.container(border=True):
        st.markdown(f"**{literal(f'Not evaluated yet: {names}')}**")
        st.markdown("A run appears in the comparison once it has been evaluated.")
        given = None
        if not all(run.config.get("prompts") for run in missing):
            st.markdown("Its settings name no prompts, so choose the set to evaluate on.")
            given = choose_set("Prompts", key=Key.EVALUATE_SET)
            if given is None:
                return
        lines = [
            commands.evaluate_argv(run.id, workspace=workspace.root, prompts=given)
            for run in missing
        ]
        st.code("\n".join(map(commands.command_line, lines)), language="bash", wrap_lines=True)
        if lack := missing_base(workspace, missing[0]):
            st.warning(literal(lack))
        elif st.button(
            "Evaluate" if len(missing) == 1 else f"Evaluate {len(missing)} runs",
            key=Key.EVALUATE,
            type="primary",
        ):
            for run, argv in zip(missing, lines, strict=True):
                title = f"Evaluate {run.id}" + (f" on {given}" if given else "")
                job_panel.start_job(workspace, kind="evaluate", title=title, argv=argv, output="")
            st.rerun()
    job_panel.show_latest(workspace, kind="evaluate", argv=lines[0], others=lines[1:])


def _comparison(workspace: Workspace, root: str, arms: list[RunManifest], split: Split) -> None:
    if show_without_base(workspace, root):
        return
    ids = [run.id for run in arms]
    labels = {"": "Base model", **runs.arm_labels(arms)}
    table = caches.comparison(workspace, ids, split=split).copy()
    table["label"] = [labels.get(run, run) for run in table["run"]]
    show_verdict(workspace, arms, table, split=split)
    with st.container(key=Key.ARMS_TABLE):
        for apart, metrics in listed_metrics(table["metric"]).items():
            if apart:
                st.markdown(literal(f"Prompts of {apart}"))
            st.html(_arms_table(table, arms, split, metrics))
    show_instruments(caches.instruments(workspace, ids, split=split), labels)
    _downloads(workspace, root, table, labels, split)
    left, right = st.columns([3, 2])
    with left, st.container(border=True, height="stretch"):
        across, up = _axes(table)
        st.plotly_chart(
            figures.frontier(table, x=across, y=up),
            key=Key.FRONTIER,
            config={"displayModeBar": False},
        )
        notices.explain(
            "Lower right is better: the task is learned and the unrelated behaviour is absent. "
            "Bars are 95 % intervals. The base model shows the rate before fine-tuning. "
            + domination_text(caches.dominations(workspace, ids, split=split), labels)
        )
    with right, st.container(border=True, height="stretch"):
        _intervals(table)
    show_tests(table, labels, caches.effort(workspace, root))
    answers = caches.answers(workspace, ids, split=split)
    names = {run or BASE: label for run, label in labels.items()}
    show_flips(answers, names, root)
    show_answers(answers, names)


def _downloads(
    workspace: Workspace, root: str, table: pd.DataFrame, labels: dict[str, str], split: Split
) -> None:
    """Buttons for the numbers and for a report, which is built only on click."""

    def report() -> str:
        from analysis.comparison import report

        ids = [run for run in labels if run]
        return report.render_report(workspace, ids, split=split, labels=labels)

    with st.container(horizontal=True):
        st.download_button(
            "Numbers as CSV",
            guarded_csv(table),
            f"{root}-{split}.csv",
            "text/csv",
            key=Key.COMPARE_CSV,
            icon=":material/download:",
            on_click="ignore",
        )
        st.download_button(
            "Report as HTML",
            report,
            f"{root}-{split}.html",
            "text/html",
            key=Key.COMPARE_REPORT,
            icon=":material/description:",
            on_click="ignore",
            help="Tables, figure, tests, settings tried and commands, in one file without scripts.",
        )


def _axes(table: pd.DataFrame) -> tuple[str, str]:
    """The metrics of the frontier: task accuracy, and a drift of the reader's choice."""
    there = list(dict.fromkeys(table["metric"]))
    drifts = choose_headlines(there) or ["unrelated"]
    up = drifts[0]
    if len(drifts) > 1:
        up = st.selectbox("Drift", drifts, key=Key.FRONTIER_DRIFT, format_func=metric_name)
    return (choose_headlines(there, "task") or ["task"])[0], str(up)


def _arms_table(
    table: pd.DataFrame, arms: Sequence[RunManifest], split: Split, metrics: Sequence[str]
) -> str:
    cells = {(row["run"], row["metric"]): row for row in table.to_dict("records")}
    factors = {run.id: ", ".join(name.rpartition("/")[2] for name in run.factors) for run in arms}
    rows = []
    styles = arm_styles(figures.run_methods(table))
    for run, group in table.groupby("run", sort=False):
        colour, _ = styles[str(run)]
        held = f" protecting {factors[str(run)]}" if factors.get(str(run)) else ""
        name = (
            f'<span class="swatch" style="background:{colour}"></span>'
            f"{escape(group['label'].iloc[0])}"
            f'<span class="sub">{escape(str(run) + held)}</span>'
        )
        rows.append([name, *(_cell(cells.get((run, metric))) for metric in metrics)])
    header = ["Arm", *(metric_title(split_metric(metric)[0]) for metric in metrics)]
    caption = (
        f"Means over the {split} prompts, with 95 % intervals. Drift is the unrelated rate minus "
        "the base model's; removal is 1 − (drift of the arm) / (drift of the naive run)."
    )
    if any(metric.startswith("unrelated_said") for metric in metrics):
        caption += f" {WHAT_IS_COUNTED}"
    return html_table(header, rows, caption=caption)


def _cell(row: TableRow | None) -> str:
    if row is None:
        return '<span class="absent">–</span>'
    return interval(row["value"], row["low"], row["high"], row["n"], row["n_items"])


def _intervals(table: pd.DataFrame) -> None:
    metrics = [metric for found in listed_metrics(table["metric"]).values() for metric in found]
    metric = st.selectbox(
        "Metric",
        metrics,
        key=Key.METRIC,
        format_func=metric_name,
        persist_state="session",
    )
    st.plotly_chart(
        figures.intervals(table, metric=str(metric)),
        key=Key.INTERVALS,
        config={"displayModeBar": False},
    )
    notices.explain(
        "Points are means, bars are 95 % intervals. Arms whose bars overlap may not differ."
    )


if __name__ == "__main__":
    draw_page()
