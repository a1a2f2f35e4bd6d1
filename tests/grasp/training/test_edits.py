"""Edits of finished adapters against dense linear algebra, and steering against planted drift."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.intruders import reduce_intruder_dimension
from torch import Tensor

from analysis.errors import InputError
from grasp.guard.context import protect
from grasp.guard.steering import steering_vectors
from grasp.model.hooks import layer_outputs
from grasp.settings.protection import Protection
from grasp.training.edits import Given, edit_adapter, intruder_dimensions
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)


def deltas(model: PeftModel) -> dict[str, np.ndarray]:
    return {
        name: module.get_delta_weight("default").detach().double().numpy()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def edit(name: str, strength: float, *, family: str = "llama", **options: Any) -> Any:
    """A model's updates before and after an edit."""
    model = tiny.adapted(tiny.family(family), strength=0.3)
    before = deltas(model)
    edit_adapter(model, name, strength=strength, given=Given(**options))
    return model, before, deltas(model)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_wise_ft_lies_between_base_and_naive(share: float, family: str) -> None:
    model, before, after = edit("wise-ft", share, family=family)
    for name, delta in before.items():
        np.testing.assert_allclose(after[name], share * delta, atol=1e-6)
    batch = tiny.batch(7)
    naive = tiny.adapted(tiny.family(family), strength=0.3)
    with torch.no_grad():
        end = {0.0: tiny.family(family), 1.0: naive}.get(share)
        if end is not None:
            torch.testing.assert_close(model(**batch).logits, end(**batch).logits)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("rank", [1, 2, 4, 9])
def test_truncation_is_that_of_the_dense_svd(rank: int, family: str) -> None:
    model, before, after = edit("spectral-truncation", rank, family=family)
    for name, delta in before.items():
        left, sigma, right = np.linalg.svd(delta)
        kept = left[:, :rank] * sigma[:rank] @ right[:rank]
        np.testing.assert_allclose(after[name], kept, atol=1e-5)
    assert all(b.shape[1] == 4 for b in tiny.adapter_weights(model, "lora_B").values())


def test_a_planted_intruder_is_found_and_shrunk_alone() -> None:
    """W has the unit vectors as singular vectors; the update brings a strong skew direction."""
    weight = torch.diag(torch.arange(8.0, 0, -1)).double()
    skew = torch.ones(8).double() / np.sqrt(8)
    reads = torch.nn.functional.normalize(torch.randn(8, generator=gen()).double(), dim=0)
    found = intruder_dimensions(weight, 60 * torch.outer(skew, reads))
    assert found.shape[1] >= 1
    assert (found.T @ skew).norm() == pytest.approx(1, abs=0.05)
    assert intruder_dimensions(weight, 0.1 * torch.eye(8).double()).shape[1] == 0
    assert intruder_dimensions(weight, torch.zeros(8, 8).double()).shape[1] == 0


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_intruder_shrinkage_takes_the_update_along_intruders(share: float) -> None:
    """Oracle: the same by a dense SVD of each module's whole weight, in numpy."""
    model = tiny.adapted(tiny.llama(), strength=2.0)
    before = deltas(model)
    weights = {
        name: model.get_submodule(name).get_base_layer().weight.detach().double().numpy()
        for name in before
    }
    edit_adapter(model, "intruder-shrinkage", strength=share, given=Given())
    count = 0
    for name, after in deltas(model).items():
        base = np.linalg.svd(weights[name], full_matrices=False)[0]
        tuned = np.linalg.svd(weights[name] + before[name], full_matrices=False)[0][:, :10]
        new = tuned[:, np.abs(tuned.T @ base).max(axis=1) < 0.5]
        count += new.shape[1]
        expected = before[name] - share * new @ (new.T @ before[name])
        np.testing.assert_allclose(after, expected, atol=1e-3)
    assert count > 5


