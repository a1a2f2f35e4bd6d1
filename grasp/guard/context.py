"""GRASP as a context manager: keep a fine-tune from new reliance on a subspace.

The aim is Qᵀ h_ℓ = Qᵀ h⁰_ℓ at every decoder layer's output, while everything orthogonal to Q is
free; docs/method/method.md describes the parts.  The recipe is this project's reading of
Gilligan-Lee et al. 2026, arXiv:2605.27676; only the abstract was available.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from analysis.errors import InputError
from analysis.spectra.subspace import orthonormal_basis, random_subspace
from grasp.guard.anchor import Anchor
from grasp.guard.constraint import WriteConstraint
from grasp.guard.divergence import Divergence
from grasp.guard.guard import Guard, follow_steps
from grasp.guard.naive import follow_naive, naive_adapter
from grasp.guard.plan import Directions, GuardPlan
from grasp.guard.task_tokens import TaskText
from grasp.model.forward import Batch, is_measuring
from grasp.model.hooks import Edit, ablate, displace, edited_outputs, project_gradient
from grasp.model.loading import check_together, check_width, decoder_layers, device_of
from grasp.model.parts import width_of
from grasp.settings.protection import Protection


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
    naive: str | Path | None = None,
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
        naive: folder of the naive fine-tune's adapter.  A protection with a footprint or steering
            measures there, on the neutral text, what factors for all layers become.
        optimizer: `Guard.stepped` follows each of its steps; without one, the training loop
            calls that itself.
        seed: of the random rotation, where the protection asks for one.

    Yields:
        The guard, whose `penalty` each loss gets on top.

    Raises:
        InputError: a part of the protection lacks what it needs, the width is not the model's,
            or there is no PeftModel to be found.
        NotFoundError: there is no adapter in `naive`.

    Example:
        >>> with grasp.protect(
        ...     model,
        ...     directions,
        ...     protection=grasp.METHODS["grasp"].protection,
        ...     neutral=batches,
        ...     naive="finance-naive/adapter",
        ...     optimizer=optimizer,
        ... ) as guard:
        ...     for batch in loader:
        ...         (model(**batch).loss + guard.penalty()).backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()

    Source: this project's reading of arXiv:2605.27676; see docs/method/method.md.
    """
    plan = GuardPlan(
        protection=protection,
        directions=directions,
        neutral=neutral,
        held_back=held_back,
        own_answers=own_answers,
        steering=steering,
        naive=None if naive is None else Path(naive),
    )
    with hold(model, plan, optimizer=optimizer, seed=seed) as guard:
        yield guard


@contextmanager
def hold(
    model: nn.Module,
    plan: GuardPlan,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    seed: int = 0,
) -> Iterator[Guard]:
    """As `protect`, by a plan."""
    plain = _unwrapped(model)
    check_together(plain)
    plan.check()
    if plan.follows_naive and plan.naive is not None:
        with naive_adapter(plain, plan.naive):
            plan = follow_naive(plan, plain)
    bases = _bases(plain, plan, seed=seed)
    task = TaskText(plain, bases, site=plan.protection.site) if plan.protection.on_task else None
    guard = _guard(plain, plan, bases, task)
    with ExitStack() as stack:
        if task is not None:
            # Before the other edits, since a projected gradient would take the anchor's away.
            stack.enter_context(_watch(task, plan.protection))
        for edit in _edits(plan, bases):
            stack.enter_context(edited_outputs(plain, _while_training(edit)))
        if optimizer is not None:
            stack.enter_context(follow_steps(optimizer, guard))
        yield guard


def _guard(model: PeftModel, plan: GuardPlan, bases: list[Tensor], task: TaskText | None) -> Guard:
    protection = plan.protection
    held = bool(bases)
    return Guard(
        bases,
        protection,
        constraint=WriteConstraint(model, bases, indirect=protection.indirect) if held else None,
        anchor=_anchor(model, plan, bases) if held and plan.neutral else None,
        task=task,
        reference=_reference(model, plan),
    )


def _anchor(model: PeftModel, plan: GuardPlan, bases: list[Tensor]) -> Anchor:
    return Anchor(
        model,
        bases,
        plan.neutral,
        held_back=plan.held_back,
        site=plan.protection.site,
        share=plan.protection.neutral_share,
    )


def _reference(model: PeftModel, plan: GuardPlan) -> Divergence | None:
    texts = {"neutral": plan.neutral, "own": plan.own_answers}
    text = texts.get(plan.protection.divergence or "")
    return None if text is None else Divergence(model, text, site=plan.protection.site)


def _watch(task: TaskText, protection: Protection) -> AbstractContextManager[None]:
    return task.watch(
        coordinates=protection.anchor_task,
        logits=protection.divergence == "task",
        clamped=protection.share if protection.clamp else 0.0,
    )


def _edits(plan: GuardPlan, bases: Sequence[Tensor]) -> list[Edit]:
    """What is done to every decoder layer's output while training."""
    protection = plan.protection
    edits: list[Edit] = []
    if protection.gradient_projection:
        edits.append(project_gradient(bases, share=protection.share))
    if protection.ablation:
        edits.append(ablate(bases, share=protection.share))
    if protection.steering and plan.steering is not None:
        edits.append(displace(plan.steering, by=protection.steering))
    return edits


def _while_training(edit: Edit) -> Edit:
    """`edit`, but not while drift is measured.

    A projected gradient would take the anchor's own gradient away, all of which lies in the
    subspace; an ablated model shows the same drift whatever it has learned.
    """
    return lambda layer, hidden: hidden if is_measuring() else edit(layer, hidden)


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


def _bases(model: PeftModel, plan: GuardPlan, *, seed: int) -> list[Tensor]:
    """Orthonormal Q_ℓ (d_model, k_ℓ) of every layer; empty where there are no directions.

    Those of the random control are R Q_ℓ with one Haar-random rotation R: of the same ranks, and
    at the same angles to each other, so that together they span as much of the stream.
    """
    layers, width = len(decoder_layers(model)), width_of(model)
    if plan.protection.all_directions:
        return [torch.eye(width, device=device_of(model))] * layers
    if plan.directions is None:
        return []
    given = list(plan.directions) if plan.factors is None else [plan.factors]
    if plan.factors is None and len(given) != layers:
        raise InputError(f"Got directions for {len(given)} layers; the model has {layers}.")
    for rows in given:
        check_width(model, rows)
    bases = [orthonormal_basis(rows) for rows in given]
    if plan.protection.random_subspace:
        rotation = random_subspace(width, width, seed=seed)
        bases = [rotation @ basis for basis in bases]
    tensors = [
        torch.as_tensor(basis, dtype=torch.float32, device=device_of(model)) for basis in bases
    ]
    return tensors * layers if plan.factors is not None else tensors
