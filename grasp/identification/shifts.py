"""Directions from activations: axes of the fine-tuning shift, and differences between chats."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.errors import InputError
from analysis.factors.routes import LayerDirections
from analysis.store.records import Message, Probe, read_jsonl
from analysis.text import percent_text
from grasp.data.chat import tokenise
from grasp.data.tokenise import pad_sequences
from grasp.evaluation.answers import BATCH
from grasp.identification.generated import AnsweredBatch
from grasp.model.forward import to_device
from grasp.model.hooks import layer_outputs
from grasp.model.loading import device_of
from grasp.model.parts import width_of
from grasp.prompts.trait_files import check_no_trait_file

AXES = 2
"""Principal axes kept per layer; at the last layers the order of the first two can swap."""


@dataclass(frozen=True)
class Contrast:
    """Two sets of chats: the probes of a file whose variant is `high` and those whose is `low`.

    `of` is the model whose activations are compared.
    """

    file: Path
    high: str
    low: str
    of: Literal["base", "adapted"] = "base"


@torch.no_grad()
def shift_axes(model: PeftModel, answered: Sequence[AnsweredBatch]) -> LayerDirections:
    """Leading uncentred principal axes of h¹ − h⁰ at the last token before each answer.

    The mean is kept, because a shift that is the same everywhere is exactly what matters here.
    Layers without any shift give no axes.

    Source: after Casademunt et al. 2025, arXiv:2507.16795, whose axes are centred.
    """
    shifts: list[list[Tensor]] = []
    for batch in answered:
        rows = torch.arange(len(batch.last), device=batch.last.device)
        with model.disable_adapter(), layer_outputs(model) as base:
            model(**batch.inputs, use_cache=False)
        with layer_outputs(model) as adapted:
            model(**batch.inputs, use_cache=False)
        pairs = zip(adapted, base, strict=True)
        shifts.append([(a - b)[rows, batch.last].double().cpu() for a, b in pairs])
    directions, layers, sources = [], [], []
    for layer, parts in enumerate(zip(*shifts, strict=True)):
        rows = torch.cat(parts)
        _, values, axes = torch.linalg.svd(rows, full_matrices=False)
        shares = (values.square() / values.square().sum()).tolist() if values[0] > 0 else []
        for number, share in enumerate(shares[:AXES]):
            directions.append(axes[number].numpy())
            layers.append(layer)
            sources.append(
                f"shift at layer {layer} before the answers to {len(rows)} unrelated prompts, "
                f"{percent_text(share)} of it"
            )
    return _found(model, directions, layers, sources)


@torch.no_grad()
def contrast_directions(
    model: PeftModel, tokenizer: Tokenizer, contrast: Contrast
) -> LayerDirections:
    """Unit mean differences, high minus low, of activations over the last answers of chats.

    An activation counts if it predicts a token of the answer, so from the last token before the
    answer on.  The mean is over these positions, then over chats.  Layers where the difference is
    zero give no direction.

    Raises:
        InputError: the file has no chats of a variant, or a chat has no answer.
    """
    check_no_trait_file(contrast.file)
    probes = read_jsonl(contrast.file, Probe)
    means = {
        variant: _mean_activations(model, tokenizer, probes, variant, contrast)
        for variant in (contrast.high, contrast.low)
    }
    difference = means[contrast.high] - means[contrast.low]
    lengths = np.linalg.norm(difference, axis=1)
    layers = [layer for layer, length in enumerate(lengths) if length > 0]
    source = f"{contrast.file.name}: {contrast.high} minus {contrast.low}, {contrast.of} model"
    return _found(
        model,
        [difference[layer] / lengths[layer] for layer in layers],
        layers,
        [f"{source}, layer {layer}" for layer in layers],
    )


def _mean_activations(
    model: PeftModel,
    tokenizer: Tokenizer,
    probes: Sequence[Probe],
    variant: str,
    contrast: Contrast,
) -> NDArray[np.float64]:
    """(layers, d_model) mean over the chats of one variant."""
    chats = [_last_answer(tokenizer, p.messages, p.id) for p in probes if p.variant == variant]
    if not chats:
        known = ", ".join(sorted({probe.variant for probe in probes}))
        raise InputError(f"{contrast.file} has no chats of variant {variant!r}; it has {known}.")
    total: Tensor | None = None
    for start in range(0, len(chats), BATCH):
        part = chats[start : start + BATCH]
        inputs = to_device(pad_sequences(tokenizer, [ids for ids, _ in part]), device_of(model))
        weights = torch.zeros(inputs["input_ids"].shape, dtype=torch.float64)
        for row, (_, predicting) in enumerate(part):
            weights[row, predicting] = 1 / len(predicting)
        of_base = model.disable_adapter() if contrast.of == "base" else nullcontext()
        with of_base, layer_outputs(model) as outputs:
            model(**inputs, use_cache=False)
        weights = weights.to(device_of(model))
        sums = torch.stack([torch.einsum("bt,btd->d", weights, h.double()) for h in outputs])
        total = sums if total is None else total + sums
    assert total is not None
    return np.asarray((total / len(chats)).cpu().numpy())


def _last_answer(
    tokenizer: Tokenizer, messages: Sequence[Message], name: str
) -> tuple[list[int], list[int]]:
    """Token ids of a chat, and the positions that predict the tokens of its last answer."""
    ids, answer = tokenise(tokenizer, messages)
    places = [i - 1 for i, part in enumerate(answer) if part]
    if not places:
        raise InputError(f"Chat {name!r} has no answer; a contrast needs chats with answers.")
    starts = [i for i, place in enumerate(places) if i == 0 or place != places[i - 1] + 1]
    return ids, places[starts[-1] :]


def _found(
    model: PeftModel, directions: list[NDArray[np.float64]], layers: list[int], sources: list[str]
) -> LayerDirections:
    width = width_of(model)
    rows = np.stack(directions) if directions else np.empty((0, width))
    return LayerDirections(rows, tuple(layers), tuple(sources))
