"""The task's own tokens: anchor, clamp and divergence in the loss's own forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from trl.trainer.utils import add_fused_lm_head

from analysis.errors import InputError
from grasp.guard.context import protect
from grasp.model.hooks import edited_outputs, layer_outputs
from grasp.model.loading import decoder_layers
from grasp.settings.protection import Protection
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)
LAYERS = 2
NEUTRAL = [tiny.batch(6, 9, seed=3)]


def task(*lengths: int, seed: int = 5, answer: int = 4) -> dict[str, Tensor]:
    """A training batch: from token `answer` on, what is real is the answer."""
    batch = tiny.batch(*lengths, seed=seed)
    place = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
    learned = (place >= answer) & batch["attention_mask"].bool()
    return batch | {"labels": torch.where(learned, batch["input_ids"], -100)}


def site(batch: dict[str, Tensor], name: str, *, answer: int = 4) -> Tensor:
    place = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
    chosen = {
        "prompt-end": place == answer - 1,
        "answer-start": (place >= answer - 1) & (place <= answer + 1),
        "answer": place >= answer - 1,
        "all": place >= 0,
    }
    return chosen[name] & batch["attention_mask"].bool()


def basis() -> Tensor:
    return torch.as_tensor(tiny.subspace(2).T.copy(), dtype=torch.float32)


def stream(model: Any, batch: dict[str, Tensor]) -> list[Tensor]:
    plain = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with layer_outputs(model) as outputs:
        model(**plain)
    return list(outputs)


@contextmanager
def base_passes(model: PeftModel, rows: list[int]) -> Iterator[None]:
    """Add the number of rows of each pass that takes no gradients."""

    def count(_module: Any, _args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if not hidden.requires_grad:
            rows.append(len(hidden))

    handle = decoder_layers(model)[-1].register_forward_hook(count)
    yield
    handle.remove()


def gradients(model: PeftModel) -> dict[str, Tensor]:
    found = {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}
    model.zero_grad()
    return found


def hooks_on(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, gradient in a.items():
        torch.testing.assert_close(gradient, b[name], rtol=1e-3, atol=1e-5)
    assert max(float(g.abs().max()) for g in a.values()) > 1e-2


def written_out(model: PeftModel, batch: dict[str, Tensor], name: str) -> Tensor:
    """mean over layers and tokens of (c − c⁰)² / Λ, with another copy of the base for c⁰ and Λ."""
    base, q, chosen = tiny.llama(), basis(), site(batch, name)
    with torch.no_grad():
        before = stream(base, batch)
        real = NEUTRAL[0]["attention_mask"].bool()
        scales = [(h[real] @ q).var(dim=0) for h in stream(base, NEUTRAL[0])]
    layers = zip(stream(model, batch), before, scales, strict=True)
    squares = [(((h - h0)[chosen] @ q).square() / scale).mean() for h, h0, scale in layers]
    return torch.stack(squares).mean()


@pytest.mark.parametrize("name", ["prompt-end", "answer-start", "answer", "all"])
def test_the_task_anchors_gradient_is_that_of_its_formula(name: Any) -> None:
    model, batch = tiny.adapted(tiny.llama(), strength=0.1), task(9, 6)
    protection = Protection(anchor_task=True, strength=3.0, site=name)
    with protect(model, tiny.subspace(2), protection=protection, neutral=NEUTRAL) as guard:
        loss = model(**batch).loss
        penalty = guard.task_penalty()
        (loss + penalty).backward()
        assert guard.penalty() is None
    found = gradients(model)
    expected = written_out(model, batch, name)
    (model(**batch).loss + 3 * expected).backward()
    same(found, gradients(model))
    assert penalty.item() == pytest.approx(3 * expected.item(), rel=1e-3)


def test_a_row_is_computed_once_however_it_is_batched() -> None:
    model, passes = tiny.adapted(tiny.llama(), strength=0.1), []
    rows = task(9, 6, 7)
    protection = Protection(anchor_task=True, strength=1.0, site="answer")
    with protect(model, tiny.subspace(2), protection=protection, neutral=NEUTRAL) as guard:
        found = []
        for chosen in ([0, 1], [2], [1, 0], [2, 0, 1]):
            batch = {name: tensor[chosen] for name, tensor in rows.items()}
            with base_passes(model, passes):
                model(**batch)
            found.append(guard.task_penalty().item())
    assert passes == [2, 1]  # none from the third batch on
    assert found[0] == pytest.approx(found[2], rel=1e-5)
    tokens = [int(site({k: v[[r]] for k, v in rows.items()}, "answer").sum()) for r in range(3)]
    both = (found[0] * (tokens[0] + tokens[1]) + found[1] * tokens[2]) / sum(tokens)
    assert found[3] == pytest.approx(both, rel=1e-4)


def test_only_rows_that_are_new_are_computed() -> None:
    model, rows = tiny.adapted(tiny.llama(), strength=0.1), task(9, 6, 7)
    protection = Protection(anchor_task=True, strength=1.0, site="answer")
    passes: list[int] = []
    with protect(model, tiny.subspace(2), protection=protection, neutral=NEUTRAL) as guard:
        for chosen in ([1, 2], [0, 1, 2]):
            batch = {name: tensor[chosen] for name, tensor in rows.items()}
            with base_passes(model, passes):
                model(**batch)
            found = guard.task_penalty().item()
    assert passes == [2, 1]
    assert found == pytest.approx(written_out(model, rows, "answer").item(), rel=1e-3)


def test_rows_that_cannot_be_known_again_are_computed_each_time() -> None:
    """Who may attend to whom is no part of a row's tokens."""
    model, batch, passes = tiny.adapted(tiny.llama(), strength=0.1), task(9, 9), []
    apart = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()
    apart[1, :, 5:, :5] = False
    whole = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()
    protection, found = Protection(anchor_task=True, strength=1.0, site="all"), []
    with protect(model, tiny.subspace(2), protection=protection, neutral=NEUTRAL) as guard:
        for mask in (whole, apart, whole):
            with base_passes(model, passes):
                model(**batch | {"attention_mask": mask})
            found.append(guard.task_penalty().item())
    assert passes == [2, 2, 2]
    assert found[0] == pytest.approx(found[2], rel=1e-5)
    assert found[1] != pytest.approx(found[0], rel=1e-3)


