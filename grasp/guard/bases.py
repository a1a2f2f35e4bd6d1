"""The subspaces that a guard holds, from directions to orthonormal bases at every layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor

from analysis.errors import InputError
from analysis.spectra.subspace import orthonormal_basis, random_subspace
from grasp.guard.plan import GuardPlan
from grasp.model.loading import check_width, decoder_layers, device_of
from grasp.model.parts import width_of


def held_bases(model: PeftModel, plan: GuardPlan, *, seed: int) -> list[Tensor]:
    """Orthonormal Q_ℓ (d_model, k_ℓ) of every layer; empty where there are no directions.

    Those of the random control are R Q_ℓ with one Haar-random rotation R: of the same ranks, and
    at the same angles to each other, so that together they span as much of the stream.

    Raises:
        InputError: the directions do not fit the model.
    """
    if plan.protection.all_directions:
        return [torch.eye(width_of(model), device=device_of(model))] * len(decoder_layers(model))
    if plan.directions is None:
        return []
    turned = seed if plan.protection.random_subspace else None
    if plan.factors is not None:
        return layer_bases(model, [plan.factors] * len(decoder_layers(model)), turned=turned)
    return layer_bases(model, list(plan.directions), turned=turned)


def factor_bases(model: PeftModel, plan: GuardPlan, *, turned: int | None) -> list[list[Tensor]]:
    """For each factor, Q_ℓ of every layer; directions given layer by layer are one factor."""
    layers = len(decoder_layers(model))
    if plan.factors is not None:
        return [layer_bases(model, [row[None]] * layers, turned=turned) for row in plan.factors]
    return [layer_bases(model, list(plan.directions or ()), turned=turned)]


def layer_bases(
    model: PeftModel, directions: Sequence[NDArray[np.floating]], *, turned: int | None
) -> list[Tensor]:
    """Orthonormal columns (d_model, k_ℓ) for each layer's rows, turned by a random rotation.

    Args:
        model: gives width, number of layers and device.
        directions: (k_ℓ, d_model) for each decoder layer; rows need not be orthogonal.
        turned: seed of the rotation; None for none.
    """
    layers, width = len(decoder_layers(model)), width_of(model)
    if len(directions) != layers:
        raise InputError(f"Got directions for {len(directions)} layers; the model has {layers}.")
    rotation = None if turned is None else random_subspace(width, width, seed=turned)
    found: dict[int, Tensor] = {}  # all layers often share one array
    for rows in directions:
        if id(rows) not in found:
            check_width(model, rows)
            basis = orthonormal_basis(rows)
            basis = basis if rotation is None else rotation @ basis
            found[id(rows)] = torch.as_tensor(basis, dtype=torch.float32, device=device_of(model))
    return [found[id(rows)] for rows in directions]
