"""Hints in an adapter's folder on how it was trained: shown, but never used.  Torch-free."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from analysis.errors import InputError
from analysis.values import Json
from analysis.yaml_files import parse_yaml

_CARD_LINE = re.compile(
    r"^[-*] \**((?:learning_rate|train_batch_size|gradient_accumulation_steps|seed|optimizer"
    r"|lr_scheduler_type|lr_scheduler_warmup_(?:steps|ratio)|training_steps|num_epochs))"
    r"\**: *(.+)$",
    flags=re.MULTILINE,
)
_LONGEST = 80
_LARGEST = 1 << 20


def card_hints(card: Path) -> list[str]:
    """The data sets and hyperparameters that a model card names."""
    try:
        text = card.read_bytes()[:_LARGEST].decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    datasets = _front_matter(text).get("datasets")
    named = datasets if isinstance(datasets, list) else [datasets] if datasets else []
    said = [f"datasets: {', '.join(str(one) for one in named)}"] if named else []
    said += [f"{name}: {value.strip()}" for name, value in _CARD_LINE.findall(text)]
    return [f"README.md: {one[:_LONGEST]}" for one in said]


def logged_hints(state: Mapping[str, object]) -> list[str]:
    """What `trainer_state.json` reveals about the fine-tune."""
    said = []
    steps, at, epochs = (state.get(key) for key in ("max_steps", "global_step", "num_train_epochs"))
    if isinstance(steps, int) and isinstance(at, int) and 0 < at != steps:
        said.append(f"the adapter is from step {at} of {steps}")
    if isinstance(epochs, int | float) and epochs > 0:
        said.append(f"num_train_epochs was {epochs:g}")
    history = state.get("log_history")
    rates = [
        line["learning_rate"]
        for line in (history if isinstance(history, list) else [])
        if isinstance(line, dict) and isinstance(line.get("learning_rate"), int | float)
    ]
    if rates:
        said.append(f"the largest learning rate logged is {max(rates):g}")
    return [f"trainer_state.json: {one}" for one in said]


def _front_matter(text: str) -> Json:
    if not text.startswith("---"):
        return {}
    try:
        found = parse_yaml(text[3:].partition("\n---")[0], source="The header", what="entries")
    except InputError:
        return {}
    return found if isinstance(found, dict) else {}
