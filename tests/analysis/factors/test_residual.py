"""Residual-stream factors: planted shared directions, the null band, stability."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.adapters.load import LoraModule
from analysis.errors import InputError
from analysis.factors import null_band as null_module
from analysis.factors import residual as factors_module
from analysis.factors.null_band import exceeds_band, null_band
from analysis.factors.residual import residual_factors, stability, update_columns
from analysis.spectra.subspace import random_subspace

D, HIDDEN, R = 48, 64, 4
seeds = st.integers(0, 2**32 - 1)


def module(layer: int, kind: str, A: np.ndarray, B: np.ndarray, scaling: float = 0.5) -> LoraModule:
    side = "write" if kind in ("o_proj", "down_proj") else "read"
    name = f"model.layers.{layer}.{kind}"
    return LoraModule(name, layer, side, A.astype(np.float32), B.astype(np.float32), scaling)


def adapter_modules(
    seed: int,
    *,
    layers: int = 4,
    written: np.ndarray | None = None,
    read: np.ndarray | None = None,
    strength: float = 3.0,
) -> list[LoraModule]:
    """Random updates; every one also writes `written`, or reads `read`, where given."""
    rng = np.random.default_rng(seed)
    modules = []
    for layer in range(layers):
        for kind, d_out, d_in in (("q_proj", 32, D), ("o_proj", D, 32), ("down_proj", D, HIDDEN)):
            A = rng.standard_normal((R, d_in)) / np.sqrt(d_in)
            B = rng.standard_normal((d_out, R)) / np.sqrt(d_out)
            if written is not None and d_out == D:
                B += strength * np.outer(written, rng.standard_normal(R)) / np.sqrt(R)
            if read is not None and d_in == D:
                A += strength * np.outer(rng.standard_normal(R), read) / np.sqrt(R)
            modules.append(module(layer, kind, A, B))
    return modules


def dense_svd(modules: list[LoraModule], side: str) -> tuple[np.ndarray, np.ndarray]:
    deltas = [
        m.scaling * m.lora_B.astype(float) @ m.lora_A.astype(float)
        for m in modules
        if m.side == side
    ]
    stacked = np.hstack(deltas) if side == "write" else np.vstack(deltas).T
    left, values, _ = np.linalg.svd(stacked, full_matrices=False)
    return left, values


@pytest.mark.parametrize("side", ["write", "read"])
def test_factors_are_the_dense_svd_of_the_concatenation(side) -> None:
    modules = adapter_modules(0, written=np.eye(D)[3], read=np.eye(D)[5])
    found = residual_factors(modules, side=side)
    left, values = dense_svd(modules, side)
    k = len(found.singular_values)

    assert k == min(D, R * (8 if side == "write" else 4))
    np.testing.assert_allclose(found.singular_values, values[:k], rtol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(found.directions.T * left[:, :k], axis=0)), 1.0)
    np.testing.assert_allclose(found.energy, values[:k] ** 2 / (values**2).sum())
    assert (found.directions[np.arange(k), np.abs(found.directions).argmax(axis=1)] > 0).all()


@given(seed=seeds)
@settings(max_examples=25)
def test_a_planted_direction_is_the_first_factor_on_its_own_side(seed) -> None:
    written, read = random_subspace(D, 2, seed=seed).T
    modules = adapter_modules(seed, written=written, read=read)
    for side, planted in (("write", written), ("read", read)):
        found = residual_factors(modules, side=side, k=3)
        assert abs(found.directions[0] @ planted) > 0.9
        np.testing.assert_allclose(found.directions @ found.directions.T, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("matched", ["norms", "spectrum"])
def test_a_planted_direction_is_significant_and_the_rest_is_not(matched) -> None:
    modules = adapter_modules(1, written=np.eye(D)[0])
    found = residual_factors(modules, side="write", k=6)
    band = null_band(modules, side="write", k=6, n_draws=99, matched=matched)
    assert exceeds_band(found, band).tolist() == [True] + 5 * [False]
    assert (band.upper >= band.median).all()


@pytest.mark.parametrize("matched", ["norms", "spectrum"])
def test_null_adapters_exceed_the_band_at_most_at_the_nominal_rate(matched) -> None:
    hits = []
    for seed in range(60):
        modules = adapter_modules(seed, layers=2)
        found = residual_factors(modules, side="write", k=4)
        band = null_band(modules, side="write", k=4, n_draws=39, seed=seed, matched=matched)
        hits.append(exceeds_band(found, band))
    # 60 adapters at 5 %: six or more at one index has probability 0.08, nine 0.003.
    assert np.sum(hits, axis=0).max() <= 8


@pytest.mark.parametrize("matched", ["norms", "spectrum"])
def test_a_direction_fixed_beforehand_exceeds_its_band_at_the_nominal_rate(matched) -> None:
    """Whatever the direction, since null adapters have no direction of their own."""
    axes = random_subspace(D, 12, seed=4)
    hits, medians = [], []
    for seed in range(60):
        modules = adapter_modules(seed, layers=2)
        band = null_band(modules, side="write", n_draws=39, seed=seed, matched=matched)
        strengths = np.linalg.norm(axes.T @ update_columns(modules, side="write"), axis=1)
        hits += (strengths > band.fixed_upper).tolist()
        medians += (strengths > band.fixed_median).tolist()
        assert band.fixed_upper < band.upper[0]
    # 720 directions, those of one adapter not independent.
    assert 0.02 < np.mean(hits) < 0.08
    assert 0.42 < np.mean(medians) < 0.58


def test_strength_along_a_factor_is_its_singular_value() -> None:
    modules = adapter_modules(2, written=np.eye(D)[1])
    for side in ("write", "read"):
        found = residual_factors(modules, side=side)
        strengths = np.linalg.norm(found.directions @ update_columns(modules, side=side), axis=1)
        np.testing.assert_allclose(strengths, found.singular_values, rtol=1e-9)
    with pytest.raises(InputError, match="No module up to layer -1 writes"):
        update_columns(modules, side="write", max_layer=-1)


def test_the_triangle_drawn_for_the_band_has_the_law_of_a_drawn_matrix() -> None:
    """Bartlett's shortcut against matrices drawn in full, where r exceeds a dimension too."""
    rng = np.random.default_rng(0)
    for d_other in (3, 40):
        lengths = np.array([1.0, 2.0, 0.5, 1.5])
        half = null_module._NullLengths(6, d_other, np.ones(4), lengths)
        shortcut, full = [], []
        for _ in range(1500):
            drawn = null_module._draw_norms(half, rng, np.float64)
            shortcut.append(np.linalg.svd(drawn)[1][:3])
            B = rng.standard_normal((6, 4))
            A = rng.standard_normal((4, d_other))
            B /= np.linalg.norm(B, axis=0)
            A *= (lengths / np.linalg.norm(A, axis=1))[:, None]
            full.append(np.linalg.svd(B @ A)[1][:3])
        np.testing.assert_allclose(np.mean(shortcut, axis=0), np.mean(full, axis=0), rtol=0.03)
        np.testing.assert_allclose(np.std(shortcut, axis=0), np.std(full, axis=0), rtol=0.12)


