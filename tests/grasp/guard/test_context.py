"""GRASP's context manager: what each part does to a real model under a real optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor

from analysis.errors import InputError
from analysis.spectra.subspace import orthonormal_basis
from grasp.guard.anchor import Anchor
from grasp.guard.context import hold, protect
from grasp.guard.guard import Guard
from grasp.guard.penalty import PACE, PRESS
from grasp.guard.plan import GuardPlan
from grasp.model.hooks import without
from grasp.settings.protection import Protection
from tests.support import tiny

LAYERS = 2

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)
WRITERS = {"llama": tiny.LLAMA_WRITERS, "gpt2": ("c_proj",)}
CONSTRAINT = Protection(write_constraint=True)
ANCHOR = Protection(anchor=True, strength=5.0)


def train(model: PeftModel, optimizer: torch.optim.Optimizer, *, steps: int = 4) -> None:
    batch = tiny.batch(8, 6, seed=5)
    for _ in range(steps):
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def adam(model: PeftModel) -> torch.optim.Optimizer:
    weights = [w for w in model.parameters() if w.requires_grad]
    return torch.optim.AdamW(weights, lr=1e-2)


def leaked(weights: dict[str, Tensor], q: Tensor) -> float:
    """‖Qᵀ B‖ / ‖B‖ over all of `weights`."""
    inside = sum(float((q.T @ w).square().sum()) for w in weights.values())
    return math.sqrt(inside / sum(float(w.square().sum()) for w in weights.values()))


def column_basis(k: int = 3) -> Tensor:
    return torch.as_tensor(tiny.subspace(k).T, dtype=torch.float32)


# The write constraint


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_the_write_constraint_holds_under_adam_where_a_projected_gradient_leaks(name: str) -> None:
    q = column_basis()
    model = tiny.adapted(tiny.family(name))
    optimizer = adam(model)
    with protect(model, tiny.subspace(3), protection=CONSTRAINT, optimizer=optimizer) as guard:
        train(model, optimizer)
        assert guard.leakage() <= 1e-6
    held = tiny.written(model, WRITERS[name])
    assert len(held) == 4
    assert all(w.norm() > 0.01 for w in held.values())
    assert leaked(held, q) <= 1e-6

    # Adam rescales entry by entry, which moves a projected gradient back into Q.
    model = tiny.adapted(tiny.family(name))
    for weight_name, weight in model.named_parameters():
        if weight_name in held:
            weight.register_hook(lambda g: without(g.T, q).T)
    train(model, adam(model))
    assert leaked(tiny.written(model, WRITERS[name]), q) > 0.01


def test_only_writing_modules_are_constrained() -> None:
    model = tiny.adapted(tiny.llama(), strength=0.3)
    before = tiny.adapter_weights(model)
    with protect(model, tiny.subspace(2), protection=CONSTRAINT) as guard:
        guard.constrain()
    after, q = tiny.adapter_weights(model), column_basis(2)
    writers = tiny.written(model)
    for weight_name, weight in before.items():
        wanted = weight - q @ (q.T @ weight) if weight_name in writers else weight
        torch.testing.assert_close(after[weight_name], wanted, rtol=1e-5, atol=1e-6)


def test_without_the_constraint_an_optimizer_is_left_alone() -> None:
    model = tiny.adapted(tiny.llama())
    optimizer = adam(model)
    with protect(model, tiny.subspace(3), protection=Protection(), optimizer=optimizer) as guard:
        train(model, optimizer)
        # A rank-3 subspace of 32 dimensions holds about √(3/32) of a random update.
        assert 0.1 < guard.leakage() < 0.6


def test_leakage_is_the_share_of_the_update_in_the_subspace() -> None:
    model = tiny.adapted(tiny.llama(), strength=0.3)
    with protect(model, tiny.subspace(3), protection=Protection()) as guard:
        assert guard.leakage() == pytest.approx(leaked(tiny.written(model), column_basis()))
    fresh = tiny.adapted(tiny.llama())
    with protect(fresh, tiny.subspace(3), protection=Protection()) as guard:
        assert math.isnan(guard.leakage())


# The anchor


def base_coordinates(layers: Callable[[Any], list[Tensor]], model: Any, batch: Any) -> np.ndarray:
    """(layers, real tokens, k) in float64."""
    real = batch["attention_mask"].bool().numpy()
    return np.stack([h.double().numpy()[real] @ tiny.subspace(3).T for h in layers(model)(batch)])


def hidden_states(model: Any) -> Callable[[Any], list[Tensor]]:
    """Decoder layers' outputs by another route than hooks: transformers' hidden states, and for
    the last one, which they give after the norm, what goes into the norm."""

    def run(batch: Any) -> list[Tensor]:
        plain = model.get_base_model() if isinstance(model, PeftModel) else model
        inputs: list[Tensor] = []
        handle = plain.model.norm.register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
        with torch.no_grad():
            states = model(**batch, output_hidden_states=True).hidden_states
        handle.remove()
        return [*states[1:-1], *inputs]

    return run


def hand_drift(model: Any, untouched: Any, batches: list[Any]) -> list[np.ndarray]:
    """Whitened squared drift of each batch, (layers, tokens, k)."""
    base = [base_coordinates(hidden_states, untouched, batch) for batch in batches]
    variance = np.concatenate(base, axis=1).var(axis=1, ddof=1, keepdims=True)
    moved = [base_coordinates(hidden_states, model, batch) for batch in batches]
    return [(m - b) ** 2 / variance for m, b in zip(moved, base, strict=True)]


def test_the_penalty_of_a_fresh_adapter_is_zero() -> None:
    model, neutral = tiny.adapted(tiny.llama()), [tiny.batch(6, 9)]
    with protect(model, tiny.subspace(3), protection=ANCHOR, neutral=neutral) as guard:
        penalty = guard.penalty()
        assert penalty is not None
        assert penalty.item() == 0.0
        assert guard.drift().rms == 0.0


def test_the_penalty_is_the_hand_computed_whitened_drift() -> None:
    """Oracle: another copy of the base model that never had an adapter, in float64."""
    model, neutral = tiny.adapted(tiny.llama(), strength=0.1), [tiny.batch(6, 9), tiny.batch(7)]
    squares = hand_drift(model, tiny.llama(), neutral)
    with protect(model, tiny.subspace(3), protection=ANCHOR, neutral=neutral) as guard:
        found = [guard.penalty().item() for _ in range(3)]
    # The batches take turns, and without a tolerance λ stays.
    expected = [5.0 * squares[i].mean() for i in (0, 1, 0)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert expected[0] > 0.1


def test_drift_is_the_rms_over_all_tokens_by_layer() -> None:
    model, neutral = tiny.adapted(tiny.llama(), strength=0.1), [tiny.batch(6, 9), tiny.batch(7)]
    squares = np.concatenate(hand_drift(model, tiny.llama(), neutral), axis=1)
    anchor = Anchor(model, [column_basis()] * LAYERS, neutral)
    np.testing.assert_allclose(
        anchor.drift().by_layer, np.sqrt(squares.mean(axis=(1, 2))), rtol=1e-4
    )
    assert anchor.drift().rms == pytest.approx(math.sqrt(squares.mean()), rel=1e-4)


def test_drift_does_not_depend_on_how_the_text_is_batched() -> None:
    model = tiny.adapted(tiny.llama(), strength=0.1)
    whole = tiny.batch(4, 11, 6, 9)
    pieces = [{name: t[rows] for name, t in whole.items()} for rows in ([0], [1, 2], [3])]
    together = Anchor(model, [column_basis()] * LAYERS, [whole]).drift()
    apart = Anchor(model, [column_basis()] * LAYERS, pieces).drift()
    np.testing.assert_allclose(apart.by_layer, together.by_layer, rtol=1e-4)
    first = Anchor(model, [column_basis()] * LAYERS, pieces).drift(1)
    assert first.rms != pytest.approx(together.rms, rel=1e-2)


def test_padding_does_not_count() -> None:
    model = tiny.adapted(tiny.llama(), strength=0.1)
    short = tiny.batch(6)
    padded = {
        "input_ids": torch.nn.functional.pad(short["input_ids"], (0, 5), value=3),
        "attention_mask": torch.nn.functional.pad(short["attention_mask"], (0, 5)),
    }
    found = [Anchor(model, [column_basis()] * LAYERS, [b]).drift().rms for b in (short, padded)]
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def sited(*lengths: int, seed: int = 0) -> dict[str, Tensor]:
    """A batch whose third token ends the prompt, and whose answer is all that follows."""
    batch = tiny.batch(*lengths, seed=seed)
    place = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
    return batch | {"prompt_end_mask": place == 2, "answer_mask": place >= 2}


@pytest.mark.parametrize("site", ["prompt-end", "answer", "all"])
def test_drift_counts_at_the_tokens_of_its_site(site: Any) -> None:
    """Oracle: by hand, with the spread of all real tokens as its unit."""
    model, neutral = tiny.adapted(tiny.llama(), strength=0.1), [sited(6, 9), sited(7, seed=1)]
    plain = [tiny.batch(6, 9), tiny.batch(7, seed=1)]
    squares = hand_drift(model, tiny.llama(), plain)
    chosen = []
    for batch in plain:
        place = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
        counts = {"prompt-end": place == 2, "answer": place >= 2, "all": place >= 0}[site]
        chosen.append(counts[batch["attention_mask"].bool()].numpy())
    expected = np.concatenate([sq[:, c] for sq, c in zip(squares, chosen, strict=True)], axis=1)
    protection = Protection(anchor=True, strength=5.0, site=site)
    with protect(model, tiny.subspace(3), protection=protection, neutral=neutral) as guard:
        assert guard.drift().rms == pytest.approx(math.sqrt(expected.mean()), rel=1e-4)
        assert guard.penalty().item() == pytest.approx(
            5 * squares[0][:, chosen[0]].mean(), rel=1e-4
        )


def test_a_share_of_the_rows_takes_its_turn() -> None:
    """Rows of one length: what all of them give is the mean of what the pieces give."""
    model = tiny.adapted(tiny.llama(), strength=0.1)
    neutral = [sited(9, 9, 9, 9), sited(7, 7, seed=1)]
    found = {}
    for share in (1.0, 0.5, 0.1):
        protection = Protection(anchor=True, strength=5.0, site="prompt-end", neutral_share=share)
        with protect(model, tiny.subspace(3), protection=protection, neutral=neutral) as guard:
            found[share] = [guard.penalty().item() for _ in range(7)]
    whole, half, row = found[1.0], found[0.5], found[0.1]
    assert half[:2] != pytest.approx([whole[0]] * 2, rel=1e-2)
    assert [np.mean(half[:2]), np.mean(half[2:4])] == pytest.approx(whole[:2], rel=1e-4)
    assert [np.mean(row[:4]), np.mean(row[4:6])] == pytest.approx(whole[:2], rel=1e-4)
    assert row[6] == row[0]


def test_neutral_text_may_be_taken_every_few_batches_with_as_much_more_weight() -> None:
    model = tiny.adapted(tiny.llama(), strength=0.1)
    neutral = [sited(9, 9), sited(7, 7, seed=1)]
    found = {}
    for every in (1, 3):
        protection = Protection(anchor=True, strength=5.0, site="prompt-end", neutral_every=every)
        with protect(model, tiny.subspace(3), protection=protection, neutral=neutral) as guard:
            found[every] = [guard.penalty() for _ in range(7)]
            state = guard.state()
    passed_over = [penalty.item() == 0 for penalty in found[3]]
    assert passed_over == [False, True, True] * 2 + [False]
    for penalty in found[3]:
        penalty.backward()  # a loop need not know which batches are passed over
    each = [penalty.item() for penalty in found[1]]
    rare = [penalty.item() for penalty in found[3][::3]]
    assert rare == pytest.approx([3 * each[0], 3 * each[1], 3 * each[2]], rel=1e-5)
    with protect(model, tiny.subspace(3), protection=protection, neutral=neutral) as guard:
        guard.restore(state | {"step": 2})  # a resumed run goes on where it was
        assert guard.penalty().item() == 0
        assert guard.penalty().item() == pytest.approx(rare[1])


def test_neutral_text_runs_no_further_than_the_site_and_never_to_the_unembedding() -> None:
    model, widths = tiny.adapted(tiny.llama(), strength=0.1), []
    protection = Protection(anchor=True, site="prompt-end")
    neutral = [sited(6, 9)]
    with protect(
        model, tiny.subspace(3), protection=protection, neutral=neutral, held_back=neutral
    ) as guard:
        plain = model.get_base_model()
        handles = [
            plain.model.layers[-1].register_forward_pre_hook(
                lambda _module, args: widths.append(args[0].shape[1])
            ),
            plain.lm_head.register_forward_pre_hook(lambda *_: widths.append(-1)),
        ]
        guard.penalty()
        guard.drift(text="held-back")
        for handle in handles:
            handle.remove()
    assert widths == [3, 3]


def test_a_site_without_a_mask_is_all_real_tokens_and_an_empty_one_is_refused() -> None:
    model, batch = tiny.adapted(tiny.llama(), strength=0.1), tiny.batch(6, 9)
    bases = [column_basis()] * LAYERS
    plain = Anchor(model, bases, [batch], site="all").drift().rms
    assert Anchor(model, bases, [batch], site="answer").drift().rms == plain
    empty = batch | {"answer_mask": torch.zeros_like(batch["attention_mask"])}
    with pytest.raises(InputError, match="has no token at the site 'answer'; leave its mask out"):
        Anchor(model, bases, [empty], site="answer")


def test_text_that_is_held_back_measures_and_is_not_trained_on() -> None:
    """The unit of both is the spread of the text that is trained on."""
    model, texts = tiny.adapted(tiny.llama(), strength=0.1), [tiny.batch(6, 9), tiny.batch(7)]
    held = [tiny.batch(8, seed=4), tiny.batch(5, 9, seed=5)]
    base, moved = (
        [base_coordinates(hidden_states, source, batch) for batch in [*texts, *held]]
        for source in (tiny.llama(), model)
    )
    variance = np.concatenate(base[:2], axis=1).var(axis=1, ddof=1, keepdims=True)
    squares = [(m - b) ** 2 / variance for m, b in zip(moved, base, strict=True)]
    with protect(
        model, tiny.subspace(3), protection=ANCHOR, neutral=texts, held_back=held
    ) as guard:
        penalties = [guard.penalty().item() for _ in range(4)]
        found = [guard.drift().rms, guard.drift(text="held-back").rms]
        first = guard.drift(1, text="held-back").rms
    expected = [
        math.sqrt(np.concatenate(part, axis=1).mean()) for part in (squares[:2], squares[2:])
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert first == pytest.approx(math.sqrt(squares[2].mean()), rel=1e-4)
    np.testing.assert_allclose(penalties, [5 * squares[i].mean() for i in (0, 1, 0, 1)], rtol=1e-4)


def test_without_text_held_back_its_drift_is_unknown() -> None:
    guard, _ = guarding(None)
    assert guard.drift(text="held-back") is None


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_is_no_drift(checkpointing: bool) -> None:
    """Dropout of the base model or of the adapter would be a drift that no training can undo."""
    model = tiny.adapted(tiny.gpt2(dropout=0.3), dropout=0.3)
    if checkpointing:
        model.activation_checkpointing_enable()
    model.train()
    with protect(model, tiny.subspace(3), protection=ANCHOR, neutral=[tiny.batch(6, 9)]) as guard:
        assert guard.penalty().item() == pytest.approx(0, abs=1e-6)
        assert guard.drift().rms == pytest.approx(0, abs=1e-6)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("training", [False, True])
def test_the_anchor_leaves_the_models_mode_alone(training: bool) -> None:
    model = tiny.adapted(tiny.llama()).train(training)
    Anchor(model, [column_basis()] * LAYERS, [tiny.batch(5)]).drift()
    assert {module.training for module in model.modules()} == {training}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_penalty_has_the_gradient_of_a_finite_difference(checkpointing: bool) -> None:
    model = tiny.adapted(tiny.llama().double(), strength=0.1).double().train()
    if checkpointing:
        model.activation_checkpointing_enable()
    # base coordinates are kept in float32, so the step is not too small
    with protect(model, tiny.subspace(3), protection=ANCHOR, neutral=[tiny.batch(6, 9)]) as guard:
        guard.penalty().backward()
        weight = next(w for n, w in model.named_parameters() if n in tiny.written(model))
        step = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).double()
        slope = float((weight.grad * step).sum())
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight.add_(sign * 1e-3 * step)
                ends.append(guard.penalty().item())
                weight.sub_(sign * 1e-3 * step)
    assert abs(slope) > 0.01
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=1e-2)


def test_gradient_projection_leaves_the_anchors_own_gradient() -> None:
    """All of it lies in the subspace, so a projection would switch the anchor off."""
    gradients = []
    for projecting in (False, True):
        model = tiny.adapted(tiny.llama(), strength=0.1)
        protection = Protection(anchor=True, gradient_projection=projecting)
        with protect(
            model, tiny.subspace(3), protection=protection, neutral=[tiny.batch(6, 9)]
        ) as guard:
            guard.penalty().backward()
        gradients.append({n: w.grad for n, w in model.named_parameters() if w.requires_grad})
    for name, plain in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], plain)
    assert max(float(g.abs().max()) for g in gradients[0].values()) > 0.1


def test_drift_is_the_models_own_while_training_ablates() -> None:
    model, neutral = tiny.adapted(tiny.llama(), strength=0.1), [tiny.batch(6, 9)]
    expected = Anchor(model, [column_basis()] * LAYERS, neutral).drift()
    protection = Protection(ablation=True)
    with protect(model, tiny.subspace(3), protection=protection, neutral=neutral) as guard:
        inside = guard.drift()
    np.testing.assert_allclose(inside.by_layer, expected.by_layer, rtol=1e-5)


def unit_plan(protection: Protection, k: int, *neutral: Any) -> GuardPlan:
    """Of a naive run whose drift is 1 base standard deviation."""
    return GuardPlan(protection, tiny.subspace(k), neutral, naive_drift={"anchored": 1.0})


def guarding(tolerance: float | None, *neutral: Any) -> tuple[Guard, float]:
    """A guard with λ = 5 or a tolerance, and the drift of its model over all neutral text.

    The tolerance is in base standard deviations, as it is where the naive run's own drift is 1.
    """
    model = tiny.adapted(tiny.llama(), strength=0.1)
    protection = Protection(anchor=True, strength=5.0, tolerance=tolerance)
    with hold(model, unit_plan(protection, 3, *(neutral or [tiny.batch(6, 9)]))) as guard:
        drift = guard.drift()
    assert drift is not None
    return guard, drift.rms


def test_without_a_tolerance_lambda_stays() -> None:
    guard, drift = guarding(None)
    for _ in range(2):
        assert guard.penalty().item() == pytest.approx(5 * drift**2, rel=1e-4)
        guard.stepped()
        assert guard.strength == 5.0


def test_drift_within_the_tolerance_is_left_alone() -> None:
    _, drift = guarding(None)
    guard, _ = guarding(drift / 0.89)  # training aims at nine tenths of the tolerance
    for _ in range(3):
        penalty = guard.penalty()
        penalty.backward()
        guard.stepped()
        assert penalty.item() == guard.strength == guard.last_penalty == 0
    weights = [w for w in guard.anchor._model.parameters() if w.requires_grad]
    assert all(not w.grad.any() for w in weights if w.grad is not None)


def test_drift_above_the_tolerance_is_pressed_on_by_its_excess() -> None:
    _, drift = guarding(None)
    guard, _ = guarding(drift / 0.91)
    excess, limit = (0.91 / 0.9) ** 2 - 1, (0.9 * drift / 0.91) ** 2
    for step in range(3):
        pressed = PACE * step * excess + PRESS * excess
        assert guard.penalty().item() == pytest.approx(pressed * limit * excess, rel=1e-3)
        assert guard.strength == pytest.approx(pressed, rel=1e-3)
        guard.stepped()


def test_the_multiplier_moves_once_a_step_by_the_drift_of_all_of_its_penalties() -> None:
    """Rows of one length, so that two batches together are as two apart."""
    texts = [tiny.batch(8), tiny.batch(8, seed=1)]
    _, drift = guarding(None, *texts)
    guard, _ = guarding(drift, *texts)
    penalties = [guard.penalty().item() for _ in range(4)]
    assert guard.state()["neutral_multiplier"] == 0
    assert penalties[:2] == penalties[2:]
    assert penalties[0] != pytest.approx(penalties[1], rel=1e-2)
    guard.stepped()
    moved = guard.state()["neutral_multiplier"]
    assert moved == pytest.approx(PACE * (1 / 0.9**2 - 1), rel=1e-4)
    assert guard.last_penalty == pytest.approx(np.mean(penalties), rel=1e-5)
    assert guard.recent_drift().rms == pytest.approx(drift, rel=1e-5)
    guard.stepped()  # a step without a penalty, as of another optimiser
    assert guard.state()["neutral_multiplier"] == moved


def test_an_optimizers_steps_move_the_multiplier() -> None:
    model, batch = tiny.adapted(tiny.llama(), strength=0.1), tiny.batch(6, 9)
    optimizer = adam(model)
    protection = Protection(anchor=True, tolerance=1e-3)
    with hold(model, unit_plan(protection, 3, batch), optimizer=optimizer) as guard:
        for number in (1, 2):
            for _ in range(3):
                guard.penalty().backward()
            optimizer.step()
            most = PACE * number
            assert guard.state()["neutral_multiplier"] == pytest.approx(most)


def test_a_restored_guard_goes_on_where_it_was() -> None:
    guard, _ = guarding(1e-3, tiny.batch(8), tiny.batch(8, seed=1))
    guard.penalty()
    guard.stepped()
    other, _ = guarding(1e-3, tiny.batch(8), tiny.batch(8, seed=1))
    other.restore(guard.state())
    assert other.strength == guard.strength > 0
    assert other.penalty().item() == guard.penalty().item()


def test_a_tolerance_is_a_share_of_the_naive_runs_drift(tmp_path: Path) -> None:
    """Oracle: the drift of the saved adapter by hand, and a plan that has it as its unit."""
    neutral = [tiny.batch(6, 9), tiny.batch(7)]
    naive = tiny.adapted(tiny.llama(), strength=0.3, seed=7)
    naive.save_pretrained(str(tmp_path))
    squares = np.concatenate(hand_drift(naive, tiny.llama(), neutral), axis=1)
    own = math.sqrt(squares.mean())
    protection = Protection(anchor=True, tolerance=0.05)
    pressed = []  # in nats for a model that drifts as the naive run does, or by one unit
    in_units = unit_plan(protection.model_copy(update={"tolerance": 0.05 * own}), 3, *neutral)
    whole = GuardPlan(protection, tiny.subspace(3), neutral, naive=tmp_path)
    for plan in (whole, in_units):
        with hold(tiny.adapted(tiny.llama(), strength=0.1), plan) as guard:
            unit = own if plan is whole else 1.0
            pressed.append([guard.penalty().item() * unit**2, guard.strength * unit**2])
            if plan is whole:
                assert guard.naive_drift["anchored"] == pytest.approx(own, rel=1e-4)
    assert pressed[0] == pytest.approx(pressed[1], rel=1e-3)
    assert pressed[0][1] > 0


def test_a_tolerance_without_the_naive_run_is_refused() -> None:
    with (
        pytest.raises(InputError, match="A tolerance is a share of what the naive fine-tune does"),
        protect(
            tiny.adapted(tiny.llama()),
            tiny.subspace(1),
            protection=Protection(anchor=True, tolerance=0.1),
            neutral=[tiny.batch(6)],
        ),
    ):
        pass


def test_training_with_a_tolerance_holds_the_drift_near_it() -> None:
    drifts = {}
    for tolerance in (None, 0.2):
        model = tiny.adapted(tiny.llama())
        optimizer = adam(model)
        protection = Protection(anchor=tolerance is not None, tolerance=tolerance)
        task, neutral = tiny.batch(8, 6, seed=5), tiny.batch(8, 7, seed=9)
        with hold(model, unit_plan(protection, 2, neutral)) as guard:
            for _ in range(150):
                loss = model(**task, labels=task["input_ids"]).loss
                penalty = guard.penalty()
                (loss if penalty is None else loss + penalty).backward()
                optimizer.step()
                guard.stepped()
                optimizer.zero_grad()
            drifts[tolerance] = guard.drift().rms
    assert drifts[None] > 0.5
    assert 0.05 < drifts[0.2] <= 0.2


# The subspace


def random_bases(directions: Any, *, seed: int = 0) -> list[Tensor]:
    model, protection = tiny.adapted(tiny.llama()), Protection(random_subspace=True)
    with protect(model, directions, protection=protection, seed=seed) as guard:
        return [basis.double() for basis in guard.bases]


def test_the_random_control_is_another_subspace_of_the_same_rank() -> None:
    first = random_bases(tiny.subspace(3))[0]
    assert first.shape == (tiny.WIDTH, 3)
    assert torch.equal(first, random_bases(tiny.subspace(3))[0])
    torch.testing.assert_close(first.T @ first, torch.eye(3).double(), rtol=0, atol=1e-6)
    assert not torch.allclose(first, random_bases(tiny.subspace(3), seed=1)[0], atol=0.05)
    # Not the span of the directions: that would have singular values 1.
    assert torch.linalg.svdvals(first.T @ column_basis().double()).max() < 0.9


def test_the_random_control_keeps_the_angles_between_layers() -> None:
    """Nested and skew subspaces alike: all layers are turned together."""
    rows = tiny.subspace(4)
    slanted = np.stack([rows[0], 0.6 * rows[1] + 0.8 * rows[3]])
    for given in ([rows[:3], rows[:1]], [rows[:3], slanted]):
        bases = random_bases(given)
        assert [basis.shape[1] for basis in bases] == [len(layer) for layer in given]
        found = torch.linalg.svdvals(bases[0].T @ bases[1]).numpy()
        expected = np.linalg.svd(given[0] @ given[1].T, compute_uv=False)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert np.linalg.norm(given[0] @ bases[0].numpy(), ord=2) < 0.9


def test_the_random_rotation_is_uniform() -> None:
    """Moments of a Haar-random column: mean 0, second moment I / d."""
    drawn = np.stack([random_bases(tiny.subspace(1), seed=s)[0][:, 0] for s in range(200)])
    assert np.abs(drawn.mean(axis=0)).max() < 4 / math.sqrt(200 * tiny.WIDTH)
    assert np.square(drawn).mean(axis=0) == pytest.approx(1 / tiny.WIDTH, rel=0.6)


def test_directions_that_are_not_orthogonal_protect_their_span() -> None:
    rows = tiny.subspace(2)
    skew = np.stack([3 * rows[0], rows[0] + 0.5 * rows[1]])
    model = tiny.adapted(tiny.llama())
    with protect(model, skew, protection=Protection()) as guard:
        projector = guard.bases[0] @ guard.bases[0].T
    expected = torch.as_tensor(
        orthonormal_basis(rows) @ orthonormal_basis(rows).T, dtype=torch.float32
    )
    torch.testing.assert_close(projector, expected, rtol=1e-5, atol=1e-6)


# A subspace of its own at each layer


def ranks() -> list[np.ndarray]:
    """Orthonormal rows: three directions for the first layer, one for the second."""
    rows = tiny.subspace(4)
    return [rows[:3], rows[3:]]


def test_each_layer_is_held_out_of_its_own_subspace() -> None:
    model = tiny.adapted(tiny.llama())
    optimizer = adam(model)
    with protect(model, ranks(), protection=CONSTRAINT, optimizer=optimizer) as guard:
        train(model, optimizer)
        assert guard.leakage() <= 1e-6
    for name, weight in tiny.written(model).items():
        layer = int(name.split(".layers.")[1].split(".")[0])
        own, other = (torch.as_tensor(ranks()[i].T).float() for i in (layer, 1 - layer))
        assert leaked({name: weight}, own) <= 1e-6
        assert leaked({name: weight}, other) > 0.01


def test_leakage_is_into_each_layers_own_subspace() -> None:
    model = tiny.adapted(tiny.llama(), strength=0.3)
    inside = whole = 0.0
    for name, weight in tiny.written(model).items():
        layer = int(name.split(".layers.")[1].split(".")[0])
        inside += float(np.square(ranks()[layer] @ weight.numpy()).sum())
        whole += float(weight.square().sum())
    with protect(model, ranks(), protection=Protection()) as guard:
        assert guard.leakage() == pytest.approx(math.sqrt(inside / whole), rel=1e-5)


def test_drift_of_layers_with_different_ranks_is_the_mean_over_each_layers_own() -> None:
    """Oracle: coordinates from transformers' hidden states, whitened layer by layer by hand."""
    model, neutral = tiny.adapted(tiny.llama(), strength=0.1), [tiny.batch(6, 9), tiny.batch(7)]

    def coordinates(source: Any, layer: int) -> list[np.ndarray]:
        outputs = [(hidden_states(source)(b)[layer], b["attention_mask"].bool()) for b in neutral]
        return [h[real].double().numpy() @ ranks()[layer].T for h, real in outputs]

    expected, first = [], []
    for layer in range(LAYERS):
        base, moved = coordinates(tiny.llama(), layer), coordinates(model, layer)
        variance = np.concatenate(base).var(axis=0, ddof=1)
        squares = [(m - b) ** 2 / variance for m, b in zip(moved, base, strict=True)]
        expected.append(math.sqrt(np.concatenate(squares).mean()))
        first.append(squares[0].mean())
    with protect(model, ranks(), protection=ANCHOR, neutral=neutral) as guard:
        drift = guard.drift()
        penalty = guard.penalty()
    np.testing.assert_allclose(drift.by_layer, expected, rtol=1e-4)
    assert drift.rms == pytest.approx(math.sqrt(np.mean(np.square(expected))), rel=1e-4)
    # Layers count alike in the penalty, whatever their ranks.
    assert penalty.item() == pytest.approx(5 * np.mean(first), rel=1e-4)


