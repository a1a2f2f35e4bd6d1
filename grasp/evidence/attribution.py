"""Training rows that drive a factor: how their gradients push along it and their answers moved.

Both measures are taken at the positions that predict a row's answer tokens, one before each.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.errors import InputError
from analysis.evidence.driving_rows import describe_rows
from analysis.store.evidence import TABLES, Evidence
from grasp.data.dataset import read_task, tokenise_task
from grasp.data.examples import Example
from grasp.data.tokenise import IGNORED, pad_sequences
from grasp.evidence.dose import base_spread
from grasp.evidence.subject import (
    Subject,
    data_files,
    exploration_prompts,
    read_training_settings,
)
from grasp.jobs.progress import Progress, silent
from grasp.model.forward import to_device
from grasp.model.hooks import edited_outputs, layer_outputs
from grasp.model.loading import decoder_layers, device_of

BATCH = 16

Rows = Sequence[dict[str, list[int]]]


def row_alignment(
    model: PeftModel,
    tokenizer: Tokenizer,
    rows: Rows,
    direction: NDArray[np.floating],
    *,
    spread: NDArray[np.floating],
    progress: Progress = silent,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How much each row's gradient pushes the residual stream along u, at the base model.

    Let L be the mean cross entropy over a row's T answer tokens, in nats, and g_ℓt = ∂L/∂h_ℓt at
    the base model, where a fine-tune with a new adapter starts.  Then

        alignment_ℓ = −σ_ℓ Σ_t ⟨g_ℓt, u⟩,

    summed over the T positions that predict the answer.  To first order it is the reduction of
    the loss, in nats per token, if the coordinate u·h_ℓ at these positions is raised by one of the
    base model's standard deviations σ_ℓ.  It is comparable across row lengths and model scales.

    Args:
        model: PeftModel; its adapter is switched off.
        tokenizer: of the base model.
        rows: from `grasp.data.tokenise.training_rows`.
        direction: u (d_model,), a unit vector.
        spread: σ (layers,).
        progress: called before every batch.

    Returns:
        alignment: (rows, layers).
        loss: (rows,) L of the base model.
    """
    unit = torch.as_tensor(direction, dtype=torch.float32, device=device_of(model))
    scale = torch.as_tensor(spread, dtype=torch.float32, device=unit.device)
    alignments, losses = [], []
    for start, batch, predicted, labels in _batches(tokenizer, rows, unit.device):
        progress(start, len(rows), "gradients of training rows")
        push = torch.zeros(len(scale), len(labels), device=unit.device, requires_grad=True)

        def pushed(
            layer: int, hidden: Tensor, push: Tensor = push, where: Tensor = predicted
        ) -> Tensor:
            # The derivative with respect to `push` is the gradient along u, summed over tokens,
            # so the gradients of whole layers need not be kept.
            moved = (push[layer, :, None] * where * scale[layer])[..., None] * unit
            return hidden + moved.to(hidden)

        with model.disable_adapter(), torch.enable_grad(), edited_outputs(model, pushed):
            loss = _mean_loss(model, batch, labels)
            (gradient,) = torch.autograd.grad(loss.sum(), push)
        alignments.append(-gradient.T.double().cpu())
        losses.append(loss.detach().double().cpu())
    return torch.cat(alignments).numpy(), torch.cat(losses).numpy()


@torch.inference_mode()
def row_shift(
    model: PeftModel,
    tokenizer: Tokenizer,
    rows: Rows,
    direction: NDArray[np.floating],
    *,
    spread: NDArray[np.floating],
    progress: Progress = silent,
) -> NDArray[np.float64]:
    """Mean of u·(h_ℓ − h⁰_ℓ) / σ_ℓ over the positions that predict a row's answer.

    h is the adapted model's residual stream, h⁰ the base model's on the same tokens.  The
    arguments are those of `row_alignment`.

    Returns:
        (rows, layers), in base standard deviations.
    """
    unit = torch.as_tensor(direction, dtype=torch.float32, device=device_of(model))
    scale = torch.as_tensor(spread, dtype=torch.float32, device=unit.device)
    shifts = []
    for start, batch, predicted, _ in _batches(tokenizer, rows, unit.device):
        progress(start, len(rows), "moves of training answers")
        with model.disable_adapter(), layer_outputs(model) as before:
            model(**batch, use_cache=False)
        with layer_outputs(model) as after:
            model(**batch, use_cache=False)
        moved = torch.stack([(h - h0).float() @ unit for h, h0 in zip(after, before, strict=True)])
        mean = (moved * predicted).sum(-1) / predicted.sum(-1)
        shifts.append((mean / scale[:, None]).T.double().cpu())
    found: NDArray[np.float64] = torch.cat(shifts).numpy()
    return found


