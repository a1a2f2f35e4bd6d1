"""A recording along one factor: tables of projections, moves, examples and maps.

Projections are in standard deviations of the base model's projections over the chosen tokens of
the same layer, and 0 is the base model's mean there.  A probe is read at its *decision* token, the
last token before its last answer: the context has by then shown which end of a latent the chat is
at, and no token of the answer can be mistaken for it yet.  Examples are read over all tokens of
answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.errors import SchemaError
from analysis.evidence.projection import (
    find_strongest,
    group_separation,
    pca_map,
    project,
    standardise,
)
from analysis.statistics.intervals import Interval, auc, bootstrap_mean
from analysis.store.recording import Recording
from analysis.values import TableRow

Float64Array = NDArray[np.float64]
At = Literal["decision", "answer"]
How = Literal["mean", "max"]
Model = Literal["base", "adapted"]


@dataclass(frozen=True)
class ProbeExample:
    """One probe with the standardised projection of each of its tokens in one model.

    `value` is the score it is ranked by, `against` the same score in the other model.
    """

    id: str
    group: str
    variant: str
    value: float
    against: float
    tokens: tuple[str, ...]
    values: Float64Array
    answer: tuple[bool, ...]


@dataclass(frozen=True)
class Tokens:
    """All n tokens of a recording, as arrays (n,).

    `probe` is the row of the token's probe, `chosen` whether the token is read, `base` and
    `adapted` its standardised projection in either model.
    """

    probe: NDArray[np.intp]
    chosen: NDArray[np.bool_]
    base: Float64Array
    adapted: Float64Array


def token_projections(recording: Recording, direction: NDArray[np.floating], *, at: At) -> Tokens:
    """Standardised projections of all tokens of a one-layer recording along `direction` (d_model,).

    `at` says which tokens are chosen; the base model's mean and deviation are taken over these.

    Raises:
        SchemaError: probes and activations do not match, or fewer than two tokens are chosen.
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


def probe_projections(recording: Recording, direction: NDArray[np.floating]) -> pd.DataFrame:
    """One row per probe, read at its decision token: id, group, variant, base, adapted, move, text.

    `move` is adapted − base; `text` is the answer.
    """
    tokens = token_projections(recording, direction, at="decision")
    table = recording.probes[["id", "group", "variant"]].astype(str).reset_index(drop=True)
    for name, values in (("base", tokens.base), ("adapted", tokens.adapted)):
        table[name] = _chosen_means(values[:, None], tokens)[:, 0]
    table["move"] = table["adapted"] - table["base"]
    table["text"] = [_answer_text(row) for row in recording.probes.to_dict("records")]
    return table


def mean_moves(layers: Sequence[tuple[int, pd.DataFrame]], *, by: str) -> pd.DataFrame:
    """Mean move at each layer for each value of `by`, with a bootstrap interval over probes.

    Args:
        layers: pairs of a layer and its table from `probe_projections`.
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


def separation_table(table: pd.DataFrame, *, by: str) -> pd.DataFrame:
    """AUC of adapted against base, and in the base model of each value of `by` against the rest.

    Args:
        table: from `probe_projections`.
        by: "variant" or "group".

    Returns:
        Columns what, auc, low, high, n.
    """
    known = table.dropna(subset=["base", "adapted"])
    base = known["base"].to_numpy()
    found = {"adapted above base": auc(known["adapted"].to_numpy(), base, paired=True)}
    if known[by].nunique() > 1:
        by_name = group_separation(base, known[by].to_numpy(str))
        found |= {f"{name} above the rest, base model": one for name, one in by_name.items()}
    rows = [{"what": what, **_bounds(interval, name="auc")} for what, interval in found.items()]
    return pd.DataFrame(rows, columns=["what", "auc", "low", "high", "n"])


def extreme_examples(
    recording: Recording,
    direction: NDArray[np.floating],
    *,
    count: int,
    how: How = "mean",
    model: Model = "adapted",
) -> tuple[list[ProbeExample], list[ProbeExample], float]:
    """Probes with the most extreme answers at the low and the high end, in one of the models.

    Args:
        recording: of one layer.
        direction: (d_model,).
        count: probes at each end.
        how: rank by the mean over an answer's tokens, or by its most extreme token at that end.
        model: the model whose projections are ranked and shown.

    Returns:
        The low end and the high end, most extreme first, and the largest magnitude of an answer
        token among them, so that both can share a colour scale.
    """
    tokens = token_projections(recording, direction, at="answer")
    inside = tokens.chosen
    own, other = _in_order(tokens, model)
    ends = find_strongest(own[inside], tokens.probe[inside], how=how, n=count)

    def example(row: int, score: float, sign: int) -> ProbeExample:
        against = _score(other[inside & (tokens.probe == row)], how, sign)
        return _example(recording, own[tokens.probe == row], row, score, against)

    low, high = (
        [example(int(one.prompt_id), one.score, sign) for one in end]
        for end, sign in ((ends.low, -1), (ends.high, 1))
    )
    shown = [np.abs(one.values[list(one.answer)]).max() for one in [*low, *high]]
    limit = float(max(shown, default=0.0))
    return low, high, limit


def find_strongest_tokens(
    recording: Recording,
    direction: NDArray[np.floating],
    *,
    count: int,
    model: Model = "adapted",
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Answer tokens at the low and the high end, most extreme first, each text once.

    The value of a text is that of its most extreme occurrence at that end, in base standard
    deviations.
    """
    tokens = token_projections(recording, direction, at="answer")
    values = _in_order(tokens, model)[0][tokens.chosen]
    texts = np.full(len(tokens.probe), "", dtype=object)
    for row in recording.probes.to_dict("records"):
        texts[int(row["offset"]) :][: len(row["tokens"])] = row["tokens"]
    by_text = pd.Series(values).groupby(texts[tokens.chosen])
    low, high = by_text.min().nsmallest(count), by_text.max().nlargest(count)
    return [(str(t), float(v)) for t, v in low.items()], [
        (str(t), float(v)) for t, v in high.items()
    ]


