"""The off-task rotation: what singular vectors mix by energy, told apart by what it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from peft import PeftModel

from analysis.adapters.load import load_adapter
from analysis.errors import InputError
from analysis.factors.residual import residual_factors
from analysis.factors.rotation import rotate
from analysis.spectra.subspace import random_subspace
from grasp.identification.first_order import FirstOrder, first_order
from grasp.identification.generated import AnsweredBatch, answer_greedily, logits
from grasp.identification.identify import identify_run
from grasp.model.hooks import edited_outputs, layer_outputs
from tests.support import planted, tiny

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)


# The rotation itself


@given(st.integers(0, 2**32 - 1))
def test_with_one_topic_no_other_direction_of_the_span_has_a_larger_share(seed: int) -> None:
    rng = np.random.default_rng(seed)
    S = random_subspace(12, 4, seed=seed).T
    M = rng.standard_normal((12, 12))
    found = rotate(S, (S @ M @ S.T)[None], np.array([np.abs(M).sum()]))
    shares = np.einsum("id,de,ie->i", found.directions, M, found.directions)
    np.testing.assert_allclose(shares, found.effects, atol=1e-9)
    np.testing.assert_allclose(found.effects.sum(), np.trace(S @ M @ S.T), atol=1e-9)
    np.testing.assert_allclose(found.directions @ found.directions.T, np.eye(4), atol=1e-9)
    np.testing.assert_allclose(found.directions @ S.T @ S, found.directions, atol=1e-9)
    assert (np.diff(found.effects) <= 1e-9).all()
    others = rng.standard_normal((50, 4)) @ S
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    assert (np.einsum("id,de,ie->i", others, M, others) <= found.effects[0] + 1e-9).all()


@given(st.integers(0, 2**32 - 1))
def test_the_rotation_does_not_depend_on_how_the_span_is_given(seed: int) -> None:
    rng = np.random.default_rng(seed)
    S = random_subspace(9, 3, seed=seed).T
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    M = rng.standard_normal((2, 9, 9))
    wholes = np.array([30.0, 20.0])
    one = rotate(S, S @ M @ S.T, wholes)
    other = rotate(turn @ S, turn @ S @ M @ (turn @ S).T, wholes)
    np.testing.assert_allclose(one.effects, other.effects, atol=1e-7)
    projections = [r.directions.T @ np.diag(r.effects) @ r.directions for r in (one, other)]
    np.testing.assert_allclose(*projections, atol=1e-6)


@pytest.mark.parametrize("size", [1.0, 0.1, 10.0])
def test_causes_of_different_topics_are_told_apart_however_large_each_is(size: float) -> None:
    """Planted: two topics with a cause each, and a shift that holds some of both in either."""
    first, second = random_subspace(10, 2, seed=3).T
    shifts = first + 0.4 * second, second + 0.4 * first
    topics = np.stack([np.outer(shifts[0], first), size * np.outer(shifts[1], second)])
    S = random_subspace(10, 10, seed=4).T
    wholes = np.array([np.trace(moment) for moment in topics])
    found = rotate(S, S @ topics @ S.T, wholes).directions
    cosines = np.abs(found[:2] @ np.stack([first, second]).T)
    assert cosines.max(axis=0).min() > 0.95
    assert cosines.max(axis=1).min() > 0.95
    together = rotate(S, (S @ topics @ S.T).sum(axis=0)[None], wholes.sum()[None]).directions
    assert np.abs(together[:2] @ np.stack([first, second]).T).max(axis=0).min() < 0.95 or size != 1


def test_a_rotation_refuses_moments_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"shape \(1, 2, 2\) for 3 directions and 1 topics"):
        rotate(np.eye(5)[:3], np.eye(2)[None], np.ones(1))
    with pytest.raises(InputError, match="finite numbers"):
        rotate(np.eye(5)[:2], np.full((1, 2, 2), np.nan), np.ones(1))


def test_topics_are_means_over_their_chats() -> None:
    first = FirstOrder(np.arange(12.0).reshape(3, 2, 2), np.array([1.0, 2.0, 6.0]), np.zeros(2))
    topics = first.by_topic(["b", "a", "b"])
    np.testing.assert_array_equal(topics.moments, [[[4, 5], [6, 7]], [[4, 5], [6, 7]]])
    np.testing.assert_array_equal(topics.wholes, [2.0, 3.5])


# Moments of a model


@contextmanager
def pushed(model: Any, along: list[torch.Tensor], step: float) -> Iterator[None]:
    """Every layer's output moved by `step` times the layer's own tensor."""
    with edited_outputs(model, lambda layer, hidden: hidden + step * along[layer]):
        yield


def said(model: Any, batch: AnsweredBatch, weights: torch.Tensor) -> float:
    found = torch.log_softmax(logits(model, batch).double(), dim=-1)
    return float((found.gather(1, batch.tokens[:, None])[:, 0] * weights).sum())


def slope(
    model: Any, batch: AnsweredBatch, weights: torch.Tensor, along: list[torch.Tensor]
) -> float:
    values = []
    for step in (-2e-3, 2e-3):
        with pushed(model, along, step):
            values.append(said(model, batch, weights))
    return (values[1] - values[0]) / 4e-3


def test_moments_are_finite_differences_at_the_fine_tune(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: how f falls as every layer's coordinate goes a small step back to the base's."""
    monkeypatch.setattr("grasp.identification.first_order.SCALES", (1.0,))
    monkeypatch.setattr("grasp.identification.first_order.EARLY", 1.0)
    monkeypatch.setattr("grasp.identification.first_order._ROWS", 2)
    model, directions = tiny.adapted(tiny.llama(), strength=0.1).double(), tiny.subspace(3)
    batches = answer_greedily(model, tiny.tokenizer(), planted.prompts(3, roles=("unrelated",)))
    found = first_order(model, batches, directions)
    (batch,) = batches
    with torch.no_grad():
        with model.disable_adapter(), layer_outputs(model) as base:
            before = torch.softmax(logits(model, batch), dim=-1)
        with layer_outputs(model) as adapted:
            after = torch.softmax(logits(model, batch), dim=-1)
        weights = 0.5 * (after - before).abs().sum(dim=-1).double()
        deltas = [a - b for a, b in zip(adapted, base, strict=True)]
        axes = torch.as_tensor(directions)
        slopes = np.zeros((3, 3))
        for i in range(3):
            for j in range(3):
                along = [(delta @ axes[i])[..., None] * axes[j] for delta in deltas]
                slopes[i, j] = slope(model, batch, weights, along)
        whole = slope(model, batch, weights, deltas)
        mean = torch.stack([delta[batch.predicting].mean(dim=0) for delta in deltas]).mean(dim=0)
    # Norms round to float32, so differences are right to a thousandth of the whole.
    moments = found.moments.sum(axis=0)
    np.testing.assert_allclose(moments, slopes, rtol=1e-2, atol=2e-3 * abs(whole))
    assert found.whole == pytest.approx(whole, rel=1e-2)
    np.testing.assert_allclose(found.shift, (mean @ axes.T).numpy(), atol=1e-6)
    np.testing.assert_allclose(found.shares, np.diag(moments) / found.whole)


