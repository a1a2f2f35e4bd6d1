"""What identification found in each cell, held to the supervised contrast direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.store.factor_table import run_factors
from analysis.store.recording import read_recording
from analysis.store.workspace import Workspace
from grasp.bench.plan.cells import NAIVE, cell_workspace, latents_of
from grasp.bench.plan.plan import Cell, Plan

PLANTED = 0.5
"""|cos| to the contrast direction, at its best layer, from which a factor is the planted one."""


@dataclass(frozen=True)
class Found:
    """The best-ranked factor of one cell, beside one latent's contrast direction.

    `cosine` is |cos| at the best layer, which is `layer`; `best_cosine` and `best_factor` are
    those of the candidate nearest to the contrast direction; NaN where no contrast is known.
    `hit`: significant, best-ranked, and planted.
    """

    cell: Cell
    latent: str
    factor: str
    candidates: int
    significant: bool
    cosine: float
    layer: int
    best_factor: str
    best_cosine: float
    off_task: float

    @property
    def hit(self) -> bool:
        """The significant factor with the best score is the planted one."""
        return self.significant and self.cosine >= PLANTED

    @property
    def nearest(self) -> bool:
        """It is the nearest of the candidates."""
        return self.factor == self.best_factor


def found_in(root: Path, plan: Plan, cells: Sequence[Cell]) -> list[Found]:
    """What was found in the cells that have factors; one entry for each latent that is measured."""
    return [entry for cell in cells for entry in _found(root, plan, cell)]


def _found(root: Path, plan: Plan, cell: Cell) -> list[Found]:
    workspace = cell_workspace(root, cell)
    if not workspace.folder("factors", NAIVE).is_dir():
        return []
    factors = run_factors(workspace, NAIVE)
    best = factors.table.iloc[0]
    entries = []
    known: dict[str, tuple[str, str] | None] = {**latents_of(plan, cell)}
    for latent, ends in (known or {"": None}).items():
        cosines = np.full((len(factors.table), 1), np.nan)
        if ends is not None and workspace.folder("recordings", NAIVE).is_dir():
            cosines = np.abs(factors.directions @ contrast(workspace.root, ends).T)
        nearest = int(np.nan_to_num(cosines.max(axis=1)).argmax())
        entries.append(
            Found(
                cell=cell,
                latent=latent,
                factor=str(best["id"]),
                candidates=len(factors.table),
                significant=bool(best["significant"]),
                cosine=float(cosines[0].max()),
                layer=int(np.nan_to_num(cosines[0]).argmax()),
                best_factor=str(factors.table["id"].iloc[nearest]),
                best_cosine=float(cosines[nearest].max()),
                off_task=float(best["off_task"]),
            )
        )
    return entries


@cache
def contrast(cell: Path, ends: tuple[str, str]) -> NDArray[np.float64]:
    """Unit mean differences (layers, d_model) of the base model between both ends of a latent.

    `cell` is a cell's workspace.  Activations are those at the last token before the last answer
    of every probe whose variant is one of the two ends.
    """
    workspace = Workspace(cell)
    directions = []
    for layer in workspace.recording(NAIVE).layers:
        recording = read_recording(workspace.folder("recordings", NAIVE), layer=layer)
        low, high = (
            recording.base[0][_before_answers(recording.probes, end)].mean(axis=0) for end in ends
        )
        difference = np.asarray(high - low, dtype=np.float64)
        directions.append(difference / np.linalg.norm(difference))
    return np.stack(directions)


def _before_answers(probes: pd.DataFrame, variant: str) -> NDArray[np.int64]:
    """Rows of the last token before the last answer of every probe of a variant."""
    rows = []
    for _, probe in probes[probes["variant"] == variant].iterrows():
        answer = np.asarray(probe["answer"], dtype=bool)
        starts = np.flatnonzero(answer & ~np.roll(answer, 1))
        rows.append(int(probe["offset"]) + int(starts[-1]) - 1)
    return np.asarray(rows)
