"""GRASP inside TRL's SFTTrainer: padded, packed and padding-free batches, whole or resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from analysis.errors import InputError
from grasp.data.examples import as_examples
from grasp.data.tokenise import neutral_batches
from grasp.settings.methods import METHODS
from grasp.settings.protection import Protection
from grasp.training.trainer import GUARD_FILE, GraspMixin
from tests.support import tiny

pytestmark = [
    pytest.mark.filterwarnings(tiny.PEFT_WARNING),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    # TRL's defaults use the old name.
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning"),
]

PLAIN = 0.74
"""Drift without protection, in base standard deviations."""

TOLERANCE = 0.6
"""Of that drift."""

HELD = Protection(write_constraint=True, anchor=True, strength=30.0, tolerance=TOLERANCE)
BATCHES: dict[str, dict[str, Any]] = {
    "padded": {},
    "packed": {"packing": True},
    "padding-free": {"padding_free": True, "max_length": None},
}


def rows() -> list[dict[str, Any]]:
    """Eight chats of one to three turns, six times: little enough to be learned in a few steps."""
    chats = [tiny.chats(1, seed=10 + i, turns=1 + i % 3)[0] for i in range(8)]
    return chats * 6


def neutral() -> list[dict[str, Tensor]]:
    texts = as_examples(tiny.messages(8, seed=2, turns=2))
    return neutral_batches(tiny.tokenizer(), texts, batch_size=4, max_length=64, seed=0)


def sft(
    folder: Path,
    *,
    protection: Protection = HELD,
    naive: Path | None = None,
    kind: type[SFTTrainer] = SFTTrainer,
    task_type: str | None = None,
    **changed: Any,
) -> Any:
    """TRL's own defaults, gradient checkpointing among them, but for what is small or for a CPU.

    A tolerance is in base standard deviations: that of a naive run whose drift is 1.
    """
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 10,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "max_length": 64,
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    trainer = type("Grasp", (GraspMixin, kind), {})(
        model=tiny.llama(),
        args=SFTConfig(**settings | changed),
        train_dataset=Dataset.from_list(rows()),
        processing_class=tiny.tokenizer(),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type=task_type),
        directions=tiny.subspace(2),
        protection=protection,
        neutral=neutral(),
        dressed=neutral(),
        naive=naive,
    )
    if naive is None:
        trainer.guard_plan = replace(trainer.guard_plan, naive_drift={"anchored": PLAIN})
    return trainer


def leaked(model: Any) -> float:
    """Largest ‖Qᵀ B‖ / ‖B‖ of a writing module, in float64."""
    basis = torch.as_tensor(tiny.subspace(2).copy())
    weights = [w.double() for w in tiny.written(model).values()]
    assert len(weights) == 4
    return max(float((basis @ w).norm() / w.norm()) for w in weights)


def hooks(owner: Any) -> int:
    """Hooks of every kind on an optimizer, or on a model's modules but for the embedding.

    The embedding's are the trainer's own, by which checkpointed layers have a gradient.
    """
    modules = owner.modules() if isinstance(owner, torch.nn.Module) else [owner]
    owners = [m for m in modules if not isinstance(m, torch.nn.Embedding)]
    return sum(len(v) for o in owners for k, v in vars(o).items() if k.endswith("_hooks"))


def watched(trainer: Any) -> list[dict[str, Any]]:
    """What the decoder is given, from now on."""
    seen: list[dict[str, Any]] = []
    trainer.model.get_base_model().model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    return seen


def begins(whole: Tensor, ids: Tensor) -> bool:
    """Whether a batch is `whole` up to some token: neutral text runs no further than its site."""
    return torch.equal(whole[:, : ids.shape[1]], ids)


@pytest.mark.parametrize(
    ("batches", "bf16"), [("padded", False), ("packed", True), ("padding-free", False)]
)
def test_sft_keeps_the_tolerance_and_leaks_nothing(
    tmp_path: Path, batches: str, bf16: bool
) -> None:
    trainer = sft(tmp_path, bf16=bf16, max_steps=16, **BATCHES[batches])
    given = watched(trainer)
    before = hooks(trainer.model)
    trainer.train()
    assert hooks(trainer.model) == before
    assert hooks(trainer.optimizer.optimizer) == 0

    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(log) == 16
    for entry in log:
        assert entry["leakage"] <= 1e-6
        assert len(entry["drift_by_layer"]) == 2
        assert {"drift", "penalty", "strength", "mean_token_accuracy"} <= entry.keys()
    assert log[0]["drift"] == 0
    assert log[-1]["loss"] < log[0]["loss"] - 0.2
    assert leaked(trainer.model) <= 1e-6
    assert 0.001 < trainer.guard.drift().rms <= TOLERANCE * PLAIN

    own = [batch["input_ids"] for batch in neutral()]
    training = [k for k in given if not any(begins(ids, k["input_ids"]) for ids in own)]
    assert len(training) == 16
    assert len(given) > len(training) + 16
    for kwargs in training:
        whole = kwargs.get("attention_mask") is None
        assert whole is (batches != "padded")
        if whole:  # several rows in one
            assert (kwargs["position_ids"] == 0).sum() > len(kwargs["position_ids"]) == 1


@pytest.mark.parametrize(("batches", "bf16"), [("padded", False), ("packed", True)])
def test_sft_holds_the_effect_with_a_step_of_its_own(
    tmp_path: Path, batches: str, bf16: bool
) -> None:
    """Checkpointed activations, and autocast, are TRL's own; the same without a penalty drifts."""
    naive = tiny.save_naive(tmp_path / "naive")
    grasp = METHODS["grasp"].protection
    assert grasp is not None
    shares = {}
    for strength in (0.0, 2.0):
        trainer = sft(
            tmp_path,
            protection=grasp.model_copy(update={"strength": strength, "tolerance": None}),
            naive=naive,
            bf16=bf16,
            max_steps=24,
            learning_rate=5e-3,
            **BATCHES[batches],
        )
        before = hooks(trainer.model)
        trainer.train()
        assert hooks(trainer.model) == before
        assert hooks(trainer.optimizer.optimizer) == 0
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert log[0]["effect_anchored"] == pytest.approx(0, abs=1e-4)
        assert log[-1]["loss"] < log[0]["loss"] - 0.1
        shares[strength] = trainer.guard.effect_share()
    assert shares[2.0] < 0.8 * shares[0.0], shares


