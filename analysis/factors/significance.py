"""Add measured effects to a table of factors: columns, significance and a sentence for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.typing import NAType

from analysis.factors.set_back import SetBack, effect_bounds
from analysis.text import percent_text
from analysis.values import TableRow

MIN_EFFECT = 0.05
"""Off-task effect (`SetBack.effects`) below which a factor counts as having none.

Random directions of a wide residual stream do nothing at all, so they alone set no floor."""


@dataclass(frozen=True)
class Effects:
    """What setting factors back does, for the measured `rows` (positions) of a table.

    `off` is measured on unrelated prompts, `on` on task prompts, and `random` for random
    directions on unrelated prompts.
    """

    rows: Sequence[int]
    off: SetBack
    on: SetBack
    random: SetBack


def add_effects(table: pd.DataFrame, found: Effects) -> pd.DataFrame:
    """The table with effects, their intervals and the significance that follows from them.

    An effect is significant if the lower end of its interval lies above the largest effect of
    the random directions and above MIN_EFFECT.  A factor is significant if both its energy and
    its effect are, so never if its effect was not measured.
    """
    ends = effect_bounds(found.off)
    chance = float(np.max(found.random.effects, initial=0.0))
    floor = max(chance, MIN_EFFECT)
    columns: dict[str, NDArray[np.float64]] = {
        "off_task": found.off.shares,
        "off_low": ends.share_low,
        "off_high": ends.share_high,
        "on_task": found.on.shares,
        "effect": found.off.effects,
        "effect_low": ends.effect_low,
        "effect_high": ends.effect_high,
        "effect_random": np.full(len(found.rows), chance),
    }
    rows = list(found.rows)
    full = {name: _spread(values, rows, len(table)) for name, values in columns.items()}
    above: list[bool | NAType] = [pd.NA] * len(table)
    for row, low in zip(rows, ends.effect_low, strict=True):
        above[row] = bool(low > floor)
    energy = table["significant_energy"].to_numpy(bool)
    return table.assign(
        **full,
        significant_effect=pd.array(above, dtype="boolean"),
        significant=energy & np.array([flag is True for flag in above]),
    )


def add_explanations(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a sentence for each factor in the column `explanation`."""
    sentences = [explain_factor(row) for row in table.to_dict("records")]
    return table.assign(explanation=pd.Series(sentences, index=table.index, dtype=object))


def explain_factor(row: TableRow) -> str:
    """A row of the table in words.

    For example "Setting e1 back undoes 41 % [35, 47] of the change on unrelated prompts and 6 %
    on the task; stable (.93) over checkpoints and seeds; energy 3.1 × the null band."
    """
    parts = []
    if _known(row["off_task"]):
        parts.append(_effect_words(row))
    elif _known(row["first_order"]):
        share = percent_text(row["first_order"])
        parts.append(f"its first-order share off the task is {share}; its effect was not measured")
    if _known(row["stability"]):
        parts.append(f"{_stable(row['stability'])} over checkpoints and seeds")
    ratio = (row["singular_value"] / row["null_high"]) ** 2 if row["null_high"] > 0 else np.nan
    if _known(ratio):
        parts.append(f"energy {ratio:.1f} × the null band")
    text = "; ".join(parts) or "nothing was measured"
    return f"{text[0].upper()}{text[1:]}."


def _effect_words(row: TableRow) -> str:
    interval = ""
    if _known(row["off_low"]):
        interval = f" [{100 * row['off_low']:.0f}, {100 * row['off_high']:.0f}]"
    task = f" and {percent_text(row['on_task'])} on the task" if _known(row["on_task"]) else ""
    small = "" if row["significant_effect"] is True else ", an effect that is not significant"
    undone = f"setting {row['id']} back undoes {percent_text(row['off_task'])}{interval}"
    return f"{undone} of the change on unrelated prompts{task}{small}"


def _stable(value: float) -> str:
    word = "stable" if value >= 0.9 else "partly stable" if value >= 0.6 else "not stable"
    return f"{word} ({value:.2f})".replace("(0.", "(.")


def _known(value: float | None) -> bool:
    return bool(pd.notna(value))


def _spread(values: NDArray[np.float64], rows: Sequence[int], n: int) -> NDArray[np.float64]:
    full = np.full(n, np.nan)
    full[list(rows)] = values
    return full
