"""GRASP inside `transformers.Trainer`: a mixin, and the callback that writes metrics."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from analysis.errors import InputError
from analysis.values import Json
from grasp.guard.context import hold
from grasp.guard.guard import Guard
from grasp.guard.plan import Directions, GuardPlan
from grasp.jobs.progress import Progress
from grasp.model.forward import Batch
from grasp.settings.protection import Protection

MONITORED = 4
"""Most batches of held-back text that a logged drift is measured on."""

MONITOR_PACE = 8
"""Steps of training for each of them, at least one a line: a batch is a forward pass up to the
site's last token, about a quarter of a step, which so adds some three hundredths."""

GUARD_FILE = "guard.json"
"""In a checkpoint: λ and the place in the neutral text."""

MOMENTS_FILE = "guard.safetensors"
"""In a checkpoint: the moments of the penalty's own step."""


# Any trainer may stand behind the mixin; a type checker is told what they have in common.
if TYPE_CHECKING:
    _AnyTrainer = Trainer
else:
    _AnyTrainer = object


class GraspMixin(_AnyTrainer):
    """Protect a subspace in `transformers.Trainer` or a subclass such as TRL's SFTTrainer.

    The model is a PeftModel.  `directions` (k, d_model), `protection`, `neutral`, `dressed`,
    `held_back`, `own_answers`, `steering` and `naive` are those of `grasp.protect`; without
    `directions` and `protection` it is the plain trainer.  All other arguments go on to it.

    Under DistributedDataParallel all processes take the same neutral batches, so that λ, and the
    penalty's own step, are the same in all of them.

    Raises:
        InputError: in `train`, where weights are split over processes, or as `grasp.protect` says.

    Example:
        >>> class GraspTrainer(grasp.GraspMixin, Trainer): ...
        >>> trainer = GraspTrainer(
        ...     model=model,
        ...     args=arguments,
        ...     train_dataset=rows,
        ...     directions=directions,
        ...     protection=grasp.METHODS["grasp"].protection,
        ...     neutral=batches,
        ...     dressed=dressed,
        ...     naive="finance-naive/adapter",
        ... )
        >>> result = trainer.train()

    Source: the hooks are those of `grasp.protect`; see docs/method/method.md.
    """

    guard: Guard | None = None

    def __init__(
        self,
        *args: Any,
        directions: Directions | None = None,
        protection: Protection | None = None,
        neutral: Sequence[Batch] = (),
        dressed: Sequence[Batch] = (),
        held_back: Sequence[Batch] = (),
        own_answers: Sequence[Batch] = (),
        steering: torch.Tensor | None = None,
        naive: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.guard_plan = GuardPlan(
            protection=protection or Protection(),
            directions=directions,
            neutral=neutral,
            dressed=dressed,
            held_back=held_back,
            own_answers=own_answers,
            steering=steering,
            naive=None if naive is None else Path(naive),
        )
        self._task_penalty: torch.Tensor | None = None
        self._has_loss = False
        self._optimizer_hook = ExitStack()
        self.add_callback(_GuardInCheckpoints(self))

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train, with the subspace protected from the first step to the last.

        Raises:
            InputError: weights are split over processes, or as `grasp.protect` says.
        """
        if self.guard_plan.is_empty:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        with ExitStack() as stack:
            self.guard = self._enter_guard(stack)
            self._restore(self.guard, resume_from_checkpoint)
            stack.enter_context(self._optimizer_hook)
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The trainer's own optimizer; the guard follows its steps."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.guard is not None:
            self._optimizer_hook.close()  # asked for again, it is often the one there was
            plain = getattr(optimizer, "optimizer", optimizer)  # inside accelerate's, if wrapped
            self._optimizer_hook.enter_context(self.guard.follow(plain))
        return optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The anchor's gradient, and the trainer's own step on top of it.

        In this order DistributedDataParallel takes both: it sums over processes whatever gradient
        there is once the loss's own is complete.
        """
        if self.guard is not None and self.model is not None:
            self.model.train()  # as the trainer's own step does: activations are checkpointed then
            penalty = self.guard.penalty()
            if penalty is not None and penalty.requires_grad:
                self.accelerator.backward(penalty / self.current_gradient_accumulation_steps)
        self._has_loss = False
        loss = super().training_step(*args, **kwargs)
        if self.guard is not None and self.guard.protection.on_task and not self._has_loss:
            raise InputError(
                f"{type(self).__name__} computes its loss in a training step of its own, where the "
                "protection cannot add to it on the task's tokens; use one on neutral text, such "
                "as the method grasp."
            )
        added, self._task_penalty = self._task_penalty, None
        return loss if added is None else loss - added  # what is logged is the task's own

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own loss, and in training what its forward passes add to it.

        Raises:
            InputError: as `Guard.task_penalty`.
        """
        if self.guard is not None:  # now, since some losses take the labels out
            self.guard.label(inputs.get("labels") if isinstance(inputs, Mapping) else None)
        result = super().compute_loss(model, inputs, *args, **kwargs)
        self._has_loss = True
        penalty = self.guard.task_penalty() if self.guard and model.training else None
        if penalty is None:
            return result
        if self._scaled(kwargs.get("num_items_in_batch")):
            penalty = penalty / self.current_gradient_accumulation_steps
            self._task_penalty = penalty.detach()
        else:  # the trainer divides the sum
            steps = self.current_gradient_accumulation_steps
            self._task_penalty = penalty.detach() / steps
        if isinstance(result, tuple):
            return (result[0] + penalty, *result[1:])
        return result + penalty

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add drift, penalty, strength and leakage to what the trainer logs at a step."""
        if self.guard is not None and "loss" in logs:
            every = int(self.state.logging_steps)
            logs |= measure_drift(self.guard, every=every)
        super().log(logs, *args, **kwargs)

    def _enter_guard(self, stack: ExitStack) -> Guard:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise InputError(
                "FSDP and DeepSpeed split the weights that GRASP holds over processes; train with "
                "DistributedDataParallel (accelerate's multi-GPU default) or on one device."
            )
        assert self.model is not None
        # What the training's own forward pass rounds under autocast is not drift.
        with self.accelerator.autocast():
            return stack.enter_context(hold(self.model, self.guard_plan, seed=self.args.seed))

    def _scaled(self, items: Any) -> bool:
        """Whether the loss is normalised over all batches of a step, as the trainer decides it."""
        if getattr(self, "loss_is_scaled_for_ga", None) is not None:
            return bool(self.loss_is_scaled_for_ga)
        counted = self.model_accepts_loss_kwargs and items is not None
        return counted or self.compute_loss_func is not None

    def _restore(self, guard: Guard, checkpoint: str | bool | None) -> None:
        """Go on with the λ and the moments of a checkpoint.

        Raises:
            InputError: it lacks them, so training would silently end elsewhere.
        """
        output = self.args.output_dir
        assert output is not None  # the library sets it where nobody does
        found = get_last_checkpoint(output) if checkpoint is True else checkpoint
        if not found:
            return
        kept = Path(found) / MOMENTS_FILE
        try:
            state = json.loads((Path(found) / GUARD_FILE).read_text(encoding="utf-8"))
            moments = load_file(kept) if state.pop("moments", False) else {}
            guard.restore(state, moments)
        except (OSError, ValueError, LookupError, AttributeError, SafetensorError) as error:
            raise InputError(
                f"{found} cannot be resumed from: what the guard saved there is missing or damaged "
                f"({' '.join(str(error).split())[:160]}). Resume from an earlier checkpoint, or "
                "start again."
            ) from None


class _GuardInCheckpoints(TrainerCallback):
    """Save a guard's state with each checkpoint, so that a resumed run goes on with its λ."""

    def __init__(self, trainer: GraspMixin) -> None:
        self._trainer = trainer

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Write the file."""
        if self._trainer.guard is not None and state.is_world_process_zero:
            assert args.output_dir is not None  # the library sets it where nobody does
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            if moments := self._trainer.guard.moments():
                save_file(moments, folder / MOMENTS_FILE)
            state = self._trainer.guard.state() | ({"moments": True} if moments else {})
            (folder / GUARD_FILE).write_text(json.dumps(state), encoding="utf-8")


class LoraTrainer(GraspMixin, Trainer):
    """The trainer of this project's own runs, which have a plan already."""

    def __init__(self, plan: GuardPlan, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.guard_plan = plan


class MetricsCallback(TrainerCallback):
    """Write each logged step to metrics.jsonl, and in words to log.txt; report progress.

    The time goes on from the last line that metrics.jsonl has already.
    """

    def __init__(self, folder: Path, progress: Progress) -> None:
        self._folder = folder
        self._progress = progress
        self._start = time.time() - seconds_so_far(folder)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Json | None = None,
        **kwargs: Any,
    ) -> None:
        """Append one line.

        Raises:
            InputError: the loss is no longer a number.
        """
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise InputError(
                f"Training diverged: the loss is {logs['loss']} at step {state.global_step}. "
                "Use a lower learning_rate, or a smaller lora_alpha."
            )
        if not state.is_world_process_zero:
            return
        kept = {name: value for name, value in logs.items() if name not in ("epoch", "grad_norm")}
        row = {"step": state.global_step, "time": time.time() - self._start, **kept}
        _append(self._folder / "metrics.jsonl", json.dumps(row))
        shown = (f"{n} {row[n]:.4g}" for n in ("loss", "drift", "strength") if n in row)
        write_log(self._folder, f"step {state.global_step}/{state.max_steps}: {', '.join(shown)}")

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Report the step; a cancelled job stops here."""
        self._progress(state.global_step, state.max_steps, "training")


def write_log(folder: Path, words: str) -> None:
    """Add one line, with the time, to a run's log.txt."""
    _append(folder / "log.txt", f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC  {words}")


def seconds_so_far(folder: Path) -> float:
    """Seconds of training, as the last line of a run's metrics.jsonl says; 0 without one."""
    rows = read_metrics_lines(folder / "metrics.jsonl")
    return float(rows[-1].get("time") or 0.0) if rows else 0.0


def read_metrics_lines(path: Path) -> list[Json]:
    """The whole lines of a run's metrics.jsonl, as they are; those that a kill tore are left out."""
    rows = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def measure_drift(guard: Guard, *, every: int) -> Json:
    """Drift, effect, penalty, strength and leakage, for a line logged every so many steps."""
    leakage = guard.leakage()
    values: Json = {} if math.isnan(leakage) else {"leakage": leakage}
    batches = min(MONITORED, max(1, every // MONITOR_PACE))
    held, seen = guard.drift(batches, text="held-back"), guard.recent_drift()
    drift = held or seen
    if drift is not None:
        values |= {"drift": drift.rms, "drift_by_layer": drift.by_layer}
    if held is not None and seen is not None:
        values["drift_anchored"] = seen.rms
    on_task = guard.task_drift()
    if on_task is not None:
        values["drift_task"] = on_task.rms
    if guard.effect is not None:
        effect, recent = guard.effect_share(batches, text="held-back"), guard.recent_effect()
        values |= {"effect": recent if effect is None else effect, "effect_anchored": recent}
    if not math.isnan(guard.last_penalty):
        values |= {"penalty": guard.last_penalty, "strength": guard.strength}
    return values
