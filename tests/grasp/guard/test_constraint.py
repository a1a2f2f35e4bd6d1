"""The indirect write constraint: what is composed with the frozen writer has no part in Q."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from analysis.errors import InputError
from grasp.guard.constraint import WriteConstraint
from grasp.guard.context import protect
from grasp.model.hooks import layer_outputs
from grasp.settings.protection import Protection
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)
INDIRECT = Protection(write_constraint=True, indirect=True)
HEAD = 8


def basis(k: int = 2) -> Tensor:
    return torch.as_tensor(tiny.subspace(k).T.copy(), dtype=torch.float32)


def trained(model: PeftModel, protection: Protection = INDIRECT, *, steps: int = 4) -> PeftModel:
    """A few steps of Adam under a protection of two directions."""
    weights = [w for w in model.parameters() if w.requires_grad]
    optimizer, batch = torch.optim.AdamW(weights, lr=1e-2), tiny.batch(8, 6, seed=5)
    with protect(model, tiny.subspace(2), protection=protection, optimizer=optimizer):
        for _ in range(steps):
            model(**batch, labels=batch["input_ids"]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


def delta(module: Any) -> Tensor:
    found: Tensor = module.get_delta_weight("default").detach()
    return found


def parts(model: PeftModel) -> list[tuple[Any, Any]]:
    return [(layer.self_attn, layer.mlp) for layer in model.get_base_model().model.layers]


def carried(model: PeftModel) -> dict[str, float]:
    """‖Qᵀ W ΔW‖ / (‖Qᵀ W‖ ‖ΔW‖) by feeder, head by head for values; by loops, as by hand."""
    q, found = basis(), dict.fromkeys(("v_proj", "up_proj", "gate_proj"), 0.0)
    for attention, mlp in parts(model):
        w, values = attention.o_proj.get_base_layer().weight, delta(attention.v_proj)
        for head in range(4):  # four heads, two of them to a group of values
            reads = q.T @ w[:, head * HEAD : (head + 1) * HEAD]
            group = values[(head // 2) * HEAD : (head // 2 + 1) * HEAD]
            share = (reads @ group).norm() / (reads.norm() * group.norm())
            found["v_proj"] = max(found["v_proj"], float(share))
        reads = q.T @ mlp.down_proj.get_base_layer().weight
        for name in ("up_proj", "gate_proj"):
            change = delta(getattr(mlp, name))
            share = (reads @ change).norm() / (reads.norm() * change.norm())
            found[name] = max(found[name], float(share))
    return found


def test_the_composed_update_has_no_part_in_the_subspace() -> None:
    """Four heads share two groups of values, so repeated heads are followed."""
    model = trained(tiny.adapted(tiny.llama()))
    assert max(carried(model).values()) < 1e-5
    for attention, mlp in parts(model):
        for module in (attention.v_proj, mlp.up_proj, mlp.gate_proj):
            assert delta(module).norm() > 0.05
    direct = trained(tiny.adapted(tiny.llama()), Protection(write_constraint=True))
    assert min(carried(direct).values()) > 1e-2


def test_queries_and_keys_are_free_and_writers_are_held_as_before() -> None:
    batch = tiny.adapted(tiny.llama(), strength=0.3)
    before = tiny.adapter_weights(batch, "lora_B")
    with protect(batch, tiny.subspace(2), protection=INDIRECT) as guard:
        guard.constrain()
        assert guard.leakage() <= 1e-6
    after = tiny.adapter_weights(batch, "lora_B")
    for name, weight in before.items():
        if "q_proj" in name or "k_proj" in name:
            assert torch.equal(after[name], weight)
        else:
            assert (after[name] - weight).norm() > 1e-2
    q = basis()
    for name, weight in tiny.written(batch).items():
        torch.testing.assert_close(weight, before[name] - q @ (q.T @ before[name]))


def test_values_move_nothing_along_the_subspace_whatever_the_attention() -> None:
    """Only values are adapted and the MLP is silent, so the stream's own coordinate tells."""
    base = tiny.llama(layers=1)
    with torch.no_grad():
        base.model.layers[0].mlp.down_proj.weight.zero_()
    model = tiny.adapted(base, targets=["v_proj"], strength=0.5)
    batch = tiny.batch(9, 7)
    with torch.no_grad(), layer_outputs(model) as outputs:
        with model.disable_adapter():
            model(**batch)
        before = outputs[0]
        model(**batch)
        free = outputs[0]
        WriteConstraint(model, [basis()], indirect=True).apply()
        model(**batch)
        held = outputs[0]
    assert ((free - before) @ basis()).abs().max() > 0.1
    assert ((held - before) @ basis()).abs().max() < 1e-4
    assert (held - before).abs().max() > 0.1


