"""The evidence for one factor, shown on the Factors page below the list and the label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import pandas as pd
import streamlit as st

from analysis.evidence import projection_tables
from analysis.store.factor_table import FactorTable
from analysis.store.records import RunManifest
from analysis.store.workspace import Workspace
from analysis.text import number_text
from dashboard.figures import activations as figures
from dashboard.panels import job_panel, measurements
from dashboard.panels.prompt_sets import choose_set
from dashboard.queue import commands, needs
from dashboard.state import caches
from dashboard.state.access import read_only
from dashboard.state.selection import EVIDENCE, LAYER, Key, pick
from dashboard.style import notices
from dashboard.style.markup import escape, heat_map, html_table, interval, literal

KINDS = {
    "activations": "Activations",
    "dose": "Dose–response",
    "rows": "Training rows",
    "overlap": "Task overlap",
}
ORDERS: dict[projection_tables.How, str] = {"mean": "mean of answer", "max": "strongest token"}
MODELS: dict[projection_tables.Model, str] = {"adapted": "adapted", "base": "base"}
EXAMPLES = 4
TOKENS = 10
_PLAIN_CHART = {"displayModeBar": False}

Option = TypeVar("Option", bound=str)


def show(workspace: Workspace, run: RunManifest, table: FactorTable, factor: str) -> None:
    """Draw the kind of evidence that the URL names; only that one is loaded."""
    st.subheader(literal(f"Evidence for {factor}"), anchor=False)
    kind = pick(
        "Evidence", EVIDENCE, list(KINDS), key=Key.EVIDENCE, format_func=lambda one: KINDS[one],
        hidden_label=True, widget="buttons",
    )  # fmt: skip
    if _is_out_of_reach(workspace, run, str(kind), factor):
        return
    if kind == "activations":
        _activations(workspace, run.id, factor)
    elif kind == "dose":
        measurements.show_dose(workspace, run, table, factor)
    elif kind == "rows":
        measurements.show_rows(workspace, run, table, factor)
    else:
        measurements.show_overlap(workspace, run, table, factor)


def _is_out_of_reach(workspace: Workspace, run: RunManifest, kind: str, factor: str) -> bool:
    """Whether evidence is missing and cannot be made on this machine; says what it needs."""
    if kind == "activations":
        there = workspace.folder("recordings", run.id)
    else:
        there = workspace.folder("evidence", f"{run.id}.{factor}.{kind}")
    lacking = [] if there.is_dir() else needs.find_missing(workspace, run, kind)
    if lacking and (setting := needs.missing_set(workspace, run, kind)):
        _offer_set(workspace, run, kind, factor, setting)
    elif lacking:
        notices.show_empty(
            f"{KINDS[kind]}: not available here yet",
            " ".join(lacking),
            command=needs.evidence_command(workspace, run, kind, factor),
        )
    return bool(lacking)


def _offer_set(
    workspace: Workspace, run: RunManifest, kind: str, factor: str, setting: str
) -> None:
    """Evidence for which the run's settings name no probes or prompts: a set can be chosen."""
    if read_only():
        st.caption("Not measured yet.")
        return
    with st.container(border=True):
        st.markdown(
            literal(f"{run.id} names no {setting}, so choose what to ask: {KINDS[kind].lower()} ")
            + "can be measured on any of these sets, or on a file of your own."
        )
        given = choose_set(setting.capitalize(), key=Key.EVIDENCE_SET, pairs=setting == "probes")
        if given is None:
            return
        argv = needs.evidence_argv(workspace, run, kind, factor, given=given)
        st.code(commands.command_line(argv), language="bash", wrap_lines=True)
        job = "record" if kind == "activations" else kind
        if st.button(
            "Record activations" if kind == "activations" else "Measure",
            key=Key.EVIDENCE_START,
            type="primary",
        ):
            title = f"{KINDS[kind]} of {run.id}/{factor} on {given}"
            job_panel.start_job(workspace, kind=job, title=title, argv=argv, output="")
            st.rerun()
    job_panel.show_latest(workspace, kind=job, argv=argv)


def _activations(workspace: Workspace, run: str, factor: str) -> None:
    """Projections, moves, examples and map of one factor, or a button to record them."""
    if not workspace.folder("recordings", run).is_dir():
        _not_recorded(workspace, run)
        return
    with notices.catch_errors("The recording"):
        layers = [str(layer) for layer in workspace.recording(run).layers]
        layer = int(str(pick("Decoder layer", LAYER, layers, key=Key.LAYER,
                              default=_middle(layers), widget="buttons")))  # fmt: skip
        where = (workspace, run, factor, layer)
        _projections(*where)
        _examples(*where)
        _map(*where)