def map_moves(
    recording: Recording, direction: NDArray[np.floating]
) -> tuple[pd.DataFrame, tuple[float, float]]:
    """PCA of h_adapted − h_base at the decision tokens.

    Returns:
        The table of `probe_projections` with coordinates x and y, and the variance share of each.
    """
    table = probe_projections(recording, direction)
    tokens = Tokens(*_index(recording, "decision"), np.empty(0), np.empty(0))
    change = recording.adapted[0].astype(np.float64) - recording.base[0]
    means = _chosen_means(change, tokens)
    known = np.isfinite(means).all(axis=1)
    plane = pca_map(means[known])
    table = table[known].assign(x=plane.coordinates[:, 0], y=plane.coordinates[:, 1])
    shares = plane.explained if plane.explained is not None else np.full(2, np.nan)
    return table.reset_index(drop=True), (float(shares[0]), float(shares[1]))


def _index(recording: Recording, at: At) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """The probe row of every token of the activations, and whether the token is chosen."""
    total = recording.base.shape[1]
    probe, chosen = np.full(total, -1), np.zeros(total, dtype=bool)
    for row, one in enumerate(recording.probes.to_dict("records")):
        start, marks = int(one["offset"]), np.asarray(one["answer"], dtype=bool)
        if start < 0 or start + len(marks) > total or len(marks) != len(one["tokens"]):
            raise SchemaError(
                f"Probe {one['id']!r} has {len(marks)} answer marks for tokens {start} to "
                f"{start + len(one['tokens'])} of {total}; expected one each. "
                "Record the run again."
            )
        probe[start : start + len(marks)] = row
        chosen[start : start + len(marks)] = marks if at == "answer" else _decision(marks)
    if chosen.sum() < 2:
        raise SchemaError("The recording marks no tokens as answers; record the run again.")
    return probe, chosen


def _decision(answer: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark the token before the last answer; none if there is no answer, or nothing before it."""
    starts = np.flatnonzero(answer[1:] & ~answer[:-1])
    marks = np.zeros(len(answer), dtype=bool)
    marks[starts[-1:]] = True
    return marks


def _chosen_means(values: Float64Array, tokens: Tokens) -> Float64Array:
    """(probes, k) means of values (tokens, k) over each probe's chosen tokens; NaN if none."""
    count = int(tokens.probe.max()) + 1
    rows, inside = tokens.probe[tokens.chosen], values[tokens.chosen]
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, rows, inside)
    sizes = np.bincount(rows, minlength=count)[:, None]
    return np.asarray(sums / np.where(sizes > 0, sizes, np.nan))


def _in_order(tokens: Tokens, model: Model) -> tuple[Float64Array, Float64Array]:
    """The projections in `model`, then those in the other model."""
    both = tokens.adapted, tokens.base
    return both if model == "adapted" else both[::-1]


def _score(values: Float64Array, how: How, sign: int) -> float:
    return float(values.mean() if how == "mean" else sign * (sign * values).max())


def _example(
    recording: Recording, values: Float64Array, row: int, score: float, against: float
) -> ProbeExample:
    probe = recording.probes.iloc[row]
    return ProbeExample(
        id=str(probe["id"]),
        group=str(probe["group"]),
        variant=str(probe["variant"]),
        value=score,
        against=against,
        tokens=tuple(str(token) for token in probe["tokens"]),
        values=values,
        answer=tuple(bool(mark) for mark in probe["answer"]),
    )


def _answer_text(probe: TableRow) -> str:
    tokens, marks = np.asarray(probe["tokens"]), np.asarray(probe["answer"])
    return " ".join(str(token) for token, mark in zip(tokens, marks, strict=True) if mark)


def _bounds(interval: Interval, *, name: str = "value") -> dict[str, float]:
    return {name: interval.value, "low": interval.low, "high": interval.high, "n": interval.n}