def lora_beside_its_weight() -> PeftModel:
    """W (200, 8) of rank 7, and an update along what W neither writes nor reads, and along its σ₁.

    Left singular vectors of W + ΔW are then those of W and the new one, which W lacks.
    """
    left, right = (torch.linalg.qr(torch.randn(d, 8, generator=gen()))[0] for d in (200, 8))
    linear = torch.nn.Linear(8, 200, bias=False)
    linear.weight.data = left[:, :7] @ torch.diag(torch.arange(7.0, 0, -1)) @ right[:, :7].T
    lora = LoraConfig(target_modules=["0"], r=3, lora_alpha=6)
    model = get_peft_model(torch.nn.Sequential(linear), lora)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            columns, size = (left, 5.0) if "lora_B" in name else (right, 1.0)
            halves = torch.stack([size * columns[:, 7], columns[:, 0], 0 * columns[:, 1]])
            weight.data = halves.T if "lora_B" in name else halves
    return model


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_where_the_weight_has_no_part_in_intruders_shrinkage_is_that_of_peft(share: float) -> None:
    model = lora_beside_its_weight()
    ((_, before),) = deltas(model).items()
    reduce_intruder_dimension(model, mitigation_lambda=1 - share, logging_sink=None)
    layer = model.get_submodule("base_model.model.0")
    theirs = layer.get_delta_weight("intruder_reduced").detach().double().numpy()
    model.set_adapter("default")
    edit_adapter(model, "intruder-shrinkage", strength=share, given=Given())
    ((_, ours),) = deltas(model).items()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    # The intruder's length is 2 · 5, and what lies along σ₁ stays 2 · 1.
    norms = [np.linalg.norm(one, 2) for one in (before, ours)]
    np.testing.assert_allclose(norms, [10, max(10 * (1 - share), 2)], rtol=1e-5)


