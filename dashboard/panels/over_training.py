"""How the singular values of one module grew from checkpoint to checkpoint."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from analysis.adapters.checkpoints import saved_adapters_by_step
from analysis.adapters.files import STEM
from analysis.spectra.module_table import module_place
from analysis.spectra.trajectory import Stage, finished_step, trajectory_table
from analysis.store.records import RunManifest
from analysis.store.workspace import Workspace
from analysis.text import size_text
from dashboard.figures import over_training as figures
from dashboard.figures.spectra import Scree
from dashboard.state import adapter_cache
from dashboard.state.selection import Key
from dashboard.style import notices
from dashboard.style.theme import shades

AT_ONCE_MIB = 512
"""Checkpoints larger than this in total are read only on request."""

_PLAIN_CHART = {"displayModeBar": False}


def show(
    workspace: Workspace,
    run: RunManifest,
    module: str,
    *,
    colour: str,
    log: bool,
    low_rank: bool,
) -> None:
    """Draw charts of a module at every checkpoint of a run; nothing if it has none."""
    found = saved_adapters_by_step(workspace.folder("runs", run.id))
    if not found:
        return
    size = sum(one.stat().st_size for at in found.values() for one in at.glob(f"{STEM}*"))
    st.subheader("Over training", anchor=False)
    weight = f" ({size_text(size)})" if size >= 1 << 20 else ""
    if not st.toggle(
        f"Read {len(found)} checkpoints{weight}",
        key=f"{Key.TRAJECTORY_ON}-{run.id}",
        value=size <= AT_ONCE_MIB << 20,
    ):
        return
    folders = _with_finished(found, workspace.adapter(run.id))
    _charts(folders, module, colour=colour, log=log, low_rank=low_rank)


def _with_finished(found: dict[int, Path], adapter: Path) -> list[tuple[int, str, Path]]:
    """Step, name and folder of each stage; with the finished one if no checkpoint equals it."""
    stages = [(step, f"step {step}", path) for step, path in found.items()]
    last = stages[-1][2]
    if adapter_cache.weights_digest(last) != adapter_cache.weights_digest(adapter):
        stages.append((finished_step(list(found)), "finished", adapter))
    return stages


def _charts(
    folders: list[tuple[int, str, Path]],
    module: str,
    *,
    colour: str,
    log: bool,
    low_rank: bool,
) -> None:
    stages = [
        Stage(step, shown, adapter_cache.modules(folder, low_rank_part=low_rank))
        for step, shown, folder in folders
    ]
    colours = [*shades(colour, len(folders) - 1), colour]
    lines = [
        Scree(shown, one.singular_values, drawn)
        for (_, shown, folder), drawn in zip(folders, colours, strict=True)
        for one in adapter_cache.spectra(folder, low_rank_part=low_rank)
        if one.name == module
    ]
    left, right = st.columns(2)
    with left, st.container(border=True, height="stretch"):
        table = trajectory_table(stages, module, measures=figures.OVER_STEPS)
        st.plotly_chart(
            figures.trajectory(table, colour=colour), key=Key.TRAJECTORY, config=_PLAIN_CHART
        )
        notices.explain(
            "If σ₁ grows while the effective rank falls, training concentrates the update of this "
            "module in one direction."
        )
    with right, st.container(border=True, height="stretch"):
        place = module_place(module)
        st.plotly_chart(
            figures.checkpoint_scree(lines, log=log, module=place),
            key=Key.TRAJECTORY_SCREE,
            config=_PLAIN_CHART,
        )
        notices.explain("Earlier checkpoints are greyer; the last one has the run's colour.")
