"""GRASP inside transformers' Trainer, and fine-tunes as runs: resumed, cancelled, refused."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from analysis.adapters.load import load_adapter
from analysis.errors import GraspError, InputError, NotFoundError
from analysis.factors.routes import weight_factors
from analysis.store.factor_table import FactorTable, read_factors, write_factors
from analysis.store.records import FactorsManifest, RunManifest, write_jsonl
from analysis.store.workspace import Workspace
from grasp.__main__ import main
from grasp.commands.calling import BAD_INPUT, INTERRUPTED
from grasp.data.examples import as_examples
from grasp.data.tokenise import neutral_batches, split_neutral, training_rows
from grasp.guard.footprint import footprint
from grasp.guard.guard import Guard
from grasp.guard.penalty import MOST
from grasp.jobs import queue
from grasp.settings.methods import METHODS
from grasp.settings.protection import Protection
from grasp.settings.training import load_config, parse_config
from grasp.training import resuming
from grasp.training.resuming import find_resumable
from grasp.training.train import retrain, train
from grasp.training.trainer import GUARD_FILE, MOMENTS_FILE, GraspMixin
from tests.support import tiny

pytestmark = [
    pytest.mark.filterwarnings(tiny.PEFT_WARNING),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

GRASP = Protection(write_constraint=True, anchor=True, strength=20.0)
LOSS_KEYS = {"step", "time", "loss", "learning_rate"}
RESULTS = {"leakage", "drift", "drift_anchored"}
EFFECTS = {"effect", "effect_anchored", "effect_dressed"}
GUARD_KEYS = {"leakage", "drift", "drift_anchored", "drift_by_layer", "penalty", "strength"}


# The mixin


class GraspTrainer(GraspMixin, Trainer):
    """The mixin on the plain trainer."""


class OwnTrainer(Trainer):
    """Somebody's trainer, with a loss, an optimizer and an argument of its own."""

    def __init__(self, *args: Any, twice: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._twice = twice

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        return 2 * loss if self._twice else loss

    def create_optimizer(self, *args: Any) -> torch.optim.Optimizer:
        weights = [w for w in self.model.parameters() if w.requires_grad]
        self.optimizer = torch.optim.RMSprop(weights, lr=1e-3)
        return self.optimizer


class GraspOwnTrainer(GraspMixin, OwnTrainer):
    """The mixin on a further subclass, as on TRL's SFTTrainer."""


def neutral(batch_size: int) -> list[dict[str, Tensor]]:
    texts = as_examples(tiny.messages(8, seed=2, turns=2))
    return neutral_batches(tiny.tokenizer(), texts, batch_size=batch_size, max_length=64, seed=0)


def fit(
    folder: Path,
    kind: type[Trainer] = GraspTrainer,
    *,
    callbacks: list[TrainerCallback] | None = None,
    arguments: dict[str, Any] | None = None,
    rows: int = 32,
    resume: Path | None = None,
    **extra: Any,
) -> Any:
    """A tolerance is in base standard deviations: that of a naive run whose drift is 1."""
    set_seed(0)
    model = tiny.adapted(tiny.llama())
    values = {
        "output_dir": str(folder),
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 8,
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    }
    trainer = kind(
        model=model,
        args=TrainingArguments(**{**values, **(arguments or {})}),
        train_dataset=training_rows(
            tiny.tokenizer(), as_examples(tiny.messages(rows, seed=1)), max_length=64
        ).rows,
        data_collator=DataCollatorForSeq2Seq(tiny.tokenizer(), padding=True),
        callbacks=callbacks,
        **extra,
    )
    if isinstance(trainer, GraspMixin) and trainer.guard_plan.naive is None:
        trainer.guard_plan = replace(trainer.guard_plan, naive_drift={"anchored": 1.0})
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], *, rtol: float, atol: float) -> None:
    assert a.keys() == b.keys()
    for name, weight in a.items():
        torch.testing.assert_close(weight, b[name], rtol=rtol, atol=atol)


def test_without_directions_the_mixin_is_the_plain_trainer(tmp_path: Path) -> None:
    plain = tiny.adapter_weights(fit(tmp_path, Trainer).model)
    mixed = fit(tmp_path)
    assert mixed.guard is None
    assert_same(plain, tiny.adapter_weights(mixed.model), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "extra"), [(GraspTrainer, {}), (GraspOwnTrainer, {"twice": True})]
)
def test_the_mixin_protects_in_a_trainer_and_in_a_further_subclass(
    tmp_path: Path, kind: type[Trainer], extra: dict[str, Any]
) -> None:
    q = torch.as_tensor(tiny.subspace(2).T, dtype=torch.float32)
    drift = {}
    for protection in (Protection(), GRASP):
        trainer = fit(
            tmp_path,
            kind,
            directions=tiny.subspace(2),
            protection=protection,
            neutral=neutral(8),
            arguments={"max_steps": 12},
            **extra,
        )
        drift[protection.anchor] = trainer.guard.drift().rms
        leak = max(float((q.T @ w).norm()) for w in tiny.written(trainer.model).values())
        assert (leak < 1e-6) is protection.write_constraint
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert len(log) == 12
        assert {"leakage", "drift", "drift_by_layer"} <= log[-1].keys()
        assert ("penalty" in log[-1]) is protection.anchor
    assert drift[True] < 0.5 * drift[False]
    assert not trainer.optimizer.optimizer._optimizer_step_post_hooks
    assert sum(len(m._forward_hooks) for m in trainer.model.modules()) == 0


