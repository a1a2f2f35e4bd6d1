"""Closed-form removal in an adapter's inner space, after CARVE (2026); nothing is trained.

For a module with ΔW = s B A, the update adds s B z to its output, with z = A x, r numbers.  C_f is
the mean of z zᵀ over the tokens of forget text, on which no change is wanted, and C_r the same over
retain text, the task's own rows.  With a small ridge ρ,

    C_f u = λ (C_r + ρ I) u,   Uᵀ (C_r + ρ I) U = I,   λ_1 ≥ λ_2 ≥ …,

so that the coordinate uᵢᵀz is of size 1 on retain text and of size √λᵢ on forget text.  The first k
coordinates, those that forget text uses most beside retain text, are set to zero, the rest stay:

    B ← B P,   P = I − (C_r + ρ I) U_k U_kᵀ.

P is an oblique projection: uᵢᵀP is 0 for i ≤ k and uᵢᵀ for the others.  With k = r, P = 0.  Without
the ridge, ΔW afterwards does not depend on how it was written: A → G A, B → B G⁻¹ give the same.

Only a summary of the paper was available: inner activations of forget and retain text, the
generalised eigenproblem of the two, removal without training.  The ridge, the tokens, the share of
directions and the form of P are this project's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from analysis.errors import InputError
from grasp.data.sites import site_mask
from grasp.guard.text import pad_right_on
from grasp.model.forward import Batch, Forward, tokens_of
from grasp.model.loading import device_of
from grasp.settings.protection import Site

RIDGE = 1e-6
"""ρ as a share of the mean square of an inner activation on both texts."""


def inner_projection(
    forget: NDArray[np.float64], retain: NDArray[np.float64], *, count: int
) -> NDArray[np.float64]:
    """P (r, r), which removes the first `count` directions of forget text beside retain text.

    Args:
        forget: C_f (r, r), symmetric and positive semi-definite.
        retain: C_r (r, r), likewise.
        count: k, 0 to r.

    Raises:
        ValueError: `count` is out of range.
    """
    rank = len(retain)
    if not 0 <= count <= rank:
        raise ValueError(f"Got {count} directions to remove; expected 0 to {rank}.")
    ridge = RIDGE * (np.trace(forget) + np.trace(retain)) / (2 * rank)
    if count == 0 or ridge == 0:  # neither text reaches the module
        return np.eye(rank)
    metric = retain + ridge * np.eye(rank)
    _, directions = scipy.linalg.eigh(forget, metric)
    leading = directions[:, ::-1][:, :count]
    kept: NDArray[np.float64] = np.eye(rank) - metric @ leading @ leading.T
    return kept


@torch.no_grad()
def second_moments(
    model: PeftModel, layers: Sequence[nn.Module], batches: Sequence[Batch], *, site: Site
) -> list[NDArray[np.float64]]:
    """The mean of z zᵀ (r, r), for each layer's output z, over the site's tokens of all batches.

    Args:
        model: with the adapter whose inner activations are meant.
        layers: its lora_A.
        batches: tokenised text, with the masks of `grasp.data.sites` where it has them.
        site: the tokens that count.
    """
    forward = Forward(model)
    sums: list[NDArray[np.float64] | float] = [0.0] * len(layers)
    tokens = 0
    for batch in batches:
        given = pad_right_on(batch, device_of(model))
        chosen = site_mask(given, site)
        with _outputs(layers) as outputs:
            forward.logits(tokens_of(given))
        tokens += int(chosen.sum())
        for place, inner in enumerate(outputs):
            sums[place] += _gram(inner, chosen)
    if not tokens:
        raise InputError("There is no text to tell what the adapter does on it from the rest.")
    return [np.asarray(total) / tokens for total in sums]


def _gram(inner: Tensor | None, chosen: Tensor) -> NDArray[np.float64]:
    if inner is None or inner.shape[:-1] != chosen.shape:
        raise InputError(
            "A module of the adapter does not see every token of the text (an expert, or one that "
            "is not used), so what it does on two texts cannot be told apart."
        )
    seen = inner[chosen].double()
    gram: NDArray[np.float64] = (seen.T @ seen).cpu().numpy()
    return gram


@contextmanager
def _outputs(layers: Sequence[nn.Module]) -> Iterator[list[Tensor | None]]:
    """What each layer gives in the forward pass of the block."""
    found: list[Tensor | None] = [None] * len(layers)

    def keep(place: int) -> RemovableHandle:
        def hook(_module: nn.Module, _given: object, output: Tensor) -> None:
            found[place] = output

        return layers[place].register_forward_hook(hook)

    with ExitStack() as stack:
        for place in range(len(layers)):
            stack.callback(keep(place).remove)
        yield found
