"""How a direction of the residual stream changes the logits (logit lens)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from analysis.errors import InputError
from analysis.spectra.subspace import unit_rows

FloatArray = NDArray[np.floating]
Float64Array = NDArray[np.float64]

_BLOCK = 8192
"""Rows of the vocabulary multiplied at a time."""


class Rows(Protocol):
    """A matrix that is read in blocks of rows, such as an array or a tensor in a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns)."""

    def __getitem__(self, rows: slice, /) -> FloatArray:
        """A block of rows."""


@dataclass(frozen=True)
class Unembedding:
    """How a base model turns the last residual stream into logits, up to constants.

    Attributes:
        rows: W (vocabulary, d) of the unembedding.
        gain: (d_model,) γ by which the final norm multiplies; None for 1.
        centred: whether the norm subtracts the mean over d_model (LayerNorm).
        projection: P (d, d_model) between norm and unembedding; None if there is none.
    """

    rows: Rows
    gain: FloatArray | None = None
    centred: bool = False
    projection: FloatArray | None = None

    def transform(self, directions: FloatArray) -> FloatArray:
        """P (γ ⊙ (u − ū)), (k, d), which W multiplies; parts the model lacks are skipped.

        The norm's division by the length or deviation of the stream is left out, since it scales
        all logits alike, and so are both biases, since they do not depend on the stream.

        Args:
            directions: (k, d_model) unit directions u.

        Raises:
            InputError: the directions and the model differ in width.
        """
        units = unit_rows(directions)
        width = self.rows.shape[-1] if self.projection is None else self.projection.shape[1]
        if len(self.rows.shape) != 2 or units.shape[1] != width:
            raise InputError(
                f"Got directions {units.shape} and an unembedding {self.rows.shape} of a model of "
                f"width {width}; expected (k, d) and (vocabulary, d)."
            )
        if self.centred:
            units = units - units.mean(axis=1, keepdims=True)
        scaled = units if self.gain is None else units * np.asarray(self.gain, np.float64)
        return scaled if self.projection is None else scaled @ self.projection.T.astype(np.float64)


@dataclass(frozen=True)
class TopTokens:
    """Token ids and logit changes, each (k, n), largest change first at both ends."""

    promoted: NDArray[np.intp]
    promoted_logits: Float64Array
    suppressed: NDArray[np.intp]
    suppressed_logits: Float64Array


def top_tokens(
    directions: FloatArray, unembedding: Unembedding, *, n: int, vocabulary: int | None = None
) -> TopTokens:
    """Tokens whose logits a step along each direction raises and lowers most (logit lens).

    Logit changes are W P (γ ⊙ (u − ū)), see `Unembedding.transform`, minus their mean over the
    vocabulary, to which softmax is blind.  W is read in blocks, one held at a time, and
    multiplied in float32, or in float64 if it is stored so.

    Args:
        directions: (k, d_model) unit directions u in the residual stream.
        unembedding: of the base model.
        n: tokens at each end; at most the whole vocabulary.
        vocabulary: how many rows stand for tokens, since models pad theirs; None for all.

    Raises:
        InputError: dimensions differ, n < 1, or a logit is not finite.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    mapped = unembedding.transform(directions)
    rows = unembedding.rows.shape[0]
    length = rows if vocabulary is None else min(rows, vocabulary)
    if n < 1 or length < 1:
        raise InputError(f"Got n = {n} and {length} tokens; expected at least 1 of both.")
    high, low, total = _Top(len(mapped), n), _Top(len(mapped), n), np.zeros((len(mapped), 1))
    for start in range(0, length, _BLOCK):
        block = unembedding.rows[start : min(start + _BLOCK, length)]
        wide = np.float64 if block.dtype == np.float64 else np.float32
        logits = (block.astype(wide, copy=False) @ mapped.T.astype(wide)).T.astype(np.float64)
        if not np.isfinite(logits).all():
            raise InputError(
                "The unembedding has NaN or infinite values; copy or download the base model again."
            )
        total += logits.sum(axis=1, keepdims=True)
        high.add(logits, start)
        low.add(-logits, start)
    mean = total / length
    return TopTokens(high.ids, high.values - mean, low.ids, -low.values - mean)


class _Top:
    """The n largest entries of each of k rows that arrive in blocks of columns, largest first."""

    def __init__(self, k: int, n: int) -> None:
        self._n = n
        self.values: Float64Array = np.empty((k, 0))
        self.ids: NDArray[np.intp] = np.empty((k, 0), np.intp)

    def add(self, values: Float64Array, start: int) -> None:
        """Add a block of columns, the first of which has number `start`."""
        n = min(self._n, values.shape[1])
        new = np.argpartition(-values, n - 1, axis=1)[:, :n]
        values = np.concatenate([self.values, np.take_along_axis(values, new, axis=1)], axis=1)
        ids = np.concatenate([self.ids, new + start], axis=1)
        order = np.lexsort((ids, -values), axis=1)[:, : self._n]
        self.values = np.take_along_axis(values, order, axis=1)
        self.ids = np.take_along_axis(ids, order, axis=1)