def measure_rows(
    subject: Subject,
    *,
    layer: int | None = None,
    prompts: Path | None = None,
    progress: Progress = silent,
) -> Evidence:
    """Measure alignment and shift of every training row; save `evidence/<run>.<factor>.rows`.

    Values are means over all layers, or those at `layer`.  They are positive towards the end of
    the factor to which the fine-tune moved its training answers, so the top rows drive it there.

    Raises:
        InputError: there are several factors, no such layer, or the training data are unknown.
    """
    started = time.monotonic()
    if len(subject.directions) != 1:
        raise InputError(
            f"Got {len(subject.directions)} factors; rows are measured for one factor at a time."
        )
    settings = read_training_settings(subject)
    examples = read_task(settings)
    file, chosen = exploration_prompts(subject, prompts)
    unrelated = [prompt for prompt in chosen if prompt.role == "unrelated"] or chosen
    loaded = subject.load()
    model, tokenizer = loaded.model, loaded.tokenizer
    count = len(decoder_layers(model))
    if layer is not None and not 0 <= layer < count:
        raise InputError(f"There is no layer {layer}; the model has layers 0–{count - 1}.")
    task = tokenise_task(settings, tokenizer, examples).rows
    rows = task.rows
    axis = subject.directions[0]
    spread = base_spread(model, tokenizer, unrelated, axis)
    shift = row_shift(model, tokenizer, rows, axis, spread=spread)
    alignment, loss = row_alignment(model, tokenizer, rows, axis, spread=spread, progress=progress)
    progress(len(rows), len(rows), "rows measured")
    layers = slice(None) if layer is None else slice(layer, layer + 1)
    sign = -1.0 if shift[:, layers].mean() < 0 else 1.0
    table = _table(task.examples, rows, loss).assign(
        alignment=sign * alignment[:, layers].mean(axis=1),
        shift=sign * shift[:, layers].mean(axis=1),
    )
    table = table.loc[:, list(TABLES["rows"]["rows"])]
    end = "high" if sign > 0 else "low"
    return subject.save(
        "rows",
        model=loaded.settings,
        tables={"rows": table},
        config={"layer": layer, "towards": end, "base_spread": spread.tolist()},
        seed=0,
        inputs={**data_files(settings), "prompts": file},
        sentence=describe_rows(table, name=subject.name, end=end),
        seconds=time.monotonic() - started,
    )


def _table(examples: Sequence[Example], rows: Rows, loss: NDArray[np.float64]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "row": [example.number - 1 for example in examples],
            "loss": loss,
            "tokens": [sum(label != IGNORED for label in row["labels"]) for row in rows],
            "prompt": [example.asked[-1] if example.asked else "" for example in examples],
            "answer": [example.answer for example in examples],
        }
    )


def _batches(
    tokenizer: Tokenizer, rows: Rows, device: torch.device
) -> Iterator[tuple[int, dict[str, Tensor], Tensor, Tensor]]:
    """Number of the first row, inputs, mask of positions that predict an answer token, labels."""
    for start in range(0, len(rows), BATCH):
        chunk = rows[start : start + BATCH]
        batch = pad_sequences(tokenizer, [row["input_ids"] for row in chunk])
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for i, row in enumerate(chunk):
            labels[i, : len(row["labels"]) - 1] = torch.tensor(row["labels"][1:])
        labels = labels.to(device)
        yield start, to_device(batch, device), labels != IGNORED, labels


def _mean_loss(model: nn.Module, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
    """(batch,) mean cross entropy of each row over the tokens it predicts."""
    logits = model(**batch, use_cache=False).logits.float()
    each = cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    return each.sum(-1) / (labels != IGNORED).sum(-1)
