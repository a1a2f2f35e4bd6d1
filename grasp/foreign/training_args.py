"""Settings in a `training_args.bin`, which is a pickle: read only on request."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from analysis.errors import InputError, NotFoundError
from analysis.values import Json

FILE = "training_args.bin"

_SAME = ("learning_rate", "weight_decay", "max_grad_norm", "gradient_accumulation_steps", "seed")


_ELSEWISE = {
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "label_smoothing_factor": 0.0,
    "neftune_noise_alpha": None,
}
"""Arguments that cannot be set here, with the only value that retraining supports."""


class _Plain:
    """Stands in for a class; only its attributes are needed."""


class _Word(str):
    """Stands in for an enumeration of strings."""

    __slots__ = ()


# The classes in such files, each with its stand-in, so that none of their code runs.
_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    *(
        (_Plain, name)
        for name in (
            "transformers.training_args.TrainingArguments",
            "transformers.training_args_seq2seq.Seq2SeqTrainingArguments",
            "trl.trainer.sft_config.SFTConfig",
            "transformers.trainer_pt_utils.AcceleratorConfig",
            "accelerate.state.PartialState",
        )
    ),
    *(
        (_Word, name)
        for name in (
            "transformers.training_args.OptimizerNames",
            "transformers.training_args.ParallelMode",
            "transformers.trainer_utils.SaveStrategy",
            "transformers.trainer_utils.IntervalStrategy",
            "transformers.trainer_utils.EvaluationStrategy",
            "transformers.trainer_utils.SchedulerType",
            "transformers.trainer_utils.HubStrategy",
            "transformers.trainer_utils.FSDPOption",
            "accelerate.utils.dataclasses.DistributedType",
        )
    ),
]


def training_arguments(adapter: Path) -> Json:
    """The settings in the `training_args.bin` of an adapter folder.

    `max_length` is present if the file is from TRL.  Nothing in the file is executed.

    Raises:
        NotFoundError: there is no such file.
        InputError: it holds anything but plain training arguments.
    """
    file = adapter / FILE
    if not file.is_file():
        raise NotFoundError(f"There is no {file}; omit --training-args.")
    try:
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling may raise anything
        problem = " ".join(str(error).split())[:300]
        raise InputError(
            f"{file} holds more than training arguments, so it is not read ({problem}); give the "
            "settings with --config FILE."
        ) from None
    if type(found) is not _Plain:
        raise InputError(f"{file} holds no training arguments; give the settings with --config.")
    _refuse_others(file, vars(found))
    return _settings(vars(found))


def _refuse_others(file: Path, said: Json) -> None:
    other = {name: said[name] for name, one in _ELSEWISE.items() if said.get(name, one) != one}
    if not str(said.get("optim", "adamw")).startswith("adamw"):
        other["optim"] = str(said["optim"])
    if other:
        words = ", ".join(f"{name} = {value}" for name, value in other.items())
        raise InputError(
            f"{file} has {words}, which retraining does not support; give the settings to use with "
            "--config FILE instead."
        )


def _settings(said: Json) -> Json:
    found = {name: said.get(name) for name in _SAME}
    found["batch_size"] = said.get("per_device_train_batch_size")
    found["lr_scheduler"] = str(said["lr_scheduler_type"]) if "lr_scheduler_type" in said else None
    found["warmup_steps"] = said.get("warmup_steps") or said.get("warmup_ratio") or 0
    found["gradient_checkpointing"] = bool(
        said.get("activation_checkpointing") or said.get("gradient_checkpointing")
    )
    steps = said.get("max_steps")
    if isinstance(steps, int) and steps > 0:
        found["max_steps"] = steps
    else:
        found["num_train_epochs"] = said.get("num_train_epochs")
    found["max_length"] = said.get("max_length") or said.get("max_seq_length")
    found["packing"] = said.get("packing")
    return {name: value for name, value in found.items() if value is not None}
