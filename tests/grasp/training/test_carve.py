"""Closed-form removal in the inner space: planted directions, dense algebra, invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from peft import PeftModel
from torch import nn

from analysis.errors import InputError
from grasp.training.carve import inner_projection, second_moments
from grasp.training.edits import Given, edit_adapter
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)
R = 4


def moments(n: int, *, seed: int, rank: int = R) -> NDArray[np.float64]:
    """C of n random tokens."""
    z = np.random.default_rng(seed).normal(size=(n, rank))
    return z.T @ z / n


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, 6), data=st.data())
def test_it_is_a_projection_that_loses_as_many_directions_as_asked(
    seed: int, rank: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, rank))
    off, on = (moments(40, seed=seed + i, rank=rank) for i in range(2))
    kept = inner_projection(off, on, count=count)
    np.testing.assert_allclose(kept @ kept, kept, atol=1e-9)
    assert np.trace(kept) == pytest.approx(rank - count)
    if count == rank:
        np.testing.assert_allclose(kept, 0, atol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_directions_are_those_of_the_inverse_times_the_other(count: int) -> None:
    """Oracle: eigenvectors of C_r⁻¹ C_f, unsymmetric, and the projection by their own inverse."""
    off, on = moments(50, seed=0), moments(50, seed=1)
    values, vectors = np.linalg.eig(np.linalg.solve(on, off))
    vectors = vectors.real[:, np.argsort(-values.real)]
    coordinates = np.diag([0.0] * count + [1.0] * (R - count))
    expected = np.linalg.inv(vectors.T) @ coordinates @ vectors.T
    np.testing.assert_allclose(inner_projection(off, on, count=count), expected, atol=1e-4)


def test_what_only_forget_text_uses_goes_and_the_rest_stays() -> None:
    """Retain text lies in a plane; forget text also uses a skew direction outside it."""
    rng = np.random.default_rng(2)
    plane, skew = rng.normal(size=(2, R)), rng.normal(size=R)
    on = rng.normal(size=(200, 2)) @ plane
    shared = rng.normal(size=(200, 2)) @ plane
    # Unrelated to the rest to the last digit, as it would be in endless text.
    alone = rng.normal(size=200)
    alone -= shared @ np.linalg.lstsq(shared, alone, rcond=None)[0]
    off = shared + np.outer(alone, skew)
    kept = inner_projection(off.T @ off / 200, on.T @ on / 200, count=1)
    np.testing.assert_allclose(kept @ on.T, on.T, atol=1e-3)
    np.testing.assert_allclose(kept @ shared.T, shared.T, atol=1e-3)
    assert np.abs(kept @ skew).max() < 1e-3 * np.abs(skew).max()


def test_the_basis_of_the_inner_space_does_not_matter() -> None:
    """A → G A, B → B G⁻¹ writes the same update; so does what is left of it."""
    rng = np.random.default_rng(3)
    off, on, turn = moments(50, seed=4), moments(50, seed=5), rng.normal(size=(R, R))
    b, a = rng.normal(size=(7, R)), rng.normal(size=(R, 9))
    plain = b @ inner_projection(off, on, count=2) @ a
    turned = inner_projection(turn @ off @ turn.T, turn @ on @ turn.T, count=2)
    np.testing.assert_allclose(b @ np.linalg.inv(turn) @ turned @ turn @ a, plain, atol=1e-3)


def test_a_module_that_neither_text_reaches_is_left_alone() -> None:
    nothing = np.zeros((R, R))
    np.testing.assert_array_equal(inner_projection(nothing, nothing, count=2), np.eye(R))


@pytest.mark.parametrize("count", [-1, 5])
def test_more_directions_than_there_are_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"Got {count} directions to remove; expected 0 to 4"):
        inner_projection(np.eye(R), np.eye(R), count=count)


# On a model


def inner(model: PeftModel) -> list[nn.Module]:
    return [m.lora_A["default"] for m in model.modules() if hasattr(m, "lora_A")]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_moments_are_those_of_what_each_lora_a_reads(family: str) -> None:
    """Oracle: A times each module's input, one unpadded row of the text at a time."""
    model = tiny.adapted(tiny.family(family), strength=0.3)
    layers = inner(model)
    batches = [tiny.batch(5, 9), tiny.batch(3, seed=1)]
    found = second_moments(model, layers, batches, site="all")
    expected = [np.zeros((R, R)) for _ in layers]
    seen: dict[nn.Module, torch.Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda module, args: seen.update({module: args[0]}))
        for layer in layers
    ]
    rows = [
        row[mask.bool()]
        for batch in batches
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    for row in rows:
        with torch.no_grad():
            model(input_ids=row[None])
        for place, layer in enumerate(layers):
            z = (seen[layer][0].double() @ layer.weight.double().T).detach().numpy()
            expected[place] += z.T @ z
    for hook in hooks:
        hook.remove()
    for got, total in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, total / 17, rtol=1e-4, atol=1e-6)
    assert not any(layer._forward_hooks for layer in layers)


