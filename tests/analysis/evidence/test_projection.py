"""Projections: hand-computed coordinates, planted extremes, maps and separation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.errors import InputError
from analysis.evidence.projection import (
    find_strongest,
    group_separation,
    pca_map,
    project,
    standardise,
    umap_map,
)
from analysis.spectra.subspace import random_subspace

seeds = st.integers(0, 2**32 - 1)


def test_coordinates_by_hand() -> None:
    found = project(np.array([[3.0, 4.0, 7.0]]), np.array([[2.0, 0, 0], [1.0, 1.0, 0]]))
    np.testing.assert_allclose(found, [[3.0, 7 / np.sqrt(2)]])


@given(seed=seeds)
def test_projection_is_linear_and_recovers_planted_coordinates(seed) -> None:
    rng = np.random.default_rng(seed)
    directions = random_subspace(10, 3, seed=seed).T
    planted = rng.standard_normal((2, 4, 3))
    np.testing.assert_allclose(project(planted @ directions, directions), planted, atol=1e-12)
    h = rng.standard_normal((5, 10))
    np.testing.assert_allclose(
        project(2 * h[:2] - h[2:4], directions),
        2 * project(h[:2], directions) - project(h[2:4], directions),
        atol=1e-12,
    )
    np.testing.assert_allclose(project(h, -3 * directions), -project(h, directions), atol=1e-12)


def test_half_precision_activations_in_many_blocks() -> None:
    h = np.random.default_rng(0).standard_normal((9000, 4)).astype(np.float16)
    found = project(h, np.eye(4)[[2]])
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found[:, 0], h[:, 2])


def test_standardised_reference_has_mean_zero_and_deviation_one() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal([1.0, -2.0], [3.0, 0.5], size=(500, 2))
    found = standardise(base, base)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(found.std(axis=0, ddof=1), 1)
    shifted = standardise(base.mean(axis=0) + base.std(axis=0, ddof=1) * 2, base)
    np.testing.assert_allclose(shifted, 2)
    assert np.isnan(standardise(np.ones((1, 1)), np.ones((4, 1)))).all()


VALUES = np.array([0.0, 9.0, 5.0, 5.0, -7.0, 6.0, 1.0])
PROMPTS = ["a", "a", "b", "b", "c", "c", "d"]


def test_strongest_by_extreme_token_and_by_mean() -> None:
    peaks = find_strongest(VALUES, PROMPTS, how="max", n=2)
    assert [(e.prompt_id, e.score) for e in peaks.high] == [("a", 9), ("c", 6)]
    assert [(e.prompt_id, e.score) for e in peaks.low] == [("c", -7), ("a", 0)]
    means = find_strongest(VALUES, PROMPTS, how="mean", n=9)
    assert [e.prompt_id for e in means.high] == ["b", "a", "d", "c"]
    assert [e.prompt_id for e in means.low] == ["c", "d", "a", "b"]
    assert peaks.low[0].token_values.tolist() == [-7, 6]


@given(seed=seeds)
def test_the_ends_swap_with_the_sign(seed) -> None:
    rng = np.random.default_rng(seed)
    values, prompts = rng.standard_normal(40), rng.integers(0, 9, 40)
    ours, theirs = (find_strongest(v, prompts, how="max", n=3) for v in (values, -values))
    assert [e.prompt_id for e in ours.high] == [e.prompt_id for e in theirs.low]
    assert [e.score for e in ours.low] == [-e.score for e in theirs.high]


def test_pca_map_recovers_a_planted_plane_with_fixed_signs() -> None:
    rng = np.random.default_rng(0)
    plane = random_subspace(20, 2, seed=3)
    planted = rng.standard_normal((100, 2)) * [5.0, 2.0]
    found = pca_map(planted @ plane.T + 1.0)
    assert found.explained is not None
    assert found.explained.sum() == pytest.approx(1.0)
    centred = planted - planted.mean(axis=0)
    np.testing.assert_allclose(
        found.coordinates @ found.coordinates.T, centred @ centred.T, atol=1e-9
    )
    again = pca_map((planted @ plane.T)[::-1])
    np.testing.assert_allclose(again.coordinates[::-1], found.coordinates, atol=1e-9)


def test_pca_map_of_one_repeated_point_explains_nothing() -> None:
    found = pca_map(np.ones((5, 3)))
    np.testing.assert_allclose(found.coordinates, 0, atol=1e-12)
    assert np.isnan(found.explained).all()


def test_umap_map_keeps_planted_neighbourhoods_and_repeats_with_the_seed() -> None:
    rng = np.random.default_rng(0)
    points = rng.standard_normal((30, 6)) + np.repeat([0.0, 30.0], 15)[:, None]
    found = umap_map(points, n_neighbors=5, seed=1)
    gaps = np.linalg.norm(found.coordinates[:, None] - found.coordinates[None], axis=-1)
    np.fill_diagonal(gaps, np.inf)
    assert (gaps.argmin(axis=1) // 15 == np.arange(30) // 15).all()
    np.testing.assert_array_equal(
        found.coordinates, umap_map(points, n_neighbors=5, seed=1).coordinates
    )


def test_groups_are_separated_one_against_the_rest() -> None:
    values = np.array([1.0, 2, 3, 10, 11, 12, 5, 99])
    found = group_separation(values, ["low"] * 3 + ["high"] * 3 + ["mid", None])
    assert list(found) == ["low", "high", "mid"]
    assert found["low"].value == 0
    assert found["high"].value == 1
    assert found["mid"].value == 0.5
    assert np.isnan(found["mid"].low)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: project(np.ones((2, 3)), np.ones((1, 4))), "expected the same last dimension"),
        (lambda: project(np.ones((2, 3)), np.zeros((1, 3))), "zero or not finite"),
        (lambda: standardise(np.ones((2, 3)), np.ones((1, 3))), r"with n ≥ 2"),
        (lambda: find_strongest(np.ones(2), ["a"], how="max", n=1), "for 1 prompt ids"),
        (lambda: find_strongest(np.ones(1), ["a"], how="max", n=0), "Expected n ≥ 1"),
        (lambda: find_strongest(np.ones(2), ["a", None], how="max", n=1), "a prompt id for every"),
        (lambda: pca_map(np.ones((1, 3))), "at least 2 rows"),
        (lambda: pca_map(np.ones((5, 1))), "2 axes for 1 dimensions"),
        (lambda: pca_map(np.full((5, 2), np.nan)), "all finite"),
        (lambda: umap_map(np.ones((5, 3))), "at least 17 rows"),
        (lambda: group_separation(np.ones(2), ["a"]), "for 1 groups"),
    ],
)
def test_projection_refuses(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()
