"""Match the factors of two runs, whatever their sign, order and rotation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.errors import InputError
from analysis.spectra.subspace import match, principal_angles, unit_rows
from analysis.store.factor_table import FactorTable

FloatArray = NDArray[np.floating]
Float64Array = NDArray[np.float64]

MATCH_COLUMNS = (
    "factor",  # id in the first run
    "other",  # id of its match in the second run; "" if none is left
    "cosine",  # between the two; negative if they point in opposite directions
    "null_high",  # 95 % quantile of |cosine| for as many random directions, matched the same way
    "span",  # length of its projection onto the span of the second run's factors of its kind
    "null_span",  # 95 % quantile of `span` for a random direction
    "same",  # |cosine| > null_high
)

_DRAWS = 200
_QUANTILE = 0.95
_KIND = ["route", "side", "max_layer", "layer"]


@dataclass(frozen=True)
class MatchNull:
    """95 % quantiles for random directions: |cosine| of a match, and length within the span."""

    cosine: float
    span: float


def match_null(n_first: int, n_second: int, width: int, *, seed: int = 0) -> MatchNull:
    """Simulate how well the best assignment of random orthonormal directions does.

    Both sets are Haar random in `width` dimensions.  Only their relative position matters, so
    the `n_second` directions are fixed at the axes.

    Raises:
        InputError: there are no directions, or more than dimensions.
    """
    if not 1 <= n_first <= width or not 1 <= n_second <= width:
        raise InputError(
            f"Got {n_first} and {n_second} directions in {width} dimensions; "
            f"expected between 1 and {width} of each."
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
    """Pair the factors of two runs of one base model, best match first, as MATCH_COLUMNS.

    Factors are assigned one to one so that Σ|cosine| is largest, separately for each kind
    (route, side and layer).  A factor that the second run found rotated among several, as
    happens at similar energy, has a small cosine and a large `span`.

    Raises:
        InputError: the directions differ in width, or the runs share no kind of factor.
    """
    if first.directions.shape[1] != second.directions.shape[1]:
        raise InputError(
            f"{first.manifest.run!r} has directions of {first.directions.shape[1]} dimensions, "
            f"{second.manifest.run!r} of {second.directions.shape[1]}; "
            "expected two runs of one base model."
        )
    kinds = [_kinds(one.table) for one in (first, second)]
    shared = [kind for kind in dict.fromkeys(kinds[0].tolist()) if (kinds[1] == kind).any()]
    if not shared:
        raise InputError(
            f"{first.manifest.run!r} and {second.manifest.run!r} have no kind of factor in common; "
            "expected factors of the same route, side and layer in both."
        )
    pairs = [
        _pairs(first, second, *(np.flatnonzero(kind == one) for kind in kinds)) for one in shared
    ]
    table = pd.concat(pairs, ignore_index=True)
    order = np.argsort(-table["cosine"].abs().fillna(-1.0).to_numpy(), kind="stable")
    return table.iloc[order].reset_index(drop=True)


def span_angles(first: FactorTable, second: FactorTable) -> Float64Array:
    """Cosines of the principal angles between the spans of two runs' write factors, descending.

    Only factors of the weights route count; empty if either run has none.

    Raises:
        InputError: the directions differ in width.
    """
    spans = []
    for one in (first, second):
        rows = (one.table["route"] == "weights") & (one.table["side"] == "write")
        spans.append(one.directions[rows.to_numpy()].astype(np.float64).T)
    if not all(span.size for span in spans):
        return np.empty(0)
    return np.asarray(np.cos(principal_angles(*spans)))


def _kinds(table: pd.DataFrame) -> NDArray[np.str_]:
    """(k,) route, side and layers of each factor in one string."""
    return np.array(["/".join(map(str, row)) for row in table[_KIND].itertuples(index=False)])


def _pairs(
    first: FactorTable, second: FactorTable, mine: NDArray[np.intp], theirs: NDArray[np.intp]
) -> pd.DataFrame:
    """Pairs among rows (positions in each table) of one kind."""
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
