"""The guard in plain training loops of every usual kind: precision, checkpointing, compiled and
wrapped models, padding, packing, several adapters; and what is left when it ends."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import OPTConfig, OPTForCausalLM

from analysis.errors import InputError
from grasp.guard.context import protect
from grasp.model.hooks import ablate, layer_outputs, project_gradient
from grasp.settings.protection import Protection
from tests.support import tiny

pytestmark = [
    pytest.mark.filterwarnings(tiny.PEFT_WARNING),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
]

GRASP = Protection(write_constraint=True, anchor=True, strength=5.0)
ANCHOR = Protection(anchor=True, strength=5.0)
EFFECT = Protection(effect=True, own_step=True, strength=2.0, site="answer")
EDITS = [Protection(gradient_projection=True), Protection(ablation=True)]
BF16 = torch.bfloat16


def autocast(on: bool) -> Any:
    return torch.autocast("cpu", dtype=BF16) if on else nullcontext()


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=1e-2)


def loss_of(model: Any, *lengths: int) -> Tensor:
    batch = tiny.batch(*lengths, seed=5)
    loss: Tensor = model(**batch, labels=batch["input_ids"]).loss
    return loss


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}
    model.zero_grad()
    return found


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], *, rtol: float = 1e-4) -> None:
    """Equal, to `rtol` of each tensor's largest entry; and not all of them zero."""
    assert a.keys() == b.keys()
    for name, one in a.items():
        atol = rtol * float(one.abs().max())
        torch.testing.assert_close(b[name], one, rtol=0, atol=atol, msg=f"{name} differs")
    assert max(float(one.abs().max()) for one in a.values()) > 1e-3


def opt(*, dropout: float = 0.0) -> OPTForCausalLM:
    """Its layers drop out by their own mode, not by that of a Dropout module."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=len(tiny.tokenizer()),
        hidden_size=tiny.WIDTH,
        word_embed_proj_dim=tiny.WIDTH,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        dropout=dropout,
        init_std=0.2,
    )
    return OPTForCausalLM(config).eval()


# Precision


@pytest.mark.parametrize("made_under", [False, True])
@pytest.mark.parametrize("used_under", [False, True])
def test_a_fresh_adapter_has_no_drift_under_autocast(made_under: bool, used_under: bool) -> None:
    """Else what bfloat16 rounds would be held against the adapter, which cannot undo it."""
    model = tiny.adapted(tiny.llama())
    with autocast(made_under):
        context = protect(model, tiny.subspace(3), protection=ANCHOR, neutral=[tiny.batch(6, 9)])
        guard = context.__enter__()
    with autocast(used_under):
        assert guard.penalty().item() == 0
        assert guard.drift().rms == 0
    context.__exit__(None, None, None)


@pytest.mark.parametrize("narrow", [False, True])
def test_coordinates_are_float32_whatever_the_model_computes_in(narrow: bool) -> None:
    """Oracle: the same hidden states in float64.  A product in bfloat16 is off by 4e-3."""
    model, batch = tiny.adapted(tiny.llama(), strength=0.1), tiny.batch(6, 9)
    if narrow:
        model.get_base_model().to(BF16)
    real, rows = batch["attention_mask"].bool(), torch.as_tensor(tiny.subspace(3).copy())

    def coordinates() -> Tensor:
        with torch.no_grad(), layer_outputs(model) as outputs:
            model(**batch)
        return torch.stack([h[real].double() @ rows.T for h in outputs])

    with autocast(not narrow):
        moved = coordinates()
        with model.disable_adapter():
            base = coordinates()
        expected = ((moved - base).square() / base.var(dim=1, keepdim=True)).mean(dim=(1, 2)).sqrt()
        with protect(model, rows.numpy(), protection=ANCHOR, neutral=[batch]) as guard:
            found = guard.drift()
    assert found.by_layer == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("base", [torch.float32, BF16])
def test_float32_adapter_weights_keep_the_constraint_exactly(base: torch.dtype) -> None:
    """PEFT keeps them in float32 on a bfloat16 base; the whole step is under autocast, as the
    optimiser's often is by mistake."""
    model = in_dtype(base, adapter=torch.float32)
    optimizer = adam(model)
    with protect(
        model, tiny.subspace(3), protection=GRASP, neutral=[tiny.batch(6, 9)], optimizer=optimizer
    ) as guard:
        for _ in range(4):
            with autocast(True):
                (loss_of(model, 8, 6) + guard.penalty()).backward()
                optimizer.step()
                optimizer.zero_grad()
                assert guard.leakage() <= 1e-6
    assert leaked(model) <= 1e-6


