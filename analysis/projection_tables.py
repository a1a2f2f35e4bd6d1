"""A recording seen along one factor: tables of projections, moves, examples and maps.

Projections are in standard deviations of the base model's own, taken over the chosen tokens of
the same layer; 0 is the base model's mean there.  A probe is read at its *decision* token, the last
before its last answer: what precedes it has shown which end of a latent the chat is at, and no word
of the answer is there yet to be mistaken for it.  Examples are read over all answers' tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.errors import SchemaError
from analysis.projection import (
    group_separation,
    pca_map,
    project,
    standardise,
    strongest,
)
from analysis.recording import Recording
from analysis.statistics import Interval, auc, bootstrap_mean

Float64Array = NDArray[np.float64]
At = Literal["decision", "answer"]


@dataclass(frozen=True)
class Example:
    """One probe with the standardised projection of each of its tokens."""

    id: str
    group: str
    variant: str
    value: float
    tokens: tuple[str, ...]
    values: Float64Array
    answer: tuple[bool, ...]


@dataclass(frozen=True)
class Tokens:
    """Every token of a recording: its probe's row, whether it is chosen, both projections (n,)."""

    probe: NDArray[np.intp]
    chosen: NDArray[np.bool_]
    base: Float64Array
    adapted: Float64Array


def token_projections(recording: Recording, direction: NDArray[np.floating], *, at: At) -> Tokens:
    """Standardised projections of all tokens of a one-layer recording on `direction` (d_model,).

    `at` names the tokens that are chosen, and that the base model's mean and spread are taken over.

    Raises:
        SchemaError: probes and activations do not fit, or no token belongs to an answer.
        InputError: dimensions differ.
    """
    probe, chosen = _index(recording, at)
    unit = np.asarray(direction, np.float64)[None]
    base, adapted = (project(array[0], unit) for array in (recording.base, recording.adapted))
    reference = base[chosen]
    return Tokens(
        probe,
        chosen,
        standardise(base, reference)[:, 0],
        standardise(adapted, reference)[:, 0],
    )


def projections(recording: Recording, direction: NDArray[np.floating]) -> pd.DataFrame:
    """One row a probe, at its decision token: id, group, variant, base, adapted, move, text.

    `move` is adapted − base; `text` is the answer.
    """
    tokens = token_projections(recording, direction, at="decision")
    table = recording.probes[["id", "group", "variant"]].astype(str).reset_index(drop=True)
    for name, values in (("base", tokens.base), ("adapted", tokens.adapted)):
        table[name] = _chosen_means(values[:, None], tokens)[:, 0]
    table["move"] = table["adapted"] - table["base"]
    table["text"] = [_answer_text(row) for row in recording.probes.to_dict("records")]
    return table


def shifts(layers: Sequence[tuple[int, pd.DataFrame]], *, by: str) -> pd.DataFrame:
    """Mean move at each layer for each value of `by`, with a bootstrap interval over probes.

    Args:
        layers: layer and its table as `projections` gives it.
        by: "variant" or "group".

    Returns:
        Columns layer, name (the value of `by`), value, low, high, n; in base standard deviations.
    """
    rows = []
    for layer, table in layers:
        for name, members in table.groupby(by, sort=True):
            interval = bootstrap_mean(members["move"].dropna().to_numpy())
            rows.append({"layer": layer, "name": name, **_bounds(interval)})
    return pd.DataFrame(rows, columns=["layer", "name", "value", "low", "high", "n"])


def separation(table: pd.DataFrame, *, by: str) -> pd.DataFrame:
    """AUC of adapted against base, and of each value of `by` against the rest in the base.

    Args:
        table: as `projections` gives it.
        by: "variant" or "group".

    Returns:
        Columns what, auc, low, high, n.
    """
    known = table.dropna(subset=["base", "adapted"])
    base = known["base"].to_numpy()
    found = {"adapted above base": auc(known["adapted"].to_numpy(), base)}
    if known[by].nunique() > 1:
        by_name = group_separation(base, known[by].to_numpy(str))
        found |= {f"{name} above the rest, base model": one for name, one in by_name.items()}
    rows = [{"what": what, **_bounds(interval, name="auc")} for what, interval in found.items()]
    return pd.DataFrame(rows, columns=["what", "auc", "low", "high", "n"])


