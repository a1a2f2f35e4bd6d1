"""How often and how each prompt is answered: greedily once, or drawn several times by a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import ValidationError

from analysis.errors import InputError
from analysis.store.records import Prompt, Sampling
from grasp.model.loading import device_of

Changes = dict[str, Any]
"""Settings of `analysis.store.records.Sampling` that take the place of the prompts' own."""


def resampled(prompts: Sequence[Prompt], changes: Changes | None) -> list[Prompt]:
    """The prompts with some settings of their sampling changed; those of a pair draw nothing.

    Raises:
        InputError: the settings do not fit together.
    """
    changes = changes or {}
    try:
        return [
            prompt
            if prompt.scorer == "pair" or not changes
            else prompt.model_copy(
                update={"sampling": Sampling.model_validate(prompt.sampling.model_dump() | changes)}
            )
            for prompt in prompts
        ]
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(f"Sampling {changes}: {problem['msg']}.") from None


def repeated(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Each prompt as often as it is to be answered, its samples beside each other.

    A pair is scored from probabilities, which are the same every time, so once.
    """
    return [
        prompt
        for prompt in prompts
        for _ in range(1 if prompt.scorer == "pair" else prompt.sampling.samples)
    ]


def alike(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Places of the prompts that can be answered in one batch, in order of first appearance."""
    groups: dict[object, list[int]] = {}
    for place, prompt in enumerate(prompts):
        way = prompt.sampling.model_copy(update={"samples": 1})
        key = "pair" if prompt.scorer == "pair" else way.model_dump_json()
        groups.setdefault(key, []).append(place)
    return list(groups.values())


@contextmanager
def seeded(model: Any, seed: int, number: int) -> Iterator[None]:
    """Random numbers of batch `number` under a seed; those outside go on as if nothing was."""
    device = device_of(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed((seed << 24) + number)
        yield