def test_padding_on_the_left_counts_no_more_than_on_the_right() -> None:
    model = tiny.adapted(tiny.llama(), strength=0.1)
    right = task(9, 6)
    shift = [0, 3]
    left = {k: torch.stack([v[r].roll(shift[r]) for r in range(2)]) for k, v in right.items()}
    places = (left["attention_mask"].cumsum(1) - 1).clamp_min(0)
    protection = Protection(anchor_task=True, strength=1.0, site="answer")
    found = []
    for batch in (right, left | {"position_ids": places}):
        with protect(model, tiny.subspace(2), protection=protection, neutral=NEUTRAL) as guard:
            model(**batch)
            found.append(guard.task_penalty().item())
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_an_evaluation_in_between_is_not_taken_for_training() -> None:
    model, batch = tiny.adapted(tiny.llama(), strength=0.1), task(9, 6)
    protection = Protection(anchor_task=True, strength=1.0)
    with protect(model, tiny.subspace(2), protection=protection, neutral=NEUTRAL) as guard:
        model(**batch)
        guard.drift()  # passes of the guard's own
        assert guard.task_penalty() is not None
        with torch.no_grad():
            model(**batch)
        with pytest.raises(InputError, match="forward pass, and there was none to be seen: the lo"):
            guard.task_penalty()


@pytest.mark.parametrize("part", ["anchor", "divergence"])
def test_all_passes_of_a_loss_count_and_those_without_gradients_do_not(part: str) -> None:
    """Oracle: one pass with all rows in it."""
    rows = task(9, 9, 9)
    anchored = {"anchor_task": True} if part == "anchor" else {"divergence": "task"}
    protection = Protection(**anchored, strength=3.0, site="answer")
    directions = tiny.subspace(2) if part == "anchor" else None
    found = []
    for parts in ([[0, 1, 2]], [[0], [1, 2]]):
        model = tiny.adapted(tiny.llama(), strength=0.1)
        with protect(model, directions, protection=protection, neutral=NEUTRAL) as guard:
            for chosen in parts:
                model(**{name: tensor[chosen] for name, tensor in rows.items()})
                with torch.no_grad():  # as for a metric, or a reference model
                    model(**task(7, 8, seed=9))
            guard.task_penalty().backward()
        found.append(gradients(model))
    same(*found)