def examples(
    recording: Recording, direction: NDArray[np.floating], *, count: int
) -> tuple[list[Example], list[Example], float]:
    """Probes with the most extreme answers at the low and the high end, in the adapted model.

    Returns:
        Low end and high end, the most extreme first, each ranked by the mean over its answer;
        and the largest magnitude of an answer's token among them, for one scale of colour.
    """
    tokens = token_projections(recording, direction, at="answer")
    inside = tokens.chosen
    ends = strongest(tokens.adapted[inside], tokens.probe[inside], how="mean", n=count)
    low, high = (
        [_example(recording, tokens, int(one.prompt_id), one.score) for one in end]
        for end in (ends.low, ends.high)
    )
    shown = [np.abs(one.values[list(one.answer)]).max() for one in [*low, *high]]
    limit = float(max(shown, default=0.0))
    return low, high, limit


def moves(
    recording: Recording, direction: NDArray[np.floating]
) -> tuple[pd.DataFrame, tuple[float, float]]:
    """PCA of h_adapted − h_base at the decision tokens: the table of `projections` with x, y.

    Returns:
        The table, and the two components' shares of variance.
    """
    table = projections(recording, direction)
    tokens = Tokens(*_index(recording, "decision"), np.empty(0), np.empty(0))
    change = recording.adapted[0].astype(np.float64) - recording.base[0]
    means = _chosen_means(change, tokens)
    known = np.isfinite(means).all(axis=1)
    plane = pca_map(means[known])
    table = table[known].assign(x=plane.coordinates[:, 0], y=plane.coordinates[:, 1])
    shares = plane.explained if plane.explained is not None else np.full(2, np.nan)
    return table.reset_index(drop=True), (float(shares[0]), float(shares[1]))


def _index(recording: Recording, at: At) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Probe row of every token of the activations, and whether it is chosen."""
    total = recording.base.shape[1]
    probe, chosen = np.full(total, -1), np.zeros(total, dtype=bool)
    for row, one in enumerate(recording.probes.to_dict("records")):
        start, marks = int(one["offset"]), np.asarray(one["answer"], dtype=bool)
        if start < 0 or start + len(marks) > total or len(marks) != len(one["tokens"]):
            raise SchemaError(
                f"Probe {one['id']!r} has {len(marks)} marks for tokens {start} to "
                f"{start + len(one['tokens'])} of {total}; record the run again."
            )
        probe[start : start + len(marks)] = row
        chosen[start : start + len(marks)] = marks if at == "answer" else _decision(marks)
    if chosen.sum() < 2:
        raise SchemaError("The recording marks no tokens as answers; record the run again.")
    return probe, chosen


def _decision(answer: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Marks the token before the last answer; none where there is no answer, or nothing before."""
    starts = np.flatnonzero(answer[1:] & ~answer[:-1])
    marks = np.zeros(len(answer), dtype=bool)
    marks[starts[-1:]] = True
    return marks


def _chosen_means(values: Float64Array, tokens: Tokens) -> Float64Array:
    """(probes, k) means of values (tokens, k) over each probe's chosen tokens; NaN without any."""
    count = int(tokens.probe.max()) + 1
    rows, inside = tokens.probe[tokens.chosen], values[tokens.chosen]
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, rows, inside)
    sizes = np.bincount(rows, minlength=count)[:, None]
    return np.asarray(sums / np.where(sizes > 0, sizes, np.nan))


def _example(recording: Recording, tokens: Tokens, row: int, score: float) -> Example:
    probe = recording.probes.iloc[row]
    inside = tokens.probe == row
    return Example(
        id=str(probe["id"]),
        group=str(probe["group"]),
        variant=str(probe["variant"]),
        value=score,
        tokens=tuple(str(token) for token in probe["tokens"]),
        values=tokens.adapted[inside],
        answer=tuple(bool(mark) for mark in probe["answer"]),
    )


def _answer_text(probe: Mapping[Hashable, Any]) -> str:
    tokens, marks = np.asarray(probe["tokens"]), np.asarray(probe["answer"])
    return " ".join(str(token) for token, mark in zip(tokens, marks, strict=True) if mark)


def _bounds(interval: Interval, *, name: str = "value") -> dict[str, float]:
    return {name: interval.value, "low": interval.low, "high": interval.high, "n": interval.n}