def test_bfloat16_adapter_weights_leak_their_own_rounding_and_no_more() -> None:
    """Each entry is rounded by at most 2⁻⁹ of itself, and so ‖Qᵀ(rounded − B)‖ ≤ 2⁻⁹ ‖B‖.

    Of a rounding that is spread evenly, √(k/d) of that lies in the subspace.
    """
    model = in_dtype(BF16, adapter=BF16)
    optimizer = adam(model)
    with protect(
        model, tiny.subspace(3), protection=GRASP, neutral=[tiny.batch(6, 9)], optimizer=optimizer
    ) as guard:
        for _ in range(4):
            (loss_of(model, 8, 6) + guard.penalty()).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert guard.leakage() == pytest.approx(leaked(model), rel=1e-3)
    assert 1e-5 < leaked(model) < 1.5 * 2**-9 * math.sqrt(3 / tiny.WIDTH)


def in_dtype(base: torch.dtype, *, adapter: torch.dtype) -> PeftModel:
    model = tiny.adapted(tiny.llama().to(base))
    for weight in tiny_parameters(model):
        weight.data = weight.data.to(adapter)
    return model


def tiny_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [w for n, w in model.named_parameters() if "lora_" in n]


def leaked(model: nn.Module) -> float:
    """‖Qᵀ B‖ / ‖B‖ in float64."""
    rows = torch.as_tensor(tiny.subspace(3).copy())
    weights = [w.double() for w in tiny.written(model).values()]
    inside = sum(float((rows @ w).square().sum()) for w in weights)
    return math.sqrt(inside / sum(float(w.square().sum()) for w in weights))


@pytest.mark.parametrize(("dtype", "rest"), [(torch.float32, 1e-5), (BF16, 2**-8)])
def test_edits_are_as_exact_as_what_they_edit(dtype: torch.dtype, rest: float) -> None:
    """Autocast would make them products in bfloat16, and the basis no longer orthonormal."""
    q = torch.as_tensor(tiny.subspace(3).T.copy(), dtype=torch.float32)
    hidden = torch.randn(50, tiny.WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)
    hidden.requires_grad_()
    with autocast(True):
        ablated = ablate([q])(0, hidden)
        project_gradient([q])(0, hidden.clone()).float().pow(3).sum().backward()
    for left in (ablated, hidden.grad):
        assert left.dtype == dtype
        assert (left.float() @ q).norm() < rest * left.float().norm()
        assert left.float().norm() > 1


# Checkpointed activations


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("build", [tiny.llama, tiny.gpt2, opt])
def test_the_penalty_of_a_checkpointed_model_has_the_same_gradient(
    build: Any, reentrant: bool
) -> None:
    """Dropout is off when the backward pass computes a layer again, as it was the first time."""
    found = []
    for checkpointing in (False, True):
        base = build() if build is tiny.llama else build(dropout=0.3)
        model = tiny.adapted(base, strength=0.1, dropout=0.3)
        if checkpointing:
            checkpoint(model, reentrant=reentrant)
        model.train()
        with protect(
            model, tiny.subspace(3), protection=ANCHOR, neutral=[tiny.batch(6, 9)]
        ) as guard:
            drift = guard.drift().by_layer
            guard.penalty().backward()
        assert all(module.training for module in model.modules())
        found.append((gradients(model), drift))
    assert_same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("protection", EDITS, ids=["projection", "ablation"])
