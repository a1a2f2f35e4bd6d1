"""Everything the pages load, cached by path and by the state of the files at that path.

The stamp of a folder is the name, size and modification time of each file in it.  A record that is
written again has another stamp, so nothing stale is shown.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from analysis.comparison import comparison as comparing
from analysis.comparison import effort as trying
from analysis.comparison.arm_tests import ControlTest, Domination
from analysis.comparison.effort import Effort
from analysis.comparison.evaluation import Evaluation, read_evaluation
from analysis.errors import GraspError, NotFoundError
from analysis.store.evidence import Evidence, read_evidence
from analysis.store.factor_table import FactorTable, read_factors
from analysis.store.logs import read_metrics
from analysis.store.reading import ReadOnlyWorkspace
from analysis.store.recording import Recording, read_recording
from analysis.store.records import RecordingManifest, Split, read_manifest
from analysis.store.workspace import Workspace
from dashboard import WORKSPACE_VARIABLE
from dashboard.state.access import read_only
from grasp.prompts.sets import read_prompts

# Imported inside the functions that use it: scipy's solvers load slowly and would delay the first
# page.
if TYPE_CHECKING:
    from analysis.evidence import projection_tables

Stamp = tuple[tuple[str, int, int], ...]
Source = tuple[str, Stamp]


def workspace() -> Workspace:
    """The workspace that the server was started on, created if it is missing and may be."""
    return _workspace(os.environ.get(WORKSPACE_VARIABLE, "workspace"), read_only())


@st.cache_resource(max_entries=4, show_spinner=False)
def _workspace(root: str, only_read: bool) -> Workspace:
    return ReadOnlyWorkspace.open(root) if only_read else Workspace.create(root)


def stamp(folder: Path) -> Stamp:
    """Name, size and modification time of the files directly in `folder`; () if it is missing."""
    try:
        entries = [(entry.name, entry.stat()) for entry in os.scandir(folder) if entry.is_file()]
    except OSError:
        return ()
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in entries))


def factors(workspace: Workspace, run: str) -> FactorTable:
    """A run's factors; raises NotFoundError if they have not been computed."""
    folder = workspace.folder("factors", run)
    if not folder.is_dir():
        raise NotFoundError(f"Run {run!r} has no factors yet; run `grasp factors {run}`.")
    return _factors(str(folder), stamp(folder))


@st.cache_data(max_entries=32, show_spinner=False)
def _factors(folder: str, files: Stamp) -> FactorTable:
    return read_factors(Path(folder))


def evaluation(workspace: Workspace, evaluation_id: str) -> Evaluation:
    """One complete evaluation."""
    folder = workspace.folder("evaluations", evaluation_id)
    return _evaluation(str(folder), stamp(folder))


@st.cache_data(max_entries=64, show_spinner=False)
def _evaluation(folder: str, files: Stamp) -> Evaluation:
    return read_evaluation(Path(folder))


def rates(workspace: Workspace, runs: Sequence[str], *, split: Split) -> pd.DataFrame:
    """Metrics of the base model and of `runs`, in long form, without the slower tests."""
    return _rates(str(workspace.root), tuple(runs), split, _stamps(workspace, runs))


@st.cache_data(max_entries=64, show_spinner=False)
def _rates(
    root: str, runs: tuple[str, ...], split: Split, files: tuple[Stamp, ...]
) -> pd.DataFrame:
    return comparing.rate_table(Workspace(root), list(runs), split=split)


def comparison(workspace: Workspace, runs: Sequence[str], *, split: Split) -> pd.DataFrame:
    """Metrics of the base model and of `runs`, in long form, tested against the naive run."""
    return _comparison(str(workspace.root), tuple(runs), split, _stamps(workspace, runs))


@st.cache_data(max_entries=64, show_spinner="Comparing …")
def _comparison(
    root: str, runs: tuple[str, ...], split: Split, files: tuple[Stamp, ...]
) -> pd.DataFrame:
    return comparing.compare_arms(Workspace(root), list(runs), split=split)