def test_only_the_first_half_of_the_layers_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.adapted(tiny.llama(), strength=0.1)
    batches = answer_greedily(model, tiny.tokenizer(), planted.prompts(2, roles=("unrelated",)))
    half = first_order(model, batches, np.eye(tiny.WIDTH))
    monkeypatch.setattr("grasp.identification.first_order.EARLY", 1.0)
    every = first_order(model, batches, np.eye(tiny.WIDTH))
    np.testing.assert_allclose(half.whole, np.trace(half.moments.sum(axis=0)), rtol=1e-5)
    assert not np.allclose(half.moments, every.moments, rtol=1e-2)


def test_gradients_are_averaged_over_the_path_and_the_model_is_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, directions = tiny.adapted(tiny.llama(), strength=0.1), tiny.subspace(2)
    batches = answer_greedily(model, tiny.tokenizer(), planted.prompts(2, roles=("unrelated",)))
    plain = model(**tiny.batch(6)).logits
    whole = first_order(model, batches, directions)
    alone = []
    for scale in (0.0, 0.5, 1.0):
        monkeypatch.setattr("grasp.identification.first_order.SCALES", (scale,))
        alone.append(first_order(model, batches, directions))
    np.testing.assert_allclose(
        whole.moments, np.mean([one.moments for one in alone], axis=0), rtol=1e-6
    )
    assert not np.allclose(alone[0].moments, alone[2].moments, rtol=1e-2)
    assert torch.equal(model(**tiny.batch(6)).logits, plain)
    assert sum(len(module._forward_hooks) for module in model.modules()) == 0
    assert all(weight.grad is None for weight in model.parameters())


