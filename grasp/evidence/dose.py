"""Dose–response: how a model's answers change as its residual stream is steered along a factor.

One dose is one standard deviation σ_ℓ of the base model's coordinate u·h_ℓ at each layer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.errors import InputError
from analysis.evidence.dose_curves import FACTOR, describe_dose_response, dose_curves
from analysis.spectra.subspace import unit_rows
from analysis.store.evidence import Evidence
from analysis.store.records import Prompt
from grasp.data.chat import chat_ids
from grasp.data.tokenise import pad_sequences
from grasp.evaluation.answers import BATCH, answer_prompts, generate
from grasp.evidence.subject import Subject, exploration_prompts, score_replies
from grasp.jobs.progress import Progress, silent
from grasp.model.forward import to_device
from grasp.model.hooks import Edit, edited_outputs, layer_outputs
from grasp.model.loading import device_of

DOSES = tuple(float(dose) for dose in range(-4, 5))
RANDOM = 3
SHOWN = {"unrelated": 4, "task": 2}
"""How many prompts of each role have their answers saved at every dose."""


@torch.inference_mode()
def base_spread(
    model: PeftModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    direction: NDArray[np.floating],
) -> NDArray[np.float64]:
    """σ_ℓ (layers,): standard deviation of the base model's u·h_ℓ over the prompts' tokens.

    The first token of each chat is left out.  Many models use it as an attention sink, with
    activations so large that they alone would set the unit.

    Raises:
        InputError: there are fewer than two tokens, or the coordinate is constant at a layer.
    """
    unit = _on_device(model, direction)
    found: list[Tensor] = []
    for start in range(0, len(prompts), BATCH):
        chats = [
            chat_ids(tokenizer, one.messages, generate=True)
            for one in prompts[start : start + BATCH]
        ]
        batch = to_device(pad_sequences(tokenizer, chats), unit.device)
        real = batch["attention_mask"].bool()
        real[:, 0] = False
        with model.disable_adapter(), layer_outputs(model) as outputs:
            model(**batch, use_cache=False)
        found.append(torch.stack([h[real].float() @ unit for h in outputs]).double().cpu())
    coordinates = torch.cat(found, dim=1) if found else torch.empty(1, 0)
    spread: NDArray[np.float64] = coordinates.std(dim=1).numpy()
    if coordinates.shape[1] < 2 or not (spread > 0).all():
        raise InputError(
            f"The base model's coordinate along the factor does not vary over "
            f"{coordinates.shape[1]} tokens, so a dose has no unit; give more prompts."
        )
    return spread


def dose_steps(spread: NDArray[np.floating], *, layer: int | None = None) -> NDArray[np.float64]:
    """What one dose adds at each layer (layers,), in the units of the activations.

    Whatever is added to the residual stream stays in it.  Adding σ_ℓ − σ_(ℓ−1) at layer ℓ thus
    displaces every layer's output by σ_ℓ, not counting how the layers react.  Adding σ_ℓ at each
    layer would displace the last layers of a deep model by dozens of standard deviations.  With
    `layer`, σ_ℓ is added at that layer only.

    Raises:
        InputError: there is no such layer.
    """
    sigma = np.asarray(spread, np.float64)
    if layer is None:
        return np.diff(sigma, prepend=0.0)
    if not 0 <= layer < len(sigma):
        raise InputError(f"There is no layer {layer}; the model has layers 0–{len(sigma) - 1}.")
    return np.where(np.arange(len(sigma)) == layer, sigma, 0.0)


def steer(direction: Tensor, amounts: NDArray[np.floating]) -> Edit:
    """h_ℓ ← h_ℓ + a_ℓ u at every token, for `direction` u (d_model,) and `amounts` a (layers,)."""

    def edit(layer: int, hidden: Tensor) -> Tensor:
        return hidden + (float(amounts[layer]) * direction).to(hidden)

    return edit


@torch.inference_mode()
def dose_response(
    model: PeftModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    directions: dict[str, NDArray[np.floating]],
    *,
    amounts: NDArray[np.floating],
    doses: Sequence[float],
    progress: Progress = silent,
) -> pd.DataFrame:
    """Scores of the prompts in base and adapted model, steered by each dose along each direction.

    Args:
        model: PeftModel.
        tokenizer: of the base model.
        prompts: scored as in an evaluation.
        directions: name → unit direction (d_model,); the same amounts apply to all.
        amounts: (layers,) what one dose adds, from `dose_steps`.
        doses: multiples of `amounts`.
        progress: called before every dose.

    Returns:
        The columns of `grasp.evaluation.answers.score_answers`, and model, direction and dose.
    """
    tables: list[pd.DataFrame] = []
    total = 2 * len(directions) * len(doses)
    reply = partial(_reply, model, tokenizer)
    for name, as_it_is in _arms(model):
        with as_it_is:
            plain = score_replies(tokenizer, prompts, reply)
            for direction, axis in directions.items():
                unit = _on_device(model, axis)
                for dose in doses:
                    progress(len(tables), total, f"steering the {name} model")
                    with edited_outputs(model, steer(unit, dose * amounts)):
                        found = plain if dose == 0 else score_replies(tokenizer, prompts, reply)
                    tables.append(found.assign(model=name, direction=direction, dose=dose))
    progress(total, total, "steered")
    return pd.concat(tables, ignore_index=True)


def measure_dose_response(
    subject: Subject,
    *,
    doses: Sequence[float] = DOSES,
    layer: int | None = None,
    random: int = RANDOM,
    seed: int = 0,
    prompts: Path | None = None,
    progress: Progress = silent,
) -> Evidence:
    """Measure the dose–response of one factor of a run; save `evidence/<run>.<factor>.dose`.

    The unit σ_ℓ is measured on the unrelated exploration prompts.  Random directions are steered
    by the same amounts as the factor.

    Raises:
        InputError: there are several factors, fewer than two doses, no random direction, or no
            unrelated exploration prompts.
    """
    started = time.monotonic()
    if len(subject.directions) != 1 or len(set(doses)) < 2 or random < 1:
        raise InputError(
            f"Got {len(subject.directions)} factors, {len(set(doses))} doses and {random} random "
            "directions; a dose–response needs one factor, at least two doses and at least one "
            "random direction."
        )
    file, chosen = exploration_prompts(subject, prompts)
    unrelated = [prompt for prompt in chosen if prompt.role == "unrelated"]
    if not unrelated:
        raise InputError(
            f"{file} has no unrelated prompts in the exploration split; give a set that has some."
        )
    loaded = subject.load()
    model, tokenizer = loaded.model, loaded.tokenizer
    direction = subject.directions[0]
    spread = base_spread(model, tokenizer, unrelated, direction)
    amounts = dose_steps(spread, layer=layer)
    drawn = unit_rows(np.random.default_rng(seed).standard_normal((random, len(direction))))
    directions: dict[str, NDArray[np.floating]] = {FACTOR: direction}
    directions |= {f"random {i}": axis for i, axis in enumerate(drawn, start=1)}
    samples = dose_response(
        model, tokenizer, chosen, directions, amounts=amounts, doses=doses, progress=progress
    )
    found = dose_curves(samples)
    return subject.save(
        "dose",
        model=loaded.settings,
        tables={
            "curves": found,
            "samples": samples,
            "answers": steered_answers(
                model, tokenizer, _shown(chosen), direction, amounts=amounts, doses=doses
            ),
        },
        config={
            "doses": [float(dose) for dose in doses],
            "layer": layer,
            "random": random,
            "base_spread": spread.tolist(),
            "prompts": len(chosen),
        },
        seed=seed,
        inputs={"prompts": file},
        sentence=describe_dose_response(found, name=subject.name),
        seconds=time.monotonic() - started,
    )


@torch.inference_mode()
def steered_answers(
    model: PeftModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    direction: NDArray[np.floating],
    *,
    amounts: NDArray[np.floating],
    doses: Sequence[float],
) -> pd.DataFrame:
    """Greedy answers of both models at each dose: model, dose, prompt_id, role, prompt, answer."""
    unit = _on_device(model, direction)
    rows = []
    for name, as_it_is in _arms(model):
        with as_it_is:
            for dose in doses:
                with edited_outputs(model, steer(unit, dose * amounts)):
                    found = answer_prompts(model, tokenizer, prompts)
                rows += [
                    {
                        "model": name,
                        "dose": float(dose),
                        "prompt_id": prompt.id,
                        "role": prompt.role,
                        "prompt": prompt.messages[-1].content,
                        "answer": answer.text,
                    }
                    for prompt, answer in zip(prompts, found, strict=True)
                ]
    return pd.DataFrame(rows)


def _reply(
    model: nn.Module, tokenizer: Tokenizer, chats: Sequence[list[int]], limit: int | None
) -> tuple[list[list[int]], Tensor]:
    return generate(model, tokenizer, chats, max_new_tokens=limit)


def _arms(model: PeftModel) -> list[tuple[str, AbstractContextManager[None]]]:
    return [("base", model.disable_adapter()), ("adapted", nullcontext())]


def _shown(prompts: Sequence[Prompt]) -> list[Prompt]:
    """A few prompts of the roles in SHOWN, each about a different item."""
    chosen = []
    for role, count in SHOWN.items():
        by_item = {prompt.cluster: prompt for prompt in prompts if prompt.role == role}
        spaced = list(by_item.values())[:: max(1, len(by_item) // count)]
        chosen += spaced[:count]
    return chosen


def _on_device(model: nn.Module, direction: NDArray[np.floating]) -> Tensor:
    return torch.as_tensor(direction, dtype=torch.float32, device=device_of(model))