def test_the_band_of_a_large_adapter_is_that_of_full_precision(monkeypatch) -> None:
    modules = adapter_modules(3, layers=12)
    exact = null_band(modules, side="write", k=3, n_draws=40)
    monkeypatch.setattr(null_module, "_LARGE", 0)
    monkeypatch.setattr(null_module, "is_large", lambda columns, k: True)
    single = null_band(modules, side="write", k=3, n_draws=40)
    # Other draws of the same law: the normals of single precision are others.
    np.testing.assert_allclose(single.median, exact.median, rtol=0.05)
    assert single.upper.dtype == exact.upper.dtype == np.float64
    assert null_band(modules, side="write", k=3).n_draws == 20


@given(seed=seeds)
@settings(max_examples=20)
def test_factors_and_the_spectrum_band_do_not_depend_on_the_gauge(seed) -> None:
    modules = adapter_modules(seed, layers=2)
    rng = np.random.default_rng(seed)
    moved = []
    for m in modules:
        gauge, _ = np.linalg.qr(rng.standard_normal((R, R)))
        gauge *= 2.0
        A, B = np.linalg.solve(gauge, m.lora_A.astype(float)), m.lora_B.astype(float) @ gauge
        moved.append(LoraModule(m.name, m.layer, m.side, A, B, m.scaling))
    ours, theirs = (residual_factors(m, side="write", k=4) for m in (modules, moved))
    np.testing.assert_allclose(ours.singular_values, theirs.singular_values, rtol=1e-9)
    np.testing.assert_allclose(
        *(null_band(m, side="write", k=4, n_draws=19, matched="spectrum").upper
          for m in (modules, moved)),
        rtol=1e-6,
    )  # fmt: skip


def test_singular_values_scale_with_the_scaling() -> None:
    modules = adapter_modules(0)
    doubled = [
        LoraModule(m.name, m.layer, m.side, m.lora_A, m.lora_B, 2 * m.scaling) for m in modules
    ]
    for measure in (
        lambda m: residual_factors(m, side="read").singular_values,
        lambda m: null_band(m, side="read", n_draws=19).upper,
    ):
        np.testing.assert_allclose(measure(doubled), 2 * measure(modules))


def test_by_layer_takes_the_layers_up_to_one() -> None:
    modules = adapter_modules(0)
    found = residual_factors(modules, side="write", max_layer=1)
    alone = residual_factors(modules[:6], side="write")
    assert found.modules == tuple(m.name for m in modules[:6] if m.side == "write")
    np.testing.assert_allclose(found.directions, alone.directions)
    assert found.max_layer == 1


