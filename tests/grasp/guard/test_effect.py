"""Effects of factors against three forward passes by hand, and held in a planted world."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor

from analysis.errors import InputError
from analysis.spectra.subspace import random_subspace
from grasp.guard import effect
from grasp.guard.bases import factor_bases
from grasp.guard.context import hold, protect
from grasp.guard.effect import EffectAnchor, Effects, measure_effects
from grasp.guard.plan import GuardPlan
from grasp.model.loading import decoder_layers
from grasp.settings.protection import Protection
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)

Rows = NDArray[np.float64]
LAYERS = 2
PROMPT = 3
"""Tokens of a prompt; the last one predicts the answer's first."""

HELD = Protection(effect=True, strength=2.0, site="answer")


def answered(*lengths: int, seed: int = 0) -> dict[str, Tensor]:
    """A batch whose answers follow a prompt of `PROMPT` tokens, with the masks of the sites."""
    batch = tiny.batch(*lengths, seed=seed)
    place, real = places(batch), batch["attention_mask"].bool()
    sites = {
        "prompt_end_mask": place == PROMPT - 1,
        "answer_start_mask": (place >= PROMPT - 1) & (place <= PROMPT + 1),
        "answer_mask": place >= PROMPT - 1,
    }
    return batch | {name: (mask & real).long() for name, mask in sites.items()}


def places(batch: dict[str, Tensor]) -> Tensor:
    return torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])


def counting(batch: dict[str, Tensor], site: str) -> Tensor:
    """By the places alone: a token counts if the next one is of an answer."""
    place, length = places(batch), batch["attention_mask"].sum(dim=1, keepdim=True)
    first = PROMPT - 1 if "answer_mask" in batch else 0
    last = {"prompt-end": PROMPT - 1, "answer-start": PROMPT + 1}.get(site, 10**6)
    return (place >= first) & (place <= last) & (place < length - 1)


NEUTRAL = [answered(6, 9), answered(7, 4, seed=1)]


def naive(strength: float = 0.1) -> PeftModel:
    return tiny.adapted(tiny.llama(), strength=strength)


def other() -> PeftModel:
    """Another fine-tune of the same base."""
    return tiny.adapted(tiny.llama(), strength=0.1, seed=4)


def bases_of(*factors: Rows | Sequence[Rows]) -> list[list[Tensor]]:
    """Of each factor, rows for all layers or for each of them."""
    found = []
    for rows in factors:
        layers = [rows] * LAYERS if isinstance(rows, np.ndarray) else rows
        found.append([torch.as_tensor(one.T.copy(), dtype=torch.float32) for one in layers])
    return found


