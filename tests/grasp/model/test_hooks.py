"""Hooks on the residual stream, against transformers' own outputs and stage-wise backprop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from analysis.errors import InputError
from grasp.model.hooks import ablate, clamp, edited_outputs, layer_outputs, project_gradient
from grasp.model.loading import decoder_layers
from tests.support import tiny

LAYERS = 3

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)
FINAL_NORM = {"llama": "model.norm", "gpt2": "transformer.ln_f"}
WRITERS = {"llama": ["down_proj"], "gpt2": ["mlp.c_proj"]}


def basis(k: int = 3) -> Tensor:
    return torch.as_tensor(tiny.subspace(k).T, dtype=torch.float32)


def bases() -> list[Tensor]:
    """One for each layer, of different rank and span."""
    whole = basis(6)
    return [whole[:, :3], whole[:, 3:4], whole[:, 4:]]


def hooks_on(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.fixture(params=tiny.FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("with_adapter", [False, True])
@torch.no_grad()
def test_layer_outputs_are_the_hidden_states_of_transformers(name: str, with_adapter: bool) -> None:
    model = tiny.family(name, layers=3)
    norm = model.get_submodule(FINAL_NORM[name])
    if with_adapter:
        model = tiny.adapted(model, strength=0.3)
    batch = tiny.batch(5, 9)
    expected = model(**batch, output_hidden_states=True).hidden_states
    with layer_outputs(model) as outputs:
        model(**batch)
    assert len(outputs) == 3
    for found, wanted in zip(outputs[:-1], expected[1:-1], strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    # The last of transformers' hidden states has been through the final norm.
    torch.testing.assert_close(norm(outputs[-1]), expected[-1], rtol=0, atol=0)
    assert (outputs[-1] - expected[-1]).abs().max() > 0.1


@torch.no_grad()
def test_a_later_forward_pass_replaces_what_was_collected() -> None:
    model = tiny.llama()
    first, second = tiny.batch(4), tiny.batch(7, seed=1)
    with layer_outputs(model) as outputs:
        model(**first)
        model(**second)
    assert [h.shape for h in outputs] == [(1, 7, tiny.WIDTH)] * 2


@torch.no_grad()
def test_ablate_removes_the_subspace_and_nothing_else_at_every_layer(name: str) -> None:
    model = tiny.family(name, layers=3)
    with (
        layer_outputs(model) as before,  # hooks run in the order in which they were added
        edited_outputs(model, ablate(bases())),
        layer_outputs(model) as after,
    ):
        model(**tiny.batch(8, 5))
    for raw, edited, q in zip(before, after, bases(), strict=True):
        assert (raw @ q).abs().max() > 0.05
        assert (edited @ q).abs().max() < 1e-5
        torch.testing.assert_close(raw - edited, (raw @ q) @ q.T, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_edit_reaches_the_logits(name: str) -> None:
    model, batch = tiny.family(name), tiny.batch(6)
    plain = model(**batch).logits
    with edited_outputs(model, ablate([basis()] * LAYERS)):
        ablated = model(**batch).logits
    assert (plain - ablated).abs().max() > 1e-2


def test_project_gradient_leaves_the_forward_pass_bit_for_bit(name: str) -> None:
    model, batch = tiny.adapted(tiny.family(name), strength=0.3), tiny.batch(6)
    plain = model(**batch).logits
    with edited_outputs(model, project_gradient([basis()] * LAYERS)):
        hooked = model(**batch).logits
    assert torch.equal(plain, hooked)


def test_project_gradient_is_stagewise_backprop_with_projection(name: str) -> None:
    """Oracle: cut the graph at every layer's output and carry gradients over by hand."""
    model = tiny.adapted(tiny.family(name, layers=3), strength=0.3)
    batch = tiny.batch(6, 8)
    with edited_outputs(model, project_gradient(bases())):
        model(**batch, labels=batch["input_ids"]).loss.backward()
    found = gradients(model)

    model.zero_grad()
    ends: list[Tensor] = []
    starts: list[Tensor] = []

    def cut(_layer: int, hidden: Tensor) -> Tensor:
        ends.append(hidden)
        starts.append(hidden.detach().requires_grad_())
        return starts[-1]

    with edited_outputs(model, cut):
        model(**batch, labels=batch["input_ids"]).loss.backward()
    for end, start, q in reversed(list(zip(ends, starts, bases(), strict=True))):
        carried = start.grad
        assert carried is not None
        end.backward(carried - carried @ q @ q.T)
    expected = gradients(model)
    model.zero_grad()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    plain = gradients(model)

    assert found.keys() == expected.keys()
    for weight, wanted in expected.items():
        torch.testing.assert_close(found[weight], wanted, rtol=1e-4, atol=1e-6)
    assert max(float((found[w] - plain[w]).abs().max()) for w in found) > 1e-3