def test_edits_of_a_checkpointed_model_give_the_same_gradient(
    protection: Protection, reentrant: bool
) -> None:
    found = []
    for checkpointing in (False, True):
        model = tiny.adapted(tiny.llama(), strength=0.1).train()
        if checkpointing:
            checkpoint(model, reentrant=reentrant)
        with protect(
            model, tiny.subspace(3), protection=protection, neutral=[tiny.batch(6, 9)]
        ) as guard:
            loss_of(model, 8, 6).backward()
            found.append((gradients(model), guard.drift().by_layer))
    assert_same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def checkpoint(model: PeftModel, *, reentrant: bool) -> None:
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:  # else no adapter gets a gradient, whoever trains it
        model.enable_input_require_grads()


# Compiled and wrapped models


@pytest.fixture
def compiling(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.WARNING, "torch.__trace")  # else pytest keeps all of it, slowly
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("compiling")
@pytest.mark.filterwarnings("ignore:.*of a Tensor that is not a leaf:UserWarning")  # Dynamo's own
@pytest.mark.parametrize(
    ("protection", "in_place"), [(EDITS[0], False), (EDITS[1], True)], ids=["wrapped", "in-place"]
)
def test_a_model_compiled_before_is_protected_and_left_as_it_was(
    protection: Protection, in_place: bool
) -> None:
    found = []
    for compiled in (False, True):
        model = tiny.adapted(tiny.llama(layers=1), strength=0.1)
        run: Any = model
        if compiled and in_place:
            model.compile(backend="eager")
        elif compiled:
            run = torch.compile(model, backend="eager")
        loss_of(run, 8).backward()
        before = gradients(model)
        with protect(
            run, tiny.subspace(3), protection=protection, neutral=[tiny.batch(8)]
        ) as guard:
            loss_of(run, 8).backward()
            during, drift = gradients(model), guard.drift().by_layer
        loss_of(run, 8).backward()
        assert_same(before, gradients(model))
        found.append((during, drift))
        assert max(float((during[n] - g).abs().max()) for n, g in before.items()) > 1e-2
    assert_same(found[0][0], found[1][0])
    assert found[0][1] == pytest.approx(found[1][1])


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_a_wrapped_model_follows_the_penalty_as_a_plain_one(tmp_path: Path) -> None:
    """The penalty goes backward apart from the loss, whose gradient alone is averaged."""
    naive = tiny.save_naive(tmp_path / "naive")
    ends = []
    for wrapped, strength in ((False, 2.0), (True, 2.0), (True, 0.0)):
        model = tiny.adapted(tiny.llama()).train()
        run = DistributedDataParallel(model) if wrapped else model
        optimizer = adam(model)
        with protect(
            run,
            tiny.subspace(3),
            protection=EFFECT.model_copy(update={"strength": strength}),
            neutral=[tiny.batch(6, 9)],
            naive=naive,
            optimizer=optimizer,
        ) as guard:
            for _ in range(3):
                (loss_of(run, 8, 6) + guard.penalty()).backward()
                optimizer.step()
                optimizer.zero_grad()
        ends.append(tiny.adapter_weights(model))
    assert_same(*ends[:2])
    assert max(float((ends[0][n] - ends[2][n]).abs().max()) for n in ends[0]) > 1e-3


@pytest.mark.usefixtures("one_process")
def test_a_model_wrapped_for_data_parallel_training_is_protected() -> None:
    ends = []
    everything = GRASP.model_copy(update={"gradient_projection": True})
    for wrapped in (False, True):
        model = tiny.adapted(tiny.llama()).train()
        run = DistributedDataParallel(model) if wrapped else model
        optimizer = torch.optim.SGD([w for w in model.parameters() if w.requires_grad], lr=0.05)
        with protect(
            run,
            tiny.subspace(3),
            protection=everything,
            neutral=[tiny.batch(6, 9)],
            optimizer=optimizer,
        ) as guard:
            for _ in range(3):
                (loss_of(run, 8, 6) + guard.penalty()).backward()
                optimizer.step()
                optimizer.zero_grad()
            assert guard.leakage() <= 1e-6
        ends.append(tiny.adapter_weights(model))
    assert_same(*ends)


