"""What a protection takes from the naive fine-tune: its footprint, and which way it drifted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from analysis.adapters.place import is_adapter
from analysis.errors import InputError, NotFoundError
from grasp.guard.anchor import Anchor
from grasp.guard.bases import factor_bases, held_bases
from grasp.guard.effect import Effects, measure_effects
from grasp.guard.footprint import footprint
from grasp.guard.kept_effects import KeptEffects
from grasp.guard.plan import GuardPlan
from grasp.guard.steering import steering_vectors
from grasp.guard.text import Text
from grasp.model.attach import attach_adapter, attach_beside
from grasp.model.forward import Batch, keep_trained, without_dropout
from grasp.model.hooks import without_autocast
from grasp.model.loading import device_of

MEASURED = 16
"""Neutral batches that a footprint and steering vectors are measured on."""

_NAME = "naive"


def follow_naive(plan: GuardPlan, naive: PeftModel, *, seed: int) -> GuardPlan:
    """The plan with what it takes from the naive fine-tune.

    Args:
        plan: whose directions are factors (k, d_model) for all layers, or given layer by layer.
        naive: the naive fine-tune, in evaluation mode.
        seed: of the random rotation, where the protection asks for one.

    Raises:
        InputError: there is no neutral text to measure on, or the width is not the model's.
    """
    factors, protection = plan.factors, plan.protection
    texts = plan.anchored[:MEASURED]
    if not texts:
        raise InputError("What the naive run does is measured on neutral text; name a file of it.")
    if protection.effect:
        plan = replace(plan, effects=_effects(plan, naive, seed=seed))
    if factors is not None and protection.steering and plan.steering is None:
        vectors = steering_vectors(naive, factors, texts, site="prompt-end")
        plan = replace(plan, steering=vectors)
    if factors is not None and protection.footprint:
        followed = footprint(
            naive, factors, texts, width=protection.footprint, site=protection.site
        )
        plan = replace(plan, directions=followed)
    if plan.relative:
        plan = replace(plan, naive_drift=_drift(plan, naive, seed=seed))
    return plan


def _effects(plan: GuardPlan, naive: PeftModel, *, seed: int) -> dict[Text, Effects]:
    """Effects on what is anchored, on the same dressed, and on what is held back.

    They are read from the disk where they have been measured before.  The random control's are in
    the unit of the factors, so that a direction which does little counts for little.
    """
    protection = plan.protection
    texts: dict[Text, Sequence[Batch]] = {
        "anchored": plan.neutral,
        "dressed": plan.dressed if protection.dressed else (),
        "held-back": plan.held_back,
    }
    bases = factor_bases(naive, plan, turned=None)
    kept = KeptEffects(plan.keep, naive, bases)
    found: dict[Text, Effects] = {}
    for text, batches in texts.items():
        if not batches:
            continue
        share = 1.0 if text == "held-back" else protection.neutral_share
        measure = partial(
            measure_effects, naive, batches=batches, site=protection.site, share=share
        )
        effects = kept.find(
            batches, how=f"{protection.site} {share}", measure=partial(measure, bases=bases)
        )
        if protection.random_subspace:
            turned = factor_bases(naive, plan, turned=seed)
            effects = replace(measure(bases=turned, unit=effects.unit), own=effects.own)
        found[text] = effects
    return found


def _drift(plan: GuardPlan, naive: PeftModel, *, seed: int) -> dict[Text, float]:
    """The naive run's drift along what is held, in the base's standard deviations."""
    bases = held_bases(naive, plan, seed=seed)
    anchor = Anchor(
        naive, bases, plan.anchored, held_back=plan.held_back, site=plan.protection.site
    )
    texts: list[Text] = ["anchored", "held-back"]
    drifts = {text: anchor.drift(text=text) for text in texts}
    return {text: drift.rms for text, drift in drifts.items() if drift is not None}


@contextmanager
def naive_model(base: PreTrainedModel, folder: Path) -> Iterator[PeftModel]:
    """The naive fine-tune of `base`; afterwards `base` is without an adapter again.

    Raises:
        NotFoundError: there is no adapter in the folder.
    """
    _check_adapter(folder)
    naive = attach_adapter(base, folder)
    yield naive
    naive.unload()


@contextmanager
def naive_adapter(model: PeftModel, folder: Path) -> Iterator[None]:
    """The model with the naive fine-tune's adapter in place of its own, in evaluation mode.

    Afterwards the model is as it was, and so are the random numbers that training will draw.

    Raises:
        NotFoundError: there is no adapter in the folder.
        InputError: it cannot lie beside the model's own.
    """
    _check_adapter(folder)
    active = model.active_adapter
    # PEFT leaves the whole model in evaluation mode when it loads, so that comes inside.
    with keep_trained(model), torch.no_grad(), without_dropout(model):
        _load_beside(model, folder)
        try:
            model.set_adapter(_NAME)
            with without_autocast(device_of(model)):
                yield
        finally:
            model.set_adapter(active)
            model.delete_adapter(_NAME)


def _load_beside(model: PeftModel, folder: Path) -> None:
    try:
        with torch.random.fork_rng():
            attach_beside(model, folder, name=_NAME)
    except InputError as error:
        raise InputError(
            f"The naive adapter cannot be loaded beside the model's own. {error}"
        ) from None


def _check_adapter(folder: Path) -> None:
    if not is_adapter(folder):
        raise NotFoundError(
            f"There is no adapter in {folder}; the naive run is needed to follow its factors."
        )
