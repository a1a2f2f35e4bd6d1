"""Factors: the ranked list, the evidence for one of them, and its label."""

from __future__ import annotations

import math
from typing import Any

import streamlit as st

from analysis.adapters.choices import uses_dora
from analysis.store import labels
from analysis.store.factor_table import FactorTable
from analysis.store.label_directions import follow_directions
from analysis.store.records import RunManifest
from analysis.store.workspace import Workspace
from dashboard.panels import activations, adapter_facts, job_panel, label_form
from dashboard.panels.frame import show_run_header
from dashboard.queue import commands, runs
from dashboard.state import caches
from dashboard.state.access import read_only
from dashboard.state.annotator import annotator, see, sees_everything
from dashboard.state.selection import FACTOR, RUN, Key, pick, resolve_choice
from dashboard.style import notices
from dashboard.style.glossary import TERMS
from dashboard.style.markup import chips, literal


def draw_page() -> None:
    """Draw the page."""
    workspace = caches.workspace()
    label_form.take_presses(workspace)
    run = show_run_header(workspace, "Factors", need="adapter")
    if run is None:
        return
    if not workspace.folder("factors", run.id).is_dir():
        _not_computed(workspace, run)
        return
    with notices.catch_errors("The factors of this run"):
        table = caches.factors(workspace, run.id)
        factor = resolve_choice(FACTOR, list(table.table["id"]))
        if factor is None:
            notices.show_empty("No factors", "All weight updates of this run are zero.")
            return
        label_form.take_up(run.id, factor)
        left, right = st.columns([6, 5])
        with right, st.container(border=True):  # first, since it is what answers keys
            _step(workspace, table, factor)
            if not read_only():
                label_form.show(workspace, table, factor)
        with left:
            _list(workspace, table, factor)
            _words(workspace, table, factor)
        activations.show(workspace, run, table, factor)


def _not_computed(workspace: Workspace, run: RunManifest) -> None:
    adapter = workspace.adapter(run.id)
    low_rank = adapter_facts.ask_low_rank(adapter, run.id)
    if low_rank is None:
        return
    argv = commands.factors_argv(run.id, workspace=workspace.root, low_rank_part=low_rank)
    notices.show_empty(
        f"{run.id} has no factors yet",
        "Factors are directions that many of the run's weight updates share. They are computed "
        "from the weights alone, with a null band; the base model's files add the tokens that "
        "each factor promotes.",
        command=commands.command_line(argv),
    )
    if st.button("Compute factors", key=Key.COMPUTE_FACTORS, type="primary", disabled=read_only()):
        job_panel.start_job(
            workspace, kind="factors", title=f"Factors of {run.id}", argv=argv, output=""
        )
        st.rerun()
    job_panel.show_latest(workspace, kind="factors", argv=argv)


def _list(workspace: Workspace, table: FactorTable, factor: str) -> None:
    history = follow_directions(labels.read_events(workspace.database), table)
    seen = see(history, annotator(), everything=sees_everything())
    claims = labels.current_claims(seen.events)
    names = [
        runs.label_names(claims.get(runs.factor_name(table.manifest.run, one), {}))
        for one in table.table["id"]
    ]
    above = ["yes" if one else "no" for one in table.table["significant"]]
    shown = table.table.assign(label=names, significant=above)

    def clicked() -> None:
        rows = st.session_state[key].selection.rows
        chosen = str(table.table["id"].iloc[rows[0]]) if rows else factor
        # A list that is drawn anew reports the row it was drawn with, as if it had been clicked.
        if chosen != factor:
            label_form.go_to(workspace, chosen)

    key = f"{Key.FACTOR_LIST}-{table.manifest.run}-{factor}"
    with st.container(key=Key.FACTOR_LIST):
        st.dataframe(
            shown,
            key=key,
            hide_index=True,
            height=min(38 + 35 * len(shown), 388),
            on_select=clicked,
            selection_mode="single-row",
            selection_default={"selection": {"rows": [table.position(factor)]}},
            column_order=[
                "id", "label", "score", "significant", "route", "off_task", "on_task",
                "stability", "effect", "singular_value", "energy", "effect_ratio",
            ],
            column_config=_columns(),
            alt="Factors, best score first",
            placeholder="–",
        )  # fmt: skip
    notices.explain(
        "Select a row to see its evidence. Significant factors come first, then the highest "
        "score. The score is stability × off-task effect, weighted by the off-task share of both "
        "effects; without measured effects it is stability × energy. It is only a suggestion: "
        "your label decides."
    )


