"""Identification of factors from weights alone: one table over both sides, with its score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.adapter import Adapter, load_adapter
from analysis.factor_table import COLUMNS
from analysis.factors import ResidualSide, null_band, residual_factors, significant, stability

WRITE_FACTORS = 8
READ_FACTORS = 4
SIDES: tuple[tuple[ResidualSide, int], ...] = (("write", WRITE_FACTORS), ("read", READ_FACTORS))


def weight_factors(
    adapter: Adapter, *, others: Sequence[Adapter] = (), max_layer: int | None = None, seed: int = 0
) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """The leading factors of both sides, with null band, stability and score.

    Args:
        adapter: the run's LoRA.
        others: other checkpoints or seeds of the run, for stability.
        max_layer: only modules up to this layer.
        seed: of the null band's random adapters.

    Returns:
        table: the columns of `analysis.factor_table.COLUMNS`, those that need a model NaN or
            empty, best score first.
        directions: (k, d_model) in the order of the table.
    """
    tables, directions = [], []
    for side, k in SIDES:
        if not any(module.side == side for module in adapter.modules):
            continue
        rows, found = _side(adapter, side, k, others=others, max_layer=max_layer, seed=seed)
        tables.append(rows)
        directions.append(found)
    table = pd.concat(tables, ignore_index=True)
    return ranked(table, np.concatenate(directions))


def ranked(
    table: pd.DataFrame, directions: NDArray[np.floating]
) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """Score every factor and put the best first; those on or under the null band come last.

    score = s · off · √(off / (off + on)): the stability s times the off-task effect, weighed by
    its share of both effects.  The root, rather than the share itself, was chosen on the demo's
    exploration prompts: a spurious factor works on the task's answers too.  Where no effects
    were measured the score is s · energy.
    """
    off, on = table["off_task"], table["on_task"]
    effect = (off * np.sqrt(off / (off + on).where(off + on > 0))).fillna(0.0)
    measured = bool(off.notna().any())
    scored = table.assign(
        effect_ratio=off / on.where(on > 0),
        score=table["stability"].fillna(1.0) * (effect if measured else table["energy"]),
    )
    order = np.lexsort((-scored["score"].to_numpy(), ~scored["significant"].to_numpy()))
    return scored.iloc[order].reset_index(drop=True), np.asarray(directions, np.float64)[order]


def checkpoints_of(run_folder: Path) -> list[Adapter]:
    """Adapters of a run's earlier checkpoints; the last is the finished run and is left out."""
    folders = sorted(
        (path for path in run_folder.glob("checkpoints/checkpoint-*") if path.is_dir()),
        key=lambda path: int(path.name.rpartition("-")[2]),
    )
    return [load_adapter(path) for path in folders[:-1]]


def _side(
    adapter: Adapter,
    side: ResidualSide,
    k: int,
    *,
    others: Sequence[Adapter],
    max_layer: int | None,
    seed: int,
) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    factors = residual_factors(adapter.modules, side=side, max_layer=max_layer, k=k)
    n = len(factors.singular_values)
    band = null_band(adapter.modules, side=side, max_layer=max_layer, k=max(n, 1), seed=seed)
    leading = [
        residual_factors(other.modules, side=side, max_layer=max_layer, k=k).directions
        for other in others
    ]
    suffix = "" if max_layer is None else f".L{max_layer}"
    rows = pd.DataFrame(
        {
            "id": [f"{side[0]}{i + 1}{suffix}" for i in range(n)],
            "side": side,
            "index": np.arange(1, n + 1),
            "max_layer": np.nan if max_layer is None else float(max_layer),
            "singular_value": factors.singular_values,
            "energy": factors.energy,
            "null_median": band.median[:n],
            "null_high": band.upper[:n],
            "significant": significant(factors, band),
            "stability": stability(factors.directions, leading),
            "off_task": np.nan,
            "on_task": np.nan,
            "effect_ratio": np.nan,
            "score": np.nan,
            "promoted": [[] for _ in range(n)],
            "suppressed": [[] for _ in range(n)],
        }
    )
    return rows.loc[:, list(COLUMNS)], factors.directions