@torch.no_grad()
def probabilities(model: Any, batch: dict[str, Tensor], back: Any = None) -> tuple[Rows, list[Any]]:
    """p (batch, tokens, vocabulary) and h_ℓ: layers called one by one, without a hook.

    `back` holds Q_ℓ and h⁰_ℓ of every layer, to which coordinates are set back between layers.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    causal = torch.full((ids.shape[1], ids.shape[1]), -torch.inf).triu(1)
    blocked = causal + torch.where(mask[:, None, None, :].bool(), 0.0, -torch.inf)
    hidden, stream = model.model.embed_tokens(ids), []
    rotary = model.model.rotary_emb(hidden, torch.arange(ids.shape[1])[None])
    for number, layer in enumerate(model.model.layers):
        out = layer(hidden, attention_mask=blocked, position_embeddings=rotary)
        hidden = out[0] if isinstance(out, tuple) else out
        if back is not None:
            q, reference = back[0][number], back[1][number]
            hidden = hidden - (hidden - reference) @ q @ q.T
        stream.append(hidden)
    logits = model.lm_head(model.model.norm(hidden)).double()
    return logits.softmax(dim=-1).numpy(), stream


class ByHand:
    """v_j (k, n, kept), its unit, and what a model does along it; in float64."""

    def __init__(self, bases: list[list[Tensor]], batches: Sequence[Any], site: str) -> None:
        plain, tuned = tiny.llama(), naive().get_base_model()
        self.batches, self.chosen = batches, [counting(b, site).numpy() for b in batches]
        directions, self.kept, self.before = [], [], []
        for batch, chosen in zip(batches, self.chosen, strict=True):
            base, stream = probabilities(plain, batch)
            now, _ = probabilities(tuned, batch)
            p0, pn = base[chosen], now[chosen]
            top = np.argsort(-(p0 + pn), axis=1)[:, : effect.KEPT]
            v = [
                np.take_along_axis(pn - probabilities(tuned, batch, (q, stream))[0][chosen], top, 1)
                for q in bases
            ]
            directions.append(np.stack(v))
            self.kept.append(top)
            self.before.append(p0)
        self.v = directions
        squares = np.concatenate([(v**2).sum(axis=2) for v in directions], axis=1)
        self.unit = np.sqrt(squares.mean(axis=1, keepdims=True))

    def moved(self, model: Any, unit: Rows | None = None) -> Rows:
        """e_j (k, tokens) of a model."""
        found = []
        for batch, chosen, top, p0, v in zip(
            self.batches, self.chosen, self.kept, self.before, self.v, strict=True
        ):
            now, _ = probabilities(model, batch)
            change = np.take_along_axis(now[chosen] - p0, top, 1)
            found.append((v * change).sum(axis=2))
        return np.concatenate(found, axis=1) / (self.unit if unit is None else unit)

    @property
    def own(self) -> float:
        return float((self.moved(naive().get_base_model()) ** 2).mean())

    def share(self, model: PeftModel) -> float:
        return float(np.sqrt((self.moved(model.get_base_model()) ** 2).mean() / self.own))


def share_of(model: PeftModel, effects: Effects) -> float:
    found = EffectAnchor(model, {"anchored": effects}).share()
    assert found is not None
    return found


# What is measured


@pytest.mark.parametrize("kept", [5, 64, 10**6])
@pytest.mark.parametrize("site", ["prompt-end", "answer-start", "answer", "all"])
def test_effects_are_those_of_three_passes_by_hand(
    site: Any, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effect, "KEPT", kept)
    bases = bases_of(tiny.subspace(1), tiny.subspace(2, seed=8))
    hand = ByHand(bases, NEUTRAL, site)
    found = measure_effects(naive(), bases, NEUTRAL, site=site)
    assert [piece.directions.shape for piece in found.pieces] == [v.shape for v in hand.v]
    # Which of two equally likely tokens is kept is no matter; what they do together is.
    for piece, v in zip(found.pieces, hand.v, strict=True):
        np.testing.assert_allclose(
            piece.directions.square().sum(-1), (v**2).sum(-1), rtol=1e-3, atol=1e-7
        )
    np.testing.assert_allclose(found.unit, hand.unit, rtol=1e-4)
    assert found.own == pytest.approx(hand.own, rel=1e-3)
    model = other()
    share = hand.share(model)
    assert share > 0.05
    assert share_of(model, found) == pytest.approx(share, rel=1e-3)


def test_directions_given_layer_by_layer_are_one_factor() -> None:
    layers = [tiny.subspace(3)[:2], tiny.subspace(3)[2:]]
    plan = GuardPlan(HELD, layers, NEUTRAL)
    bases = factor_bases(naive(), plan, turned=None)
    assert [[q.shape[1] for q in factor] for factor in bases] == [[2, 1]]
    hand = ByHand(bases_of(layers), NEUTRAL, "answer")
    found = measure_effects(naive(), bases, NEUTRAL, site="answer")
    assert found.own == pytest.approx(hand.own, rel=1e-3)
    assert share_of(other(), found) == pytest.approx(hand.share(other()), rel=1e-3)


def test_the_base_has_share_0_and_the_naive_run_1() -> None:
    bases = bases_of(tiny.subspace(1), tiny.subspace(1, seed=8))
    found = measure_effects(naive(), bases, NEUTRAL, site="answer", share=0.5)
    assert len(found.pieces) == 4
    assert share_of(tiny.adapted(tiny.llama()), found) == pytest.approx(0, abs=1e-5)
    assert share_of(naive(), found) == pytest.approx(1, rel=1e-5)


def test_several_factors_count_alike() -> None:
    """The mean square over factors is the mean of theirs."""
    bases = bases_of(tiny.subspace(1), tiny.subspace(1, seed=8))
    together = measure_effects(naive(), bases, NEUTRAL, site="answer")
    apart = [measure_effects(naive(), [one], NEUTRAL, site="answer") for one in bases]
    assert together.own == pytest.approx(np.mean([one.own for one in apart]), rel=1e-4)
    square = np.mean([share_of(other(), one) ** 2 * one.own for one in apart])
    assert share_of(other(), together) ** 2 * together.own == pytest.approx(square, rel=1e-4)
    shares = [share_of(other(), one) for one in apart]
    assert shares[0] != pytest.approx(shares[1], rel=0.05)


@given(st.floats(1e-3, 1e3))
@settings(max_examples=20, deadline=None)
def test_a_share_does_not_depend_on_the_unit(scale: float) -> None:
    """A unit that is `scale` times as large makes every e_j as much smaller."""
    generator = torch.Generator().manual_seed(0)
    v, base = torch.randn(2, 5, 7, generator=generator), torch.rand(5, 7, generator=generator)
    batch = {"input_ids": torch.zeros(1, 5, dtype=torch.long)}
    chosen, kept = torch.ones(1, 5, dtype=torch.bool), torch.arange(7).expand(5, 7)
    logits = torch.randn(1, 5, 7, generator=generator)
    shares = []
    for unit in (torch.tensor([[2.0], [0.5]]), scale * torch.tensor([[2.0], [0.5]])):
        piece = effect.Piece(batch, chosen, kept, v, base, v.sum(-1))
        own = float((piece.naive / unit).square().mean())
        shares.append(float(Effects([piece], unit, own).share_squared(0, logits)))
    assert shares[0] == pytest.approx(shares[1], rel=1e-4)


def test_a_tenth_of_the_naive_adapter_does_about_a_tenth() -> None:
    """As a share of what the whole of it does, however little that is."""
    weak = naive(1e-3)
    bases = bases_of(tiny.subspace(4))
    found = measure_effects(weak, bases, NEUTRAL, site="answer")
    with torch.no_grad():
        for name, weight in weak.named_parameters():
            if "lora_B" in name:
                weight.mul_(0.1)
    assert share_of(weak, found) == pytest.approx(0.1, rel=0.05)


def test_the_random_control_is_in_the_unit_of_the_factors(tmp_path: Path) -> None:
    """By hand: v of the turned factors, over the RMS and the own effect of the true ones."""
    naive().save_pretrained(str(tmp_path))
    factors = tiny.subspace(2)
    turn = random_subspace(tiny.WIDTH, tiny.WIDTH, seed=5)
    true = ByHand(bases_of(*(row[None] for row in factors)), NEUTRAL, "answer")
    turned = ByHand(bases_of(*((turn @ row)[None] for row in factors)), NEUTRAL, "answer")
    protection = HELD.model_copy(update={"random_subspace": True})
    model = other()
    with hold(model, GuardPlan(protection, factors, NEUTRAL, naive=tmp_path), seed=5) as guard:
        share = guard.effect_share()
    moved = turned.moved(model.get_base_model(), unit=true.unit)
    assert share == pytest.approx(np.sqrt((moved**2).mean() / true.own), rel=1e-3)
    assert share != pytest.approx(turned.share(model), rel=0.02)


# Which tokens count


@pytest.mark.parametrize("name", tiny.FAMILIES)
@pytest.mark.parametrize("site", ["prompt-end", "answer"])
def test_padding_on_either_side_changes_nothing(name: str, site: Any) -> None:
    lengths = (6, 9, 4)
    right = answered(*lengths)
    left = {
        key: torch.stack([row.roll(9 - n) for row, n in zip(right[key], lengths, strict=True)])
        for key in right
    }
    alone = [{key: right[key][i : i + 1, :n] for key in right} for i, n in enumerate(lengths)]
    tuned = tiny.adapted(tiny.family(name), strength=0.1)
    model = tiny.adapted(tiny.family(name), strength=0.1, seed=4)
    found = [
        measure_effects(tuned, bases_of(tiny.subspace(1)), batches, site=site)
        for batches in ([right], [left], alone)
    ]
    shares = [share_of(model, effects) for effects in found]
    owns = [effects.own for effects in found]
    assert shares == pytest.approx(shares[:1] * 3, rel=1e-3)
    assert owns == pytest.approx(owns[:1] * 3, rel=1e-3)


def test_what_follows_an_answer_does_not_count() -> None:
    """Neither its last token, which predicts no answer, nor padding, nor what another turn asks."""
    batch = answered(9)
    batch["answer_mask"][:, 7:] = 0  # the answer is tokens 3 to 6
    (piece,) = measure_effects(naive(), bases_of(tiny.subspace(1)), [batch], site="all").pieces
    assert piece.chosen.nonzero()[:, 1].tolist() == [2, 3, 4, 5]


def test_text_without_masks_counts_at_every_token_but_the_last() -> None:
    (piece,) = measure_effects(
        naive(), bases_of(tiny.subspace(1)), [tiny.batch(6, 4)], site="answer"
    ).pieces
    assert piece.chosen.sum(dim=1).tolist() == [5, 3]


def test_rows_of_which_nothing_counts_make_no_piece() -> None:
    """A prompt whose answer was cut off: a mean over no token would be NaN, for ever after."""
    batch, cut = answered(6), answered(PROMPT)
    effects = measure_effects(naive(), bases_of(tiny.subspace(1)), [cut, batch], site="answer")
    assert len(effects.pieces) == 1
    assert np.isfinite(share_of(other(), effects))
    with pytest.raises(InputError, match="No token of the neutral text at the site 'prompt-end' p"):
        measure_effects(naive(), bases_of(tiny.subspace(1)), [cut], site="prompt-end")


def test_text_that_is_held_back_has_an_effect_of_its_own(tmp_path: Path) -> None:
    naive().save_pretrained(str(tmp_path))
    held = [answered(8, 5, seed=6)]
    model = other()
    plan = GuardPlan(HELD, tiny.subspace(1), NEUTRAL, held_back=held, naive=tmp_path)
    with hold(model, plan) as guard:
        found = [guard.effect_share(), guard.effect_share(text="held-back")]
        first = guard.effect_share(1)
    bases = bases_of(tiny.subspace(1))
    hand = [ByHand(bases, text, "answer").share(model) for text in (NEUTRAL, held)]
    assert found == pytest.approx(hand, rel=1e-3)
    assert first != pytest.approx(found[0], rel=1e-3)
    with hold(model, GuardPlan(HELD, tiny.subspace(1), NEUTRAL, naive=tmp_path)) as guard:
        assert guard.effect_share(text="held-back") is None


# The penalty


def penalised(model: PeftModel, *, share: float = 1.0, **settings: Any) -> Any:
    """A guard's context on `model`, with the naive run's effects given."""
    bases = bases_of(tiny.subspace(1), tiny.subspace(1, seed=8))
    effects = {"anchored": measure_effects(naive(), bases, NEUTRAL, site="answer", share=share)}
    protection = HELD.model_copy(update={"neutral_share": share} | settings)
    return hold(model, GuardPlan(protection, tiny.subspace(2), NEUTRAL, effects=effects))


def adapter_gradients(model: PeftModel) -> dict[str, Tensor]:
    found = {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}
    model.zero_grad()
    return found


def test_the_penalty_is_lambda_times_the_squared_share_of_each_piece_in_turn() -> None:
    model = other()
    with penalised(model, share=0.5) as guard:
        found = [guard.penalty().item() for _ in range(5)]
        whole = guard.effect_share()
        weights = [int(counting(b, "answer")[i].sum()) for b in NEUTRAL for i in range(2)]
        guard.stepped()
        assert guard.recent_effect() == pytest.approx(np.sqrt(np.mean(found) / 2), rel=1e-5)
    assert found[4] == found[0]
    squares = np.average(found[:4], weights=weights)
    assert squares == pytest.approx(2 * whole**2, rel=1e-4)
    assert min(found) != pytest.approx(max(found), rel=0.1)


def test_the_gradient_is_that_of_finite_differences() -> None:
    model = other()
    weights = [w for w in model.parameters() if w.requires_grad]
    generator = torch.Generator().manual_seed(0)
    along = [torch.randn(w.shape, generator=generator) * w.detach().std() for w in weights]
    with penalised(model) as guard:
        anchor = guard.effect
        anchor.share_squared(0).backward()
        slope = sum(
            float(w.grad.flatten() @ d.flatten()) for w, d in zip(weights, along, strict=True)
        )
        step, ends = 1e-2, []
        for sign in (1, -2):
            with torch.no_grad():
                for weight, direction in zip(weights, along, strict=True):
                    weight.add_(direction, alpha=sign * step)
                ends.append(float(anchor.share_squared(0)))
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=2e-2)
    assert abs(slope) > 1e-3


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("own_step", [False, True])
def test_checkpointed_activations_give_the_same_gradient(own_step: bool, reentrant: bool) -> None:
    found = []
    for checkpointing in (False, True):
        model = tiny.adapted(tiny.llama(), strength=0.1, seed=4, dropout=0.3).train()
        optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad])
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            if reentrant:
                model.enable_input_require_grads()
        with penalised(model, own_step=own_step) as guard, guard.follow(optimizer):
            penalty = guard.penalty()
            assert penalty.requires_grad is not own_step
            if own_step:
                assert not adapter_gradients(model)
                optimizer.param_groups[0]["lr"] = 1e-2
                model(**tiny.batch(6), labels=tiny.batch(6)["input_ids"]).loss.mul(0).backward()
                optimizer.step()
                gradients = tiny.adapter_weights(model)
            else:
                penalty.backward()
                gradients = adapter_gradients(model)
        found.append((float(penalty.detach()), gradients))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for name, gradient in found[0][1].items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(found[1][1][name], gradient, rtol=0, atol=1e-4 * largest)


def test_under_accumulation_the_gradient_is_the_mean_of_the_pieces() -> None:
    """Two penalties, each divided by two, before one step."""
    model = other()
    with penalised(model) as guard:
        for _ in range(2):
            (guard.penalty() / 2).backward()
        together = adapter_gradients(model)
        (2 * torch.stack([guard.effect.share_squared(i) for i in range(2)]).mean()).backward()
    for name, gradient in adapter_gradients(model).items():
        torch.testing.assert_close(together[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("measured_under", "trained_under"), [(0, 0), (0, 1), (1, 1)])
def test_a_fresh_adapter_has_no_effect_under_autocast(
    measured_under: int, trained_under: int
) -> None:
    """Else what bfloat16 rounds would be held against an adapter that cannot undo it.

    A naive run that changed little makes that a large share: .07 of this one's own.
    """
    with autocast(measured_under):
        effects = measure(naive(0.02))
    with autocast(trained_under):
        fresh = share_of(tiny.adapted(tiny.llama()), effects)
        own = share_of(naive(0.02), effects)
    assert fresh == pytest.approx(0, abs=1e-4)
    assert own == pytest.approx(1, rel=0.1)


def test_in_a_bfloat16_model_shares_are_off_by_its_rounding_alone() -> None:
    expected = share_of(other(), measure(naive()))
    models = [naive(), other(), tiny.adapted(tiny.llama())]
    for model in models:
        model.get_base_model().to(torch.bfloat16)
    effects = measure(models[0])
    shares = [share_of(model, effects) for model in models]
    assert shares == pytest.approx([1, expected, 0], rel=0.05, abs=1e-4)
    assert all(piece.directions.dtype == torch.float32 for piece in effects.pieces)


def autocast(on: int) -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16) if on else nullcontext()


def measure(tuned: PeftModel) -> Effects:
    return measure_effects(tuned, bases_of(tiny.subspace(4)), NEUTRAL, site="answer")


def test_a_tolerance_limits_the_share() -> None:
    """Above it the multiplier rises, below it nothing is asked."""
    model = other()
    with penalised(model) as guard:
        share = guard.effect.share_squared(0).sqrt().item()
    for tolerance, asked in ((share / 0.8, False), (share / 1.2, True)):
        with penalised(model, tolerance=tolerance) as guard:
            assert (guard.penalty().item() > 0) is asked
            guard.stepped()
            assert (guard.state()["anchored_multiplier"] > 0) is asked


def test_dressed_text_takes_its_turn_with_plain_text(tmp_path: Path) -> None:
    naive().save_pretrained(str(tmp_path))
    dressed = [answered(8, seed=11)]
    plan = GuardPlan(
        HELD.model_copy(update={"dressed": True}), tiny.subspace(1), NEUTRAL, dressed=dressed,
        naive=tmp_path,
    )  # fmt: skip
    turns = [("anchored", 0), ("dressed", 0), ("anchored", 1), ("dressed", 0), ("anchored", 0)]
    with hold(other(), plan) as guard:
        found = [guard.penalty().item() for _ in turns]
        shares = [guard.effect.share_squared(n, text=text).item() for text, n in turns]
    # Each is taken on every second turn and weighs twice as much.
    assert found == pytest.approx([2 * HELD.strength * share for share in shares], rel=1e-5)


def test_drift_and_effect_with_one_strength_are_refused() -> None:
    with pytest.raises(ValueError, match="drift and effect have no common unit, so they cannot"):
        Protection(effect=True, anchor=True)
    with (
        pytest.raises(InputError, match="Effects are held on neutral text, but there is none"),
        protect(naive(), tiny.subspace(1), protection=HELD),
    ):
        pass


# A planted world


def planted(first: float, second: float, *directions: Rows) -> PeftModel:
    """The last layer's down_proj writes along two directions, each by an input of its own."""
    model = tiny.adapted(tiny.llama(), targets=["down_proj"])
    last = decoder_layers(model)[-1].mlp.down_proj
    with torch.no_grad():
        written = np.stack([s * d for s, d in zip((first, second), directions, strict=True)])
        last.lora_B["default"].weight[:, :2] = torch.as_tensor(written.T).float()
    return model