def _columns() -> dict[str, Any]:
    number, text = st.column_config.NumberColumn, st.column_config.TextColumn
    return {
        "id": text("factor", pinned=True, width=55, help=TERMS["factor"]),
        "label": text("label", width=80, help=TERMS["label"]),
        "score": number("score", format="%.3f", width=60, help=TERMS["score"]),
        "singular_value": number("σ", format="%.3f", width=55, help=TERMS["σ"]),
        "energy": number("energy", format="%.3f", width=65, help=TERMS["energy"]),
        "significant": text("significant", width=82, help=TERMS["significant"]),
        "route": text("route", width=75, help=TERMS["route"]),
        "effect": number("effect", format="%.2f", width=55, help=TERMS["effect"]),
        "stability": number("stable", format="%.2f", width=55, help=TERMS["stable"]),
        "off_task": number("off task", format="%.2f", width=65, help=TERMS["off task"]),
        "on_task": number("on task", format="%.2f", width=65, help=TERMS["on task"]),
        "effect_ratio": number("ratio", format="%.1f", width=55, help=TERMS["ratio"]),
    }


def _step(workspace: Workspace, table: FactorTable, factor: str) -> None:
    ids = list(table.table["id"])
    position = table.position(factor)
    left, middle, right = st.columns([5, 9, 4], vertical_alignment="bottom")
    with left:
        label_form.button(
            workspace, "Previous", Key.FACTOR_PREVIOUS, width="stretch", disabled=position == 0
        )
    with middle:
        names = _names(table)
        pick(
            "Factor",
            FACTOR,
            ids,
            key=Key.FACTOR,
            default=factor,
            format_func=lambda one: names[one],
            choose=lambda one: label_form.go_to(workspace, one),
        )
    with right:
        label_form.button(
            workspace, "Next", Key.FACTOR_NEXT, width="stretch", disabled=position == len(ids) - 1
        )


def _names(table: FactorTable) -> dict[str, str]:
    """Names in the picker: id, side and score."""
    return {
        row["id"]: f"{row['id']}: {row['side']} side, {_scored(row['score'])}"
        for row in table.table.to_dict("records")
    }


def _scored(score: float) -> str:
    return "not measured" if math.isnan(score) else f"score {score:.3f}"


def _words(workspace: Workspace, table: FactorTable, factor: str) -> None:
    row = table.table.iloc[table.position(factor)]
    with st.container(border=True):
        if row["explanation"]:
            st.markdown(literal(row["explanation"]))
        st.markdown(f"**{literal(factor)}: promoted tokens**")
        if len(row["promoted"]) or len(row["suppressed"]):
            for end, name in (("promoted", "High"), ("suppressed", "Low")):
                st.caption(f"{name} end promotes")
                st.html(chips([str(token) for token in row[end]]))
        else:
            _tokens(workspace, table)
        st.page_link(
            "views/retrain.py",
            label="Retrain, protecting the factors labelled spurious",
            icon=":material/model_training:",
            query_params={RUN: table.manifest.run},
        )


def _tokens(workspace: Workspace, table: FactorTable) -> None:
    """Why no tokens are known and, if only weights were used, a form to read them from files."""
    run, without = table.manifest.run, table.manifest.config.get("no_tokens", "")
    st.markdown(literal(f"Not known. {without or 'Compute the factors again.'}"))
    if table.manifest.config.get("effects") or read_only():
        return
    base = st.text_input(
        "Folder or Hub id of the base model",
        key=Key.TOKENS_BASE,
        help="Reads only the unembedding, the final norm and the tokenizer; no model is loaded.",
    )
    if not base:
        return
    dora = uses_dora(workspace.adapter(run))
    argv = commands.tokens_argv(run, base, workspace=workspace.root, low_rank_part=dora)
    st.code(commands.command_line(argv), language="bash", wrap_lines=True)
    if st.button("Read the tokens", key=Key.TOKENS_READ):
        job_panel.start_job(
            workspace, kind="factors", title=f"Tokens of {run}", argv=argv, output=""
        )
        st.rerun()
    job_panel.show_latest(workspace, kind="factors", argv=argv)


if __name__ == "__main__":
    draw_page()
