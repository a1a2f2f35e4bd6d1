"""Candidate factors that need the model: rotate them by their effects off the task, and measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from peft import PeftModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.factors.residual import ResidualSide
from analysis.factors.rotation import rotate
from analysis.factors.routes import (
    Band,
    FactorRows,
    Yardstick,
    concatenate,
    factor_rows,
    layer_rows,
    rank_factors,
)
from analysis.factors.significance import Effects, add_effects
from analysis.store.records import Prompt
from grasp.identification.effects import set_back_effects
from grasp.identification.first_order import FirstOrder, first_order
from grasp.identification.generated import answer_greedily
from grasp.identification.shifts import Contrast, contrast_directions, shift_axes
from grasp.jobs.progress import Progress, silent
from grasp.model.loading import check_width

MEASURED = 12
"""Candidates whose effects are measured; each costs a forward pass on every prompt."""

ROTATED = 4
"""Rotated factors that are kept; further ones carried only a few per cent in the tiny worlds."""

MIN_SHARE = 0.01
"""Smallest first-order share of the change off the task at which a rotated factor is kept."""

RANDOM_DIRECTIONS = 8
"""Random directions; their largest effect counts as the effect of chance."""


@dataclass(frozen=True)
class Case:
    """A fine-tune: the adapted model, yardsticks, and prompts off and on the task."""

    model: PeftModel
    tokenizer: Tokenizer
    yards: dict[ResidualSide, Yardstick]
    off: Sequence[Prompt]
    on: Sequence[Prompt]


def measure_candidates(
    found: FactorRows,
    case: Case,
    *,
    activations: bool = False,
    contrast: Contrast | None = None,
    progress: Progress = silent,
) -> FactorRows:
    """Add the factors that need the model, measure the most promising ones, and rank all.

    Added are the off-task rotation of the weights' write factors and, if asked for, the axes of
    the activation shift and the differences between contrasted chats.  Measured are the MEASURED
    candidates with the largest first-order share off the task, rotated ones before all others.
    Every direction gets the sign along which fine-tuning moved the residual stream on
    unrelated prompts, except contrasts and imports, whose sign already has a meaning.

    Args:
        found: factors from the weights and imports.
        case: the fine-tune, and what to measure it on.
        activations: whether to add the axes of the activation shift.
        contrast: chats to contrast, if any.
        progress: called for every batch and factor.

    Raises:
        InputError: the adapter and the base model differ in width, or the contrast's chats are
            unusable.
    """
    model, tokenizer = case.model, case.tokenizer
    check_width(model, found[1])
    off = answer_greedily(model, tokenizer, case.off, progress=progress)
    yard = case.yards.get("write") or case.yards["read"]
    routes = [found]
    if activations:
        axes = shift_axes(model, off)
        routes.append(layer_rows(yard, axes, route="activations", band="any"))
    if contrast is not None:
        ends = contrast_directions(model, tokenizer, contrast)
        band: Band = "fixed" if contrast.of == "base" else "any"
        routes.append(layer_rows(yard, ends, route="contrast", band=band))
    found = concatenate(routes)
    first = first_order(model, off, found[1], progress=progress)
    (table, directions), first = _with_rotated(found, first, case)
    given = table["route"].isin(("contrast", "import")).to_numpy()
    directions = directions * np.where((first.shift < 0) & ~given, -1.0, 1.0)[:, None]
    table = table.assign(first_order=first.shares)
    rows = _promising(table)
    on = answer_greedily(model, tokenizer, case.on)
    effects = Effects(
        rows=rows,
        off=set_back_effects(model, off, directions[rows], progress=progress),
        on=set_back_effects(model, on, directions[rows], progress=progress),
        random=set_back_effects(model, off, _random(table, directions), progress=progress),
    )
    return rank_factors(add_effects(table, effects), directions)


def _with_rotated(
    found: FactorRows, first: FirstOrder, case: Case
) -> tuple[FactorRows, FirstOrder]:
    """The factors and, if there are write factors, also their off-task rotation."""
    table, directions = found
    rows = _written(table)
    if not len(rows) or not first.whole > 0:
        return found, first
    topics = first.by_topic([prompt.group for prompt in case.off])
    rotation = rotate(directions[rows], topics.moments[:, rows][:, :, rows], topics.wholes)
    least = MIN_SHARE * topics.whole
    kept = rotation.directions[:ROTATED][rotation.effects[:ROTATED] >= least]
    if not len(kept):
        return found, first
    source = f"{len(rows)} write factors, rotated on {len(case.off)} unrelated prompts"
    more = factor_rows(case.yards["write"], kept, route="rotation", source=source, band="span")
    combinations = np.eye(len(directions) + len(kept), len(directions))
    combinations[len(directions) :, rows] = kept @ directions[rows].T
    return concatenate([found, more]), first.along(combinations)


def _written(table: pd.DataFrame) -> NDArray[np.intp]:
    """Rows of the write factors found from the weights alone."""
    return np.flatnonzero((table["route"] == "weights") & (table["side"] == "write"))


def _promising(table: pd.DataFrame) -> list[int]:
    """Rows of the candidates to measure, in table order."""
    share = table["first_order"].abs().fillna(0.0).to_numpy()
    rotated_first = (table["route"] != "rotation").to_numpy()
    return sorted(np.lexsort((-share, rotated_first))[:MEASURED].tolist())


def _random(table: pd.DataFrame, directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Random unit directions (RANDOM_DIRECTIONS, d_model) outside the span of the write factors."""
    span = directions[_written(table)]
    draws = np.random.default_rng(0).standard_normal((RANDOM_DIRECTIONS, directions.shape[1]))
    if len(span) < directions.shape[1]:
        draws -= draws @ span.T @ span
    return np.asarray(draws / np.linalg.norm(draws, axis=1, keepdims=True))
