"""What identification found in each cell, compared with the supervised contrast direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.store.factor_table import read_run_factors
from analysis.store.recording import read_recording
from analysis.store.workspace import Workspace
from grasp.bench.plan.cells import NAIVE, cell_workspace, latents_of
from grasp.bench.plan.plan import Cell, Plan

PLANTED = 0.5
"""|cos| to the contrast direction, at the best layer, from which a factor counts as planted."""


@dataclass(frozen=True)
class BestFactor:
    """The best-ranked factor of one cell, compared with one latent's contrast direction.

    `cosine` is |cos| at the best layer, `layer`; `best_factor` and `best_cosine` belong to the
    candidate closest to the contrast direction.  Cosines are NaN if no contrast is known.
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
        """Whether the best-ranked factor is significant and the planted one."""
        return self.significant and self.cosine >= PLANTED

    @property
    def nearest(self) -> bool:
        """Whether the best-ranked factor is the candidate closest to the contrast direction."""
        return self.factor == self.best_factor


def read_found(root: Path, plan: Plan, cells: Sequence[Cell]) -> list[BestFactor]:
    """What was found in the cells that have factors, one entry per cell and measured latent."""
    return [entry for cell in cells for entry in _found(root, plan, cell)]


def _found(root: Path, plan: Plan, cell: Cell) -> list[BestFactor]:
    workspace = cell_workspace(root, cell)
    if not workspace.folder("factors", NAIVE).is_dir():
        return []
    factors = read_run_factors(workspace, NAIVE)
    best = factors.table.iloc[0]
    entries = []
    known: dict[str, tuple[str, str] | None] = {**latents_of(plan, cell)}
    for latent, ends in (known or {"": None}).items():
        cosines = np.full((len(factors.table), 1), np.nan)
        if ends is not None and workspace.folder("recordings", NAIVE).is_dir():
            cosines = np.abs(factors.directions @ contrast_direction(workspace.root, ends).T)
        nearest = int(np.nan_to_num(cosines.max(axis=1)).argmax())
        entries.append(
            BestFactor(
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
def contrast_direction(cell: Path, ends: tuple[str, str]) -> NDArray[np.float64]:
    """Unit mean differences (layers, d_model) between the ends of a latent, in the base model.

    Activations are read at the last token before the last answer of every probe whose variant is
    one of the two ends.

    Args:
        cell: the folder of the cell's workspace.
        ends: names of the variants; the difference is the second minus the first.
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
    """Rows of the last token before the last answer, for every probe of a variant."""
    rows = []
    for _, probe in probes[probes["variant"] == variant].iterrows():
        answer = np.asarray(probe["answer"], dtype=bool)
        starts = np.flatnonzero(answer & ~np.roll(answer, 1))
        rows.append(int(probe["offset"]) + int(starts[-1]) - 1)
    return np.asarray(rows)
