"""Steering vectors of factors: which way, and how far, at every decoder layer's output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor

from analysis.spectra.subspace import orthonormal_basis
from grasp.data.sites import site_mask
from grasp.model.forward import Batch, Forward, to_device, tokens_of, without_adapter
from grasp.model.loading import check_width, device_of
from grasp.settings.protection import Site


@torch.no_grad()
def steering_vectors(
    model: PeftModel, directions: NDArray[np.floating], batches: Sequence[Batch], *, site: Site
) -> Tensor:
    """v_ℓ (layers, d_model): what one unit of steering adds at each layer's output.

    Along each orthonormal direction q_j one unit is σ_ℓj, the standard deviation of the base
    model's own coordinate over all real tokens but each text's first, where many models park
    attention with huge activations.  What is added to the stream stays in it, so
    v_ℓ = Σ_j s_j (σ_ℓj − σ_(ℓ−1)j) q_j displaces every layer's output by one unit, as the
    incremental vectors of arXiv:2507.21509.  The polarity s_j is the naive run's own: the sign of
    its mean drift along q_j at the site's tokens, in units σ and over all layers.

    Args:
        model: the naive fine-tune.
        directions: (k, d_model) factors.
        batches: tokenised text, with the masks of `grasp.data.sites` where it has them.
        site: the tokens at which the naive run's drift is measured.
    """
    check_width(model, directions)
    basis = torch.as_tensor(
        orthonormal_basis(directions), dtype=torch.float32, device=device_of(model)
    )
    forward = Forward(model)
    coordinates: list[Tensor] = []
    drifts: list[Tensor] = []
    for batch in batches:
        given = to_device(batch, basis.device)
        real, chosen = given["attention_mask"].bool(), site_mask(given, site)
        adapted = forward.residual_stream(tokens_of(given))
        with without_adapter(model):
            base = forward.residual_stream(tokens_of(given))
        inner = real & (real.cumsum(dim=1) > 1)
        coordinates.append(torch.stack([h[inner].float() @ basis for h in base]))
        moved = [(a - b)[chosen].float() @ basis for a, b in zip(adapted, base, strict=True)]
        drifts.append(torch.stack(moved))
    sigma = torch.cat(coordinates, dim=1).std(dim=1)
    mean = torch.cat(drifts, dim=1).mean(dim=1) / sigma.clamp_min(torch.finfo(sigma.dtype).tiny)
    polarity = torch.where(mean.mean(dim=0) < 0, -1.0, 1.0)
    steps = sigma.diff(dim=0, prepend=torch.zeros_like(sigma[:1]))
    return (steps * polarity) @ basis.T