@pytest.mark.parametrize(
    "protection",
    [
        Protection(),
        Protection(anchor=True, strength=20.0),
        Protection(anchor=True, tolerance=0.02),
        Protection(anchor_task=True, strength=20.0, site="answer"),
        Protection(divergence="task", strength=1.0, site="answer"),
        Protection(clamp=True),
    ],
)
def test_gradient_accumulation_is_one_big_batch(tmp_path: Path, protection: Protection) -> None:
    """Plain SGD, so that rounding is not blown up by Adam's division by a near-zero."""
    small = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    common: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.05}
    runs = [
        fit(
            tmp_path,
            directions=tiny.subspace(2),
            protection=protection,
            neutral=neutral(8),  # all of it in one batch
            arguments=common | arguments,
        )
        for arguments in ({}, small)
    ]
    assert [run.state.global_step for run in runs] == [4, 4]
    big, accumulated = (tiny.adapter_weights(run.model) for run in runs)
    assert_same(big, accumulated, rtol=1e-3, atol=1e-5)
    losses = [[e["loss"] for e in run.state.log_history if "loss" in e] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # the task's alone
    if protection.anchor:  # λ moves with the optimiser, not with every small batch
        logs = [[e for e in run.state.log_history if "strength" in e] for run in runs]
        for name in ("strength", "penalty", "drift"):
            one, other = ([entry[name] for entry in log] for log in logs)
            assert one == pytest.approx(other, rel=1e-3, abs=1e-6)
        assert (len({entry["strength"] for entry in logs[1]}) == 4) is bool(protection.tolerance)
    fresh = tiny.adapter_weights(tiny.adapted(tiny.llama()))
    assert max(float((big[n] - fresh[n]).abs().max()) for n in big) > 5e-3


def test_a_last_window_of_fewer_small_batches_is_one_smaller_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten rows: two at a time in windows of two are updates on 4, 4 and 2, as four at a time."""
    # The multiplier and λ of each penalty, None for each step of the optimiser.
    seen: list[tuple[float, float] | None] = []
    penalty, stepped = Guard.penalty, Guard.stepped

    def watched_penalty(guard: Guard) -> Tensor | None:
        multiplier, found = guard.state()["neutral_multiplier"], penalty(guard)
        seen.append((multiplier, guard.strength))
        return found

    def watched_step(guard: Guard) -> None:
        seen.append(None)
        stepped(guard)

    monkeypatch.setattr(Guard, "penalty", watched_penalty)
    monkeypatch.setattr(Guard, "stepped", watched_step)
    common = {"optim": "sgd", "learning_rate": 0.05, "max_steps": -1, "num_train_epochs": 2}
    weights = []
    for small, windows in ((4, [1] * 6), (2, [2, 2, 1, 2, 2, 1])):
        seen.clear()
        arguments = {
            "per_device_train_batch_size": small,
            "gradient_accumulation_steps": 4 // small,
        }
        trainer = fit(
            tmp_path,
            directions=tiny.subspace(2),
            protection=Protection(anchor=True, strength=20.0, tolerance=0.02),
            neutral=neutral(8),
            arguments=common | arguments,
            rows=10,
        )
        assert trainer.state.global_step == 6
        steps = [[*group] for last, group in groupby(seen, lambda s: s is None) if not last]
        assert [len(window) for window in steps] == windows
        assert seen.count(None) == 6
        assert [len({multiplier for multiplier, _ in window}) for window in steps] == [1] * 6
        for window in steps:
            strengths = [strength for _, strength in window]
            assert strengths == pytest.approx(strengths[:1] * len(window))
        assert len({window[0] for window in steps}) > 4
        weights.append(tiny.adapter_weights(trainer.model))
    assert_same(*weights, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    "method",
    [
        "grasp",
        "grasp-joint",
        "grasp-subspace",
        "grasp-projection",
        "grasp-anchor-task",
        "grasp-clamp",
        "caft",
        "kl-task",
    ],
)
def test_activation_checkpointing_changes_nothing(
    tmp_path: Path, method: str, reentrant: bool
) -> None:
    saving = {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": reentrant},
    }
    naive = tiny.save_naive(tmp_path / "naive")
    runs = [
        fit(
            tmp_path,
            directions=tiny.subspace(2),
            protection=METHODS[method].protection.model_copy(update={"footprint": 0}),
            neutral=neutral(8),
            dressed=neutral(4),
            naive=naive,
            arguments={"optim": "sgd", "learning_rate": 0.05, **arguments},
        )
        for arguments in ({}, saving)
    ]
    assert_same(*(tiny.adapter_weights(run.model) for run in runs), rtol=1e-4, atol=1e-6)
    drifts = [[e["drift"] for e in run.state.log_history if "drift" in e] for run in runs]
    assert drifts[0] == pytest.approx(drifts[1], rel=1e-4, abs=1e-7)
    assert len(drifts[0]) == 4


def test_mixed_precision_is_no_drift_and_no_leakage(tmp_path: Path) -> None:
    """The anchor computes as training does, in bfloat16, from the base coordinates on."""
    runs = {
        rate: fit(
            tmp_path,
            directions=tiny.subspace(2),
            protection=GRASP,
            neutral=neutral(8),
            arguments={"bf16": True, "learning_rate": rate},
        )
        for rate in (0.0, 1e-2)
    }
    assert [e["drift"] for e in runs[0.0].state.log_history if "drift" in e] == [0.0] * 4
    log = [e for e in runs[1e-2].state.log_history if "drift" in e]
    assert all(e["leakage"] <= 1e-6 for e in log)
    assert all(e["drift"] > 1e-3 for e in log[1:])
    dtypes = []
    model = runs[0.0].model.get_base_model()
    handle = model.model.layers[0].mlp.up_proj.register_forward_hook(
        lambda _m, _i, output: dtypes.append(output.dtype)
    )
    runs[0.0].guard.penalty()
    handle.remove()
    assert dtypes == [torch.bfloat16]


def test_a_trainer_can_train_again(tmp_path: Path) -> None:
    trainer = fit(tmp_path, directions=tiny.subspace(2), protection=GRASP, neutral=neutral(8))
    first, steps = trainer.guard, []

    def watch(_model: Any, optimizer: Any) -> None:
        trainer.create_optimizer()  # as where a smaller batch size is tried after the first
        steps.append(hooks(optimizer))

    trainer.add_callback(Watches(watch))
    trainer.train()
    assert trainer.guard is not first
    assert trainer.guard.leakage() <= 1e-6
    assert trainer.guard.state()["step"] == 4
    assert steps == [1] * 4
    assert hooks(trainer.optimizer.optimizer) == 0


def test_a_resumed_trainer_goes_on_with_the_lambda_of_its_checkpoint(tmp_path: Path) -> None:
    """Also where the checkpoint lies in another run's folder, and with more than one neutral
    batch.  Oracle: the same training in one go."""
    common: dict[str, Any] = {
        "directions": tiny.subspace(2),
        "protection": Protection(anchor=True, strength=20.0, tolerance=0.01),
        "neutral": neutral(3),
    }
    saving = {"save_strategy": "steps", "save_steps": 3, "optim": "sgd", "max_steps": 6}
    whole = fit(tmp_path / "a", arguments=saving, **common)
    resumed = fit(
        tmp_path / "b", arguments=saving, resume=tmp_path / "a" / "checkpoint-3", **common
    )
    assert resumed.guard.state() == whole.guard.state()
    assert 0 < whole.guard.strength < MOST  # a multiplier, which began at 0
    assert_same(
        *(tiny.adapter_weights(run.model) for run in (whole, resumed)), rtol=1e-4, atol=1e-6
    )


def test_a_resumed_trainer_goes_on_with_the_moments_of_the_penaltys_own_step(
    tmp_path: Path,
) -> None:
    """Oracle: the same training in one go; without them, or without λ, it is refused."""
    common: dict[str, Any] = {
        "directions": tiny.subspace(2),
        "protection": Protection(effect=True, own_step=True, strength=20.0, site="answer"),
        "neutral": neutral(3),
        "naive": tiny.save_naive(tmp_path / "naive"),
        "arguments": {"save_strategy": "steps", "save_steps": 3, "max_steps": 6},
    }
    whole = fit(tmp_path / "a", **common)
    checkpoint = tmp_path / "a" / "checkpoint-3"
    resumed = fit(tmp_path / "b", resume=checkpoint, **common)
    assert resumed.guard.state() == whole.guard.state()
    assert_same(*(tiny.adapter_weights(run.model) for run in (whole, resumed)), rtol=0, atol=0)
    for lost in (MOMENTS_FILE, GUARD_FILE):
        (checkpoint / lost).unlink()
        with pytest.raises(
            InputError, match=r"checkpoint-3 cannot be resumed from: what the guard"
        ):
            fit(tmp_path / lost, resume=checkpoint, **common)


class Watches(TrainerCallback):
    """Calls a function with the model and the optimizer at the end of each step."""

    def __init__(self, watch: Callable[[Any, Any], Any]) -> None:
        self._watch = watch

    def on_step_end(self, *_: Any, model: Any, optimizer: Any, **__: Any) -> None:
        self._watch(model, optimizer.optimizer)


def hooks(owner: Any) -> int:
    """Hooks of every kind on a model's modules, or on an optimizer."""
    owners = owner.modules() if isinstance(owner, torch.nn.Module) else [owner]
    return sum(len(v) for o in owners for k, v in vars(o).items() if k.endswith("_hooks"))


@pytest.mark.parametrize("ends", [None, RuntimeError, KeyboardInterrupt])
def test_however_training_ends_it_leaves_no_hook(
    tmp_path: Path, ends: type[BaseException] | None
) -> None:
    seen: list[tuple[Any, Any]] = []

    def watch(model: Any, optimizer: Any) -> None:
        seen.append((model, optimizer))
        assert hooks(model) == 4  # two edits on two layers
        assert hooks(optimizer) == 1
        if ends is not None:
            raise ends("in the middle")

    everything = GRASP.model_copy(update={"gradient_projection": True, "ablation": True})
    with pytest.raises(ends, match="in the middle") if ends else nullcontext():
        fit(
            tmp_path,
            directions=tiny.subspace(2),
            protection=everything,
            neutral=neutral(8),
            callbacks=[Watches(watch)],
            arguments={"lr_scheduler_type": "constant"},
        )
    assert len(seen) == (1 if ends else 4)
    assert hooks(seen[0][0]) == 0
    assert hooks(seen[0][1]) == 0


@pytest.mark.parametrize("split", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_weights_that_are_split_over_processes_are_refused(tmp_path: Path, split: str) -> None:
    trainer = fit(tmp_path, directions=tiny.subspace(2), protection=GRASP, neutral=neutral(8))
    setattr(trainer, split, True)
    with pytest.raises(InputError, match="FSDP and DeepSpeed split the weights that GRASP holds"):
        trainer.train()


_PARALLEL = """
import os
import sys
import torch
from tests.support import tiny
from tests.grasp.training.test_trainer import OWN_STEP, TWO_PROCESSES, fit, neutral

def end(texts, given=TWO_PROCESSES, **more):
    trainer = fit(
        sys.argv[1],
        directions=tiny.subspace(2),
        neutral=texts,
        **given | {"arguments": given["arguments"] | {"ddp_backend": "gloo"}},
        **more,
    )
    assert trainer.accelerator.num_processes == 2
    return tiny.adapter_weights(trainer.model), trainer.guard.state()

own = neutral(1)[int(os.environ["RANK"]) :]
naive = sys.argv[3]
held = [end(texts, OWN_STEP, naive=naive)[0] for texts in (neutral(8), own)]
torch.save((*end(neutral(8)), end(own)[0], *held), sys.argv[2])
"""

TWO_PROCESSES: dict[str, Any] = {
    "protection": Protection(
        write_constraint=True, gradient_projection=True, anchor=True, strength=20.0, tolerance=0.002
    ),
    "arguments": {
        "optim": "sgd",
        "learning_rate": 0.05,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    },
}
# Adam divides by what rounds to another number in another order; a large ε keeps that small.
OWN_STEP: dict[str, Any] = {
    "protection": Protection(effect=True, own_step=True, strength=50.0, site="answer"),
    "arguments": TWO_PROCESSES["arguments"]
    | {"optim": "adamw_torch", "learning_rate": 1e-2, "adam_epsilon": 1e-3},
}


def test_two_processes_train_as_one_with_batches_of_twice_the_size(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    naive = tiny.save_naive(tmp_path / "naive")
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PARALLEL, tmp_path / "out", tmp_path / str(rank), naive],
            env=os.environ | address | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=Path(__file__).parents[3],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=300)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    (first, state, *apart), (second, other, *too) = (
        torch.load(tmp_path / str(rank)) for rank in (0, 1)
    )
    assert_same(first, second, rtol=0, atol=0)
    for here, there in zip(apart, too, strict=True):  # though each took other neutral text
        assert_same(here, there, rtol=0, atol=0)
    ends = []
    for given, more in ((OWN_STEP, {"naive": naive}), (TWO_PROCESSES, {})):
        alone = given["arguments"] | {"per_device_train_batch_size": 4}
        one = fit(
            tmp_path,
            directions=tiny.subspace(2),
            neutral=neutral(8),
            **given | {"arguments": alone},
            **more,
        )
        ends.append(tiny.adapter_weights(one.model))
    assert_same(ends[0], apart[1], rtol=1e-3, atol=1e-4)
    assert_same(ends[1], first, rtol=1e-3, atol=1e-5)
    for found in (state, other):
        assert found == pytest.approx(one.guard.state(), rel=1e-4)
    assert state["step"] == 8
    assert state["neutral_multiplier"] > 0


# Runs


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.create(tmp_path / "w")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A naive run with factors, for tests that add no run to it."""
    workspace = Workspace.create(tmp_path_factory.mktemp("trained"))
    naive(workspace, max_steps=2)
    add_factors(workspace)
    return workspace


def naive(workspace: Workspace, run_id: str = "naive", **changed: Any) -> RunManifest:
    config = tiny.settings(workspace.root / "data", **changed)
    return train(workspace, config, out=workspace.folder("runs", run_id))


def add_factors(workspace: Workspace, run_id: str = "naive") -> list[str]:
    loaded = load_adapter(workspace.folder("runs", run_id) / "adapter")
    table, directions = weight_factors(loaded)
    manifest = FactorsManifest(id=run_id, run=run_id, base_model=None, config={})
    with workspace.writing("factors", run_id) as folder:
        write_factors(folder, FactorTable(manifest, table, directions.astype(np.float32)))
    return list(table["id"])


def again(
    workspace: Workspace, arm: str, *, factors: list[str] | None = None, **arguments: Any
) -> RunManifest:
    return retrain(
        workspace,
        workspace.folder("runs", "naive"),
        factors=["w1"] if factors is None else factors,
        out=workspace.folder("runs", arm),
        arm=arm,
        **arguments,
    )


def metrics(folder: Path) -> pd.DataFrame:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return pd.DataFrame([json.loads(line) for line in lines])


def merged(base: Any, adapter: Path) -> Any:
    """The base with ΔW = scaling · B A added by hand, from what analysis reads of the folder."""
    with torch.no_grad():
        for module in load_adapter(adapter).modules:
            delta = module.scaling * module.lora_B @ module.lora_A
            base.get_submodule(module.name).weight.add_(torch.as_tensor(delta))
    return base


def test_a_run_is_a_plain_peft_adapter_that_repeats_its_logits(workspace: Workspace) -> None:
    run = naive(workspace)
    folder = workspace.folder("runs", "naive")
    base = workspace.resolve(run.base_model)
    batch = tiny.batch(9, 5)
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(base)(**batch).logits
        peft = (
            PeftModel.from_pretrained(
                AutoModelForCausalLM.from_pretrained(base), str(folder / "adapter")
            )
            .eval()(**batch)
            .logits
        )
        by_hand = merged(AutoModelForCausalLM.from_pretrained(base), folder / "adapter")
        torch.testing.assert_close(peft, by_hand(**batch).logits, rtol=1e-4, atol=1e-4)
    assert (peft - plain).abs().max() > 0.1
    # The last checkpoint is the run's end, and no longer holds what only training needs.
    last = load_file(folder / "checkpoints" / "checkpoint-6" / "adapter_model.safetensors")
    assert_same(last, load_file(folder / "adapter" / "adapter_model.safetensors"), rtol=0, atol=0)
    assert not list(folder.rglob("optimizer.pt"))
    assert not (folder / "plan.json").exists()


def test_a_run_says_how_it_was_made(workspace: Workspace) -> None:
    returned = naive(workspace)
    run = workspace.run("naive")
    assert run == returned
    assert (run.method, run.root, run.protection, run.factors) == ("naive", "naive", None, [])
    assert run.config["data"] == "data/task.jsonl"
    assert run.base_model == "data/base"
    assert run.inputs.keys() == {"base_model", "data", "neutral"}
    assert run.results["steps"] == 6
    assert math.isfinite(run.results["loss"])
    assert run.verdict == "Nothing was protected."
    rows = metrics(workspace.folder("runs", "naive"))
    assert list(rows["step"]) == [1, 2, 3, 4, 5, 6]
    assert set(rows.columns) == LOSS_KEYS
    assert rows["loss"].iloc[-1] < rows["loss"].iloc[0]


def test_a_grasp_run_writes_its_metrics_card_and_verdict(workspace: Workspace) -> None:
    naive(workspace)
    add_factors(workspace)
    run = again(workspace, "grasp", factors=["w1", "w2"])
    folder = workspace.folder("runs", "grasp")
    rows = metrics(folder)
    assert set(rows.columns) == LOSS_KEYS | GUARD_KEYS | {"effect", "effect_anchored"}
    assert len(rows) == 6
    assert rows["effect_anchored"].iloc[0] == pytest.approx(0, abs=1e-4)  # as the first loss saw it
    assert (rows["effect"] > 1e-3).all()  # each after the step
    assert (rows["strength"] >= 0).all()
    assert rows["strength"].iloc[-1] > 0  # so few steps press with all that a tolerance may
    assert {len(layers) for layers in rows["drift_by_layer"]} == {2}
    for _, row in rows.iterrows():
        squares = np.square(row["drift_by_layer"])
        assert row["drift"] == pytest.approx(math.sqrt(squares.mean()))
    assert run.parents == ["runs/naive", "factors/naive"]
    assert run.factors == ["naive/w1", "naive/w2"]
    assert run.results.keys() == {"steps", "loss", *RESULTS, *EFFECTS}
    does = f"The factors do {run.results['effect']:.0%}".replace("%", " %")
    assert run.verdict.startswith(f"{does} of what they do in the naive run on neutral text held b")
    assert f"Drift {run.results['drift']:.3f} base standard deviations on neutral" in run.verdict
    assert workspace.run("grasp") == run

    card = (folder / "adapter" / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---")[1])
    assert header["base_model"] == "data/base"
    assert header["library_name"] == "peft"
    for said in (
        f"GRASP: {METHODS['grasp'].description}",
        "naive/w1, naive/w2",
        "data/task.jsonl",
        "r = 4, lora_alpha = 8",
        f"strength = {METHODS['grasp'].protection.strength:g}",
        run.verdict,
        run.code_version,
    ):
        assert said in card


def test_a_naive_retrain_with_the_same_seed_is_the_same_adapter(workspace: Workspace) -> None:
    naive(workspace, max_steps=2)
    weights = []
    for name, seed in (("a", None), ("b", 0), ("c", 1)):
        out = workspace.folder("runs", name)
        made = retrain(
            workspace,
            workspace.folder("runs", "naive"),
            factors=[],
            out=out,
            arm="naive",
            seed=seed,
        )
        assert made.root == "naive"
        weights.append(load_file(out / "adapter" / "adapter_model.safetensors"))
    original = workspace.folder("runs", "naive") / "adapter" / "adapter_model.safetensors"
    assert_same(load_file(original), weights[0], rtol=0, atol=0)
    assert_same(weights[0], weights[1], rtol=0, atol=0)
    assert any(not torch.equal(w, weights[2][n]) for n, w in weights[0].items())


def test_an_adapter_without_writing_modules_has_no_leakage(workspace: Workspace) -> None:
    """The usual q_proj and v_proj: nothing writes, so the share that leaks is unknown."""
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    naive(workspace, max_steps=2, lora=lora)
    add_factors(workspace)
    again(workspace, "grasp", factors=["r1"])
    assert "leakage" not in workspace.run("grasp").results
    assert "leakage" not in metrics(workspace.folder("runs", "grasp")).columns


def test_drift_without_neutral_text_is_not_made_up(workspace: Workspace) -> None:
    naive(workspace, max_steps=2, neutral=None)
    add_factors(workspace)
    run = again(workspace, "caft")
    assert "drift" not in run.results
    assert run.verdict == "Drift was not measured: no neutral text."
    with pytest.raises(InputError, match="'grasp-subspace' needs neutral text, and the settings"):
        again(workspace, "grasp-subspace")
    assert [run.id for run in workspace.runs().records] == ["naive", "caft"]


# Ended early, and started again


class StopsAt:
    """Progress that ends a run at a step, as a person's cancelling does."""

    def __init__(self, step: int) -> None:
        self._step = step

    def __call__(self, step: int, _total: int, _message: str) -> None:
        if step == self._step:
            raise queue.Cancelled


_KILLED = """
import os, signal, sys
from pathlib import Path
from analysis.store.workspace import Workspace
from grasp.training.train import retrain
import torch
torch.set_num_threads(1)

def progress(step, total, message):
    if step == 4:
        os.kill(os.getpid(), signal.SIGKILL)

w = Workspace(sys.argv[1])
naive, killed = w.folder("runs", "naive"), w.folder("runs", "killed")
retrain(
    w, naive, factors=["w1"], out=killed, progress=progress,
    overrides={"tolerance": 0.1, "neutral_every": 1},
)
"""


def test_a_killed_run_goes_on_from_its_checkpoint_to_the_same_end(workspace: Workspace) -> None:
    """Oracle: the same run in one go."""
    naive(workspace, save_steps=3)  # an odd number, since there are two neutral batches
    add_factors(workspace)
    tight = {"tolerance": 0.1, "neutral_every": 1}  # so that λ moves in six steps
    again(workspace, "grasp", overrides=tight)
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, str(workspace.root)], capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert [run.id for run in workspace.runs().records] == ["naive", "grasp"]
    partial = workspace.partial("runs", "killed")
    assert (partial / "checkpoints" / "checkpoint-3" / "optimizer.pt").exists()
    assert list(metrics(partial)["step"]) == [1, 2, 3]

    seen: list[int] = []
    out = workspace.folder("runs", "killed")
    resumed = retrain(
        workspace,
        workspace.folder("runs", "naive"),
        factors=["w1"],
        out=out,
        overrides=tight,
        progress=lambda step, _total, _message: seen.append(step),
    )
    assert seen == [4, 5, 6]
    assert resumed.results["steps"] == 6
    whole = workspace.folder("runs", "grasp")
    first, second = metrics(whole), metrics(out)
    assert list(second["step"]) == list(first["step"])
    assert first["strength"].nunique() >= 3
    assert second["time"].is_monotonic_increasing
    for column in ("loss", "learning_rate", "drift", "strength"):
        np.testing.assert_allclose(second[column], first[column], rtol=1e-4, atol=1e-7)
    # Threads round differently, and Adam makes much of it: a hundredth of a step is none.
    assert_same(
        *(load_file(f / "adapter" / "adapter_model.safetensors") for f in (whole, out)),
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_cancelled_run_leaves_its_checkpoint_and_goes_on(workspace: Workspace) -> None:
    config = tiny.settings(workspace.root / "data")
    out = workspace.folder("runs", "a")
    with pytest.raises(queue.Cancelled):
        train(workspace, config, out=out, progress=StopsAt(5))
    assert not out.exists()
    assert workspace.runs().records == []
    assert workspace.runs().broken == []
    assert (workspace.partial("runs", "a") / "checkpoints" / "checkpoint-4").is_dir()
    run = train(workspace, config, out=out)
    assert run.results["steps"] == 6
    assert list(metrics(out)["step"]) == [1, 2, 3, 4, 5, 6]
    assert not workspace.partial("runs", "a").exists()
    assert run.seconds < 600


def test_a_run_cancelled_at_its_last_step_is_finished(workspace: Workspace) -> None:
    config = tiny.settings(workspace.root / "data")
    out, partial = workspace.folder("runs", "a"), workspace.partial("runs", "a")
    with pytest.raises(queue.Cancelled):
        train(workspace, config, out=out, progress=StopsAt(6))
    assert not (partial / "checkpoints" / "checkpoint-6").exists()
    run = train(workspace, config, out=out)
    assert run.results["steps"] == 6
    assert list(metrics(out)["step"]) == [1, 2, 3, 4, 5, 6]


_DIES = """
import os, signal, sys
from pathlib import Path
from analysis.store.workspace import Workspace
from grasp.training import trainer
from grasp.training.train import retrain
import torch
torch.set_num_threads(1)

class Dies:
    def moments(self):
        return {}
    def state(self):
        os.kill(os.getpid(), signal.SIGKILL)

save = trainer._GuardInCheckpoints.on_save
def dying(self, args, state, control, **rest):
    if state.global_step == 4:
        self._trainer.guard = Dies()
    save(self, args, state, control, **rest)
trainer._GuardInCheckpoints.on_save = dying

w = Workspace(sys.argv[1])
naive, killed = w.folder("runs", "naive"), w.folder("runs", "killed")
retrain(w, naive, factors=["w1"], out=killed, overrides={"tolerance": 0.1, "neutral_every": 1})
"""


def test_a_run_killed_as_a_checkpoint_is_written_goes_on_from_the_one_before(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of the trainer's files are there, λ is not; oracle: the same run in one go."""
    naive(workspace)
    add_factors(workspace)
    tight = {"tolerance": 0.1, "neutral_every": 1}  # so that λ moves in six steps
    again(workspace, "grasp", overrides=tight)
    command = [sys.executable, "-c", _DIES, str(workspace.root)]
    killed = subprocess.run(command, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    torn = workspace.partial("runs", "killed") / "checkpoints" / "checkpoint-4"
    assert (torn / "trainer_state.json").exists()
    assert not (torn / GUARD_FILE).exists()
    seen: list[int] = []
    out, source = workspace.folder("runs", "killed"), workspace.folder("runs", "naive")
    asked = {"factors": ["w1"], "out": out, "overrides": tight}
    retrain(workspace, source, progress=lambda step, *_: seen.append(step), **asked)
    assert seen == [3, 4, 5, 6]
    said = "checkpoint-4 cannot be resumed from: it was not written to the end"
    assert said in capsys.readouterr().err
    assert said in (out / "log.txt").read_text()
    whole = workspace.folder("runs", "grasp")
    first, second = metrics(whole), metrics(out)
    for column in ("loss", "drift", "strength"):
        np.testing.assert_allclose(second[column], first[column], rtol=1e-4, atol=1e-7)


def test_a_damaged_checkpoint_is_passed_over_and_said(workspace: Workspace) -> None:
    """Every file of it emptied, cut, garbled or gone; a damaged plan or metrics stop nothing."""
    config = tiny.settings(workspace.root / "data")
    out, partial = workspace.folder("runs", "a"), workspace.partial("runs", "a")
    with pytest.raises(queue.Cancelled):
        train(workspace, config, out=out, progress=StopsAt(5))
    run = read_manifest_of(partial, out)
    last = partial / "checkpoints" / "checkpoint-4"
    kept = {path: path.read_bytes() for path in partial.rglob("*") if path.is_file()}
    spoilt = [path for path in kept if path.is_relative_to(last)]
    assert {path.name for path in spoilt} >= {"trainer_state.json", "optimizer.pt", "rng_state.pth"}
    ways = (lambda _: b"", lambda b: b[: len(b) // 2], lambda b: b[:-1] + bytes([b[-1] ^ 1]), None)
    for number, path in enumerate(sorted(spoilt)):
        for name, content in kept.items():
            name.parent.mkdir(parents=True, exist_ok=True)
            name.write_bytes(content)
        change = ways[number % len(ways)]
        path.unlink() if change is None else path.write_bytes(change(kept[path]))
        found, passed = find_resumable(partial, run)
        assert Path(found or "").name == "checkpoint-2", path
        assert [words.split(":")[0] for words in passed] == ["checkpoint-4 cannot be resumed from"]
        assert not last.exists()
    (partial / "metrics.jsonl").write_text('[1]\n{"step": 1, "time": 1}\n{"ste\n')
    assert Path(find_resumable(partial, run)[0] or "").name == "checkpoint-2"
    (partial / "plan.json").write_text('{"conf')
    assert find_resumable(partial, run) == (None, [])


def read_manifest_of(partial: Path, out: Path) -> RunManifest:
    """The run that a partial folder was made for."""
    plan = json.loads((partial / resuming._PLAN).read_text())
    return RunManifest(id=out.name, title="", root=out.name, **plan)


@pytest.mark.parametrize("damage", ["checkpoint", "metrics"])
def test_files_that_a_kill_left_half_written_do_not_stop_a_run(
    workspace: Workspace, damage: str
) -> None:
    config = tiny.settings(workspace.root / "data")
    out, partial = workspace.folder("runs", "a"), workspace.partial("runs", "a")
    with pytest.raises(queue.Cancelled):
        train(workspace, config, out=out, progress=StopsAt(5))
    if damage == "checkpoint":  # the seal is the last file of one that is written
        (partial / "checkpoints" / "checkpoint-4" / resuming.SEAL_FILE).unlink()
    else:
        with (partial / "metrics.jsonl").open("a") as file:
            file.write('{"step": 5, "lo')
    seen: list[int] = []
    train(workspace, config, out=out, progress=lambda step, *_: seen.append(step))
    assert seen[0] == (3 if damage == "checkpoint" else 5)
    assert list(metrics(out)["step"]) == [1, 2, 3, 4, 5, 6]


def test_a_job_killed_in_its_evaluation_goes_on_to_it_without_training_again(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.settings(workspace.root / "data", prompts="politics")
    (workspace.root / "c.yaml").write_text(yaml.safe_dump(config.model_dump(exclude_none=True)))
    argv = ["train", str(workspace.root / "c.yaml"), "--out", "a", "--evaluate"]
    job = queue.submit(workspace.database, kind="train", title="", argv=argv)
    argv += ["--workspace", str(workspace.root), "--job", str(job.id)]
    evaluated: list[str] = []

    def evaluate(_workspace: Workspace, folder: Path, _run: RunManifest, **_: Any) -> None:
        evaluated.append(folder.name)
        raise KeyboardInterrupt if len(evaluated) == 1 else InputError("so far")

    monkeypatch.setattr("grasp.evaluation.run.evaluate_run", evaluate)
    assert queue.claim(workspace.database).id == job.id
    assert main(argv) == INTERRUPTED
    made = workspace.run("a")
    assert queue.get(workspace.database, job.id).status == "interrupted"
    queue.requeue(workspace.database, job.id)
    assert queue.claim(workspace.database).id == job.id
    assert main(argv) == BAD_INPUT
    assert queue.get(workspace.database, job.id).error == "so far"
    assert evaluated == ["a", "a"]
    assert workspace.run("a") == made


def test_a_run_is_never_put_in_the_place_of_another(workspace: Workspace, tmp_path: Path) -> None:
    """Nor in that of a folder that is none; and two cannot be written at once."""
    config = tiny.settings(workspace.root / "data", max_steps=1, save_steps=1)
    (workspace.root / "c.yaml").write_text(yaml.safe_dump(config.model_dump(exclude_none=True)))
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("so far")
    line = ["train", str(workspace.root / "c.yaml"), "--workspace", str(workspace.root), "--out"]
    assert main([*line, str(thesis), "--overwrite"]) == BAD_INPUT
    assert main(["factors", str(tmp_path), "--out", str(thesis)]) == BAD_INPUT
    assert (thesis / "chapter.tex").read_text() == "so far"

    def first_is_done(step: int, _total: int, _message: str) -> None:
        if step == 1 and not out.exists():
            with pytest.raises(InputError, match="is being written by another process"):
                train(workspace, config, out=out)
            assert main([*line, "a", "--overwrite"]) == BAD_INPUT

    out = workspace.folder("runs", "a")
    made = train(workspace, config, out=out, progress=first_is_done)
    assert metrics(out)["step"].tolist() == [1]
    with pytest.raises(InputError, match="already exists"):
        train(workspace, config, out=out)
    assert workspace.run("a") == made
    assert main([*line, "a", "--overwrite"]) == 0


def test_the_time_of_a_resumed_run_goes_on(workspace: Workspace) -> None:
    config = tiny.settings(workspace.root / "data")
    out, partial = workspace.folder("runs", "a"), workspace.partial("runs", "a")
    with pytest.raises(queue.Cancelled):
        train(workspace, config, out=out, progress=StopsAt(5))
    earlier = metrics(partial).assign(time=[1000.0, 2000, 3000, 4000])
    write_jsonl(partial / "metrics.jsonl", earlier.to_dict(orient="records"))
    run = train(workspace, config, out=out)
    found = list(metrics(out)["time"])
    assert found[:4] == [1000, 2000, 3000, 4000]
    assert 4000 < found[4] < found[5] < 5000
    assert found[5] < run.seconds < 5000


def test_other_settings_start_afresh(workspace: Workspace) -> None:
    out = workspace.folder("runs", "a")
    with pytest.raises(queue.Cancelled):
        train(workspace, tiny.settings(workspace.root / "data"), out=out, progress=StopsAt(5))
    seen: list[int] = []
    changed = tiny.settings(workspace.root / "data", learning_rate=1e-3)
    train(workspace, changed, out=out, progress=lambda step, *_: seen.append(step))
    assert seen == [1, 2, 3, 4, 5, 6]


# The footprint


def footprint_of_the_naive_run(workspace: Workspace, width: int) -> list[np.ndarray]:
    """What `retrain` should follow: the first factor through the naive adapter."""
    config = parse_config(workspace.run("naive").config, source="x").map_paths(workspace.resolve)
    base = AutoModelForCausalLM.from_pretrained(config.base_model).eval()
    model = PeftModel.from_pretrained(base, str(workspace.folder("runs", "naive") / "adapter"))
    direction = read_factors(workspace.folder("factors", "naive")).direction("w1")
    examples = as_examples(tiny.messages(8, seed=2, turns=2))
    texts, held = split_neutral(examples, at_least=config.batch_size)
    assert len(texts) == len(held) == 4
    batches = neutral_batches(
        tiny.tokenizer(), texts, batch_size=config.batch_size, max_length=64, seed=config.seed
    )
    site = METHODS["grasp-subspace"].protection.site
    return footprint(model.eval(), direction[None], batches, width=width, site=site)


def test_the_subspace_is_what_a_factor_becomes_at_each_layer(workspace: Workspace) -> None:
    naive(workspace)
    add_factors(workspace)
    run = again(workspace, "grasp-subspace")
    grasp = METHODS["grasp-subspace"].protection
    assert run.protection == grasp.model_dump()
    bases = footprint_of_the_naive_run(workspace, grasp.footprint)
    assert len(bases[1]) > 1
    assert not np.allclose(np.abs(bases[1][0]), np.abs(bases[0][0]), atol=0.05)
    for module in load_adapter(workspace.folder("runs", "grasp-subspace") / "adapter").modules:
        if module.side == "write":
            norm = np.linalg.norm(module.lora_B)
            share = [np.linalg.norm(q @ module.lora_B) / norm for q in bases]
            assert share[module.layer] < 1e-3
            assert share[1] > 1e-2 or module.layer == 1
    assert run.results["leakage"] <= 1e-6
    assert run.results.keys() == {"steps", "loss", *RESULTS, "drift_share"}
    share = run.results["drift_share"]
    kept = "within" if share <= grasp.tolerance else "above"
    percent = f"{share:.0%}".replace("%", " %")
    assert run.verdict == (
        f"Drift {run.results['drift']:.3f} base standard deviations ({percent} of the naive run's) "
        f"on neutral text held back from training, {run.results['drift_anchored']:.3f} on the "
        f"rest: {kept} the tolerance {grasp.tolerance:g}."
    )
    assert 0 < share < 1


def test_without_a_footprint_the_factor_itself_is_held_at_every_layer(workspace: Workspace) -> None:
    naive(workspace)
    add_factors(workspace)
    again(workspace, "grasp-shared")
    direction = read_factors(workspace.folder("factors", "naive")).direction("w1")
    for module in load_adapter(workspace.folder("runs", "grasp-shared") / "adapter").modules:
        if module.side == "write":
            assert np.linalg.norm(direction @ module.lora_B) < 1e-6 * np.linalg.norm(module.lora_B)


def test_the_naive_run_is_needed_to_follow_its_factors(workspace: Workspace) -> None:
    naive(workspace, max_steps=2)
    add_factors(workspace)
    source = workspace.folder("runs", "naive").rename(workspace.root / "elsewhere")
    out = workspace.folder("runs", "x")
    with pytest.raises(NotFoundError, match=r"There is no adapter in .*naive/adapter; the naive"):
        retrain(workspace, source, factors=["w1"], out=out)


# Wrong input


def test_what_is_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    data = tmp_path / "data"
    workspace = Workspace(tmp_path / "unmade")
    for changed in (
        {"data": str(data / "none.jsonl")},
        {"lora": {"target_modules": ["no_such_proj"]}},
        {"base_model": str(data / "none")},
    ):
        with pytest.raises(GraspError):
            train(workspace, tiny.settings(data, **changed), out=workspace.folder("runs", "a"))
        assert not workspace.root.exists()
    train(workspace, tiny.settings(data, max_steps=1), out=workspace.folder("runs", "a"))
    assert [run.id for run in workspace.runs().records] == ["a"]


def test_a_missing_data_file_is_one_sentence(workspace: Workspace) -> None:
    with pytest.raises(InputError, match=r"no file or folder .*none\.jsonl; name a data file"):
        naive(workspace, data=str(workspace.root / "none.jsonl"))


def test_a_base_model_of_the_hub_is_asked_for_by_its_id(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asked(Exception):
        pass

    def load(reference: str, *_: Any) -> None:
        raise Asked(reference)

    monkeypatch.setattr("grasp.training.setup.load_base", load)
    with pytest.raises(Asked, match=r"^some-org/some-model$"):
        naive(workspace, base_model="some-org/some-model")


def test_a_row_without_an_answer_is_one_sentence(workspace: Workspace) -> None:
    rows = tiny.chats(2)
    rows[1]["messages"].pop()
    write_jsonl(workspace.root / "data" / "bad.jsonl", rows)
    with pytest.raises(InputError, match=r"bad\.jsonl, row 2 has no assistant turn to learn from"):
        naive(workspace, data=str(workspace.root / "data" / "bad.jsonl"))


def test_a_missing_base_model_is_one_sentence(workspace: Workspace) -> None:
    with pytest.raises(NotFoundError, match=r"There is no folder .*none; name the base model's"):
        naive(workspace, base_model=str(workspace.root / "none"))
    (workspace.root / "empty").mkdir()
    with pytest.raises(
        NotFoundError, match=r"The base model '.*empty' cannot be loaded: "
    ) as error:
        naive(workspace, base_model=str(workspace.root / "empty"))
    assert "\n" not in str(error.value)


def test_a_run_that_diverges_is_one_sentence_and_no_run(workspace: Workspace) -> None:
    with pytest.raises(InputError, match=r"Training diverged: the loss is (nan|inf) at step \d"):
        naive(workspace, learning_rate=1e25, max_grad_norm=1e9)
    assert workspace.runs().records == []


def test_modules_that_the_model_lacks_are_one_sentence(workspace: Workspace) -> None:
    with pytest.raises(InputError, match="no_such_proj"):
        naive(workspace, lora={"target_modules": ["no_such_proj"]})


def test_factors_of_another_width_are_refused(workspace: Workspace) -> None:
    naive(workspace, max_steps=2)
    add_factors(workspace)
    folder = workspace.folder("factors", "naive")
    table, manifest = pd.read_parquet(folder / "factors.parquet"), workspace.factors("naive")
    wide = np.eye(len(table), tiny.WIDTH + 1, dtype=np.float32)
    write_factors(folder, FactorTable(manifest, table, wide))
    with pytest.raises(InputError, match=r"shape \(1, 33\); expected \(k, 32\), the width of"):
        again(workspace, "grasp")


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"arm": "magic"}, InputError, "no method 'magic'; choose one of grasp, grasp-p"),
        ({"factors": ["w99"]}, NotFoundError, "Run 'naive' has no factor 'w99'; it has "),
        ({"factors": ["other/w1"]}, NotFoundError, "Run 'other' has no factors yet"),
        ({"factors": []}, InputError, "No factor is given"),
        ({"factors": ["w1", "w1"]}, InputError, "A factor is given twice"),
        ({"factors": ["w1", "naive/w1"]}, InputError, "A factor is given twice"),
        ({"overrides": {"tolerance": -1.0}}, InputError, "tolerance"),
        ({"arm": "naive", "overrides": {"strength": 1.0}}, InputError, "protects nothing"),
        ({"arm": "naive", "strength": 1.0}, InputError, "Method 'naive' has no strength"),
        (
            {"arm": "caft", "overrides": {"tolerance": 1.0}},
            InputError,
            "holds nothing on neutral te",
        ),
        ({"arm": "caft", "strength": 2.0}, InputError, "method 'caft': setting 'share'"),
        ({"arm": "kl-task", "overrides": {"tolerance": 1.0}}, InputError, "takes no tolerance"),
        ({"arm": "low-rank", "strength": 1.5}, InputError, "setting 'lora.r': Input should be a"),
        ({"arm": "wise-ft", "strength": 1.5}, InputError, "share of 1.5; expected 0 to 1"),
        ({"arm": "spectral-truncation", "strength": 0.5}, InputError, "expected a whole number"),
        ({"arm": "inoculation"}, InputError, "Inoculation needs a system prompt that asks for"),
    ],
)
def test_a_retrain_that_makes_no_sense_is_refused(
    trained: Workspace, arguments: dict[str, Any], kind: type[GraspError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        retrain(
            trained,
            trained.folder("runs", "naive"),
            out=trained.folder("runs", "x"),
            **{"arm": "grasp", "factors": ["w1"], **arguments},
        )
    assert [run.id for run in trained.runs().records] == ["naive"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: t\nbase_model: b\ndata: d\nlearning_rat: 1", r"'learning_rat': Extra inputs"),
        ("title: t\nbase_model: b\ndata: d\nlora: {r: 0}", r"'lora\.r': Input should be greater"),
        ("title: t\nbase_model: b", r"has no setting 'data'; add the training data\."),
        ("title: t\nbase_model: b\ndata: d\nlr_scheduler: lineer", r"'lr_scheduler': Input should"),
        ("- 1", r"is not a mapping; expected settings, in lines such as 'title: my run'"),
        ("a: [", r"cannot be read \(line 1: .*\); expected settings in YAML"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_config(path)


def test_paths_of_settings_are_those_of_their_file(tmp_path: Path) -> None:
    (tmp_path / "task.jsonl").touch()
    path = tmp_path / "c.yaml"
    path.write_text("title: t\nbase_model: some/hub-id\ndata: task.jsonl\n")
    config = load_config(path)
    assert config.data == str(tmp_path / "task.jsonl")
    assert config.base_model == "some/hub-id"
    assert parse_config(config.model_dump(), source="x") == config
    with pytest.raises(InputError, match=r"none\.yaml cannot be read \(there is no such file\)"):
        load_config(tmp_path / "none.yaml")