def test_only_what_is_carried_is_taken_away() -> None:
    """A value update that no head carries into Q stays as it is."""
    model = tiny.adapted(tiny.llama(), strength=0.3)
    constraint = WriteConstraint(model, [basis()] * 2, indirect=True)
    constraint.apply()
    once = tiny.adapter_weights(model, "lora_B")
    constraint.apply()
    for name, weight in tiny.adapter_weights(model, "lora_B").items():
        torch.testing.assert_close(weight, once[name], rtol=1e-5, atol=1e-6)
    # Of a group's 8 numbers two heads and two directions take four.
    attention, mlp = parts(model)[0]
    whole = attention.v_proj.lora_B["default"].weight
    assert torch.linalg.matrix_rank(whole[:HEAD], tol=1e-4) == 4
    assert torch.linalg.matrix_rank(mlp.up_proj.lora_B["default"].weight, tol=1e-4) == 4


def test_half_a_share_takes_half_away() -> None:
    model = tiny.adapted(tiny.llama(), strength=0.3)
    before = tiny.written(model)
    WriteConstraint(model, [basis()] * 2, indirect=False).apply(share=0.5)
    q = basis()
    for name, weight in tiny.written(model).items():
        torch.testing.assert_close(weight, before[name] - 0.5 * q @ (q.T @ before[name]))


def test_neurons_of_an_mlp_without_gate_are_followed_and_a_fused_attention_is_refused() -> None:
    model = trained(tiny.adapted(tiny.gpt2(), targets=["c_fc", "mlp.c_proj"]))
    q = basis()
    for layer in model.get_base_model().transformer.h:
        writes = layer.mlp.c_proj.get_base_layer().weight  # Conv1D: (d_in, d_out)
        change = layer.mlp.c_fc.lora_B["default"].weight
        assert change.norm() > 0.05
        assert (q.T @ writes.T @ change).norm() < 1e-5 * writes.norm() * change.norm()
    with (
        pytest.raises(InputError, match=r"what .*attn\.c_attn feeds: it is fused, or unknown"),
        protect(tiny.adapted(tiny.gpt2()), tiny.subspace(1), protection=INDIRECT),
    ):
        pass


def test_fused_projections_are_refused_by_name() -> None:
    config = Phi3Config(
        hidden_size=tiny.WIDTH,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        pad_token_id=0,
    )
    for target in ("qkv_proj", "gate_up_proj"):
        model = tiny.adapted(Phi3ForCausalLM(config), targets=[target])
        with pytest.raises(InputError, match=rf"\.{target} feeds: it is fused"):
            WriteConstraint(model, [basis()], indirect=True)


def test_a_norm_behind_the_writer_is_refused() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        hidden_size=tiny.WIDTH,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HEAD,
        vocab_size=64,
    )
    model = tiny.adapted(Gemma2ForCausalLM(config), targets=["v_proj"])
    with pytest.raises(InputError, match=r"v_proj feeds: a norm follows what it feeds"):
        WriteConstraint(model, [basis()], indirect=True)


def test_a_head_width_of_its_own_is_followed() -> None:
    """Heads of 4 numbers where the stream's width over the heads would be 8."""
    config = LlamaConfig(
        hidden_size=tiny.WIDTH,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        vocab_size=64,
        initializer_range=0.2,
    )
    model = tiny.adapted(LlamaForCausalLM(config), targets=["v_proj"], strength=0.3)
    WriteConstraint(model, [basis(1)], indirect=True).apply()
    ((attention, _),) = parts(model)
    values, writer = delta(attention.v_proj), attention.o_proj.weight
    for head in range(4):
        reads = basis(1).T @ writer[:, head * 6 : (head + 1) * 6]
        group = values[(head // 2) * 6 : (head // 2 + 1) * 6]
        assert group.norm() > 0.1
        assert (reads @ group).norm() < 1e-5


def test_indirect_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="indirect needs write_constraint too"):
        Protection(indirect=True)
