"""Spectra: which modules changed most, and which directions stand out from chance."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import streamlit as st

from analysis.adapters.checkpoints import saved_adapters_by_step
from analysis.errors import GraspError
from analysis.spectra import module_groups
from analysis.spectra.module_table import module_place
from analysis.store.records import RunManifest
from analysis.store.workspace import Workspace
from analysis.values import TableRow
from dashboard.figures import spectra as figures
from dashboard.panels import adapter_facts, over_training
from dashboard.panels.frame import show_run_header
from dashboard.queue import commands, runs
from dashboard.state import adapter_cache, caches
from dashboard.state.selection import (
    FACTOR,
    MODULE,
    Key,
    follow,
    hold,
    read_parameter,
    remember,
    resolve_choice,
)
from dashboard.style import notices
from dashboard.style.markup import literal

ALL_LAYERS = "all layers"
FEW_PILLS = 10
_PLAIN_CHART = {"displayModeBar": False}


def draw_page() -> None:
    """Draw the page."""
    workspace = caches.workspace()
    run = show_run_header(workspace, "Spectra", need="adapter")
    if run is None:
        return
    adapter = workspace.adapter(run.id)
    with notices.catch_errors("The adapter"):
        low_rank = adapter_facts.ask_low_rank(adapter, run.id)
        if low_rank is None:
            return
        st.caption(literal(adapter_facts.summarise_report(adapter_cache.load_report(
            adapter, low_rank_part=low_rank
        ))))  # fmt: skip
        log = st.toggle("Logarithmic scale", key=Key.LOG, persist_state="session")
        others = _overlays(workspace, run)
        module = _modules(adapter, run, others, log=log, low_rank=low_rank)
        with notices.catch_errors("The checkpoints"):
            over_training.show(workspace, run, module, log=log, low_rank=low_rank)
        with notices.catch_errors("The factors' spectrum"):
            _factors(workspace, run, others, log=log, low_rank=low_rank)


def _overlays(workspace: Workspace, run: RunManifest) -> dict[str, Path]:
    """Adapters that can be overlaid: the run's checkpoints, and the other runs of its family."""
    folder = workspace.folder("runs", run.id)
    others = {f"step {step}": path for step, path in saved_adapters_by_step(folder).items()}
    for other in workspace.runs().records:
        if other.id != run.id and other.root == run.root and runs.has_adapter(workspace, other.id):
            others[other.id] = workspace.adapter(other.id)
    if not others:
        return {}
    label = "Overlay checkpoints and runs of this family"
    if len(others) <= FEW_PILLS:
        names = st.pills(
            label, list(others), selection_mode="multi", key=Key.OVERLAY, persist_state="session"
        )
    else:
        names = st.multiselect(label, list(others), key=Key.OVERLAY, persist_state="session")
    return {name: others[name] for name in names or [] if name in others}


def _modules(
    adapter: Path, run: RunManifest, others: dict[str, Path], *, log: bool, low_rank: bool
) -> str:
    """Draw the map and the singular values; return the name of the selected module."""
    table = adapter_cache.modules(adapter, low_rank_part=low_rank)
    table = table.assign(cell=module_groups.cell_numbers(table))
    cells = module_groups.module_cells(table)
    strongest = str(table["name"].iloc[int(table["top"].to_numpy().argmax())])
    module = str(resolve_choice(MODULE, list(table["name"]), default=strongest))
    cell = int(table.loc[table["name"] == module, "cell"].iloc[0])
    members = table[table["cell"] == cell]
    left, right = st.columns([3, 2])
    with left, st.container(border=True, height="stretch"):
        measure = _map(cells, str(cells["name"].iloc[cell]))
        if len(members) > 1:
            _members(members, module, measure)
    with right, st.container(border=True, height="stretch"):
        _module_pickers(cells, cell, members, module)
        _module_scree(adapter, others, module, run=run.id, log=log, low_rank=low_rank)
    return module


def _map(cells: pd.DataFrame, selected: str) -> str:
    measures = [one for one in figures.MEASURES if one != "r" or cells["r"].nunique() > 1]
    measure = st.segmented_control(
        "Colour",
        measures,
        key=Key.MAP_MEASURE,
        default="top",
        required=True,
        format_func=lambda name: figures.MEASURES[name][0],
        persist_state="session",
        label_visibility="collapsed",
    )
    measure = measure if measure in measures else "top"
    st.plotly_chart(
        figures.module_map(cells, measure=measure, selected=selected),
        key=Key.MAP,
        on_select=lambda: _clicked(Key.MAP),
        selection_mode="points",
        config=_PLAIN_CHART,
    )
    grouped = (
        " All experts of a layer share one square: their largest σ₁ or rank, or their median "
        "energy share or effective rank." if (cells["modules"] > 1).any() else ""
    )  # fmt: skip
    notices.explain(
        "Each square is one module; darker means larger. Click a square to see its singular "
        f"values on the right; the ring marks the one shown.{grouped}"
    )
    return measure


def _clicked(key: str) -> None:
    points = st.session_state[key].selection.points
    if points and points[0].get("customdata"):
        found = points[0]["customdata"]
        remember(MODULE, found[0] if isinstance(found, list) else str(found))


