"""GRASP as a context manager: keep a fine-tune from new reliance on a subspace.

The aim is Qᵀ h_ℓ = Qᵀ h⁰_ℓ at every decoder layer's output, while everything orthogonal to Q is
free; the parts are those of METHOD.md, section 2.  The recipe is this project's reading of
Gilligan-Lee et al. 2026, arXiv:2605.27676, of which only the abstract could be had.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from analysis.errors import InputError
from analysis.spectra.subspace import orthonormal, random_subspace
from grasp.guard.anchor import Anchor
from grasp.guard.constraint import WriteConstraint
from grasp.guard.divergence import Divergence
from grasp.guard.guard import Guard, following
from grasp.guard.task_tokens import TaskText
from grasp.model.forward import Batch, measuring
from grasp.model.hooks import Edit, ablate, displace, edited_outputs, project_gradient
from grasp.model.loading import check_together, check_width, decoder_layers, device_of
from grasp.settings.protection import Protection

Directions = NDArray[np.floating] | Sequence[NDArray[np.floating]]
"""Factors (k, d_model) for all layers, or one such array for each decoder layer."""


@contextmanager
def protect(
    model: nn.Module,
    directions: Directions | None,
    *,
    protection: Protection,
    neutral: Sequence[Batch] = (),
    held_back: Sequence[Batch] = (),
    own_answers: Sequence[Batch] = (),
    steering: Tensor | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    seed: int = 0,
) -> Iterator[Guard]:
    """Protect the span of `directions` while the block trains `model`.

    Args:
        model: PeftModel with a LoRA adapter, B = 0 or trained under the same protection; it may
            be wrapped by DistributedDataParallel or compiled.  Only weights of the active adapter
            that are trained are constrained.
        directions: factors (k, d_model) for all layers, or one such array for each decoder
            layer; rows need not be orthogonal.  None where the protection holds no subspace.
        protection: which parts are on.
        neutral: tokenised batches of text without the factor, for anchor and drift monitor; they
            may carry the masks of `grasp.data.sites`.
        held_back: batches of such text that only measure drift.
        own_answers: batches of the base model's own answers, for the divergence on them.
        steering: (layers, d_model) as `grasp.guard.steering.steering_vectors` gives them.
        optimizer: `Guard.stepped` follows each of its steps; without one, the training loop
            calls that itself.
        seed: of the random rotation, where the protection asks for one.

    Raises:
        InputError: a part of the protection lacks what it needs, the width is not the model's,
            or there is no PeftModel to be found.
    """
    plain = _unwrapped(model)
    check_together(plain)
    bases = _bases(plain, directions, protection, seed=seed)
    _check(protection, bases, neutral=neutral, steering=steering)
    anchor = (
        Anchor(
            plain,
            bases,
            neutral,
            held_back=held_back,
            site=protection.site,
            share=protection.neutral_share,
        )
        if neutral and bases
        else None
    )
    texts = {"neutral": neutral, "own": own_answers}
    on_task = protection.anchor_task or protection.clamp or protection.divergence == "task"
    guard = Guard(
        bases,
        protection,
        constraint=(WriteConstraint(plain, bases, indirect=protection.indirect) if bases else None),
        anchor=anchor,
        task=TaskText(plain, bases, site=protection.site) if on_task else None,
        reference=(
            Divergence(plain, texts[protection.divergence], site=protection.site)
            if protection.divergence in texts
            else None
        ),
    )
    with ExitStack() as stack:
        if guard._task is not None:
            # Before the other edits, since a projected gradient would take the anchor's away.
            watched = guard._task.watched(
                coordinates=protection.anchor_task,
                logits=protection.divergence == "task",
                clamped=protection.share if protection.clamp else 0.0,
            )
            stack.enter_context(watched)
        for edit in _edits(protection, bases, steering):
            stack.enter_context(edited_outputs(plain, _while_training(edit)))
        if optimizer is not None:
            stack.enter_context(following(optimizer, guard))
        yield guard


def _edits(protection: Protection, bases: Sequence[Tensor], steering: Tensor | None) -> list[Edit]:
    """What is done to every decoder layer's output while training."""
    edits: list[Edit] = []
    if protection.gradient_projection:
        edits.append(project_gradient(bases, share=protection.share))
    if protection.ablation:
        edits.append(ablate(bases, share=protection.share))
    if protection.steering and steering is not None:
        edits.append(displace(steering, by=protection.steering))
    return edits


def _while_training(edit: Edit) -> Edit:
    """`edit`, but not while drift is measured.

    A projected gradient would take the anchor's own gradient away, all of which lies in the
    subspace; an ablated model shows the same drift whatever it has learned.
    """
    return lambda layer, hidden: hidden if measuring() else edit(layer, hidden)


def _check(
    protection: Protection,
    bases: Sequence[Tensor],
    *,
    neutral: Sequence[Batch],
    steering: Tensor | None,
) -> None:
    """Refuse a protection that lacks what it needs."""
    subspace = ("gradient_projection", "write_constraint", "anchor", "anchor_task", "clamp")
    asking = [name for name in (*subspace, "ablation") if getattr(protection, name)]
    if asking and not bases:
        raise InputError(f"The protection has {asking[0]} on, but there are no directions to hold.")
    if (protection.anchor or protection.anchor_task) and not neutral:
        raise InputError("The anchor is on but there is no neutral text; name a file of it.")
    if protection.steering and steering is None:
        raise InputError("The protection steers while training, but got no steering vectors.")


def _unwrapped(model: nn.Module) -> PeftModel:
    plain = model
    while isinstance(plain, (DistributedDataParallel, nn.DataParallel, OptimizedModule)):
        plain = plain._orig_mod if isinstance(plain, OptimizedModule) else plain.module
    if not isinstance(plain, PeftModel) or hasattr(next(plain.parameters()), "device_mesh"):
        raise InputError(
            f"Got a {type(plain).__name__}; expected a PeftModel whose weights are whole on each "
            "device, as it is or wrapped by DistributedDataParallel or torch.compile."
        )
    return plain


def _bases(
    model: PeftModel, directions: Directions | None, protection: Protection, *, seed: int
) -> list[Tensor]:
    """Orthonormal Q_ℓ (d_model, k_ℓ) of every layer; empty where there are no directions.

    Those of the random control are R Q_ℓ with one Haar-random rotation R: of the same ranks, and
    at the same angles to each other, so that together they span as much of the stream.
    """
    layers, width = len(decoder_layers(model)), model.get_base_model().config.hidden_size
    if protection.all_directions:
        return [torch.eye(width, device=device_of(model))] * layers
    if directions is None:
        return []
    shared = isinstance(directions, np.ndarray)
    given = [directions] if isinstance(directions, np.ndarray) else list(directions)
    if not shared and len(given) != layers:
        raise InputError(f"Got directions for {len(given)} layers; the model has {layers}.")
    for rows in given:
        check_width(model, rows)
    bases = [orthonormal(rows) for rows in given]
    if protection.random_subspace:
        rotation = random_subspace(width, width, seed=seed)
        bases = [rotation @ basis for basis in bases]
    tensors = [
        torch.as_tensor(basis, dtype=torch.float32, device=device_of(model)) for basis in bases
    ]
    return tensors * layers if shared else tensors
