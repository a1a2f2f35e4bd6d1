"""Spectra of updates: planted values, gauge freedom, scaling, and comparison of directions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.adapters.load import load_adapter
from analysis.errors import InputError
from analysis.spectra.spectrum import (
    effective_rank,
    energy,
    gram,
    module_spectra,
    update_singular_values,
    update_svd,
)
from analysis.spectra.subspace import match, orthonormal_basis, principal_angles, random_subspace

seeds = st.integers(0, 2**32 - 1)
sizes = st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 12))


def halves(seed: int, r: int, d_out: int, d_in: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((r, d_in)), rng.standard_normal((d_out, r))


def test_planted_singular_values_and_vectors_are_recovered() -> None:
    left, right = random_subspace(40, 3, seed=0), random_subspace(30, 3, seed=1)
    planted = np.array([5.0, 1.0, 1e-3])
    mix = np.random.default_rng(2).standard_normal((3, 3))

    found_left, values, found_right = update_svd(
        np.linalg.inv(mix) @ right.T, (left * planted) @ mix / 2, scaling=2.0
    )

    np.testing.assert_allclose(values, planted, rtol=1e-9)
    np.testing.assert_allclose(np.abs((left * found_left).sum(axis=0)), 1.0, rtol=1e-9)
    np.testing.assert_allclose((found_left * values) @ found_right.T, (left * planted) @ right.T)


@given(seed=seeds, size=sizes, scaling=st.floats(1e-3, 1e3))
def test_update_svd_is_the_dense_svd(seed, size, scaling) -> None:
    r, d_out, d_in = size
    A, B = halves(seed, r, d_out, d_in)
    left, values, right = update_svd(A, B, scaling=scaling)
    delta = scaling * B @ A
    k = min(r, d_out, d_in)

    assert left.shape == (d_out, k)
    assert right.shape == (d_in, k)
    np.testing.assert_allclose(left.T @ left, np.eye(k), atol=1e-12)
    np.testing.assert_allclose(right.T @ right, np.eye(k), atol=1e-12)
    np.testing.assert_allclose((left * values) @ right.T, delta, atol=1e-11 * np.abs(delta).max())
    dense = np.linalg.svd(delta, compute_uv=False)[:k]
    np.testing.assert_allclose(values, dense, atol=1e-11 * dense[0])
    peaks = left[np.abs(left).argmax(axis=0), np.arange(k)]
    assert (peaks > 0).all()


@given(seed=seeds, size=sizes)
def test_values_alone_are_those_of_the_svd(seed, size) -> None:
    A, B = halves(seed, *size)
    values = update_svd(A, B, scaling=0.5)[1]
    alone = update_singular_values(A, B, scaling=0.5)
    np.testing.assert_allclose(alone, values, rtol=1e-6, atol=1e-10 * values[0])


def test_a_gram_matrix_of_many_rows_is_summed_in_blocks() -> None:
    matrix = np.random.default_rng(0).standard_normal((9001, 3)).astype(np.float32)
    exact = matrix.T.astype(np.float64) @ matrix.astype(np.float64)
    np.testing.assert_allclose(gram(matrix), exact, rtol=1e-12)
    np.testing.assert_allclose(gram(matrix.T[:, :5].T), gram(matrix[:5]))


def test_values_alone_stay_exact_where_a_gram_matrix_would_not() -> None:
    planted = np.array([1.0, 1e-5, 1e-11])
    B = random_subspace(30, 3, seed=0) * planted
    values = update_singular_values(random_subspace(20, 3, seed=1).T, B, scaling=1.0)
    np.testing.assert_allclose(values, planted, rtol=1e-4)


@given(seed=seeds, gauge_seed=seeds)
def test_spectrum_does_not_depend_on_the_gauge(seed, gauge_seed) -> None:
    A, B = halves(seed, 4, 11, 9)
    gauge = np.random.default_rng(gauge_seed).standard_normal((4, 4)) + 4 * np.eye(4)
    moved = update_svd(np.linalg.solve(gauge, A), B @ gauge, scaling=1.0)
    left, values, right = update_svd(A, B, scaling=1.0)
    tolerance = 1e-10 * np.linalg.cond(gauge) ** 2
    np.testing.assert_allclose(moved[1], values, atol=tolerance * values[0])
    np.testing.assert_allclose(
        (moved[0] * moved[1]) @ moved[2].T, (left * values) @ right.T, atol=tolerance * values[0]
    )


@given(seed=seeds, scaling=st.floats(1e-3, 1e3))
def test_singular_values_are_linear_in_the_scaling(seed, scaling) -> None:
    A, B = halves(seed, 3, 7, 8)
    np.testing.assert_allclose(
        update_svd(A, B, scaling=scaling)[1], scaling * update_svd(A, B, scaling=1.0)[1]
    )
    np.testing.assert_allclose(
        update_svd(A, B, scaling=-scaling)[1], scaling * update_svd(A, B, scaling=1.0)[1]
    )


@pytest.mark.parametrize(
    ("A", "B", "scaling", "message"),
    [
        (np.ones((2, 3)), np.ones((4, 3)), 1.0, r"\(2, 3\) and lora_B \(4, 3\) do not match"),
        (np.ones(3), np.ones((4, 3)), 1.0, "do not match; expected"),
        (np.full((2, 3), np.nan), np.ones((4, 2)), 1.0, "must be finite"),
        (np.ones((2, 3)), np.ones((4, 2)), np.inf, "must be finite"),
    ],
)
def test_update_svd_refuses(A, B, scaling, message) -> None:
    with pytest.raises(ValueError, match=message):
        update_svd(A, B, scaling=scaling)


def test_energy_and_effective_rank_by_hand() -> None:
    np.testing.assert_allclose(energy(np.array([2.0, 1.0])), [0.8, 0.2])
    assert effective_rank(np.ones(5)) == pytest.approx(5.0)
    assert effective_rank(np.array([3.0, 0.0])) == pytest.approx(1.0)
    # p = (2/3, 1/3): exp of the entropy is 3 / 2^(2/3).
    assert effective_rank(np.array([2.0, 1.0])) == pytest.approx(3 / 2 ** (2 / 3))
    assert energy(np.array([1e-200, 1e-200])).sum() == pytest.approx(1.0)


@given(values=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8), factor=st.floats(1e-3, 1e3))
def test_effective_rank_is_between_one_and_k_and_free_of_scale(values, factor) -> None:
    rank = effective_rank(np.array(values))
    assert 1 - 1e-9 <= rank <= len(values) + 1e-9
    assert effective_rank(factor * np.array(values)) == pytest.approx(rank)


def test_an_untrained_module_has_no_energy(write_adapter, tensors) -> None:
    zero = {key: value * ("lora_B" not in key) for key, value in tensors.items()}
    for spectrum in module_spectra(load_adapter(write_adapter(tensors=zero))):
        assert (spectrum.singular_values == 0).all()
        assert np.isnan(spectrum.effective_rank)
        assert np.isnan(spectrum.energy_top1)
    left, values, right = update_svd(np.ones((2, 5)), np.zeros((4, 2)), scaling=1.0)
    np.testing.assert_allclose(left.T @ left, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(right.T @ right, np.eye(2), atol=1e-12)
    assert (values == 0).all()


def test_module_spectra_follow_the_adapter(write_adapter) -> None:
    adapter = load_adapter(write_adapter())
    first = module_spectra(adapter)[0]
    assert (first.name, first.layer, first.side) == ("model.layers.0.self_attn.q_proj", 0, "read")
    assert (first.shape, first.r, first.scaling) == ((6, 8), 2, 2.0)
    assert first.energy_top1 == pytest.approx(energy(first.singular_values)[0])


@given(seed=seeds, k=st.integers(1, 5))
def test_orthonormal_keeps_span_and_orientation(seed, k) -> None:
    directions = np.random.default_rng(seed).standard_normal((k, 12))
    basis = orthonormal_basis(directions)
    np.testing.assert_allclose(basis.T @ basis, np.eye(k), atol=1e-12)
    np.testing.assert_allclose(directions @ basis @ basis.T, directions, atol=1e-10)
    assert (np.einsum("kd,dk->k", directions, basis) > 0).all()


def test_principal_angles_of_a_planted_rotation() -> None:
    P = np.eye(6)[:, :2]
    Q = P.copy()
    Q[0, 0], Q[3, 0] = np.cos(1e-9), np.sin(1e-9)
    np.testing.assert_allclose(principal_angles(P, Q), [0, 1e-9], atol=1e-12)
    np.testing.assert_allclose(principal_angles(P, np.eye(6)[:, 3:5]), np.pi / 2)


@given(seed=seeds, order=st.permutations(range(5)), flipped=st.sets(st.integers(0, 4)))
def test_match_undoes_a_permutation_with_signs(seed, order, flipped) -> None:
    a = random_subspace(9, 5, seed=seed).T
    flips = np.where(np.isin(range(5), list(flipped)), -1.0, 1.0)
    b = (a * flips[:, None])[list(order)]
    found = match(a, b)
    np.testing.assert_allclose(found.signs[:, None] * b[found.permutation], a)
    np.testing.assert_allclose(found.cosines, 1.0)


def test_match_leaves_over_what_has_no_partner() -> None:
    found = match(np.eye(4)[:3], -np.eye(4)[[2]])
    assert found.permutation.tolist() == [-1, -1, 0]
    assert found.signs.tolist() == [0, 0, -1]
    assert np.isnan(found.cosines[:2]).all()


def test_random_subspace_is_seeded_and_uniform() -> None:
    np.testing.assert_array_equal(random_subspace(7, 3, seed=4), random_subspace(7, 3, seed=4))
    squares = [(random_subspace(8, 2, seed=seed)[0] ** 2).sum() for seed in range(800)]
    assert np.mean(squares) == pytest.approx(2 / 8, abs=0.02)
    signs = [random_subspace(8, 1, seed=seed)[0, 0] > 0 for seed in range(400)]
    assert 0.4 < np.mean(signs) < 0.6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: orthonormal_basis(np.ones((2, 4))), "Direction 1 lies in the span"),
        (lambda: orthonormal_basis(np.zeros((1, 4))), "zero or not finite"),
        (lambda: orthonormal_basis(np.ones(4)), r"expected \(k, d\)"),
        (lambda: orthonormal_basis(np.eye(3, 2)[:3] + 1), "Got 3 directions in 2 dimensions"),
        (lambda: match(np.eye(3), np.eye(4)), "of 3 and 4 dimensions"),
        (lambda: principal_angles(np.eye(3), np.eye(4)), "subspaces of shapes"),
        (lambda: random_subspace(3, 4, seed=0), "Got k = 4 in d = 3"),
    ],
)
def test_subspaces_refuse(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()