def test_lanczos_agrees_with_the_full_decomposition(monkeypatch) -> None:
    modules = adapter_modules(3, layers=6, written=np.eye(D)[7])
    full = residual_factors(modules, side="write", k=4)
    monkeypatch.setattr(factors_module, "_DENSE_LIMIT", 8)
    fast = residual_factors(modules, side="write", k=4)
    again = residual_factors(modules, side="write", k=4)

    assert (full.method, fast.method) == ("svd", "lanczos")
    np.testing.assert_allclose(fast.singular_values, full.singular_values, rtol=1e-10)
    np.testing.assert_allclose(fast.directions, full.directions, atol=1e-7)
    np.testing.assert_allclose(fast.energy, full.energy, rtol=1e-10)
    np.testing.assert_array_equal(fast.directions, again.directions)


def test_a_band_by_lanczos_is_the_band(monkeypatch) -> None:
    modules = adapter_modules(3, layers=6)
    full = null_band(modules, side="write", k=3, n_draws=19)
    monkeypatch.setattr(factors_module, "_DENSE_LIMIT", 8)
    fast = null_band(modules, side="write", k=3, n_draws=19)
    np.testing.assert_allclose(fast.upper, full.upper, rtol=1e-9)
    np.testing.assert_allclose(fast.median, full.median, rtol=1e-9)


def test_lanczos_finds_no_more_factors_than_the_rank(monkeypatch) -> None:
    monkeypatch.setattr(factors_module, "_DENSE_LIMIT", 8)
    rng, shared = np.random.default_rng(0), np.eye(D)[:, :2]
    for d_in in (3, 32):  # fewer and more columns than dimensions
        modules = [
            module(
                i, "o_proj", rng.standard_normal((2, d_in)), shared @ rng.standard_normal((2, 2))
            )
            for i in range(20 if d_in == 3 else 40)
        ]
        found = residual_factors(modules, side="write", k=5)
        assert found.method == "lanczos"
        assert found.directions.shape == (2, D)
        np.testing.assert_allclose(np.abs(found.directions[:, 2:]), 0.0, atol=1e-7)
        _, values = dense_svd(modules, "write")
        np.testing.assert_allclose(found.singular_values, values[:2], rtol=1e-9)


def test_an_untrained_adapter_has_no_factors() -> None:
    modules = [module(0, "o_proj", np.ones((R, 32)), np.zeros((D, R)))]
    found = residual_factors(modules, side="write", k=3)
    assert found.directions.shape == (0, D)
    assert exceeds_band(found, null_band(modules, side="write", k=3, n_draws=19)).shape == (0,)


def test_no_more_factors_than_the_rank() -> None:
    rng = np.random.default_rng(0)
    shared = random_subspace(D, 2, seed=0)
    modules = [
        module(i, "o_proj", rng.standard_normal((R, 32)), shared @ rng.standard_normal((2, R)))
        for i in range(3)
    ]
    # Float32 halves leave rounding noise of 1e-8 beside the two planted directions.
    values = residual_factors(modules, side="write").singular_values
    assert (values[2:] < 1e-6 * values[0]).all()


def test_stability_by_hand_and_for_random_spans() -> None:
    directions = np.eye(6)[:2]
    others = [np.eye(6)[[1, 0]], -np.eye(6)[[0, 5]]]
    np.testing.assert_allclose(stability(directions, others), [1.0, 0.5])
    assert np.isnan(stability(directions, [])).all()
    spans = [random_subspace(100, 4, seed=seed).T for seed in range(300)]
    assert stability(np.eye(100)[:1], spans)[0] == pytest.approx(np.sqrt(4 / 100), abs=0.02)


def test_a_repeated_seed_finds_the_planted_factor_again() -> None:
    planted = random_subspace(D, 1, seed=9)[:, 0]
    runs = [
        residual_factors(adapter_modules(seed, written=planted), side="write", k=3).directions
        for seed in range(3)
    ]
    steady = stability(runs[0], runs[1:])
    assert steady[0] > 0.85
    assert (steady[1:] < 0.6).all()


def test_factors_refuse() -> None:
    modules = adapter_modules(0)
    odd = module(9, "o_proj", np.ones((R, 32)), np.ones((D + 1, R)))
    with pytest.raises(InputError, match=r"layers.9.o_proj writes 49 dimensions, .* modules 48"):
        residual_factors([*modules, odd], side="write")
    with pytest.raises(InputError, match="No module writes the residual stream"):
        residual_factors([m for m in modules if m.side == "read"], side="write")
    with pytest.raises(InputError, match="No module up to layer -1 reads the residual stream"):
        residual_factors(modules, side="read", max_layer=-1)
    with pytest.raises(InputError, match="Got k = 0 factors"):
        residual_factors(modules, side="read", k=0)
    with pytest.raises(InputError, match=r"Got 10 draws for the quantile 0.95"):
        null_band(modules, side="write", n_draws=10)
    with pytest.raises(InputError, match="band of 2 entries for 3 factors; draw it with k = 3"):
        exceeds_band(
            residual_factors(modules, side="write", k=3),
            null_band(modules, side="write", k=2, n_draws=19),
        )
    with pytest.raises(InputError, match="of 48 and 5 dimensions; expected runs of one base"):
        stability(np.eye(D)[:1], [np.eye(5)[:1]])