@torch.no_grad()
def test_clamp_undoes_an_adapter_that_writes_only_into_the_subspace(name: str) -> None:
    model, q = tiny.adapted(tiny.family(name), targets=WRITERS[name], strength=0.5), basis()
    for weight_name, weight in model.named_parameters():
        if "lora_B" in weight_name:
            weight.copy_(q @ (q.T @ weight))
    batch = tiny.batch(6, 9)
    with model.disable_adapter(), layer_outputs(model) as reference:
        base = model(**batch).logits
    moved = model(**batch).logits
    with edited_outputs(model, clamp(q, list(reference))):
        clamped = model(**batch).logits
    real = batch["attention_mask"].bool()
    assert (moved - base)[real].abs().max() > 0.1
    torch.testing.assert_close(clamped[real], base[real], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_clamp_leaves_what_is_orthogonal_to_the_subspace() -> None:
    model, q = tiny.adapted(tiny.llama(layers=1), strength=0.3), basis()
    batch = tiny.batch(6)
    with model.disable_adapter(), layer_outputs(model) as reference:
        model(**batch)
    kept = [h.clone() for h in reference]
    with (
        layer_outputs(model) as raw,
        edited_outputs(model, clamp(q, kept)),
        layer_outputs(model) as clamped,
    ):
        model(**batch)
    torch.testing.assert_close(clamped[0] @ q, kept[0] @ q, rtol=1e-4, atol=1e-5)
    outside = torch.eye(tiny.WIDTH) - q @ q.T
    torch.testing.assert_close(clamped[0] @ outside, raw[0] @ outside, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "context",
    [layer_outputs, lambda model: edited_outputs(model, ablate([basis()] * LAYERS))],
    ids=["layer_outputs", "edited_outputs"],
)
def test_hooks_are_gone_after_the_block_and_after_an_exception(
    name: str, context: Callable[[Any], Any]
) -> None:
    model, batch = tiny.adapted(tiny.family(name), strength=0.3), tiny.batch(5)
    plain, before = model(**batch).logits, hooks_on(model)
    with context(model):
        assert hooks_on(model) == before + 2
    assert hooks_on(model) == before
    with pytest.raises(RuntimeError, match="in the middle"), context(model):
        raise RuntimeError("in the middle")
    assert hooks_on(model) == before
    assert torch.equal(model(**batch).logits, plain)


def test_hooks_are_gone_after_an_edit_that_fails_in_the_forward_pass() -> None:
    model = tiny.llama()

    def fail(layer: int, _hidden: Tensor) -> Tensor:
        raise RuntimeError(f"layer {layer}")

    with pytest.raises(RuntimeError, match="layer 0"), edited_outputs(model, fail):
        model(**tiny.batch(4))
    assert hooks_on(model) == 0


def test_an_unknown_architecture_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"Linear keeps its decoder layers in none of model\.lay"):
        decoder_layers(nn.Linear(2, 2))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
