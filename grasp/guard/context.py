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
from grasp.guard.anchor import Anchor
from grasp.guard.bases import held_bases
from grasp.guard.constraint import WriteConstraint
from grasp.guard.divergence import Divergence
from grasp.guard.effect import EffectAnchor
from grasp.guard.guard import Guard
from grasp.guard.naive import follow_naive, naive_adapter
from grasp.guard.plan import Directions, GuardPlan
from grasp.guard.task_tokens import TaskText
from grasp.model.forward import Batch, is_measuring
from grasp.model.hooks import Edit, ablate, displace, edited_outputs, project_gradient
from grasp.model.loading import check_together
from grasp.settings.protection import Protection


@contextmanager
def protect(
    model: nn.Module,
    directions: Directions | None,
    *,
    protection: Protection,
    neutral: Sequence[Batch] = (),
    dressed: Sequence[Batch] = (),
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
        dressed: such text in the dress of the task's prompts, as `grasp.dress` gives it.
        held_back: batches of such text that only measure.
        own_answers: batches of the base model's own answers, for the divergence on them.
        steering: (layers, d_model) as `grasp.guard.steering.steering_vectors` gives them.
        naive: folder of the naive fine-tune's adapter, on which is measured, on neutral text, what
            the factors do there: for an effect, a footprint, steering, or a tolerance.
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
        ...     dressed=dressed,
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
        dressed=dressed,
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
            plan = follow_naive(plan, plain, seed=seed)
    bases = held_bases(plain, plan, seed=seed)
    task = TaskText(plain, bases, site=plan.protection.site) if plan.protection.on_task else None
    guard = _guard(plain, plan, bases, task)
    with ExitStack() as stack:
        if task is not None:
            # Before the other edits, since a projected gradient would take the anchor's away.
            stack.enter_context(_watch(task, plan.protection))
        for edit in _edits(plan, bases):
            stack.enter_context(edited_outputs(plain, _while_training(edit)))
        if optimizer is not None:
            stack.enter_context(guard.follow(optimizer))
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
        effect=EffectAnchor(model, plan.effects) if plan.effects else None,
        reference=_reference(model, plan),
        naive_drift=plan.naive_drift,
    )


def _anchor(model: PeftModel, plan: GuardPlan, bases: list[Tensor]) -> Anchor:
    return Anchor(
        model,
        bases,
        plan.anchored,
        held_back=plan.held_back,
        site=plan.protection.site,
        share=plan.protection.neutral_share,
    )


def _reference(model: PeftModel, plan: GuardPlan) -> Divergence | None:
    texts = {"neutral": plan.anchored, "own": plan.own_answers}
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
    task = plain.active_peft_config.task_type
    if task not in (None, "CAUSAL_LM"):
        raise InputError(
            f"Got an adapter with the task_type {str(task)!r}; expected that of a causal language "
            "model (CAUSAL_LM), since what is protected are its answers."
        )
    return plain
