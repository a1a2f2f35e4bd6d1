"""Factors of two runs side by side: which belong together, free of sign, order and rotation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.errors import InputError
from analysis.spectra.subspace import match, principal_angles, unit_rows
from analysis.store.factor_table import FactorTable

FloatArray = NDArray[np.floating[Any]]
Float64Array = NDArray[np.float64]

MATCH_COLUMNS = (
    "factor",  # id in the first run
    "other",  # id of the one it belongs to in the second; "" where there is none left
    "cosine",  # between the two, negative where they point opposite ways
    "null_high",  # 95 % quantile of |cosine| of as many random directions, assigned alike
    "span",  # share of its length in the span of all of the second run's factors of its kind
    "null_span",  # 95 % quantile of the same for a random direction
    "same",  # |cosine| > null_high
)

_DRAWS = 200
_QUANTILE = 0.95
_KIND = ["route", "side", "max_layer", "layer"]


@dataclass(frozen=True)
class MatchNull:
    """95 % quantiles of what random directions give: |cosine| of a match, and length in a span."""

    cosine: float
    span: float


def match_null(n_first: int, n_second: int, width: int, *, seed: int = 0) -> MatchNull:
    """What the best assignment of random orthonormal directions gives, by simulation.

    The directions of both runs are Haar random; only their relative position matters, so the
    second run's are held at the axes.

    Raises:
        InputError: there are more directions than dimensions, or none.
    """
    if not 1 <= n_first <= width or not 1 <= n_second <= width:
        raise InputError(
            f"Got {n_first} and {n_second} directions in {width} dimensions; expected 1 to {width}."
        )
    rng = np.random.default_rng(seed)
    axes = np.eye(n_second, width)
    cosines, spans = [], []
    for _ in range(_DRAWS):
        rows = np.linalg.qr(rng.standard_normal((width, n_first)))[0].T
        cosines.append(match(rows, axes).cosines)
        spans.append(np.linalg.norm(rows[:, :n_second], axis=1))
    return MatchNull(
        float(np.nanquantile(cosines, _QUANTILE)), float(np.quantile(spans, _QUANTILE))
    )


def match_factors(first: FactorTable, second: FactorTable) -> pd.DataFrame:
    """Pairs of factors of two runs of one base model, best first, with MATCH_COLUMNS.

    Factors are assigned one to one so that Σ|cosine| is largest, those of one route, side and
    layer among themselves.  A factor that another run found rotated among several, as factors
    of about the same energy are, has a small cosine and a large `span`.

    Raises:
        InputError: the directions are of different width, or no kind of factor is in both.
    """
    if first.directions.shape[1] != second.directions.shape[1]:
        raise InputError(
            f"{first.manifest.run!r} has directions of {first.directions.shape[1]} dimensions, "
            f"{second.manifest.run!r} of {second.directions.shape[1]}; expected one base model."
        )
    kinds = [_kinds(one.table) for one in (first, second)]
    shared = [kind for kind in dict.fromkeys(kinds[0].tolist()) if (kinds[1] == kind).any()]
    if not shared:
        raise InputError(
            f"{first.manifest.run!r} and {second.manifest.run!r} have no kind of factor in common."
        )
    pairs = [
        _pairs(first, second, *(np.flatnonzero(kind == one) for kind in kinds)) for one in shared
    ]
    table = pd.concat(pairs, ignore_index=True)
    order = np.argsort(-table["cosine"].abs().fillna(-1.0).to_numpy(), kind="stable")
    return table.iloc[order].reset_index(drop=True)


def span_angles(first: FactorTable, second: FactorTable) -> Float64Array:
    """Cosines of the principal angles between the spans of two runs' write factors, descending.

    Of the factors that the weights alone gave; none where a run has none.

    Raises:
        InputError: as `match_factors`.
    """
    spans = []
    for one in (first, second):
        rows = (one.table["route"] == "weights") & (one.table["side"] == "write")
        spans.append(one.directions[rows.to_numpy()].astype(np.float64).T)
    if not all(span.size for span in spans):
        return np.empty(0)
    return np.asarray(np.cos(principal_angles(*spans)))


def _kinds(table: pd.DataFrame) -> NDArray[np.str_]:
    """(k,) route, side and layers of each factor; only factors of one kind are matched."""
    return np.array(["/".join(map(str, row)) for row in table[_KIND].itertuples(index=False)])


def _pairs(
    first: FactorTable, second: FactorTable, mine: NDArray[np.intp], theirs: NDArray[np.intp]
) -> pd.DataFrame:
    """Pairs among the rows of one kind."""
    a, b = unit_rows(first.directions[mine]), unit_rows(second.directions[theirs])
    found, null = match(a, b), match_null(len(a), len(b), a.shape[1])
    others = [*second.table["id"].iloc[theirs], ""]
    basis = np.linalg.qr(b.T)[0]
    return pd.DataFrame(
        {
            "factor": first.table["id"].iloc[mine].to_numpy(),
            "other": [others[place] for place in found.permutation],
            "cosine": found.signs * found.cosines,
            "null_high": null.cosine,
            "span": np.minimum(np.linalg.norm(a @ basis, axis=1), 1.0),
            "null_span": null.span,
            "same": found.cosines > null.cosine,
        }
    )
