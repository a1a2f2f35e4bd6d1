"""Footprints on adapters whose way through the layers is planted, and against an SVD by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor

from analysis.errors import InputError
from grasp.guard.footprint import MIN_ENERGY, footprint
from grasp.model.loading import decoder_layers
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)
NEUTRAL = [tiny.batch(6, 9), tiny.batch(7, 4, seed=1)]


def down_projections(model: PeftModel) -> list[Any]:
    return [layer.mlp.down_proj for layer in decoder_layers(model)]


def planted(*written: NDArray[np.float64]) -> PeftModel:
    """Layer ℓ's down_proj writes along written[ℓ]; after the first, the base writes nothing.

    What a later layer's adapter reads has been through that layer's norm and MLP, so that it
    depends on what the first one wrote.
    """
    base = tiny.llama(layers=len(written))
    with torch.no_grad():
        for layer in base.model.layers[1:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model = tiny.adapted(base, targets=["down_proj"])
    with torch.no_grad():
        for module, direction in zip(down_projections(model), written, strict=True):
            along = torch.as_tensor(direction, dtype=torch.float32)
            module.lora_B["default"].weight.copy_(torch.outer(along, torch.tensor([8.0, 0, 0, 0])))
    return model


def projector(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    return rows.T @ rows


def test_what_a_later_layer_makes_of_a_factor_is_in_its_footprint_there() -> None:
    factor, caused, silent = tiny.subspace(3)
    first, second = footprint(planted(factor, caused), factor[None], NEUTRAL, width=6)
    assert (first.shape, second.shape) == ((1, tiny.WIDTH), (2, tiny.WIDTH))
    assert abs(first[0] @ factor) == pytest.approx(1, abs=1e-5)
    for direction, share in ((factor, 1), (caused, 1), (silent, 0)):
        assert np.linalg.norm(second @ direction) == pytest.approx(share, abs=1e-4)


def test_what_a_later_layer_writes_of_its_own_is_not() -> None:
    """The same adapter, but the protected direction is one that nothing is written along."""
    factor, caused, silent = tiny.subspace(3)
    for rows in footprint(planted(factor, caused), silent[None], NEUTRAL, width=6):
        np.testing.assert_allclose(abs(rows @ silent), [1], atol=1e-4)


def by_hand(model: PeftModel, directions: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """h_ℓ − h̃_ℓ of every real token (tokens, d_model), layer by layer.

    Oracle: the base is a model that never had an adapter, layers are called one by one, and
    coordinates are set back between them, without a hook.
    """
    q = np.linalg.qr(directions.T)[0]
    changes: list[list[NDArray[np.float64]]] = [[] for _ in decoder_layers(model)]
    for batch in NEUTRAL:
        real = batch["attention_mask"].bool()
        base = chain(tiny.llama(), batch, lambda _layer, hidden: hidden)

        def back(layer: int, hidden: Tensor, base: list[Tensor] = base) -> Tensor:
            moved = (hidden - base[layer]).double().numpy()
            return hidden - torch.as_tensor(moved @ q @ q.T, dtype=torch.float32)

        adapted = chain(model.get_base_model(), batch, lambda _layer, hidden: hidden)
        for layer, (h, h_back) in enumerate(
            zip(adapted, chain(model.get_base_model(), batch, back), strict=True)
        ):
            changes[layer].append((h - h_back)[real].double().numpy())
    return [np.concatenate(layer) for layer in changes]


@torch.no_grad()
def chain(model: Any, batch: dict[str, Tensor], edit: Any) -> list[Tensor]:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    length = ids.shape[1]
    causal = torch.full((length, length), -torch.inf).triu(1)
    blocked = causal + torch.where(mask[:, None, None, :].bool(), 0.0, -torch.inf)
    hidden = model.model.embed_tokens(ids)
    rotary = model.model.rotary_emb(hidden, torch.arange(length)[None])
    outputs = []
    for number, layer in enumerate(model.model.layers):
        out = layer(hidden, attention_mask=blocked, position_embeddings=rotary)
        hidden = edit(number, out[0] if isinstance(out, tuple) else out)
        outputs.append(hidden)
    return outputs


@pytest.mark.parametrize("width", [1, 3, 20])
def test_a_footprint_is_the_svd_of_the_stacked_changes(width: int) -> None:
    model, factors = tiny.adapted(tiny.llama(), strength=0.1), tiny.subspace(2)
    found = footprint(model, factors, NEUTRAL, width=width)
    counts = []
    for rows, change in zip(found, by_hand(model, factors), strict=True):
        _, sigma, right = np.linalg.svd(change, full_matrices=False)
        count = min(width, int((sigma**2 / (sigma**2).sum() >= MIN_ENERGY).sum()))
        assert len(rows) == count
        np.testing.assert_allclose(projector(rows), projector(right[:count]), atol=1e-3)
        np.testing.assert_allclose(rows @ rows.T, np.eye(count), atol=1e-5)
        assert rows.dtype == np.float32
        counts.append(count)
    assert counts[0] <= 2  # at the first layer nothing but the factors themselves
    assert counts[1] > 1 or width == 1


@pytest.mark.parametrize(("share", "kept"), [(0.9 * MIN_ENERGY, 1), (1.1 * MIN_ENERGY, 2)])
def test_directions_of_little_energy_are_left_out(share: float, kept: int) -> None:
    """Two factors whose coordinates are uncorrelated, the second one with a known energy."""
    strong, weak = tiny.subspace(2)
    model = planted(strong)
    inputs: list[Tensor] = []
    (module,) = down_projections(model)
    handle = module.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    with torch.no_grad(), model.disable_adapter():
        for batch in NEUTRAL:
            model(**batch)
    handle.remove()
    pairs = zip(inputs, NEUTRAL, strict=True)
    x = torch.cat([h[batch["attention_mask"].bool()] for h, batch in pairs]).double()
    moment = x.T @ x
    a, b = torch.randn(2, x.shape[1], generator=torch.Generator().manual_seed(0)).double()
    b = b - a * (a @ moment @ b) / (a @ moment @ a)
    b = b * ((a @ moment @ a) / (b @ moment @ b) * share / (1 - share)).sqrt()
    with torch.no_grad():
        module.lora_A["default"].weight[:2] = torch.stack([a, b]).float()
        module.lora_B["default"].weight[:, :2] = torch.as_tensor(np.stack([strong, weak]).T).float()
    (rows,) = footprint(model, tiny.subspace(2), NEUTRAL, width=6)
    assert len(rows) == kept
    assert abs(rows[0] @ strong) == pytest.approx(1, abs=1e-4)


def test_layers_before_the_first_change_hold_the_factors_themselves() -> None:
    factor, caused = tiny.subspace(2)
    model = planted(np.zeros(tiny.WIDTH), caused)
    first, second = footprint(model, np.stack([factor, caused]), NEUTRAL, width=6)
    np.testing.assert_allclose(projector(first), projector(tiny.subspace(2)), atol=1e-5)
    np.testing.assert_allclose(projector(second), projector(caused[None]), atol=1e-4)


def test_padding_does_not_count() -> None:
    model, factors = tiny.adapted(tiny.llama(), strength=0.1), tiny.subspace(1)
    plain = tiny.batch(6)
    padded = {
        "input_ids": torch.nn.functional.pad(plain["input_ids"], (0, 5), value=3),
        "attention_mask": torch.nn.functional.pad(plain["attention_mask"], (0, 5)),
    }
    found = [footprint(model, factors, [batch], width=4) for batch in (plain, padded)]
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(projector(one), projector(other), atol=1e-3)


def test_only_the_sites_tokens_count() -> None:
    """Oracle: the stacked changes by hand, of each text's third token alone."""
    model, factors = tiny.adapted(tiny.llama(), strength=0.1), tiny.subspace(2)
    sited, thirds = [], []
    for batch in NEUTRAL:
        place = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
        sited.append(batch | {"prompt_end_mask": place == 2})
        thirds.append((place == 2)[batch["attention_mask"].bool()])
    chosen = torch.cat(thirds).numpy()
    found = footprint(model, factors, sited, width=2, site="prompt-end")
    whole = footprint(model, factors, sited, width=2)
    for rows, every, change in zip(found, whole, by_hand(model, factors), strict=True):
        right = np.linalg.svd(change[chosen], full_matrices=False)[2]
        np.testing.assert_allclose(projector(rows), projector(right[: len(rows)]), atol=1e-3)
        assert np.abs(projector(rows) - projector(every)).max() > 1e-2 or len(rows) == 2


def test_the_model_is_as_it_was() -> None:
    model, batch = tiny.adapted(tiny.llama(), strength=0.1), tiny.batch(6)
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    plain = model(**batch).logits
    footprint(model, tiny.subspace(2), NEUTRAL, width=3)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.named_parameters())
    assert torch.equal(model(**batch).logits, plain)
    assert sum(len(m._forward_hooks) for m in model.modules()) == 0
    assert not model.training


def test_directions_of_another_width_are_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(1, 33\); expected \(k, 32\), the width of llam"):
        footprint(planted(tiny.subspace(1)[0]), np.ones((1, 33)), NEUTRAL, width=2)
