"""Factors of every route as rows of one table, with what the weights say about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.adapters.checkpoints import adapters_by_step
from analysis.adapters.load import Adapter, LoraModule, load_adapter
from analysis.errors import InputError
from analysis.factors.null_band import NullBand, null_band
from analysis.factors.residual import (
    ResidualSide,
    residual_factors,
    stability,
    update_columns,
)
from analysis.spectra.subspace import unit_rows
from analysis.store.factor_table import COLUMNS

Float64Array = NDArray[np.float64]
FactorRows = tuple[pd.DataFrame, Float64Array]
"""Rows with the columns of `factor_table.COLUMNS`, and their directions (k, d_model)."""

Route = Literal["weights", "joint", "rotation", "activations", "contrast", "import"]
Band = Literal["index", "any", "span", "fixed"]
"""What a direction's strength is compared with in random adapters:

- "index": the singular value of the same index;
- "any": the largest singular value, which bounds a direction chosen after seeing the run;
- "span": the strength along a direction in the span of the leading factors, for one that was
  not chosen by strength;
- "fixed": the strength along a direction chosen before looking at the run.
"""

WRITE_FACTORS = 16
READ_FACTORS = 4
SIDES: tuple[tuple[ResidualSide, int], ...] = (("write", WRITE_FACTORS), ("read", READ_FACTORS))


@dataclass(frozen=True)
class Yardstick:
    """What the updates of a run write (or read), and what to compare a direction with.

    `columns` (d_model, Σr) are those of `update_columns` for the run, `others` the same for its
    checkpoints and other seeds, `spans` the leading directions of each of these, and `band` the
    null band of random adapters.
    """

    side: ResidualSide
    max_layer: int | None
    columns: Float64Array
    others: tuple[Float64Array, ...]
    spans: tuple[Float64Array, ...]
    band: NullBand
    joint: bool = False

    @property
    def suffix(self) -> str:
        """The ending of factor ids if only modules up to a layer, or several runs, were used."""
        layer = "" if self.max_layer is None else f".L{self.max_layer}"
        return f"{layer}.joint" if self.joint else layer


@dataclass(frozen=True)
class LayerDirections:
    """Directions (k, d_model), the layer each was found at, and where it came from, in words."""

    directions: Float64Array
    layers: tuple[int, ...]
    sources: tuple[str, ...]


def yardsticks(
    modules: Sequence[LoraModule],
    *,
    others: Sequence[Adapter] = (),
    max_layer: int | None = None,
    seed: int = 0,
    joint: bool = False,
) -> dict[ResidualSide, Yardstick]:
    """The yardstick of each side that has modules.

    Args:
        modules: of the run, or of several runs side by side if `joint`.
        others: checkpoints and other seeds of the run.
        max_layer: only modules up to this layer.
        seed: of the null band's random adapters.
        joint: the modules come from several runs.

    Raises:
        InputError: a side has modules but none up to `max_layer`, or the residual stream of
            another run differs in width.
    """
    yards: dict[ResidualSide, Yardstick] = {}
    for side, k in SIDES:
        if not any(module.side == side for module in modules):
            continue
        columns = update_columns(modules, side=side, max_layer=max_layer)
        elsewhere = [update_columns(o.modules, side=side, max_layer=max_layer) for o in others]
        _check_width(columns, elsewhere)
        spans = (residual_factors(o.modules, side=side, max_layer=max_layer, k=k) for o in others)
        yards[side] = Yardstick(
            side=side,
            max_layer=max_layer,
            columns=columns,
            others=tuple(elsewhere),
            spans=tuple(span.directions for span in spans),
            band=null_band(modules, side=side, max_layer=max_layer, k=k, seed=seed),
            joint=joint,
        )
    return yards


def weight_factors(
    adapter: Adapter, *, others: Sequence[Adapter] = (), max_layer: int | None = None, seed: int = 0
) -> FactorRows:
    """The leading factors of both sides, with null band, stability and score.

    Args:
        adapter: the run's LoRA.
        others: other checkpoints or seeds of the run, for stability.
        max_layer: only modules up to this layer.
        seed: of the null band's random adapters.

    Returns:
        The table, best score first, and directions (k, d_model).  Columns that need a model
        are NaN or empty.
    """
    yards = yardsticks(adapter.modules, others=others, max_layer=max_layer, seed=seed)
    return rank_factors(*weight_rows(adapter.modules, yards))


def weight_rows(modules: Sequence[LoraModule], yards: dict[ResidualSide, Yardstick]) -> FactorRows:
    """The leading factors of each yardstick's side, strongest first, write before read.

    Raises:
        InputError: there is no yardstick, that is, no module writes or reads the stream.
    """
    if not yards:
        raise InputError(
            "No module of the adapter writes or reads the residual stream; expected LoRA on "
            "attention or MLP projections."
        )
    found = []
    for side, yard in yards.items():
        factors = residual_factors(
            modules, side=side, max_layer=yard.max_layer, k=dict(SIDES)[side]
        )
        source = f"{len(factors.modules)} modules that {side} the residual stream"
        route: Route = "joint" if yard.joint else "weights"
        found.append(factor_rows(yard, factors.directions, route=route, source=source))
    return concatenate(found)


def joint_rows(adapters: Sequence[Adapter], *, max_layer: int | None = None) -> FactorRows:
    """The leading factors of several runs, from all their modules side by side.

    What the runs share adds up; the noise of different seeds does not.  The stability of a joint
    factor is how much of it lies in the span of each run's own leading factors.

    Raises:
        InputError: the residual streams of the runs differ in width.
    """
    modules = [module for adapter in adapters for module in adapter.modules]
    yards = yardsticks(modules, others=adapters, max_layer=max_layer, joint=True)
    return weight_rows(modules, yards)


_LETTERS: dict[Route, str] = {"rotation": "e", "activations": "a", "contrast": "c", "import": "i"}


def factor_rows(
    yard: Yardstick,
    directions: NDArray[np.floating],
    *,
    route: Route,
    source: str | Sequence[str],
    band: Band = "index",
    layers: Sequence[int] | None = None,
) -> FactorRows:
    """Table rows for directions (k, d_model), with everything the weights alone say about them.

    Args:
        yard: of the run and the side.
        directions: in the order of their index, which starts again at each of the `layers`.
        route: how they were found; it also sets the letter of their ids.
        source: where they came from, in words: one for all, or one for each.
        band: what their strength is compared with.
        layers: (k,) the layer each was found at; None if they hold for all layers.
    """
    units = unit_rows(directions)
    n = len(units)
    strengths = np.linalg.norm(units @ yard.columns, axis=1)
    index = np.arange(1, n + 1) if layers is None else _counted(layers)
    median, high = _null(yard.band, band, n)
    elsewhere = np.array([np.linalg.norm(units @ other, axis=1) for other in yard.others])
    letter = _LETTERS.get(route, yard.side[0])
    suffixes = [yard.suffix] * n if layers is None else [f".L{layer}" for layer in layers]
    # Each layer has only one contrast, so it needs no number.
    numbers = [""] * n if route == "contrast" else [str(i) for i in index]
    rows = {
        "id": [f"{letter}{i}{suffix}" for i, suffix in zip(numbers, suffixes, strict=True)],
        "route": route,
        "side": yard.side,
        "index": index,
        "max_layer": np.nan if yard.max_layer is None else float(yard.max_layer),
        "layer": np.nan if layers is None else np.asarray(layers, dtype=np.float64),
        "source": source if isinstance(source, str) else list(source),
        "singular_value": strengths,
        "energy": strengths**2 / max(float((yard.columns**2).sum()), np.finfo(float).tiny),
        "null_median": median,
        "null_high": high,
        "others_low": elsewhere.min(axis=0) if len(elsewhere) else np.nan,
        "others_high": elsewhere.max(axis=0) if len(elsewhere) else np.nan,
        "significant": strengths > high,
        "significant_energy": strengths > high,
        "stability": stability(units, yard.spans),
    }
    table = pd.DataFrame(rows, index=range(n)) if n else pd.DataFrame(rows, index=[])
    return fill_columns(table), units


def layer_rows(yard: Yardstick, found: LayerDirections, *, route: Route, band: Band) -> FactorRows:
    """Table rows for directions that each belong to one layer, as `factor_rows` gives them."""
    return factor_rows(
        yard, found.directions, route=route, source=found.sources, band=band, layers=found.layers
    )


def fill_columns(table: pd.DataFrame) -> pd.DataFrame:
    """The table with every column of COLUMNS; missing ones are filled with "unknown"."""
    absent = {name: fill for name, fill in COLUMNS.items() if name not in table}
    filled = {name: [fill] * len(table) for name, fill in absent.items()}
    full = table.assign(**filled).astype({"significant_effect": "boolean"})
    return full.loc[:, list(COLUMNS)]


def concatenate(found: Sequence[FactorRows]) -> FactorRows:
    """The rows of several routes as one table."""
    tables = [table for table, _ in found if len(table)] or [found[0][0]]
    table = pd.concat(tables, ignore_index=True)
    return table, np.concatenate([directions for _, directions in found])


def rank_factors(table: pd.DataFrame, directions: NDArray[np.floating]) -> FactorRows:
    """Score every factor and sort, best first; factors that are not significant come last.

    score = s · off · √(off / (off + on)): the stability s times the off-task effect, weighted by
    its share of both effects (`specificity`).  The root rather than the share itself was
    chosen on the demo's exploration prompts: a spurious factor affects the task's answers too.
    If no effect was measured for any factor, the score is s · energy; if it was measured only
    for other factors, the score is unknown.
    """
    off, on = table["off_task"], table["on_task"]
    specificity = np.sqrt(off / (off + on).where(off + on > 0))
    effect = (off * specificity).where(off + on > 0, off)
    measured = bool(off.notna().any())
    scored = table.assign(
        effect_ratio=off / on.where(on > 0),
        specificity=specificity,
        score=table["stability"].fillna(1.0) * (effect if measured else table["energy"]),
    )
    order = np.lexsort((-scored["score"].to_numpy(), ~scored["significant"].to_numpy(bool)))
    return scored.iloc[order].reset_index(drop=True), np.asarray(directions, np.float64)[order]


def load_checkpoints(run_folder: Path, *, low_rank_part: bool = False) -> list[Adapter]:
    """Adapters of a run's checkpoints except the last, which is the finished run.

    `low_rank_part` is that of `analysis.adapters.load.load_adapter`.
    """
    earlier = list(adapters_by_step(run_folder).values())[:-1]
    return [load_adapter(path, low_rank_part=low_rank_part) for path in earlier]


def _check_width(columns: Float64Array, others: Sequence[Float64Array]) -> None:
    wrong = next((other for other in others if len(other) != len(columns)), None)
    if wrong is not None:
        raise InputError(
            f"The residual stream of another run has {len(wrong)} dimensions, this one's "
            f"{len(columns)}; expected checkpoints and seeds of one base model."
        )


def _null(band: NullBand, which: Band, n: int) -> tuple[Float64Array | float, Float64Array | float]:
    """Median and upper end of the band for n directions."""
    if which == "index":
        return band.median[:n], band.upper[:n]
    if which == "any":
        return float(band.median[0]), float(band.upper[0])
    if which == "span":
        return band.span_median, band.span_upper
    return band.fixed_median, band.fixed_upper


def _counted(layers: Sequence[int]) -> list[int]:
    """A running number for each layer: 1, 2, … over the entries of that layer."""
    seen: dict[int, int] = {}
    counts = []
    for layer in layers:
        seen[layer] = seen.get(layer, 0) + 1
        counts.append(seen[layer])
    return counts