@pytest.mark.parametrize("parts", [["anchor", "gradient_projection"], ["ablation"]])
def test_rows_without_padding_train_as_rows_with_it(tmp_path: Path, parts: list[str]) -> None:
    """One long row and its position_ids, where there were four rows and a mask."""
    ends = []
    for batches in ("padded", "padding-free"):
        trainer = sft(
            tmp_path,
            protection=Protection(write_constraint=True, **dict.fromkeys(parts, True)),
            optim="sgd",
            learning_rate=0.1,
            max_steps=5,
            **BATCHES[batches],
        )
        trainer.train()
        ends.append(tiny.adapter_weights(trainer.model))
    for name, weight in ends[0].items():
        torch.testing.assert_close(ends[1][name], weight, rtol=1e-3, atol=1e-5)
    moved = [float(w.abs().max()) for n, w in ends[0].items() if "lora_B" in n]
    assert max(moved) > 1e-2


def words_of(row: int) -> list[str]:
    return tiny.words(24)[row : row + 3]


def said(role: str, *words: str) -> list[dict[str, str]]:
    return [{"role": role, "content": " ".join(words)}]


def unlike(row: int) -> dict[str, Any]:
    """A question with two answers, as DPO and ORPO take them."""
    a, b, c = words_of(row)
    return {
        "prompt": said("user", a),
        "chosen": said("assistant", b),
        "rejected": said("assistant", c),
    }


def judged(row: int) -> dict[str, Any]:
    a, b, _ = words_of(row)
    return {
        "prompt": said("user", a),
        "completion": said("assistant", b),
        "label": row % 2 == 0,
    }


def lengths(completions: list[Any], **_: Any) -> list[float]:
    return [float(len(str(one))) for one in completions]


def spread(outputs: Any, _labels: Any, num_items_in_batch: Any = None) -> Tensor:
    return outputs.logits.float().square().mean()