def _members(members: pd.DataFrame, module: str, measure: str) -> None:
    st.plotly_chart(
        figures.member_strip(
            module_groups.number_members(members), measure=measure, selected=module
        ),
        key=Key.MEMBERS,
        on_select=lambda: _clicked(Key.MEMBERS),
        selection_mode="points",
        config=_PLAIN_CHART,
    )
    notices.explain("The modules behind the ringed square. Click one to see its singular values.")


def _module_pickers(cells: pd.DataFrame, cell: int, members: pd.DataFrame, module: str) -> None:
    """A list of the map's squares and, for a square with several modules, a list of those."""
    squares = {row["name"]: _square_name(row) for row in cells.to_dict("records")}
    _module_list("Module", squares, str(cells["name"].iloc[cell]), key=Key.MODULE)
    if len(members) > 1:
        inside = {name: name for name in members["name"]}
        _module_list("Module in this square", inside, module, key=Key.MEMBER)


def _square_name(cell: TableRow) -> str:
    if cell["modules"] == 1:
        return str(cell["name"])
    return f"layer {cell['layer']:.0f}, {cell['place']} ({cell['modules']} modules)"


def _module_list(label: str, names: dict[str, str], value: str, *, key: str) -> None:
    shown = follow(key, value)

    def changed() -> None:
        found = st.session_state[shown]
        if found != value:
            hold(key, found)
            remember(MODULE, found)

    st.selectbox(
        label,
        list(names),
        index=list(names).index(value),
        key=shown,
        format_func=lambda name: names.get(name, name),
        on_change=changed,
    )


def _module_scree(
    adapter: Path, others: dict[str, Path], module: str, *, run: str, log: bool, low_rank: bool
) -> None:
    spectra = adapter_cache.spectra(adapter, low_rank_part=low_rank)
    own = next(spectrum for spectrum in spectra if spectrum.name == module)
    lines = [figures.Scree(run, own.singular_values)]
    for name, other in others.items():
        try:
            found = adapter_cache.spectra(other, low_rank_part=low_rank)
        except GraspError as error:
            notices.show_problem(f"{name} cannot be drawn.", str(error))
            continue
        lines += [figures.Scree(name, one.singular_values) for one in found if one.name == module]
    st.plotly_chart(
        figures.module_scree(lines, log=log, module=module_place(module)),
        key=Key.MODULE_SCREE,
        config=_PLAIN_CHART,
    )
    size = f"Rank {own.r}, scaling {own.scaling:g}, shape {own.shape[0]} × {own.shape[1]}"
    if not own.singular_values.any():
        notices.explain(f"{size}. This module was not updated: all its singular values are 0.")
        return
    notices.explain(
        f"{size}; effective rank {own.effective_rank:.2f}. A steep drop means that a few "
        "directions carry most of the update."
    )


def _factors(
    workspace: Workspace,
    run: RunManifest,
    others: dict[str, Path],
    *,
    log: bool,
    low_rank: bool,
) -> None:
    st.subheader("Residual-stream factors", anchor=False)
    if not workspace.folder("factors", run.id).is_dir():
        notices.show_empty(
            f"{run.id} has no factors yet",
            "Factors are directions that many of the run's weight updates share.",
            command=commands.command_line(
                commands.factors_argv(run.id, workspace=workspace.root, low_rank_part=low_rank)
            ),
        )
        st.page_link("views/factors.py", label="Go to the Factors page", icon=":material/explore:")
        return
    table = caches.factors(workspace, run.id).table
    with st.container(border=True):
        side: Literal["write", "read"] = "read" if _side() == "read" else "write"
        rows = table[(table["side"] == side) & (table["route"] == "weights")]
        limit = _limit(rows)
        rows = rows[rows["max_layer"].isna() if limit is None else rows["max_layer"] == limit]
        overlays = []
        for name, adapter in others.items():
            try:
                values = adapter_cache.factor_spectrum(
                    adapter, side=side, max_layer=limit, low_rank_part=low_rank
                )
            except GraspError as error:
                notices.show_problem(f"{name} cannot be drawn.", str(error))
                continue
            overlays.append(figures.Scree(name, np.asarray(values)))
        factor = read_parameter(FACTOR)
        st.plotly_chart(
            figures.factor_scree(
                rows.sort_values("index"), log=log, overlays=overlays, selected=factor
            ),
            key=Key.FACTOR_SCREE,
            config={"displayModeBar": False},
        )
        notices.explain(
            "The band shows what random updates of the same size give, from the median to the "
            "95 % quantile. Filled points lie above it: directions that many modules share."
        )
        above = rows[rows["significant"].astype(bool)].sort_values("index")
        marked = ", ".join(above["id"]) or "none"
        st.markdown(literal(f"Above the band: {marked}."))
        st.page_link("views/factors.py", label="See their evidence", icon=":material/explore:")


def _side() -> str | None:
    return st.segmented_control(
        "Side of the residual stream",
        ["write", "read"],
        key=Key.SIDE,
        default="write",
        required=True,
        persist_state="session",
        help="Modules that write to the residual stream, such as o_proj, or that read from it.",
    )


def _limit(rows: pd.DataFrame) -> int | None:
    layers = sorted(int(layer) for layer in rows["max_layer"].dropna().unique())
    if not layers:
        return None
    names = {ALL_LAYERS: None} | {f"up to layer {layer}": layer for layer in layers}
    name = st.selectbox("Layers", list(names), key=Key.UP_TO)
    return names.get(name)


if __name__ == "__main__":
    draw_page()
