"""Forward passes of a base model and of its adapter that nothing but the adapter tells apart.

They are taken under the autocast that a `Forward` is made under, never under compiled code, and
without dropout, which would be a difference that no training can undo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeGuard

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from grasp.model.hooks import layer_outputs
from grasp.model.loading import device_of
from grasp.model.parts import base_of

Batch = dict[str, Tensor]

Checkpoint = Callable[..., object]
"""Runs a layer on its inputs without keeping its activations: `torch.utils.checkpoint`."""

_MEASURING: ContextVar[bool] = ContextVar("measuring", default=False)

TOKENS = ("input_ids", "attention_mask")


class Forward:
    """Runs a PeftModel on tokenised batches."""

    def __init__(self, model: PeftModel) -> None:
        self._model = model
        self._device = device_of(model)
        self._cast = torch.get_autocast_dtype(self._device.type)
        self._casts = torch.is_autocast_enabled(self._device.type)

    def residual_stream(self, batch: Batch) -> list[Tensor]:
        """h_ℓ (batch, tokens, d_model) of every decoder layer; the unembedding does not run."""
        with layer_outputs(self._model) as outputs, self._conditions():
            body(self._model)(**batch, use_cache=False)
        return outputs

    def logits(self, batch: Batch) -> Tensor:
        """(batch, tokens, vocabulary)."""
        # Not through the adapter's own wrapper, whose forward a Trainer replaces by one under its
        # autocast when training begins.
        with self._conditions():
            logits: Tensor = base_of(self._model)(**batch, use_cache=False).logits
        return logits

    @contextmanager
    def _conditions(self) -> Iterator[None]:
        with (
            _measured(),
            without_dropout(self._model),
            torch.autocast(self._device.type, dtype=self._cast, enabled=self._casts),
            torch.compiler.set_stance("force_eager"),
        ):
            yield


def body(model: nn.Module) -> nn.Module:
    """A causal language model without its unembedding, with or without an adapter on it."""
    return base_of(model).base_model


def is_measuring() -> bool:
    """Whether a `Forward` is running, or the backward pass computes a layer of one again.

    Edits that are meant for training alone ask this.
    """
    return _MEASURING.get()


@contextmanager
def _measured() -> Iterator[None]:
    token = _MEASURING.set(True)
    try:
        yield
    finally:
        _MEASURING.reset(token)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with all its tensors on a device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def tokens_of(batch: Batch) -> Batch:
    """The batch without the masks that a model does not take."""
    return {name: batch[name] for name in TOKENS}


@contextmanager
def without_adapter(model: PeftModel) -> Iterator[None]:
    """The base model.  PEFT would train, after it, all weights of the active adapters."""
    with keep_trained(model), model.disable_adapter():
        yield


@contextmanager
def keep_trained(model: nn.Module) -> Iterator[None]:
    """Train the same weights after the block as before it, whatever PEFT makes of them."""
    trained = [(weight, weight.requires_grad) for weight in model.parameters()]
    try:
        yield
    finally:
        for weight, was in trained:
            weight.requires_grad_(was)


class _Checkpointed(Protocol):
    """A `GradientCheckpointingLayer` that has been given the function it saves memory by."""

    training: bool
    _gradient_checkpointing_func: Checkpoint

    def modules(self) -> Iterator[nn.Module]: ...


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Evaluation mode.

    A layer whose activations are checkpointed keeps its own mode, which says that they are: the
    penalty's backward pass needs that memory as the loss's does.  It evaluates all the same, now
    and when the backward pass, after this block, computes it again.
    """
    saving = [module for module in model.modules() if _checkpoints(module)]
    checkpoints = [layer._gradient_checkpointing_func for layer in saving]
    with _evaluating(module for module in model.modules() if not _checkpoints(module)):
        try:
            for layer, checkpoint in zip(saving, checkpoints, strict=True):
                layer._gradient_checkpointing_func = _evaluated(layer, checkpoint)
            yield
        finally:
            for layer, checkpoint in zip(saving, checkpoints, strict=True):
                layer._gradient_checkpointing_func = checkpoint


def _evaluated(layer: _Checkpointed, checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint`, of a function that runs `layer` in evaluation mode each time."""

    def checkpointed(forward: Callable[..., object], *args: object) -> object:
        def evaluated(*inputs: object) -> object:
            with _measured(), _evaluating(layer.modules()):
                return forward(*inputs)

        return checkpoint(evaluated, *args)

    return checkpointed


@contextmanager
def _evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _checkpoints(module: nn.Module) -> TypeGuard[_Checkpointed]:
    layer = isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing
    return layer and module.training and torch.is_grad_enabled()