def test_ablation_takes_each_layers_own_subspace_away() -> None:
    model = tiny.adapted(tiny.llama(), strength=0.3)
    with protect(model, ranks(), protection=Protection(ablation=True)):
        found = hidden_states(model)(tiny.batch(7))
    for layer, hidden in enumerate(found):
        own, other = (hidden.double().numpy() @ ranks()[i].T for i in (layer, 1 - layer))
        assert np.abs(own).max() < 1e-4
        assert np.abs(other).max() > 0.05


def test_one_array_is_for_all_layers() -> None:
    model = tiny.adapted(tiny.llama())
    for directions in (tiny.subspace(2), [tiny.subspace(2)] * LAYERS):
        with protect(model, directions, protection=Protection()) as guard:
            assert len(guard.bases) == LAYERS
            for basis in guard.bases:
                torch.testing.assert_close(basis, column_basis(2))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_directions_for_another_number_of_layers_are_refused(count: int) -> None:
    model = tiny.adapted(tiny.llama())
    with (
        pytest.raises(InputError, match=f"Got directions for {count} layers; the model has 2"),
        protect(model, [tiny.subspace(1)] * count, protection=Protection()),
    ):
        pass


# Errors, and what is left behind


def test_an_anchor_without_neutral_text_is_refused() -> None:
    model = tiny.adapted(tiny.llama())
    with (
        pytest.raises(InputError, match="no neutral text; name a file"),
        protect(model, tiny.subspace(1), protection=ANCHOR),
    ):
        pass


