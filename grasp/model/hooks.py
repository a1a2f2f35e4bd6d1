"""Hooks on the residual stream, each a context manager that leaves nothing behind.

Decoder layer ℓ's output is h_ℓ (batch, tokens, d_model).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from grasp.model.loading import decoder_layers

Edit = Callable[[int, Tensor], Tensor]
"""From a decoder layer's number and its output to what takes the output's place."""


@contextmanager
def each_output(model: nn.Module, take: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Give `take` every decoder layer's number and output, as a forward pass comes to it."""

    def hook(index: int) -> Callable[..., None]:
        return lambda _module, _args, output: take(index, _hidden(output))

    layers = decoder_layers(model)
    handles = [layer.register_forward_hook(hook(i)) for i, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def layer_outputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect h_ℓ of every decoder layer; a forward pass replaces what the last one left."""
    outputs: list[Tensor] = [torch.empty(0)] * len(decoder_layers(model))
    with each_output(model, outputs.__setitem__):
        yield outputs


@contextmanager
def edited_outputs(model: nn.Module, edit: Edit) -> Iterator[None]:
    """Replace h_ℓ by edit(ℓ, h_ℓ) at every decoder layer's output."""

    def replace(index: int) -> Callable[..., object]:
        def hook(_module: nn.Module, _args: object, output: object) -> object:
            edited = edit(index, _hidden(output))
            return (edited, *output[1:]) if isinstance(output, tuple) else edited

        return hook

    layers = decoder_layers(model)
    handles = [layer.register_forward_hook(replace(i)) for i, layer in enumerate(layers)]
    torch.compiler.reset()  # since compiled code does not see hooks that come or go
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        torch.compiler.reset()


def ablate(bases: Sequence[Tensor], *, share: float = 1.0) -> Edit:
    """h_ℓ ← h_ℓ − share · Q_ℓ Q_ℓᵀ h_ℓ, for one orthonormal Q_ℓ (d_model, k_ℓ) a layer."""
    return lambda layer, hidden: without(hidden, bases[layer], share=share)


def displace(vectors: Tensor, *, by: float) -> Edit:
    """h_ℓ ← h_ℓ + by · v_ℓ at every token; `vectors` are (layers, d_model)."""
    return lambda layer, hidden: hidden + (by * vectors[layer]).to(hidden)


def clamp(basis: Tensor | Sequence[Tensor], reference: Sequence[Tensor]) -> Edit:
    """h_ℓ ← h_ℓ − Q Qᵀ (h_ℓ − h⁰_ℓ): coordinates along Q set back to those of `reference`.

    `basis` is Q (d_model, k), the same for all layers or one for each; `reference` is h⁰_ℓ (batch,
    tokens, d_model) for every layer.
    """

    def edit(layer: int, hidden: Tensor) -> Tensor:
        q = (basis if isinstance(basis, Tensor) else basis[layer]).to(hidden)
        return hidden - hidden.sub(reference[layer]) @ q @ q.T

    return edit


def project_gradient(bases: Sequence[Tensor], *, share: float = 1.0) -> Edit:
    """Leave h as it is, but in the backward pass G_ℓ ← G_ℓ − share · (G_ℓ Q_ℓ) Q_ℓᵀ.

    It is what follows that gets a projected gradient: whoever collected h_ℓ before this edit
    gives it a gradient of their own.
    """

    def edit(layer: int, hidden: Tensor) -> Tensor:
        if not hidden.requires_grad:
            return hidden
        onward = hidden.view_as(hidden)
        onward.register_hook(lambda g: without(g, bases[layer], share=share))
        return onward

    return edit


def without(hidden: Tensor, basis: Tensor, *, share: float = 1.0) -> Tensor:
    """hidden (…, d_model) without a share of its part in the span of `basis` (d_model, k).

    The part is found in the wider of the two dtypes, also under autocast: a basis rounded to
    bfloat16 is orthonormal to 1e-3 only.
    """
    with without_autocast(hidden.device):
        wide = hidden.to(torch.promote_types(hidden.dtype, basis.dtype))
        q = basis.to(wide)
        return (wide - share * (wide @ q) @ q.T).to(hidden.dtype)


def without_autocast(device: torch.device) -> torch.autocast:
    """Leave autocast, for sums that must be as exact as their own dtype."""
    return torch.autocast(device.type, enabled=False)


def _hidden(output: object) -> Tensor:
    hidden = output[0] if isinstance(output, tuple) else output
    assert isinstance(hidden, Tensor)
    return hidden
