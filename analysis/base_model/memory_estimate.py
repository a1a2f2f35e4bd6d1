"""About how much memory a fine-tune takes, from the headers of files alone."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import psutil

from analysis.adapters.architectures import module_layer
from analysis.base_model.files import decoder_config, tensor_shapes
from analysis.errors import InputError

GPU = "on the GPU"

BITS = {"4bit": 0.5, "8bit": 1.0}
"""Bytes a frozen weight of a linear layer takes; the blocks' scales add a few per cent."""

TRAINED_BYTES = 16
"""A trained weight in float32, its gradient, and Adam's two moments."""

_KEPT_PER_LAYER = 17
"""Numbers a token that a layer keeps for the backward pass, in units of d_model."""

_LOGITS_BYTES = 12
"""A token's logit, its float32 copy and its gradient."""


@dataclass(frozen=True)
class FineTune:
    """What memory depends on.

    Attributes:
        batch_size: rows at a time, not counting accumulation.
        max_length: tokens of the longest row.
        r: LoRA rank.
        targets: last parts of the names of adapted modules; None for all linear ones.
        number_bytes: bytes of a number of the base model: 2 for bfloat16, 4 for float32.
        quantization: "4bit", "8bit" or None.
        checkpointing: whether a layer's activations are computed again in the backward pass.
    """

    batch_size: int
    max_length: int
    r: int
    targets: Sequence[str] | None
    number_bytes: int
    quantization: str | None = None
    checkpointing: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes: frozen weights and trained ones with their optimiser, which are counted, and
    activations of the longest rows, which are rough.
    """

    frozen: float
    trained: float
    activations: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.frozen + self.trained + self.activations


def memory_needed(base: Path, plan: FineTune) -> Memory:
    """Memory of a LoRA fine-tune of the base model in a folder.

    Activations are tokens · (17 d_model · layers · bytes + 12 · vocabulary), where a layer keeps
    about 34 bytes for each of its d_model numbers in 16 bits, without attention scores, which
    fused attention does not keep; with checkpointing a layer keeps what came in, and one layer at
    a time the rest.

    Raises:
        InputError: the folder has no config.json or no safetensors.

    Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4.1.
    """
    config, shapes = decoder_config(base), tensor_shapes(base)
    linear = {name: shape for name, shape in shapes.items() if _is_linear(name, shape)}
    all_weights, in_linear = (sum(prod(s) for s in some.values()) for some in (shapes, linear))
    bits = BITS.get(plan.quantization or "", float(plan.number_bytes))
    adapted = [shape for name, shape in linear.items() if _is_adapted(name, plan.targets)]
    layers = 1 + max((module_layer(name) or 0 for name in linear), default=-1)
    width = int(config.get("hidden_size") or config.get("n_embd") or 0)
    kept = (layers + _KEPT_PER_LAYER) if plan.checkpointing else layers * _KEPT_PER_LAYER
    tokens = plan.batch_size * plan.max_length
    vocabulary = int(config.get("vocab_size") or 0)
    return Memory(
        frozen=in_linear * bits + (all_weights - in_linear) * plan.number_bytes,
        trained=float(TRAINED_BYTES * sum(plan.r * (rows + columns) for rows, columns in adapted)),
        activations=float(tokens * (kept * width * plan.number_bytes + _LOGITS_BYTES * vocabulary)),
    )


def free_memory() -> tuple[float, str]:
    """Bytes that are free where training would run, and where: the first GPU, or this machine."""
    command = shutil.which("nvidia-smi")
    if command is not None:
        query = [command, "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=10)
        first = done.stdout.strip().splitlines()[:1]
        if done.returncode == 0 and first and first[0].strip().isdecimal():
            return float(first[0]) * 1024**2, GPU
    return float(psutil.virtual_memory().available), "on this machine"


def plan_of(config: Mapping[str, Any], *, gpu: bool) -> FineTune:
    """What memory depends on in the settings of a fine-tune, as a run's manifest has them.

    Args:
        config: settings by name.
        gpu: whether it runs on one, where numbers have 16 bits unless a dtype is named.

    Raises:
        InputError: a setting is missing, as in an imported run.
    """
    model, lora = config.get("model") or {}, config.get("lora") or {}
    named = model.get("dtype", "auto")
    narrow = gpu if named == "auto" else named != "float32"
    targets = lora.get("target_modules", "all-linear")
    try:
        return FineTune(
            batch_size=int(config["batch_size"]),
            max_length=int(config["max_length"]),
            r=int(lora["r"]),
            targets=targets if isinstance(targets, list) else None,
            number_bytes=2 if narrow else 4,
            quantization=model.get("quantization"),
            checkpointing=bool(config.get("gradient_checkpointing")),
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"The settings lack {error}, so there is no estimate of memory.") from None


def memory_words(base: Path, config: Mapping[str, Any]) -> str:
    """What a fine-tune needs beside what is free here, or in one sentence why that is not known."""
    free, place = free_memory()
    try:
        needed = memory_needed(base, plan_of(config, gpu=place == GPU))
    except InputError as error:
        return f"How much memory it takes is not known. {error}"
    return memory_text(needed, free, place)


def memory_text(memory: Memory, free: float, place: str) -> str:
    """One or two sentences: what is needed beside what is free."""
    parts = (
        f"{_gib(memory.frozen)} for the base model, {_gib(memory.trained)} for the adapter and its "
        f"optimiser, and very roughly {_gib(memory.activations)} for activations"
    )
    words = f"About {_gib(memory.total)} of memory: {parts}; {_gib(free)} are free {place}."
    if memory.total <= free:
        return words
    return (
        f"{words} That is too little: use gradient_checkpointing, a smaller batch_size with more "
        "gradient_accumulation_steps, a shorter max_length, or 4-bit quantization."
    )


def _is_linear(name: str, shape: Sequence[int]) -> bool:
    """A matrix of a decoder layer; what lies beside the layers is neither quantised nor adapted."""
    return len(shape) == 2 and name.endswith(".weight") and module_layer(name) is not None


def _is_adapted(name: str, targets: Sequence[str] | None) -> bool:
    module = name.removesuffix(".weight")
    return targets is None or any(module == t or module.endswith(f".{t}") for t in targets)


def _gib(count: float) -> str:
    return f"{count / 1024**3:.1f} GiB" if count >= 1024**3 / 10 else f"{count / 1024**2:.0f} MiB"