def _middle(layers: list[str]) -> str:
    return layers[(len(layers) - 1) // 2]


def _not_recorded(workspace: Workspace, run: str) -> None:
    argv = commands.record_argv(run, workspace=workspace.root)
    notices.show_empty(
        f"{run} has no recording yet",
        "Histograms, examples and the map need the activations of the base and the adapted model "
        "on the run's probes.",
        command=commands.command_line(argv),
    )
    if st.button("Record activations", key=Key.RECORD, type="primary", disabled=read_only()):
        job_panel.start_job(workspace, kind="record", title=f"Record {run}", argv=argv, output="")
        st.rerun()
    job_panel.show_latest(workspace, kind="record", argv=argv)


def _projections(workspace: Workspace, run: str, factor: str, layer: int) -> None:
    left, right = st.columns(2)
    with left, st.container(border=True, height="stretch"):
        by = st.segmented_control(
            "Split by",
            ["variant", "group"],
            key=Key.HISTOGRAM_BY,
            default="variant",
            required=True,
            persist_state="session",
        )
        rows = caches.projections(workspace, run, factor, layer=layer)
        st.plotly_chart(figures.histogram(rows, by=str(by)), key=Key.HISTOGRAM, config=_PLAIN_CHART)
        notices.explain(
            "Each count is one probe, measured at the last token before its final answer. If grey "
            "differs between panels, the base model already tells them apart; if orange differs "
            "from grey, the fine-tune moved those probes."
        )
    with right, st.container(border=True, height="stretch"):
        shifts = caches.shifts(workspace, run, factor, by=str(by))
        st.plotly_chart(figures.shift_by_layer(shifts), key=Key.SHIFT, config=_PLAIN_CHART)
        notices.explain(
            "0 means no change. A spurious factor also moves probes that have nothing to do with "
            "the task, and in the same direction. Bars are 95 % intervals over probes."
        )
        st.html(_separation(rows, by=str(by)))


def _separation(rows: pd.DataFrame, *, by: str) -> str:
    table = projection_tables.separation_table(rows, by=by)
    cells = [
        [escape(row["what"]), interval(row["auc"], row["low"], row["high"], row["n"])]
        for row in table.to_dict("records")
    ]
    caption = (
        "Area under the ROC curve (AUC), with its 95 % interval: 0.5 means no difference, 0 or 1 "
        "complete separation."
    )
    return html_table(["At this layer", "AUC"], cells, caption=caption)


def _examples(workspace: Workspace, run: str, factor: str, layer: int) -> None:
    with st.container(border=True):
        st.markdown("**Strongest examples**")
        with st.container(horizontal=True):
            how = _choice("Ranked by", ORDERS, key=Key.EXAMPLES_BY)
            model = _choice("Model", MODELS, key=Key.EXAMPLES_OF)
        low, high, limit = caches.examples(
            workspace, run, factor, layer=layer, count=EXAMPLES, how=how, model=model
        )
        tokens = caches.strongest_tokens(
            workspace, run, factor, layer=layer, count=TOKENS, model=model
        )
        left, right = st.columns(2, gap="large")
        for column, name, found, strong in (
            (left, "High end", high, tokens[1]),
            (right, "Low end", low, tokens[0]),
        ):
            with column:
                st.caption(f"{name}: strongest tokens, then examples")
                st.html(_strongest(strong, limit))
                st.html("".join(_example(one, limit, model) for one in found))
        notices.explain(
            "Orange tokens lie above the base model's mean, blue ones below; the colour is full at "
            f"±{limit:.1f} standard deviations. Faint tokens are not part of the answer. Hover "
            "over a token for its value."
        )


def _choice(label: str, options: Mapping[Option, str], *, key: str) -> Option:
    chosen = st.segmented_control(
        label,
        list(options),
        key=key,
        default=next(iter(options)),
        required=True,
        format_func=lambda one: literal(options[one]),
        persist_state="session",
    )
    return chosen if chosen is not None else next(iter(options))


def _strongest(tokens: list[tuple[str, float]], limit: float) -> str:
    values = np.array([value for _, value in tokens])
    shown = heat_map([text for text, _ in tokens], values, [True] * len(tokens), limit=limit)
    return f'<div class="example">{shown}</div>'


def _example(
    example: projection_tables.ProbeExample, limit: float, model: projection_tables.Model
) -> str:
    other = "base" if model == "adapted" else "adapted"
    value, against = (number_text(v, 2, sign=True) for v in (example.value, example.against))
    values = f"{model} {value} std, {other} {against}"
    about = f"{example.id}, {example.group}, {example.variant}: {values}"
    tokens = heat_map(example.tokens, example.values, example.answer, limit=limit)
    return f'<div class="example"><div class="about">{escape(about)}</div>{tokens}</div>'


def _map(workspace: Workspace, run: str, factor: str, layer: int) -> None:
    points, explained = caches.moves(workspace, run, factor, layer=layer)
    left, right = st.columns(2)
    with left, st.container(border=True, height="stretch"):
        state = st.plotly_chart(
            figures.shift_map(points, axes=[
                f"principal component {i} ({share:.0%} of variance)"
                for i, share in enumerate(explained, 1)
            ]),
            key=Key.SHIFT_MAP,
            on_select="rerun",
            selection_mode=("points", "lasso", "box"),
            config={"displaylogo": False, "modeBarButtonsToRemove": ["toImage"]},
        )  # fmt: skip
        notices.explain(
            "Each point is one probe's move from base to adapted model, at the last token before "
            "its final answer, along the two directions in which the moves vary most. Colour shows "
            "the group, shape the variant. Draw around points to list them."
        )
    with right, st.container(border=True, height="stretch"):
        picked = _picked(state.selection.points)
        rows = points[points["id"].isin(picked)] if picked else points
        st.markdown(literal(f"{len(rows)} of {len(points)} probes"))
        st.dataframe(
            rows[["group", "variant", "move", "text", "id"]],
            placeholder="–",
            hide_index=True,
            height=380,
            key=Key.SHIFT_TABLE,
            column_config={
                "move": st.column_config.NumberColumn("move along factor (std)", format="%.2f"),
                "text": st.column_config.TextColumn("answer"),
            },
            alt="Probes of the map",
        )


def _picked(points: list[dict[str, object]]) -> set[str]:
    """Probe ids of the selected points; Plotly's own point numbers are not reliable."""
    ids: set[str] = set()
    for point in points:
        data = point.get("customdata")
        ids |= {str(data[0] if isinstance(data, list) and data else data)}
    return ids
