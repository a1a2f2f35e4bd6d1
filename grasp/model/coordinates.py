"""Coordinates of the residual stream along a subspace, c = Qᵀ h, at some of its tokens."""

from __future__ import annotations

from torch import Tensor

from grasp.model.hooks import without_autocast

_FEW = 8
"""Directions are few where the stream has at least so many times as many."""


def coordinates(hidden: Tensor, basis: Tensor, mask: Tensor) -> Tensor:
    """Qᵀ h (tokens of `mask`, k) in float32, whatever autocast says.

    A few directions are projected onto before tokens are chosen: the backward pass then scatters
    k numbers a token instead of d_model.

    Args:
        hidden: h (batch, tokens, d_model).
        basis: Q (d_model, k).
        mask: (batch, tokens) of bool.
    """
    with without_autocast(hidden.device):
        if _FEW * basis.shape[1] <= basis.shape[0]:
            return (hidden.float() @ basis.float())[mask]
        return hidden[mask].float() @ basis.float()