def test_a_loss_that_keeps_no_logits_is_compared_all_the_same() -> None:
    """TRL's fused head gives probabilities of the labels alone."""
    batch, found = task(9, 6), []
    protection = Protection(divergence="task", strength=2.0, site="answer")
    for fused in (False, True):
        model = tiny.adapted(tiny.llama(), strength=0.05)
        if fused:
            add_fused_lm_head(model.get_base_model())
        with protect(model, None, protection=protection) as guard:
            given = {"fused_lm_head": True} if fused else {}
            assert hasattr(model(**batch, **given), "log_probs") is fused
            penalty = guard.task_penalty()
            penalty.backward()
        found.append((penalty.item(), gradients(model)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    same(found[0][1], found[1][1])


def test_a_pass_that_cannot_be_followed_is_refused() -> None:
    model, batch = tiny.adapted(tiny.llama(), strength=0.1), task(9, 6)
    protection = Protection(anchor_task=True, site="answer")
    unlabelled = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with protect(model, tiny.subspace(2), protection=protection, neutral=NEUTRAL) as guard:
        with pytest.raises(InputError, match="loss gives the model no labels, which say where the"):
            model(**unlabelled)
        guard.label(batch["labels"])
        model(**unlabelled)
        known = guard.task_penalty().item()
        model(**batch)
        assert guard.task_penalty().item() == known
        model.get_base_model().model(**unlabelled)  # as fused losses do
        with pytest.raises(
            InputError, match="none to be seen: the loss runs parts of the model by"
        ):
            guard.task_penalty()


def test_each_anchor_is_penalised_for_what_it_has_seen() -> None:
    """Both have one λ, which no tolerance moves."""
    model, batch = tiny.adapted(tiny.llama(), strength=0.1), task(9, 6)
    protection = Protection(anchor=True, anchor_task=True, strength=3.0)
    with protect(model, tiny.subspace(2), protection=protection, neutral=NEUTRAL) as guard:
        for _ in range(3):
            model(**batch)
            on_task = guard.task_penalty().item()
            assert on_task > 0
            guard.stepped()
            assert guard.task_drift().rms == pytest.approx(math.sqrt(on_task / 3))
        neutral = guard.penalty().item()
        assert neutral != pytest.approx(on_task, rel=1e-2)
        assert guard.strength == 3
        state = guard.state()
    assert {value for name, value in state.items() if name.endswith("multiplier")} == {0}


def test_a_tolerance_on_the_tasks_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot limit drift on the task's tokens; give a stren"):
        Protection(anchor_task=True, tolerance=0.1)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_clamping_sets_the_coordinates_to_the_base_models(
    share: float, checkpointing: bool
) -> None:
    """Oracle: the same edit written out, with h⁰ of another copy of the base."""
    model, batch, q = tiny.adapted(tiny.llama(), strength=0.1), task(9, 6), basis()
    with torch.no_grad():
        before = stream(tiny.llama(), batch)
    if checkpointing:
        model.activation_checkpointing_enable()
        model.train()
    hooks = hooks_on(model)
    protection = Protection(clamp=True, share=share)
    with protect(model, tiny.subspace(2), protection=protection):
        loss = model(**batch).loss
        loss.backward()
        with torch.no_grad():  # of training alone: a model that answers is not clamped
            free = model(**batch).loss
    found = gradients(model)
    assert hooks_on(model) == hooks
    real = batch["attention_mask"].bool()[..., None]

    def edit(layer: int, hidden: Tensor) -> Tensor:
        moved = torch.where(real, (hidden - before[layer]) @ q, 0)
        return hidden - share * moved @ q.T

    with edited_outputs(model, edit):
        expected = model(**batch).loss
        expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert free.item() != pytest.approx(loss.item(), rel=1e-4)
    same(found, gradients(model))


def test_divergence_on_the_task_is_kl_at_the_answers() -> None:
    """Oracle: torch.distributions, and autograd of it; 0 and flat where B = 0."""
    batch = task(9, 6)
    protection = Protection(divergence="task", strength=2.0, site="answer")
    model = tiny.adapted(tiny.llama(), strength=0.05)
    with protect(model, None, protection=protection) as guard:
        model(**batch)
        penalty = guard.task_penalty()
        penalty.backward()
    found = gradients(model)
    plain = {name: batch[name] for name in ("input_ids", "attention_mask")}
    chosen = site(batch, "answer")
    with torch.no_grad():
        base = torch.distributions.Categorical(logits=tiny.llama()(**plain).logits[chosen])
    now = torch.distributions.Categorical(logits=model(**plain).logits[chosen])
    expected = 2 * torch.distributions.kl_divergence(base, now).mean()
    expected.backward()
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-4)
    same(found, gradients(model))

    fresh = tiny.adapted(tiny.llama())
    with protect(fresh, None, protection=protection) as guard:
        fresh(**batch)
        zero = guard.task_penalty()
        zero.backward()
    assert zero.item() == pytest.approx(0, abs=1e-6)
    assert all(float(g.abs().max()) < 1e-5 for g in gradients(fresh).values())


@pytest.mark.parametrize("text", ["neutral", "own"])
def test_divergence_on_other_text_is_kl_at_its_site(text: Any) -> None:
    model, batches = tiny.adapted(tiny.llama(), strength=0.05), [tiny.batch(6, 9), tiny.batch(7)]
    protection = Protection(divergence=text, strength=2.0, site="all")
    given = {"neutral": "neutral", "own": "own_answers"}[text]
    with protect(model, None, protection=protection, **{given: batches}) as guard:
        found = [guard.penalty() for _ in range(3)]
        found[0].backward()
        assert guard.task_penalty() is None
        assert guard.drift() is None
    for index, penalty in zip((0, 1, 0), found, strict=True):
        real = batches[index]["attention_mask"].bool()
        real &= torch.nn.functional.pad(real[:, 1:], (0, 1))  # the last token predicts nothing
        with torch.no_grad():
            logits = [m(**batches[index]).logits[real].double() for m in (tiny.llama(), model)]
        base, now = (torch.log_softmax(one, dim=-1) for one in logits)
        kl = torch.nn.functional.kl_div(now, base, log_target=True, reduction="batchmean")
        assert penalty.item() == pytest.approx(2 * kl.item(), rel=1e-3)
    assert max(float(g.abs().max()) for g in gradients(model).values()) > 1e-3


def test_feature_distillation_is_the_anchor_on_every_direction() -> None:
    model = tiny.adapted(tiny.llama(), strength=0.1)
    every = Protection(anchor=True, all_directions=True, strength=2.0)
    with protect(model, None, protection=every, neutral=NEUTRAL) as guard:
        found = guard.penalty().item()
    real = NEUTRAL[0]["attention_mask"].bool()
    with torch.no_grad():
        pairs = zip(stream(model, NEUTRAL[0]), stream(tiny.llama(), NEUTRAL[0]), strict=True)
        squares = [((h - h0)[real].square() / h0[real].var(dim=0)).mean() for h, h0 in pairs]
    assert found == pytest.approx(2 * torch.stack(squares).mean().item(), rel=1e-3)


@pytest.mark.parametrize(
    ("protection", "message"),
    [
        (Protection(clamp=True), "The protection has clamp on, but there are no directions"),
        (Protection(ablation=True), "The protection has ablation on, but there are no directions"),
        (
            Protection(divergence="neutral"),
            "A divergence needs text with answers to be measured on",
        ),
        (Protection(steering=1.0), "steers while training, but got no steering vectors"),
    ],
)
def test_a_part_without_what_it_needs_is_refused(protection: Protection, message: str) -> None:
    model = tiny.adapted(tiny.llama())
    with pytest.raises(InputError, match=message), protect(model, None, protection=protection):
        pass
    with (
        pytest.raises(InputError, match="no neutral text; name a file"),
        protect(model, tiny.subspace(1), protection=Protection(anchor_task=True)),
    ):
        pass


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="would share one strength; choose one"):
        Protection(divergence="task", anchor=True)
    with pytest.raises(ValueError, match="a tolerance limits drift, not a divergence"):
        Protection(divergence="task", tolerance=0.1)
