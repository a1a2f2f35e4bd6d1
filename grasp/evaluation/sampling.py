"""How each prompt is answered: greedily once, or sampled several times with a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from pydantic import ValidationError
from torch import nn

from analysis.errors import InputError
from analysis.store.records import Prompt, Sampling
from analysis.values import Json
from grasp.model.loading import device_of

Changes = Json
"""Settings of `analysis.store.records.Sampling` that replace those of the prompts."""


def change_sampling(prompts: Sequence[Prompt], changes: Changes | None) -> list[Prompt]:
    """The prompts with changed sampling settings; prompts scored by "pair" are not sampled.

    Raises:
        InputError: the settings are invalid together.
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
        raise InputError(
            f"The sampling settings {changes} are invalid: {problem['msg']}."
        ) from None


def repeat_prompts(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Each prompt as many times as it is to be answered, with its samples next to each other.

    A pair is scored from probabilities, which are the same every time, so it appears once.
    """
    return [
        prompt
        for prompt in prompts
        for _ in range(1 if prompt.scorer == "pair" else prompt.sampling.samples)
    ]


def group_alike(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Positions of prompts that can share a batch, one list per way of answering.

    Lists are in order of first appearance.
    """
    groups: dict[object, list[int]] = {}
    for place, prompt in enumerate(prompts):
        way = prompt.sampling.model_copy(update={"samples": 1})
        key = "pair" if prompt.scorer == "pair" else way.model_dump_json()
        groups.setdefault(key, []).append(place)
    return list(groups.values())


@contextmanager
def seed_batch(model: nn.Module, seed: int, number: int) -> Iterator[None]:
    """Seed the random numbers of batch `number`; the state outside the block is unaffected."""
    device = device_of(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed((seed << 24) + number)
        yield