def dominations(workspace: Workspace, runs: Sequence[str], *, split: Split) -> list[Domination]:
    """Pairs of `runs` in which one is shown to dominate the other."""
    return _dominations(str(workspace.root), tuple(runs), split, _stamps(workspace, runs))


@st.cache_data(max_entries=64, show_spinner=False)
def _dominations(
    root: str, runs: tuple[str, ...], split: Split, files: tuple[Stamp, ...]
) -> list[Domination]:
    return comparing.find_dominated_runs(Workspace(root), list(runs), split=split)


def control_tests(
    workspace: Workspace,
    runs: Sequence[str],
    *,
    judged: Sequence[str],
    controls: Sequence[str],
    split: Split,
) -> list[ControlTest]:
    """Tests of the `judged` among `runs` against the `controls` among them."""
    chosen = (str(workspace.root), tuple(runs), tuple(judged), tuple(controls))
    return _control_tests(*chosen, split=split, files=_stamps(workspace, runs))


@st.cache_data(max_entries=64, show_spinner=False)
def _control_tests(
    root: str,
    runs: tuple[str, ...],
    judged: tuple[str, ...],
    controls: tuple[str, ...],
    *,
    split: Split,
    files: tuple[Stamp, ...],
) -> list[ControlTest]:
    return comparing.compare_runs_with_controls(
        Workspace(root), list(runs), judged=judged, controls=controls, split=split
    )


def effort(workspace: Workspace, root: str) -> Effort:
    """How much was tried in a family; never cached, since any new run adds to it."""
    return trying.measure_effort(workspace, root)


def instruments(
    workspace: Workspace, runs: Sequence[str], *, split: Split
) -> list[comparing.ArmReading]:
    """The readings of every named prompt set in every arm."""
    return _instruments(str(workspace.root), tuple(runs), split, _stamps(workspace, runs))


@st.cache_data(max_entries=32, show_spinner=False)
def _instruments(
    root: str, runs: tuple[str, ...], split: Split, files: tuple[Stamp, ...]
) -> list[comparing.ArmReading]:
    return comparing.read_instruments(Workspace(root), list(runs), split=split)


def answers(workspace: Workspace, runs: Sequence[str], *, split: Split) -> pd.DataFrame:
    """One row per prompt, with every arm's score and answer."""
    return _answers(str(workspace.root), tuple(runs), split, _stamps(workspace, runs))


@st.cache_data(max_entries=32, show_spinner=False)
def _answers(
    root: str, runs: tuple[str, ...], split: Split, files: tuple[Stamp, ...]
) -> pd.DataFrame:
    return comparing.arm_answers(Workspace(root), list(runs), split=split)


def _stamps(workspace: Workspace, runs: Sequence[str]) -> tuple[Stamp, ...]:
    """Stamps of the evaluations of `runs` and of their base model, and of the runs themselves."""
    root = workspace.run(runs[0]).root if runs else ""
    names = [*runs, f"{root}.base"]
    evaluations = [stamp(workspace.root / "evaluations" / name) for name in names]
    return (*evaluations, *(stamp(workspace.root / "runs" / run) for run in runs))


def metrics(file: Path) -> pd.DataFrame:
    """A run's metrics so far; never cached, since a live run adds to them."""
    return read_metrics(file)


def projections(workspace: Workspace, run: str, factor: str, *, layer: int) -> pd.DataFrame:
    """One row per probe: its projection on a factor of `run`, in base and adapted model."""
    from analysis.evidence import projection_tables

    return projection_tables.probe_projections(*_on_factor(workspace, run, factor, layer))


def shifts(workspace: Workspace, run: str, factor: str, *, by: str) -> pd.DataFrame:
    """Mean move along a factor by layer, for each value of `by`."""
    sources = (_recording_source(workspace, run), _factor_source(workspace, run))
    return _shifts(*sources, factor, by)