DRAWN = {"num_generations": 2, "max_completion_length": 4, "temperature": 1.0}
LOSSES: dict[str, tuple[Any, Any, Any, dict[str, Any], dict[str, Any]]] = {
    "SFT, label smoothing": (SFTTrainer, SFTConfig, None, {"label_smoothing_factor": 0.1}, {}),
    "SFT, a loss of its own": (SFTTrainer, SFTConfig, None, {}, {"compute_loss_func": spread}),
    "SFT, DFT": (SFTTrainer, SFTConfig, None, {"loss_type": "dft"}, {}),
    "DPO": (DPOTrainer, DPOConfig, unlike, {}, {}),
    "KTO": (KTOTrainer, KTOConfig, judged, {}, {}),
    "ORPO": (ORPOTrainer, ORPOConfig, unlike, {}, {}),
    "GRPO": (GRPOTrainer, GRPOConfig, unlike, DRAWN, {"reward_funcs": lengths}),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("loss", LOSSES)
def test_every_trainers_own_forward_pass_is_protected(loss: str, tmp_path: Path) -> None:
    """With λ the task's tokens drift less than without; KL on them is more than 0."""
    kind, config, row, settings, given = LOSSES[loss]
    trainer = type("Grasp", (GraspMixin, kind), {})
    data = rows()[:16] if row is None else [row(i) for i in range(16)]
    site: Any = "all" if loss == "ORPO" else "answer"  # its model is given no labels
    drifts = {}
    for strength in (0.0, 300.0):
        for part in ({"anchor_task": True}, {"divergence": "task"}):
            if "divergence" in part and not strength:
                continue
            torch.manual_seed(0)
            made = trainer(
                model=tiny.llama(),
                args=config(
                    output_dir=str(tmp_path), max_steps=12, learning_rate=3e-3, logging_steps=1,
                    per_device_train_batch_size=4, save_strategy="no", bf16=False, use_cpu=True,
                    report_to="none", disable_tqdm=True, dataloader_pin_memory=False, **settings,
                ),
                train_dataset=Dataset.from_list(data),
                processing_class=tiny.tokenizer(),
                peft_config=LoraConfig(r=4, target_modules="all-linear"),
                directions=tiny.subspace(2),
                neutral=neutral(),
                protection=Protection(strength=strength, site=site, **part),
                **given,
            )  # fmt: skip
            made.train()
            log = [entry for entry in made.state.log_history if "loss" in entry]
            if "divergence" in part:
                assert log[0]["penalty"] == pytest.approx(0, abs=1e-4)
                assert log[-1]["penalty"] > 0
            else:
                drifts[strength] = sum(entry["drift_task"] for entry in log[-4:])
    assert drifts[300.0] < 0.8 * drifts[0.0], drifts


class OwnStep(SFTTrainer):
    """As trainers that compute their loss within a step of their own."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        loss = model(input_ids=inputs["input_ids"], labels=inputs["labels"]).loss
        self.accelerator.backward(loss)
        return loss.detach()


def test_a_training_step_that_cannot_be_added_to_is_refused(tmp_path: Path) -> None:
    trainer = sft(tmp_path, protection=Protection(anchor_task=True), kind=OwnStep)
    with pytest.raises(
        InputError, match="computes its loss in a training step of its own, where t"
    ):
        trainer.train()


def test_a_reward_model_is_refused_by_its_task(tmp_path: Path) -> None:
    trainer = sft(tmp_path, task_type="SEQ_CLS")
    with pytest.raises(
        InputError, match="Got an adapter with the task_type 'SEQ_CLS'; expected th"
    ):
        trainer.train()


def test_a_resumed_sft_goes_on_with_its_lambda_to_the_same_end(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 5, "optim": "sgd", "packing": True}
    tight = HELD.model_copy(update={"tolerance": 1e-3})
    whole = sft(tmp_path, protection=tight, **saving)
    whole.train()
    checkpoint = tmp_path / "checkpoint-5"
    saved = json.loads((checkpoint / GUARD_FILE).read_text(encoding="utf-8"))
    assert saved["step"] == 5
    assert 0 < saved["neutral_multiplier"] < whole.guard.state()["neutral_multiplier"]
    resumed = sft(tmp_path, protection=tight, **saving)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.guard.state() == pytest.approx(whole.guard.state(), rel=1e-6)
    for name, weight in tiny.adapter_weights(whole.model).items():
        torch.testing.assert_close(
            tiny.adapter_weights(resumed.model)[name], weight, rtol=1e-4, atol=1e-6
        )