def test_what_is_no_whole_peft_model_is_refused() -> None:
    expected = r"Got a LlamaForCausalLM; expected a PeftModel whose weights are whole on each dev"
    with (
        pytest.raises(InputError, match=expected),
        protect(tiny.llama(), tiny.subspace(1), protection=Protection()),
    ):
        pass


# Padding and packing


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_padding_on_either_side_gives_the_penalty_of_no_padding(name: str) -> None:
    """GPT-2 counts positions from the first token, so that padding would move the rest."""
    model = tiny.adapted(tiny.family(name), strength=0.1)
    lengths, found = (6, 9, 4), {}
    right = tiny.batch(*lengths)
    left = {
        key: torch.stack([row.roll(9 - n) for row, n in zip(right[key], lengths, strict=True)])
        for key in right
    }
    for side, batch in (("right", right), ("left", left)):
        with protect(model, tiny.subspace(3), protection=ANCHOR, neutral=[batch]) as guard:
            guard.penalty().backward()
            found[side] = (gradients(model), guard.drift().by_layer)
    alone = [{key: right[key][i : i + 1, :n] for key in right} for i, n in enumerate(lengths)]
    with protect(model, tiny.subspace(3), protection=ANCHOR, neutral=alone) as guard:
        expected = guard.drift().by_layer
        for n in lengths:
            (guard.penalty() * n / sum(lengths)).backward()
        gradient = gradients(model)
    for side in ("right", "left"):
        assert found[side][1] == pytest.approx(expected, rel=1e-4)
        assert_same(gradient, found[side][0], rtol=1e-3)


def test_neutral_text_that_is_packed_is_refused() -> None:
    packed = {
        "input_ids": torch.ones(1, 4, dtype=torch.long),
        "position_ids": torch.arange(4)[None],
    }
    with (
        pytest.raises(InputError, match="has input_ids, position_ids but no attention_mask; pass"),
        protect(tiny.adapted(tiny.llama()), tiny.subspace(1), protection=ANCHOR, neutral=[packed]),
    ):
        pass


@pytest.mark.parametrize("protection", EDITS, ids=["projection", "ablation"])
def test_edits_of_packed_rows_give_the_gradient_of_the_rows_apart(protection: Protection) -> None:
    model, lengths = tiny.adapted(tiny.llama(), strength=0.1), (6, 9, 4)
    rows = [tiny.batch(n, seed=n)["input_ids"] for n in lengths]
    packed = {
        "input_ids": torch.cat(rows, dim=1),
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
    }
    with protect(model, tiny.subspace(3), protection=protection):
        for ids in rows:
            model(input_ids=ids, use_cache=False).logits.square().sum().backward()
        apart = gradients(model)
        model(**packed, use_cache=False).logits.square().sum().backward()
        assert_same(apart, gradients(model), rtol=1e-3)


# Other adapters and other trained weights


def test_only_the_trained_active_adapter_is_constrained() -> None:
    model = tiny.adapted(tiny.llama(), strength=0.3)
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    for name in ("idle", "finished"):
        model.add_adapter(name, lora)
    model.base_model.set_adapter(["default", "finished"])
    for name, weight in model.named_parameters():
        weight.requires_grad_(".default." in name)
    before = {n: w.detach().clone() for n, w in model.named_parameters()}
    with protect(model, tiny.subspace(3), protection=GRASP, neutral=[tiny.batch(6)]) as guard:
        guard.constrain()
        assert guard.leakage() <= 1e-6
    # PEFT trains all of the active adapters again once one was disabled, as the anchor does.
    assert all(w.requires_grad is (".default." in n) for n, w in model.named_parameters())
    changed = {n for n, w in model.named_parameters() if not torch.equal(w, before[n])}
    assert changed == {n for n in tiny.written(model) if ".default." in n}
    assert len(changed) == 4