def test_only_the_sites_tokens_count() -> None:
    model = tiny.adapted(tiny.llama(), strength=0.3)
    batch = tiny.batch(6)
    batch["answer_mask"] = torch.tensor([[0, 0, 0, 1, 1, 1]])
    layers = inner(model)[:1]
    (some,) = second_moments(model, layers, [batch], site="answer")
    (every,) = second_moments(model, layers, [batch], site="all")
    batch["answer_mask"] = 1 - batch["answer_mask"]
    (others,) = second_moments(model, layers, [batch], site="answer")
    np.testing.assert_allclose((some + others) / 2, every, rtol=1e-6)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_of_an_adapter_all_or_nothing_or_as_much_as_asked_goes(family: str) -> None:
    def updates(share: float | None) -> list[NDArray[np.float64]]:
        model = tiny.adapted(tiny.family(family), strength=0.3)
        texts = Given(forget=[tiny.batch(9, 7)], retain=[tiny.batch(8, 8, seed=1)])
        if share is not None:
            edit_adapter(model, "carve", strength=share, given=texts)
        found = [m.get_delta_weight("default") for m in model.modules() if hasattr(m, "lora_A")]
        return [delta.detach().double().numpy() for delta in found]

    naive = updates(None)
    for nothing, same, half, before in zip(
        updates(1.0), updates(0.0), updates(0.5), naive, strict=True
    ):
        np.testing.assert_allclose(nothing, 0, atol=1e-5 * np.abs(before).max())
        np.testing.assert_array_equal(same, before)
        sizes = np.linalg.svd(half, compute_uv=False)
        assert (sizes > 1e-5 * sizes[0]).sum() == R // 2


def test_what_the_update_adds_on_retain_text_stays_while_it_leaves_a_direction_free() -> None:
    """Retain text of three tokens leaves one of four inner directions free, which goes alone."""
    model = tiny.adapted(tiny.llama(), targets=["q_proj"], strength=0.3)
    layer = inner(model)[0]
    off, on = tiny.batch(20, 20), tiny.batch(3, seed=1)

    def adds(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        kept: list[torch.Tensor] = []
        module = model.get_base_model().model.layers[0].self_attn.q_proj
        hook = layer.register_forward_hook(lambda _m, _a, z: kept.append(z))
        with torch.no_grad():
            model(**batch)
            hook.remove()
            return kept[0] @ module.lora_B["default"].weight.T

    before, forgotten = adds(on), adds(off)
    edit_adapter(model, "carve", strength=0.25, given=Given(forget=[off], retain=[on]))
    torch.testing.assert_close(adds(on), before, rtol=1e-3, atol=1e-3)
    assert (adds(off) - forgotten).abs().max() > 0.1 * forgotten.abs().max()


def test_a_share_out_of_range_and_a_missing_text_are_refused() -> None:
    model = tiny.adapted(tiny.llama(), strength=0.3)
    texts = Given(forget=[tiny.batch(5)], retain=[tiny.batch(5)])
    with pytest.raises(InputError, match=r"Got a share of 1\.5; expected 0 to 1"):
        edit_adapter(model, "carve", strength=1.5, given=texts)
    with pytest.raises(InputError, match="There is no text to tell what the adapter does"):
        edit_adapter(model, "carve", strength=0.5, given=Given(forget=[tiny.batch(5)]))


def test_a_layer_that_is_not_used_is_refused() -> None:
    model = tiny.adapted(tiny.llama(), strength=0.3)
    with pytest.raises(InputError, match="A module of the adapter does not see every token"):
        second_moments(model, [nn.Linear(2, R)], [tiny.batch(5)], site="all")
