"""Every family: the residual stream is where we take it, and GRASP holds it in training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from analysis.adapters.architectures import module_layer, module_side
from grasp.guard.context import protect
from grasp.model.hooks import layer_outputs
from grasp.model.loading import check_width, decoder_layers
from grasp.settings.protection import Protection
from tests.support import tiny, tiny_families

pytestmark = [
    pytest.mark.filterwarnings(tiny.PEFT_WARNING),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    # PEFT looks for patterns of Mixtral's experts that all-linear leaves alone.
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"),
]
FAMILIES = tuple(tiny_families.CONFIGS)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_residual_stream_is_what_the_model_itself_reports(name: str) -> None:
    """Oracle: `hidden_states`, whose last entry has been through the final norm, and the logits."""
    model = tiny_families.build(name)
    assert len(decoder_layers(model)) == tiny_families.LAYERS
    batch = tiny.batch(7, 5)
    with torch.no_grad(), layer_outputs(model) as outputs:
        found = model(**batch, output_hidden_states=True, use_cache=False)
    for ours, theirs in zip(outputs[:-1], found.hidden_states[1:-1], strict=True):
        assert torch.equal(ours, theirs)
    last = outputs[-1]
    core = getattr(model.get_decoder(), "decoder", model.get_decoder())
    for part in ("norm", "ln_f", "final_layer_norm", "project_out"):
        applied = getattr(core, part, None)
        last = last if applied is None else applied(last)
    torch.testing.assert_close(last, found.hidden_states[-1])
    cap = getattr(model.config, "final_logit_softcapping", None)
    logits = model.get_output_embeddings()(last)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    torch.testing.assert_close(logits, found.logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_layer_adds_what_its_writing_modules_write(name: str) -> None:
    """With the weights of all writing modules zero, nothing is added to what came in.

    So a module that writes and is not in the table would show.  A norm between a module and the
    stream, as Gemma's, leaves nothing nothing; OPT's norm after each part rescales what there is.
    """
    if name == "opt, norm after":
        pytest.skip("its layers norm the stream itself")
    model = tiny_families.build(name)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            parts = path.split(".")
            module = path.rpartition(".")[0]
            fused = parts[-1] == "down_proj" and weight.ndim == 3  # experts side by side
            writes = fused or module_side(module) == "write"
            if writes and module_layer(path) is not None:
                weight.zero_()
        batch = tiny.batch(6)
        with layer_outputs(model) as outputs:
            model(**batch, use_cache=False)
    assert all(torch.equal(outputs[0], later) for later in outputs[1:])
    assert float(outputs[0].abs().max()) > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_a_protected_training_step_writes_nothing_into_the_subspace(name: str) -> None:
    model = tiny.adapted(tiny_families.build(name))
    check_width(model, tiny.subspace(2))
    basis = torch.as_tensor(tiny.subspace(2), dtype=torch.float32)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    protection = Protection(write_constraint=True, gradient_projection=True, anchor=True)
    batch = tiny.batch(8, 6)
    model.train()
    with protect(
        model, tiny.subspace(2), protection=protection, neutral=[tiny.batch(5, 7, seed=1)],
        optimizer=optimizer,
    ) as guard:  # fmt: skip
        for _ in range(2):
            loss = model(**batch, labels=batch["input_ids"]).loss
            penalty = guard.penalty()
            assert penalty is not None
            (loss + penalty).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert guard.leakage() <= 1e-6
    written = writers(model)
    assert len(written) >= tiny_families.LAYERS
    for path, lora_B in written.items():
        inside = (basis @ (gain_after(model, path)[:, None] * lora_B)).norm()
        assert float(lora_B.norm()) > 0, path
        assert float(inside) <= 1e-6 * float(lora_B.norm()), path
    assert not any(m._forward_hooks or m._backward_hooks for m in decoder_layers(model))


def gain_after(model: Any, path: str) -> torch.Tensor:
    """What the norm between a module and the stream makes of equal numbers: its gain, to scale."""
    ones = torch.ones(tiny.WIDTH)
    if model.get_base_model().config.model_type not in ("gemma2", "gemma3_text", "olmo2"):
        return ones
    layer = model.get_submodule(path.rpartition(".")[0].rpartition(".")[0])
    after = {"o_proj": "post_attention_layernorm", "down_proj": "post_feedforward_layernorm"}
    with torch.no_grad():
        found: torch.Tensor = getattr(layer, after[path.rpartition(".")[2]])(ones)
    return found


def writers(model: Any) -> dict[str, torch.Tensor]:
    """lora_B (d_model, r) of what writes, by the names that each family's own code gives."""
    names = ("o_proj", "out_proj", "down_proj", "fc2", "attn.c_proj", "mlp.c_proj",
             "attention.dense", "self_attention.dense", "dense_4h_to_h")  # fmt: skip
    found = {}
    for path, weight in model.named_parameters():
        module = path.partition(".lora_B")[0]
        if ".lora_B" in path and any(module.endswith(f".{name}") for name in names):
            found[module] = weight.detach()
    return found
