"""Estimate the memory a fine-tune takes, from the headers of the model's files alone."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import psutil

from analysis.adapters.architectures import module_layer
from analysis.base_model.files import decoder_config, tensor_shapes
from analysis.errors import InputError
from analysis.text import size_text
from analysis.values import Json

GPU = "on the GPU"

BITS = {"4bit": 0.5, "8bit": 1.0}
"""Bytes per frozen weight of a linear layer; the scales of the blocks add a few per cent."""

TRAINED_BYTES = 16
"""Bytes per trained weight: the float32 weight, its gradient, and Adam's two moments."""

_KEPT_PER_LAYER = 17
"""Numbers per token that a layer keeps for the backward pass, in units of d_model."""

_LOGITS_BYTES = 12
"""Bytes per token and vocabulary entry: the logit, its float32 copy and its gradient."""


@dataclass(frozen=True)
class FineTune:
    """The settings of a fine-tune that its memory depends on.

    Attributes:
        batch_size: rows per forward pass, not counting accumulation.
        max_length: tokens of the longest row.
        r: LoRA rank.
        targets: last parts of the names of the target modules; None for all linear ones.
        number_bytes: bytes per number of the base model: 2 for bfloat16, 4 for float32.
        quantization: "4bit", "8bit" or None.
        checkpointing: whether activations are recomputed in the backward pass.
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
    """Bytes of the frozen weights, of the trained weights with their optimiser state, and of the
    activations of the longest rows.  The first two are counted; the last is a rough estimate.
    """

    frozen: float
    trained: float
    activations: float

    @property
    def total(self) -> float:
        """The sum of the three, in bytes."""
        return self.frozen + self.trained + self.activations


def estimate_memory(base: Path, plan: FineTune) -> Memory:
    """Memory of a LoRA fine-tune of the base model in a folder.

    Activations take tokens · (17 d_model · layers · bytes + 12 · vocabulary): in 16 bits a layer
    keeps about 34 bytes for each of its d_model numbers.  Attention scores are not counted, since
    fused attention does not keep them.  With checkpointing each layer keeps only its input, and
    the rest is held for one layer at a time.

    Raises:
        InputError: the folder has no config.json or no safetensors files.

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


def measure_free_memory() -> tuple[float, str]:
    """Free bytes where training would run, and where that is: the first GPU, or this machine."""
    command = shutil.which("nvidia-smi")
    if command is not None:
        query = [command, "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=10)
        first = done.stdout.strip().splitlines()[:1]
        if done.returncode == 0 and first and first[0].strip().isdecimal():
            return float(first[0]) * 1024**2, GPU
    return float(psutil.virtual_memory().available), "on this machine"


def parse_fine_tune(config: Json, *, gpu: bool) -> FineTune:
    """The memory-related settings of a fine-tune, from the `config` of a run's manifest.

    Args:
        config: settings by name.
        gpu: whether it runs on a GPU, where numbers have 16 bits unless a dtype is given.

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
        raise InputError(f"The settings lack {error}, so memory cannot be estimated.") from None


def describe_memory_needs(base: Path, config: Json) -> str:
    """What a fine-tune needs and what is free here, or one sentence on why that is unknown."""
    free, place = measure_free_memory()
    try:
        needed = estimate_memory(base, parse_fine_tune(config, gpu=place == GPU))
    except InputError as error:
        return f"How much memory it takes is unknown. {error}"
    return describe_memory(needed, free, place)


def describe_memory(memory: Memory, free: float, place: str) -> str:
    """What is needed and what is free, in one or two sentences."""
    frozen, trained, acting = map(size_text, (memory.frozen, memory.trained, memory.activations))
    words = (
        f"About {size_text(memory.total)} of memory: {frozen} for the base model, {trained} for "
        f"the adapter and its optimiser, and very roughly {acting} for activations; "
        f"{size_text(free)} are free {place}."
    )
    if memory.total <= free:
        return words
    return (
        f"{words} That is too little: use gradient_checkpointing, a smaller batch_size with more "
        "gradient_accumulation_steps, a shorter max_length, or 4-bit quantization."
    )


def _is_linear(name: str, shape: Sequence[int]) -> bool:
    """Whether this is a matrix of a decoder layer; only these are quantised and adapted."""
    return len(shape) == 2 and name.endswith(".weight") and module_layer(name) is not None


def _is_adapted(name: str, targets: Sequence[str] | None) -> bool:
    module = name.removesuffix(".weight")
    return targets is None or any(module == t or module.endswith(f".{t}") for t in targets)
