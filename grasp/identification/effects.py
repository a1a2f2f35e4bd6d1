"""Measure what a factor does in the model, by setting it back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor

from analysis.factors.set_back import SetBack
from grasp.identification.generated import AnsweredBatch, probabilities, total_variation
from grasp.jobs.progress import Progress, silent
from grasp.model.hooks import clamp, edited_outputs, layer_outputs
from grasp.model.loading import device_of


@torch.inference_mode()
def set_back_effects(
    model: PeftModel,
    answered: Sequence[AnsweredBatch],
    directions: NDArray[np.floating],
    *,
    progress: Progress = silent,
) -> SetBack:
    """How much of the fine-tune's change in its own answers each factor carries.

    At each token of the adapted model's greedy answer, let p be the adapted model's distribution,
    p⁰ the base model's, and p_q the adapted model's with the coordinate along q set back to the
    base model's at every layer.  With the total variation distances d = TV(p, p⁰) and
    d_q = TV(p, p_q), `analysis.factors.set_back.SetBack` gives shares and effects.

    Args:
        model: PeftModel.
        answered: chats with the adapted model's answers, from
            `grasp.identification.generated.answer_greedily`.
        directions: (k, d_model) unit rows.
        progress: called for every batch and factor.

    Source: this project (docs/method/method.md, section "Factors").
    """
    total = len(answered) * len(directions)
    parts = []
    for number, batch in enumerate(answered):
        adapted = probabilities(model, batch)
        with model.disable_adapter(), layer_outputs(model) as outputs:
            changed = total_variation(adapted, probabilities(model, batch))
        reference, moved = list(outputs), [torch.zeros(0, len(changed))]
        for k, direction in enumerate(directions):
            progress(number * len(directions) + k, total, "setting factors back")
            q = torch.as_tensor(direction, dtype=torch.float32, device=device_of(model))
            with edited_outputs(model, clamp(q[:, None], reference)):
                moved.append(total_variation(adapted, probabilities(model, batch))[None].cpu())
        parts.append(_by_answer(batch, changed.cpu(), torch.cat(moved)))
    progress(total, total, "setting factors back")
    return SetBack(
        carried=np.concatenate([part.carried for part in parts], axis=1),
        changed=np.concatenate([part.changed for part in parts]),
        largest=np.concatenate([part.largest for part in parts], axis=1),
        clusters=tuple(name for part in parts for name in part.clusters),
    )


def _by_answer(batch: AnsweredBatch, changed: Tensor, moved: Tensor) -> SetBack:
    """Sums by answer, from the TV of fine-tuning (tokens,) and of setting back (k, tokens)."""
    rows, d, d_q = batch.rows.cpu().numpy(), changed.double().numpy(), moved.double().numpy()
    carried, largest = (
        np.zeros((len(batch.predicting), len(d_q))),
        np.zeros((len(batch.predicting), len(d_q))),
    )
    np.add.at(carried, rows, (d_q * d).T)
    np.maximum.at(largest, rows, d_q.T)
    squares = np.zeros(len(batch.predicting))
    np.add.at(squares, rows, d**2)
    return SetBack(carried.T, squares, largest.T, batch.clusters)