@st.cache_data(max_entries=64, show_spinner="Projecting …")
def _shifts(recording: Source, table: Source, factor: str, by: str) -> pd.DataFrame:
    from analysis.evidence import projection_tables

    direction = _factors(*table).direction(factor)
    layers = read_manifest(Path(recording[0]) / "manifest.json", RecordingManifest).layers
    return projection_tables.mean_moves(
        [
            (layer, projection_tables.probe_projections(_recording(*recording, layer), direction))
            for layer in layers
        ],
        by=by,
    )


def examples(
    workspace: Workspace,
    run: str,
    factor: str,
    *,
    layer: int,
    count: int,
    how: projection_tables.How,
    model: projection_tables.Model,
) -> tuple[list[projection_tables.ProbeExample], list[projection_tables.ProbeExample], float]:
    """The strongest examples at the low and the high end, and the largest magnitude of a token."""
    from analysis.evidence import projection_tables

    return projection_tables.extreme_examples(
        *_on_factor(workspace, run, factor, layer), count=count, how=how, model=model
    )


def strongest_tokens(
    workspace: Workspace,
    run: str,
    factor: str,
    *,
    layer: int,
    count: int,
    model: projection_tables.Model,
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Tokens at the low and the high end, with their projections."""
    from analysis.evidence import projection_tables

    return projection_tables.find_strongest_tokens(
        *_on_factor(workspace, run, factor, layer), count=count, model=model
    )


def prompts_problem(source: str) -> str:
    """Why a prompt set, a file or one that ships, cannot be read; "" if it can."""
    return _prompts_problem(source, stamp(Path(source).parent))


@st.cache_data(max_entries=64, show_spinner=False)
def _prompts_problem(source: str, files: Stamp) -> str:
    try:
        read_prompts(source)
    except (GraspError, OSError) as error:
        return str(error)
    return ""


def evidence(workspace: Workspace, evidence_id: str) -> Evidence | None:
    """One saved piece of evidence, or None if it has not been measured."""
    folder = workspace.folder("evidence", evidence_id)
    return _evidence(str(folder), stamp(folder)) if folder.is_dir() else None


@st.cache_data(max_entries=64, show_spinner=False)
def _evidence(folder: str, files: Stamp) -> Evidence:
    return read_evidence(Path(folder))


def moves(
    workspace: Workspace, run: str, factor: str, *, layer: int
) -> tuple[pd.DataFrame, tuple[float, float]]:
    """The map of moves at a layer, and each axis' share of the variance."""
    sources = (_recording_source(workspace, run), _factor_source(workspace, run))
    return _moves(*sources, factor, layer)


@st.cache_data(max_entries=64, show_spinner="Drawing the map …")
def _moves(
    recording: Source, table: Source, factor: str, layer: int
) -> tuple[pd.DataFrame, tuple[float, float]]:
    from analysis.evidence import projection_tables

    direction = _factors(*table).direction(factor)
    return projection_tables.map_moves(_recording(*recording, layer), direction)


def _on_factor(
    workspace: Workspace, run: str, factor: str, layer: int
) -> tuple[Recording, NDArray[np.float32]]:
    recording = _recording(*_recording_source(workspace, run), layer)
    return recording, factors(workspace, run).direction(factor)


# Arrays are shared and never modified: copying a layer would take longer than the computations on
# it.
@st.cache_resource(max_entries=12, show_spinner="Reading the recording …")
def _recording(folder: str, files: Stamp, layer: int) -> Recording:
    return read_recording(Path(folder), layer=layer)


def _recording_source(workspace: Workspace, run: str) -> Source:
    folder = workspace.folder("recordings", run)
    return str(folder), stamp(folder)


def _factor_source(workspace: Workspace, run: str) -> Source:
    folder = workspace.folder("factors", run)
    return str(folder), stamp(folder)