@pytest.mark.parametrize("shape", [(2, tiny.WIDTH + 1), (tiny.WIDTH,)])
def test_directions_of_another_width_are_refused(shape: tuple[int, ...]) -> None:
    model = tiny.adapted(tiny.llama())
    with (
        pytest.raises(InputError, match=r"expected \(k, 32\), the width of llama"),
        protect(model, np.ones(shape), protection=Protection()),
    ):
        pass


def test_dependent_directions_are_refused() -> None:
    model = tiny.adapted(tiny.llama())
    with (
        pytest.raises(InputError, match="Direction 1 lies in the span"),
        protect(model, np.ones((2, tiny.WIDTH)), protection=Protection()),
    ):
        pass


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails: bool) -> None:
    model, batch = tiny.adapted(tiny.llama(), strength=0.1), tiny.batch(6)
    optimizer = adam(model)
    plain = model(**batch).logits
    everything = Protection(
        gradient_projection=True, write_constraint=True, anchor=True, ablation=True
    )
    try:
        with protect(
            model, tiny.subspace(2), protection=everything, neutral=[batch], optimizer=optimizer
        ):
            assert not torch.allclose(model(**batch).logits, plain)
            assert len(optimizer._optimizer_step_post_hooks) == 1
            if fails:
                raise RuntimeError("in the middle")
    except RuntimeError:
        assert fails
    assert torch.equal(model(**batch).logits, plain)
    assert not optimizer._optimizer_step_post_hooks
    assert sum(len(m._forward_hooks) for m in model.modules()) == 0
