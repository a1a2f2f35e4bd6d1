"""Out of memory, in one sentence: what was asked for, what was free, what to do.  Torch-free."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from analysis.errors import OutOfMemory
from analysis.text import size_text
from grasp.settings.training import TrainConfig

_SIZE = r"(\d+(?:\.\d+)?) ?(bytes|[KMGTPE]i?B)"
_ASKED = re.compile(rf"(?:[Tt]ried|Unable) to allocate {_SIZE}")
_TOTAL = re.compile(rf"total capacity of {_SIZE}")
_FREE = re.compile(rf"of which {_SIZE} is free")
_UNITS = {"bytes": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
_MESSAGES = ("can't allocate memory", "out of memory", "ALLOC_FAILED")


class Shortage(NamedTuple):
    """Bytes that were asked for, free and there in all, each None where it is not known; where."""

    asked: float | None
    free: float | None
    total: float | None
    place: str


@contextmanager
def explain_shortage(doing: str, config: TrainConfig | None = None) -> Iterator[None]:
    """Say in one sentence what happened when the block runs out of memory.

    Args:
        doing: what was done, in words.
        config: the settings of a fine-tune, where it was one.

    Raises:
        OutOfMemory: the block ran out of memory; a model that was kept has been let go.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        found = find_shortage(error)
        if found is None:
            raise
        sentence = _sentence(doing, found, config)
    else:
        return
    models = sys.modules.get("grasp.model.loading")
    if models is not None:
        models.forget()
    raise OutOfMemory(sentence) from None


def find_shortage(error: BaseException) -> Shortage | None:
    """What an error says of memory; None where it is about something else."""
    words = str(error)
    on_device = type(error).__name__ == "OutOfMemoryError" or "CU" in words
    lacking = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not lacking and not any(message in words for message in _MESSAGES):
        return None
    if on_device:
        free, total = _gpu()
        place = "of the GPU"
    else:
        free, total = _machine()
        place = "of this machine"
    return Shortage(
        _bytes(_ASKED, words), _bytes(_FREE, words) or free, _bytes(_TOTAL, words) or total, place
    )


def _sentence(doing: str, found: Shortage, config: TrainConfig | None) -> str:
    asked = f"{size_text(found.asked)} more were asked for" if found.asked else "more was asked for"
    free = "an unknown part" if found.free is None else size_text(found.free)
    whole = "the memory" if found.total is None else f"the {size_text(found.total)}"
    words = f"Out of memory in {doing}: {asked} while {free} of {whole} {found.place} was free"
    if config is None:
        return (
            f"{words}; load the base with --quantization 4bit or --dtype bfloat16, give shorter or "
            "fewer texts, or end what else takes memory there."
        )
    length = f"batch_size {config.batch_size}, max_length {config.max_length}"
    return f"{words} ({length}); use {', or '.join(_remedies(config))}."


def _remedies(config: TrainConfig) -> list[str]:
    """Settings that take less memory, from the one that changes least."""
    found = []
    if not config.gradient_checkpointing:
        found.append("gradient_checkpointing: true")
    if config.batch_size > 1:
        half = config.batch_size // 2
        steps = -(-config.gradient_accumulation_steps * config.batch_size // half)
        found.append(f"batch_size: {half} with gradient_accumulation_steps: {steps}")
    found.append("a shorter max_length")
    if config.model.quantization is None:
        found.append("`quantization: 4bit` under `model:`")
    return found


def _bytes(pattern: re.Pattern[str], words: str) -> float | None:
    found = pattern.search(words)
    if found is None:
        return None
    unit = "bytes" if found[2] == "bytes" else found[2][0]
    return float(found[1]) * float(1024 ** _UNITS[unit])


def _gpu() -> tuple[float | None, float | None]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None, None
    free, total = torch.cuda.mem_get_info()
    return float(free), float(total)


def _machine() -> tuple[float | None, float | None]:
    import psutil

    memory = psutil.virtual_memory()
    return float(memory.available), float(memory.total)