def test_a_factors_effect_is_held_and_anothers_is_left_alone() -> None:
    """The task teaches all that the naive run does; one of its two factors may not come back.

    Both are along what the model says next, so that each shows in the answers.
    """
    unembedding = tiny.llama().lm_head.weight.detach().double().numpy()
    directions = np.linalg.qr((unembedding[[20, 30]] - unembedding[[40, 50]]).T)[0].T
    tuned = planted(12.0, 12.0, *directions)
    text = [answered(9, 8, 9, 7, seed=n) for n in range(2)]
    with torch.no_grad():
        taught = [tuned(**plain(batch)).logits.softmax(-1) for batch in text]
    effects = [
        measure_effects(tuned, bases_of(one[None]), text, site="answer") for one in directions
    ]
    ends = {}
    for strength in (0.0, 3.0):
        model = tiny.adapted(tiny.llama(), targets=["down_proj"], seed=9)
        optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=2e-2)
        protection = Protection(effect=True, own_step=True, strength=strength, site="answer")
        plan = GuardPlan(protection, directions[:1], text, effects={"anchored": effects[0]})
        with hold(model, plan, optimizer=optimizer) as guard:
            for step in range(100):
                guard.penalty()
                batch, goal = text[step % 2], taught[step % 2]
                spoken = model(**plain(batch)).logits.log_softmax(-1)
                (-(goal * spoken).sum(-1)[batch["attention_mask"].bool()].mean()).backward()
                optimizer.step()
                optimizer.zero_grad()
        ends[strength] = [share_of(model, one) for one in effects]
    assert min(ends[0.0]) > 0.8
    assert ends[3.0][0] < 0.2
    assert ends[3.0][1] > 0.8


def plain(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}
