"""Factors of two runs: planted pairs under other signs, orders and rotations, and the null."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from analysis.errors import InputError
from analysis.factors.matching import MATCH_COLUMNS, match_factors, match_null, span_angles
from analysis.factors.routes import fill_columns
from analysis.spectra.subspace import random_subspace
from analysis.store.factor_table import FactorTable
from analysis.store.records import FactorsManifest

WIDTH = 40
seeds = st.integers(0, 2**32 - 1)


def table(
    directions: NDArray[np.float64], *, run: str = "a", side: str = "write", route: str = "weights"
) -> FactorTable:
    letter = {"weights": side[0], "rotation": "e"}[route]
    ids = [f"{letter}{i + 1}" for i in range(len(directions))]
    rows = fill_columns(pd.DataFrame({"id": ids, "side": side, "route": route}))
    manifest = FactorsManifest(id=run, run=run, base_model=None, config={})
    return FactorTable(manifest, rows, directions.astype(np.float32))


def together(*tables: FactorTable) -> FactorTable:
    rows = pd.concat([one.table for one in tables], ignore_index=True)
    directions = np.concatenate([one.directions for one in tables])
    return FactorTable(tables[0].manifest, rows, directions)


@given(seed=seeds)
@settings(max_examples=20)
def test_factors_are_found_again_whatever_their_order_and_sign(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mine = random_subspace(WIDTH, 5, seed=seed).T
    order, signs = rng.permutation(5), rng.choice([-1.0, 1.0], 5)
    noise = 0.05 * rng.standard_normal((5, WIDTH))
    theirs = signs[:, None] * mine[order] + noise
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    found = match_factors(table(mine), table(theirs, run="b"))
    assert tuple(found.columns) == MATCH_COLUMNS
    assert found["same"].all()
    assert (found["cosine"].abs().diff().dropna() <= 0).all()
    for one in found.itertuples():
        i, j = int(one.factor[1:]) - 1, int(one.other[1:]) - 1
        assert order[j] == i
        assert np.sign(one.cosine) == signs[j]
        assert one.cosine == pytest.approx(mine[i] @ theirs[j], abs=1e-5)


def test_a_rotated_span_is_found_where_no_factor_is() -> None:
    """Two factors turned by 45° into each other: each lies in the span, neither is another."""
    mine = random_subspace(WIDTH, 3, seed=1).T
    turned = np.stack([mine[0] + mine[1], mine[0] - mine[1]]) / np.sqrt(2)
    other = random_subspace(WIDTH, 1, seed=2).T
    found = match_factors(table(mine), table(np.concatenate([turned, other]), run="b"))
    rows = found.set_index("factor")
    np.testing.assert_allclose(rows.loc[["w1", "w2"], "cosine"].abs(), np.sqrt(0.5), atol=1e-5)
    np.testing.assert_allclose(rows.loc[["w1", "w2"], "span"], 1, atol=1e-5)
    assert not rows.loc["w3", "same"]
    assert rows.loc["w3", "span"] < rows.loc["w3", "null_span"] < 0.6
    cosines = span_angles(table(mine), table(np.concatenate([turned, other])))
    np.testing.assert_allclose(cosines[:2], 1, atol=1e-5)
    assert cosines[2] < 0.6


def test_random_directions_exceed_the_null_at_most_at_the_nominal_rate() -> None:
    hits = []
    for seed in range(150):
        mine, theirs = (random_subspace(WIDTH, 4, seed=2 * seed + i).T for i in range(2))
        hits += match_factors(table(mine), table(theirs))["same"].tolist()
    # 600 directions at 5 %, those of one run not independent.
    assert 0.02 < np.mean(hits) < 0.085


@pytest.mark.parametrize(("n", "width"), [(1, 10), (1, 60)])
def test_the_null_of_one_direction_is_the_known_one(n: int, width: int) -> None:
    """cos² between random directions is Beta(1/2, (d − 1)/2)."""
    from scipy.stats import beta

    expected = np.sqrt(beta(0.5, (width - 1) / 2).ppf(0.95))
    draws = [match_null(n, 1, width, seed=seed).cosine for seed in range(20)]
    assert np.mean(draws) == pytest.approx(expected, rel=0.05)
    assert match_null(n, 1, width).span == pytest.approx(match_null(n, 1, width).cosine)


def test_only_factors_of_one_kind_are_matched() -> None:
    mine = random_subspace(WIDTH, 4, seed=0).T
    first = together(
        table(mine[:2]), table(mine[2:], side="read"), table(mine[:1], route="rotation")
    )
    second = together(table(mine[2:], run="b"), table(mine[:1], side="read"))
    found = match_factors(first, second).set_index("factor")
    # Written there is what is read here, and the rotated one has no partner at all.
    assert set(found.index) == {"w1", "w2", "r1", "r2"}
    assert found.loc["w1", "other"][0] == "w"
    assert (found.loc[["w1", "w2"], "cosine"].abs() < 1e-5).all()
    assert sorted(found.loc[["r1", "r2"], "other"]) == ["", "r1"]
    left = found.loc[found["other"] == ""].iloc[0]
    assert np.isnan(left["cosine"])
    assert not left["same"]


def test_runs_that_cannot_be_matched_are_refused() -> None:
    wide = table(random_subspace(WIDTH + 1, 2, seed=0).T, run="wide")
    with pytest.raises(
        InputError, match=r"'a' has directions of 40 .* 'wide' of 41; expected two runs"
    ):
        match_factors(table(random_subspace(WIDTH, 2, seed=0).T), wide)
    read = table(random_subspace(WIDTH, 2, seed=0).T, side="read", run="b")
    with pytest.raises(InputError, match="'a' and 'b' have no kind of factor in common"):
        match_factors(table(random_subspace(WIDTH, 2, seed=0).T), read)
    assert span_angles(table(random_subspace(WIDTH, 2, seed=0).T), read).size == 0
    with pytest.raises(InputError, match="Got 3 and 9 directions in 8 dimensions"):
        match_null(3, 9, 8)