def test_intruders_are_those_that_peft_finds() -> None:
    model = tiny.adapted(tiny.llama(), strength=2.0)
    ours = {
        name: intruder_dimensions(
            module.get_base_layer().weight, module.get_delta_weight("default")
        ).shape[1]
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    lines: list[str] = []
    reduce_intruder_dimension(model, logging_sink=lines.append)
    theirs = dict(line.split(": ", 1) for line in lines if ": " in line)
    assert theirs == {
        name: f"Intruders: {count}" if count else "No intruders" for name, count in ours.items()
    }
    assert sum(ours.values()) > 5


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_removal_takes_the_factors_out_of_what_writers_write(family: str) -> None:
    rows = tiny.subspace(2).astype(np.float32)
    _, before, after = edit("removal", 1.0, family=family, directions=rows)
    writers = {"llama": tiny.LLAMA_WRITERS, "gpt2": ("c_proj",)}[family]
    for name, delta in before.items():
        # The delta of GPT-2's Conv1D is (d_in, d_out).
        found, given_ = (d.T if family == "gpt2" else d for d in (after[name], delta))
        inside = rows.T @ (rows @ given_) if name.endswith(writers) else 0
        np.testing.assert_allclose(found, given_ - inside, atol=1e-5)
    _, _, half = edit("removal", 0.5, family=family, directions=rows)
    for name, delta in before.items():
        np.testing.assert_allclose(half[name], (delta + after[name]) / 2, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(share=st.floats(0, 1), rank=st.integers(1, 6))
def test_an_edit_saved_is_the_edit_made(share: float, rank: int) -> None:
    """Through PEFT's own files, to the rounding of float32."""
    for name, strength in (("wise-ft", share), ("spectral-truncation", float(rank))):
        model, _, after = edit(name, strength)
        with TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            loaded = deltas(PeftModel.from_pretrained(tiny.llama(), folder))
        for module, delta in after.items():
            np.testing.assert_allclose(loaded[module], delta, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "strength", "message"),
    [
        ("wise-ft", -0.1, "Got a share of -0.1; expected 0 to 1"),
        ("removal", 1.1, "Got a share of 1.1; expected 0 to 1"),
        ("spectral-truncation", 1.5, "Got 1.5 singular directions to keep; expected a whole"),
        ("spectral-truncation", 0, "Got 0 singular directions to keep"),
    ],
)
def test_a_strength_out_of_range_is_refused(name: str, strength: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        edit(name, strength, directions=tiny.subspace(1).astype(np.float32))


@pytest.mark.parametrize("extra", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_an_adapter_that_is_more_than_lora_is_refused(extra: dict[str, Any]) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["v_proj"], **extra)
    with pytest.raises(InputError, match="has more than LoRA's update"):
        edit_adapter(get_peft_model(tiny.llama(), config), "wise-ft", strength=0.5, given=Given())


# Steering


def drifting(sign: float) -> tuple[PeftModel, np.ndarray]:
    """A model whose down_proj writes along one direction, by the sign of a fixed activation."""
    rows = tiny.subspace(1)
    model = tiny.adapted(tiny.llama(), targets=["down_proj"], strength=0.0)
    along = torch.as_tensor(rows[0], dtype=torch.float32)
    seen: list[Tensor] = []
    module = model.get_base_model().model.layers[0].mlp.down_proj
    handle = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    batch = tiny.batch(9, 7)
    with torch.no_grad():
        model(**batch)
    handle.remove()
    reads = seen[0][batch["attention_mask"].bool()].mean(dim=0)
    with torch.no_grad():
        module.lora_B["default"].weight.zero_()
        module.lora_A["default"].weight.zero_()
        module.lora_B["default"].weight[:, 0] = sign * along
        module.lora_A["default"].weight[0] = 50 * reads / reads.square().sum()
    return model, rows


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_steering_points_where_the_naive_run_went_by_the_bases_spread(sign: float) -> None:
    model, rows = drifting(sign)
    batches = [tiny.batch(9, 7), tiny.batch(8, 8, seed=1)]
    vectors = steering_vectors(model, rows, batches, site="all").numpy()
    coordinates: list[list[np.ndarray]] = [[], []]
    for batch in batches:
        inner = batch["attention_mask"].bool()
        inner[:, 0] = False
        base = tiny.llama()
        with torch.no_grad(), layer_outputs(base) as outputs:
            base(**batch)
        for layer, hidden in enumerate(outputs):
            coordinates[layer].append(hidden[inner].double().numpy() @ rows[0])
    sigma = np.array([np.concatenate(layer).std(ddof=1) for layer in coordinates])
    # What is added stays in the stream, so the sum up to a layer is what displaces it.
    np.testing.assert_allclose(np.cumsum(vectors @ rows[0]), sign * sigma, rtol=1e-4)
    np.testing.assert_allclose(
        vectors - np.outer(vectors @ rows[0], rows[0]), np.zeros_like(vectors), atol=1e-5
    )


def test_preventative_steering_displaces_training_and_leaves_drift_as_it_is() -> None:
    model, batch = tiny.adapted(tiny.llama(), strength=0.1), tiny.batch(7)
    vectors = torch.randn(2, tiny.WIDTH, generator=gen())
    neutral = [tiny.batch(6, 9)]
    with protect(model, tiny.subspace(1), protection=Protection(), neutral=neutral) as guard:
        plain = guard.drift().by_layer
    with torch.no_grad(), layer_outputs(model) as before:
        model(**batch)
    with (
        protect(
            model,
            tiny.subspace(1),
            protection=Protection(steering=2.0),
            neutral=neutral,
            steering=vectors,
        ) as guard,
        layer_outputs(model) as after,
        torch.no_grad(),
    ):
        model(**batch)
        torch.testing.assert_close(after[0], before[0] + 2 * vectors[0])
        assert guard.drift().by_layer == plain


def gen() -> torch.Generator:
    return torch.Generator().manual_seed(0)
