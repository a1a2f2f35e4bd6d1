"""The footprint of factors: what they become on their way through the layers.

A factor is one direction, but later layers read it and write something else.  A fine-tune that
may not move the factor can still learn to write what the factor would have caused, so the
protected subspace follows it: at each layer, the directions along which that layer's output
changes when the factor is set back in the naive fine-tune.  This is this project's own addition.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from analysis.spectra.subspace import orthonormal_basis
from grasp.data.sites import site_mask
from grasp.model.forward import Batch, to_device, tokens_of
from grasp.model.hooks import clamp, edited_outputs, layer_outputs
from grasp.model.loading import check_width, device_of
from grasp.settings.protection import Site

MIN_ENERGY = 0.02
"""Directions with a smaller share of the change's energy are left out."""


@torch.no_grad()
def footprint(
    model: PeftModel,
    directions: NDArray[np.floating],
    batches: Sequence[Batch],
    *,
    width: int,
    site: Site = "all",
) -> list[NDArray[np.float32]]:
    """Leading directions of the change that setting factors back makes, layer by layer.

    With h_ℓ the adapted residual stream and h̃_ℓ the same with its coordinates along the
    factors set back to the base model's at every layer, these are the leading right singular
    vectors of h_ℓ − h̃_ℓ (tokens of the site, d_model), uncentred.

    Args:
        model: the naive fine-tune.
        directions: (k, d_model) factors.
        batches: tokenised text without labels, with the masks of `grasp.data.sites` where it has
            them.
        width: largest number of directions at one layer.
        site: tokens whose change counts; the factors are set back at every token.

    Returns:
        One array (k_ℓ, d_model) of orthonormal rows for each decoder layer, 1 ≤ k_ℓ ≤ width;
        the factors themselves where setting them back changes nothing.

    Raises:
        InputError: the directions' width is not the model's.
    """
    check_width(model, directions)
    basis = torch.as_tensor(
        orthonormal_basis(directions), dtype=torch.float32, device=device_of(model)
    )
    moments: list[torch.Tensor] = []
    rounding: list[float] = []
    for batch in batches:
        given = to_device(batch, device_of(model))
        tokens, chosen = tokens_of(given), site_mask(given, site)
        with model.disable_adapter(), layer_outputs(model) as base:
            model(**tokens, use_cache=False)
        with layer_outputs(model) as adapted:
            model(**tokens, use_cache=False)
        with edited_outputs(model, clamp(basis, base)), layer_outputs(model) as back:
            model(**tokens, use_cache=False)
        moved = [(a - b)[chosen].double() for a, b in zip(adapted, back, strict=True)]
        gram = [change.T @ change for change in moved]
        noise = [_rounding(hidden[chosen]) for hidden in adapted]
        moments = [m + g for m, g in zip(moments, gram, strict=True)] if moments else gram
        rounding = [r + n for r, n in zip(rounding, noise, strict=True)] if rounding else noise
    unmoved: NDArray[np.float32] = basis.T.cpu().numpy()
    return [
        _leading(moment, width) if float(moment.trace()) > noise else unmoved
        for moment, noise in zip(moments, rounding, strict=True)
    ]


def _rounding(hidden: torch.Tensor) -> float:
    """Σ (2 ε h)²: the energy of a change that rounding alone could make."""
    return float((2 * torch.finfo(hidden.dtype).eps * hidden.double()).square().sum())


def _leading(moment: torch.Tensor, width: int) -> NDArray[np.float32]:
    """Eigenvectors of the second moment (d_model, d_model) with a share of at least MIN_ENERGY."""
    values, vectors = torch.linalg.eigh(moment)
    share = values.flip(0) / values.sum()
    count = max(1, min(width, int((share >= MIN_ENERGY).sum())))
    leading: NDArray[np.float32] = vectors.flip(1)[:, :count].T.float().cpu().numpy()
    return leading
