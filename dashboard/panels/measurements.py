"""The evidence for one factor that needs a model: dose–response, training rows, task overlap.

A page never runs a model: for evidence not measured yet it shows the command, and a button that
queues it.
"""

from __future__ import annotations

import pandas as pd
import streamlit as st

from analysis.comparison.wording import metric_name
from analysis.evidence import driving_rows, task_overlap
from analysis.evidence.dose_curves import metrics_of
from analysis.store.evidence import Evidence, was_measured_with
from analysis.store.factor_table import FactorTable
from analysis.store.records import EvidenceKind, RunManifest
from analysis.store.workspace import Workspace, evidence_id
from analysis.text import duration_text, number_text, true_minus
from dashboard.figures import measurements as figures
from dashboard.panels import job_panel
from dashboard.queue import commands
from dashboard.state import caches
from dashboard.state.access import read_only
from dashboard.state.selection import Key
from dashboard.style import notices
from dashboard.style.markup import escape, html_table, interval, literal
from grasp.jobs import queue

LISTED = 5
_PLAIN_CHART = {"displayModeBar": False}
_LEVELS = (task_overlap.BASE, task_overlap.ADAPTED, task_overlap.FACTOR)
_UNITS: dict[driving_rows.Measure, str] = {"alignment": "nats per token", "shift": "base std"}


def show_dose(workspace: Workspace, run: RunManifest, table: FactorTable, factor: str) -> None:
    """Draw how steering along the factor changes both models and their answers."""
    found = _measured(
        workspace, run, table, factor, "dose",
        argv=commands.dose_argv(run.id, factor, workspace=workspace.root),
        missing="This steers the base and the adapted model along the factor and along random "
        "directions, and scores the exploration prompts at every dose.",
    )  # fmt: skip
    if found is None:
        return
    curves, answers = found.tables["curves"], found.tables["answers"]
    left, right = st.columns([6, 5])
    with left, st.container(border=True, height="stretch"):
        metric = str(st.segmented_control(
            "Metric", metrics_of(curves), key=Key.DOSE_METRIC, default=metrics_of(curves)[0],
            required=True, persist_state="session",
        ))  # fmt: skip
        figure = figures.dose_response(
            curves, metric=metric, layer=found.manifest.config.get("layer")
        )
        st.plotly_chart(figure, key=Key.DOSE, config=_PLAIN_CHART)
        notices.explain(
            "A dose of 1 is one standard deviation of the base model's coordinate along the "
            "factor. A line that leaves its band responds to this direction, not just to any push "
            "of that size. Bars are 95 % intervals, clustered by item, on exploration prompts."
        )
    with right, st.container(border=True, height="stretch"):
        st.markdown("**Greedy answers**")
        asked = dict(zip(answers["prompt_id"], answers["prompt"], strict=True))
        chosen = st.selectbox(
            "Prompt", list(asked), key=Key.DOSE_PROMPT, format_func=lambda one: asked.get(one, one)
        )
        st.html(_steered(answers[answers["prompt_id"] == chosen]))


def show_rows(workspace: Workspace, run: RunManifest, table: FactorTable, factor: str) -> None:
    """Draw the training rows that drive the factor, beside random ones, and the test of them."""
    found = _measured(
        workspace, run, table, factor, "rows",
        argv=commands.rows_argv(run.id, factor, workspace=workspace.root),
        missing="This measures, for every training row, how much its gradient pushes along the "
        "factor and how far its answer moved.",
    )  # fmt: skip
    if found is None:
        return
    values = found.tables["rows"]
    with st.container(border=True):
        by = _measure()
        shown = driving_rows.rows_to_show(values, n=LISTED, by=by)
        st.plotly_chart(
            figures.row_values(values, shown, by=by, unit=_UNITS[by]),
            key=Key.ROWS,
            config=_PLAIN_CHART,
        )
        notices.explain(
            "Alignment: how much the base model's loss per answer token would fall if the "
            "coordinate along the factor were moved by one base standard deviation at a layer. "
            "Shift: how far the fine-tune moved the row's answer. Both are positive towards the "
            f"factor's {found.manifest.config.get('towards')} end, to which the fine-tune moved "
            "the answers."
        )
        columns = st.columns(3, gap="medium")
        names = {"top": "Top", "random": "Drawn at random", "bottom": "Bottom"}
        for column, (which, name) in zip(columns, names.items(), strict=True):
            with column:
                st.caption(name)
                st.html(_listed(shown[shown["which"] == which], by=by))
    _validation(workspace, run, table, factor, count=len(values))