def test_other_trained_weights_are_left_alone_and_their_drift_is_seen() -> None:
    """A copy of the embedding that the adapter brings, and the model's own output weights."""
    config = LoraConfig(r=4, target_modules=["o_proj", "q_proj"], modules_to_save=["embed_tokens"])
    model = get_peft_model(tiny.llama(), config)
    model.get_base_model().lm_head.weight.requires_grad_()
    optimizer = adam(model)
    q = torch.as_tensor(tiny.subspace(3).T.copy(), dtype=torch.float32)
    start = {n: w.detach().clone() for n, w in model.named_parameters() if w.requires_grad}
    with protect(
        model,
        tiny.subspace(3),
        protection=GRASP,
        neutral=[tiny.batch(8, 6, seed=5)],
        optimizer=optimizer,
    ) as guard:
        (loss_of(model, 8, 6) + guard.penalty()).backward()
        optimizer.step()
        assert guard.leakage() <= 1e-6
        moved = {n: w - start[n] for n, w in model.named_parameters() if n in start}
        for name in ("embed_tokens.modules_to_save.default.weight", "lm_head.weight"):
            (change,) = (m for n, m in moved.items() if n.endswith(name))
            assert (change @ q).norm() > 0.1 * change.norm()
        before = guard.drift().rms
        with torch.no_grad():
            for weight in tiny_parameters(model):
                weight.zero_()
        assert before > 0.01
        assert guard.drift().rms > 0.01  # the embedding's own


# What is left behind


def hooks(model: nn.Module, optimizer: torch.optim.Optimizer) -> Counter[str]:
    """How many hooks of each kind the modules and the optimizer have."""
    found: Counter[str] = Counter()
    for module in model.modules():
        found.update({k: len(v) for k, v in vars(module).items() if k.endswith("_hooks")})
    found.update({k: len(v) for k, v in vars(optimizer).items() if k.endswith("_hooks")})
    return found


@pytest.mark.parametrize("ends", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["block", "forward", "penalty"])
def test_no_hook_outlives_the_block(
    where: str, ends: type[BaseException] | None, tmp_path: Path
) -> None:
    model = tiny.adapted(tiny.llama(), dropout=0.3).train()
    checkpoint(model, reentrant=True)
    optimizer = adam(model)
    before, modes = hooks(model, optimizer), [m.training for m in model.modules()]
    functions = [getattr(m, "_gradient_checkpointing_func", None) for m in model.modules()]
    weights = Counter(len(w._backward_hooks or {}) for w in model.parameters())
    everything = GRASP.model_copy(
        update={
            "gradient_projection": True, "ablation": True, "effect": True, "own_step": True,
            "tolerance": 0.1,
        }
    )  # fmt: skip

    def fail(*_: Any) -> None:
        if ends is not None:
            raise ends("in the middle")

    layer = model.get_base_model().model.layers[1].mlp
    with (
        pytest.raises(ends, match="in the middle") if ends else nullcontext(),
        protect(
            model,
            tiny.subspace(2),
            protection=everything,
            neutral=[tiny.batch(6)],
            naive=tiny.save_naive(tmp_path),
            optimizer=optimizer,
        ) as guard,
    ):
        # Two edits of two layers, and before and after each step of the optimiser.
        assert sum(hooks(model, optimizer).values()) == sum(before.values()) + 6
        (loss_of(model, 8) + guard.penalty()).backward()
        optimizer.step()
        if where == "block":
            fail()
        handle = layer.register_forward_hook(fail)
        try:
            loss_of(model, 8) if where == "forward" else guard.penalty()
        finally:
            handle.remove()
    assert hooks(model, optimizer) == before
    assert [m.training for m in model.modules()] == modes
    assert [getattr(m, "_gradient_checkpointing_func", None) for m in model.modules()] == functions
    assert Counter(len(w._backward_hooks or {}) for w in model.parameters()) == weights