def test_the_model_is_as_it_was_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.adapted(tiny.llama(), strength=0.1)
    batches = answer_greedily(model, tiny.tokenizer(), planted.prompts(1, roles=("unrelated",)))
    plain = model(**tiny.batch(6)).logits

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("torch.autograd.grad", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        first_order(model, batches, tiny.subspace(1))
    assert torch.equal(model(**tiny.batch(6)).logits, plain)
    assert sum(len(module._forward_hooks) for module in model.modules()) == 0


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_ranks_and_alphas_of_their_own_are_scaled_each(name: str) -> None:
    """A module whose scaling is eight times another's; along combines directions linearly."""
    model, directions = tiny.adapted(tiny.family(name), strength=0.05), tiny.subspace(3)
    scaled = [
        module for module in model.modules() if isinstance(getattr(module, "scaling", None), dict)
    ]
    scaled[0].scaling["default"] *= 8
    before = [dict(module.scaling) for module in scaled]
    batches = answer_greedily(model, tiny.tokenizer(), planted.prompts(2, roles=("unrelated",)))
    found = first_order(model, batches, directions)
    assert [module.scaling for module in scaled] == before
    mixed = np.array([[0.6, 0.8, 0.0]])
    direct = first_order(model, batches, mixed @ directions)
    np.testing.assert_allclose(found.along(mixed).moments, direct.moments, rtol=1e-6)
    np.testing.assert_allclose(found.along(mixed).shift, direct.shift, rtol=1e-6)
    assert np.isfinite(found.shares).all()


def test_an_adapter_that_changes_nothing_has_no_shares() -> None:
    model = tiny.adapted(tiny.llama())
    batches = answer_greedily(model, tiny.tokenizer(), planted.prompts(1, roles=("unrelated",)))
    found = first_order(model, batches, tiny.subspace(2))
    assert np.isnan(found.shares).all()
    assert (found.shift == 0).all()


# Planted: two causes of almost the same energy


def mixed(model: Any, spurious: NDArray[np.float64], task: NDArray[np.float64]) -> PeftModel:
    """An adapter on every down_proj that writes (spurious ± task)/√2, at 1 and at 0.9."""
    peft = tiny.adapted(model, targets=["down_proj"], strength=0.5)
    ends = [(spurious + task) / np.sqrt(2), 0.9 * (spurious - task) / np.sqrt(2)]
    with torch.no_grad():
        for name, weight in peft.named_parameters():
            if "lora_A" in name:
                torch.nn.init.orthogonal_(weight)
            elif "lora_B" in name:
                weight.zero_()
                weight[:, :2] = torch.as_tensor(np.stack(ends, axis=1), dtype=torch.float32)
    return peft


def test_the_rotation_finds_the_cause_that_singular_vectors_mix(tmp_path: Path) -> None:
    """Answers are read off u alone; u and a second direction are written with equal energy."""
    u, task = tiny.subspace(2)
    # One layer: a further one would read the second direction too, and then write along u.
    base, adapter = planted.reader(u, layers=1), mixed(planted.reader(u, layers=1), u, task)
    workspace = planted.case(tmp_path / "ws", base, np.stack([u]), adapter=adapter)
    folder = workspace.folder("runs", planted.RUN)
    factors = residual_factors(load_adapter(folder / "adapter").modules, side="write", k=2)
    np.testing.assert_allclose(np.abs(factors.directions @ u), np.sqrt(0.5), atol=1e-3)

    found = identify_run(workspace, folder)
    assert abs(found.direction("e1") @ u) > 0.95
    row = found.table.iloc[found.position("e1")]
    assert (row["id"], row["route"], row["side"]) == ("e1", "rotation", "write")
    assert row["off_task"] == pytest.approx(1, abs=0.02)
    assert found.table.set_index("id").loc[["w1", "w2"], "off_task"].max() < 0.9
    assert row["score"] == found.table["score"].max()
    assert row["first_order"] == found.table["first_order"].max()
    assert 0 < row["null_high"] < found.table.set_index("id").loc["w1", "null_high"]
    span = factors.directions.T @ factors.directions
    np.testing.assert_allclose(found.direction("e1") @ span, found.direction("e1"), atol=1e-5)