def show_overlap(workspace: Workspace, run: RunManifest, table: FactorTable, factor: str) -> None:
    """Draw how much of the run's gains is lost when the factor is set back to the base model's."""
    found = _measured(
        workspace, run, table, factor, "overlap",
        argv=commands.overlap_argv(run.id, factor, workspace=workspace.root),
        missing="This sets the coordinate along the factor back to the base model's while the "
        "adapted model answers, and measures how much of the task and of the drift is lost with "
        "it: a preview before retraining.",
    )  # fmt: skip
    if found is None:
        return
    shares = found.tables["overlap"]
    left, right = st.columns(2)
    with left, st.container(border=True, height="stretch"):
        names = [_measure_name(str(one)) for one in shares["measure"].unique()]
        figure = figures.overlap_shares(shares, names=names, factor=factor)
        st.plotly_chart(figure, key=Key.OVERLAP, config=_PLAIN_CHART)
        notices.explain(
            "0 % means that the fine-tune's change remains, 100 % that it is undone. Good: a small "
            "share of the task and a large share of the unrelated rate. Measures that the "
            "fine-tune did not change are left out. For several factors together, run grasp "
            "overlap RUN w1,w2."
        )
    with right, st.container(border=True, height="stretch"):
        st.html(_levels(found, factor))


def _measured(
    workspace: Workspace,
    run: RunManifest,
    table: FactorTable,
    factor: str,
    kind: EvidenceKind,
    *,
    argv: list[str],
    missing: str,
) -> Evidence | None:
    """Saved evidence with its summary; without any, what it measures and a button to start it."""
    record, title = evidence_id(run.id, factor, kind), f"{kind} of {run.id}/{factor}"
    if not workspace.folder("evidence", record).is_dir():
        notices.show_empty("Not measured yet", missing, command=commands.command_line(argv))
        _start(workspace, kind, title, argv, label="Measure")
        return None
    found = None
    with notices.catch_errors("This evidence"):
        found = caches.evidence(workspace, record)
    if found is not None:
        st.markdown(f"**{literal(found.manifest.sentence)}**")
        if was_measured_with(found.manifest, table.direction(factor)[None]):
            return found
        st.warning("The factors have been recomputed; this is about the earlier direction.")
    _start(workspace, kind, title, argv, label="Measure again")
    return found


def _start(workspace: Workspace, kind: str, title: str, argv: list[str], *, label: str) -> None:
    """Draw the button that queues a measurement, or the panel of its job while that is active."""
    same = [job for job in queue.list_recent(workspace.database) if job.argv == argv]
    if same and same[0].status in queue.ACTIVE:
        job_panel.show(workspace, same[0].id)
        return
    if st.button(label, key=Key.measure(kind), type="primary", disabled=read_only()):
        job_panel.start_job(workspace, kind=kind, title=title, argv=argv, output="")
        st.rerun()
    if same and same[0].status != "succeeded":
        job_panel.show(workspace, same[0].id)


def _measure() -> driving_rows.Measure:
    chosen = st.segmented_control(
        "Ordered by",
        list(_UNITS),
        key=Key.ROWS_BY,
        default="alignment",
        required=True,
        persist_state="session",
    )
    return chosen or "alignment"


