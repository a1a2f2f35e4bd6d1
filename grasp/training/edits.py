"""Edits of finished adapters: each leaves a plain PEFT adapter of the same rank.

The edited update is reproduced to the rounding of the adapter's dtype; scaling and removal change
lora_B alone, and so does carving; truncation writes ΔW anew in its singular directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from analysis.errors import InputError
from analysis.spectra.subspace import orthonormal_basis
from grasp.guard.constraint import WriteConstraint, frozen_weight
from grasp.model.forward import Batch
from grasp.model.hooks import without
from grasp.model.loading import check_width, decoder_layers, device_of
from grasp.model.parts import lora_matrices
from grasp.settings.protection import Site
from grasp.training.carve import inner_projection, second_moments


@dataclass(frozen=True)
class Given:
    """What an edit may look at.

    `directions` are the factors (k, d_model).  `forget` is tokenised text on which no change is
    wanted, `retain` the task's own, and `site` the tokens of both that count.
    """

    directions: NDArray[np.float32] | None = None
    forget: Sequence[Batch] = ()
    retain: Sequence[Batch] = ()
    site: Site = "all"


Edit = Callable[[PeftModel, Given, float], None]
"""Changes the adapter of a model in place, by what is given and a strength."""

INTRUDER = 0.5
"""ε: a singular vector is new where its largest |cosine| with the base's own is less."""

LEADING = 10
"""Singular vectors of a weight, the leading ones, that are looked at for intruders."""


def edit_adapter(model: PeftModel, name: str, *, strength: float, given: Given) -> None:
    """Edit the adapter of `model` in place by the method `name`.

    Raises:
        InputError: the adapter is more than a plain LoRA, or the strength is out of range.
    """
    config = model.active_peft_config
    if config.use_dora or config.modules_to_save or config.bias != "none" or config.lora_bias:
        raise InputError(
            "The adapter has more than LoRA's update (DoRA, a bias or whole modules), which this "
            "edit would leave out; train one without."
        )
    with torch.no_grad():
        EDITS[name](model, given, strength)


def _scale(model: PeftModel, _given: Given, share: float) -> None:
    """WiSE-FT: W + share · ΔW, weights between base (0) and naive (1)."""
    for _, _, b, _ in _modules(model):
        b.mul_(_fraction(share))


def _truncate(model: PeftModel, _given: Given, rank: float) -> None:
    """ΔW ← Σ_(i ≤ k) σ_i u_i v_iᵀ of each module, the rest of the rank being zero.

    Top-k truncation of the update's own SVD, arXiv:2606.07596, whose abstract alone was
    available; k is the same for all modules.  With B = Q_B R_B and Aᵀ = Q_A R_A it is that of the
    r × r core R_B R_Aᵀ.
    """
    if rank < 1 or rank != int(rank):
        raise InputError(f"Got {rank:g} singular directions to keep; expected a whole number.")
    for _, a, b, scaling in _modules(model):
        q_b, r_b = torch.linalg.qr(b.double())
        q_a, r_a = torch.linalg.qr(a.double().T)
        left, sigma, right = torch.linalg.svd(scaling * r_b @ r_a.T)
        sigma[int(rank) :] = 0
        # Written so that lora_B and lora_A stay of one size, as training left them.
        root = (sigma / scaling).sqrt()
        b.zero_()
        a.zero_()
        b[:, : len(sigma)] = (q_b @ left * root).to(b)
        a[: len(sigma)] = (root[:, None] * right @ q_a.T).to(a)


def _shrink_intruders(model: PeftModel, _given: Given, share: float) -> None:
    """ΔW ← ΔW − share · U Uᵀ ΔW with U the intruder dimensions of W + ΔW, arXiv:2410.21228.

    Intruders are those of its leading left singular vectors whose largest |cosine| with the left
    singular vectors of W is below ε.  The paper, and `peft.tuners.lora.intruders` with it, scale
    their singular values in W + ΔW, which also takes from W and is then cut to the rank of the
    LoRA; here only the update shrinks, exactly.  Where UᵀW = 0 both are the same.
    """
    for module, a, b, scaling in _modules(model):
        intruders = intruder_dimensions(
            frozen_weight(module), scaling * b.double() @ a.double()
        ).to(b.device)
        b.copy_(without(b.T, intruders, share=_fraction(share)).T)


def intruder_dimensions(weight: Tensor, update: Tensor) -> Tensor:
    """Orthonormal columns (d_out, n): leading left singular vectors of W + ΔW that W lacks."""
    before = torch.linalg.svd(weight, full_matrices=False)[0]
    after = torch.linalg.svd(weight + update, full_matrices=False)[0][:, :LEADING]
    nearest = (after.T @ before).abs().max(dim=1).values
    new: Tensor = after[:, nearest < INTRUDER]
    return new


def _remove(model: PeftModel, given: Given, share: float) -> None:
    """B ← B − share · Q Qᵀ B on every module that writes the residual stream."""
    directions = given.directions
    assert directions is not None
    check_width(model, directions)
    basis = torch.as_tensor(
        orthonormal_basis(directions), dtype=torch.float32, device=device_of(model)
    )
    bases = [basis] * len(decoder_layers(model))
    WriteConstraint(model, bases, indirect=False).apply(share=_fraction(share))


def _carve(model: PeftModel, given: Given, share: float) -> None:
    """B ← B P, which takes out `share` of each module's r inner directions, rounded."""
    _fraction(share)
    layers = [module.lora_A[adapter] for module, adapter in _adapted(model)]
    forget, retain = (
        second_moments(model, layers, text, site=given.site)
        for text in (given.forget, given.retain)
    )
    for (_, _, b, _), off, on in zip(_modules(model), forget, retain, strict=True):
        kept = inner_projection(off, on, count=math.floor(share * len(on) + 0.5))
        b.copy_(b.double() @ torch.as_tensor(kept, device=b.device))


EDITS: dict[str, Edit] = {
    "wise-ft": _scale,
    "spectral-truncation": _truncate,
    "intruder-shrinkage": _shrink_intruders,
    "removal": _remove,
    "carve": _carve,
}


def _modules(model: PeftModel) -> Iterator[tuple[nn.Module, Tensor, Tensor, float]]:
    """Each adapted linear layer with its lora_A (r, d_in), lora_B (d_out, r) and scaling."""
    for module, adapter in _adapted(model):
        assert isinstance(module, nn.Module)  # PEFT's class is a mixin
        a, b = lora_matrices(module, adapter)
        yield module, a.data, b.data, float(module.scaling[adapter])


def _adapted(model: PeftModel) -> Iterator[tuple[LoraLayer, str]]:
    """Each adapted linear layer, with the name of its adapter."""
    modules: Iterator[tuple[str, nn.Module]] = model.named_modules()
    for name, module in modules:
        if not isinstance(module, LoraLayer):
            continue
        for adapter in module.active_adapters:
            if adapter not in module.lora_B:
                raise InputError(f"{name} is adapted as an embedding, which no edit follows.")
            yield module, adapter


def _fraction(share: float) -> float:
    if not 0 <= share <= 1:
        raise InputError(f"Got a share of {share:g}; expected 0 to 1.")
    return share