def _validation(
    workspace: Workspace, run: RunManifest, table: FactorTable, factor: str, *, count: int
) -> None:
    with st.expander("Test these rows: retrain without them", key=Key.ROWS_LEFT_OUT + "-box"):
        found = None
        with notices.catch_errors("This validation"):
            found = caches.evidence(workspace, evidence_id(run.id, factor, "validation"))
        if found is not None:
            st.markdown(f"**{literal(found.manifest.sentence)}**")
            if not was_measured_with(found.manifest, table.direction(factor)[None]):
                st.warning("This is about an earlier direction of the same name.")
            st.html(_arms(found.tables["rates"]))
        left_out = st.number_input(
            "Rows to leave out",
            min_value=1,
            max_value=count - 1,
            value=max(1, count // 5),
            key=Key.ROWS_LEFT_OUT,
        )
        argv = commands.rows_argv(run.id, factor, workspace=workspace.root, validate=int(left_out))
        st.code(commands.command_line(argv), language="bash", wrap_lines=True)
        st.caption(literal(
            "Runs three fine-tunes with the run's own settings: one without the top rows, two "
            f"without as many random rows. The run itself took {_took(run)}."
        ))  # fmt: skip
        title = f"{run.id} without rows of {factor}"
        _start(workspace, "validate", title, argv, label="Retrain without them")


def _took(run: RunManifest) -> str:
    return "an unknown time" if run.seconds is None else duration_text(run.seconds)


def _steered(answers: pd.DataFrame) -> str:
    by_dose = answers.pivot(index="dose", columns="model", values="answer").sort_index()
    cells = [
        [escape(_dose_words(float(str(dose)))),
         *(escape(row[model]) for model in ("base", "adapted"))]
        for dose, row in by_dose.iterrows()
    ]  # fmt: skip
    return html_table(
        ["Dose", "Base", "Adapted"],
        cells,
        caption="Doses in standard deviations of the base model.",
    )


def _dose_words(dose: float) -> str:
    return true_minus(f"{dose:+g}") if dose else "0"


def _listed(rows: pd.DataFrame, *, by: str) -> str:
    parts = []
    for row in rows.to_dict("records"):
        about = f"row {row['row']}, {true_minus(f'{row[by]:+.3g}')} {_unit(by)}"
        parts.append(
            f'<div class="example"><div class="about">{escape(about)}</div>'
            f'<div class="about">{escape(row["prompt"])}</div>'
            f'<div style="font-size: 0.86rem">{escape(row["answer"])}</div></div>'
        )
    return "".join(parts)


def _unit(by: str) -> str:
    return {str(name): unit for name, unit in _UNITS.items()}[by]


def _levels(found: Evidence, factor: str) -> str:
    table = task_overlap.mean_scores(found.tables["samples"])
    shares = found.tables["overlap"]
    own = shares[shares["subspace"] == task_overlap.FACTOR].set_index("measure")
    cells = [
        [
            escape(_measure_name(str(row["measure"]))),
            interval(*own.loc[row["measure"], ["value", "low", "high", "n"]]),
            *(f'<span class="value">{number_text(row[arm])}</span>' for arm in _LEVELS),
        ]
        for row in table.to_dict("records")
    ]
    header = ["Measure", "Share undone", "Base", "Adapted", f"{factor} set back"]
    note = "Exploration prompts, 95 % intervals; training answers in nats per token."
    return html_table(header, cells, caption=note)


def _arms(rates: pd.DataFrame) -> str:
    metrics = list(rates["metric"].unique())
    cells = []
    for arm, found in rates.groupby("arm", sort=False):
        by_metric = found.set_index("metric")
        cells.append(
            [escape(arm)]
            + [
                interval(*by_metric.loc[one, ["value", "low", "high", "n"]])
                if one in by_metric.index
                else '<span class="absent">none</span>'
                for one in metrics
            ]
        )
    header = ["Fine-tune", *(metric_name(str(one)) for one in metrics)]
    return html_table(header, cells, caption="Exploration prompts; 95 % intervals over items.")


def _measure_name(measure: str) -> str:
    return "training answers" if measure == task_overlap.ROWS else metric_name(measure)
