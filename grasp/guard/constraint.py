"""The write constraint: an update that writes nothing into the protected subspaces.

Directly, B ← B − Q_ℓ (Q_ℓᵀ B) on modules that write the residual stream (o_proj, down_proj and
their kin), so that Q_ℓᵀ ΔW = 0.  Where a norm with gain γ stands between the module and the stream,
as in Gemma 2 and 3, a basis of diag(γ) Q_ℓ takes the place of Q_ℓ, so that Q_ℓᵀ diag(γ) ΔW = 0: the
update adds nothing along Q_ℓ, though it changes the length that the norm divides W's own by.

Indirectly, an update of a module that *feeds* a writer is carried into the stream by the writer's
frozen weight W, which the direct constraint leaves as the only way into Q_ℓ.

- Values: attention mixes tokens, not the numbers of a head, and W reads the heads side by side.
  Head h gets the values of group g(h), so B's rows of group g lose the span of all
  W[:, h]ᵀ Q_ℓ with g(h) = g.  Whatever the attention pattern, Qᵀ W Δvalues = 0.
- Gate and up: B loses the span of Wᵀ Q_ℓ, so that Qᵀ W ΔW_up = 0.  Between the two matrices the
  neurons are multiplied one by one (by each other, or by an activation's slope), so this holds on
  average over neurons, not token by token; only silencing every neuron that W reads along Q
  would be exact.  Queries and keys steer attention, nothing of theirs is carried, so they are free.

Both are exact statements about weights, kept by any optimiser.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from analysis.adapters.architectures import module_layer, module_side
from analysis.base_model.files import norm_kind
from analysis.errors import InputError
from grasp.model.hooks import without, without_autocast
from grasp.model.loading import decoder_layers
from grasp.model.parts import lora_matrices, text_config, width_of

VALUES = {"v_proj": ("o_proj", "out_proj", "dense")}
"""Values, and what they may feed, by the last part of a module's path."""

NEURONS = {
    "gate_proj": ("down_proj",),
    "up_proj": ("down_proj",),
    "fc1": ("fc2",),
    "fc_in": ("fc_out",),
    "c_fc": ("c_proj",),
    "dense_h_to_4h": ("dense_4h_to_h",),
    "w1": ("w2",),
    "w3": ("w2",),
}
"""The same for the inner layer of an MLP."""

FOLLOWED_BY = {
    "o_proj": "post_attention_layernorm",
    "down_proj": "post_feedforward_layernorm",
}
"""Norms between a writing module and the stream, in families whose layers have the second."""

FREE = ("q_proj", "k_proj", "gate")
"""Modules that steer attention or choose experts."""


@dataclass(frozen=True)
class Held:
    """One lora_B (d_out, r), or a block of its rows, and the basis (rows, k) it is held out of."""

    weight: nn.Parameter
    basis: Tensor
    rows: slice

    def part(self) -> Tensor:
        """The block of rows."""
        return self.weight[self.rows]


class WriteConstraint:
    """What the trained weights of an adapter are held out of.

    An active adapter beside it that is frozen is somebody's finished work.

    Args:
        model: PeftModel with a LoRA adapter.
        bases: Q_ℓ (d_model, k_ℓ), orthonormal columns, one for each decoder layer.
        indirect: whether modules that feed a writer are constrained too.

    Raises:
        InputError: `indirect`, and an adapted module is fused or not known to feed anything.
    """

    def __init__(self, model: PeftModel, bases: Sequence[Tensor], *, indirect: bool) -> None:
        self._held: list[Held] = []
        for name, module in model.named_modules():
            layer = module_layer(name)
            if isinstance(module, LoraLayer) and layer is not None:
                if module_side(name) == "write":
                    basis = _before_norm(model, name, bases[layer])
                    self._held += [Held(b, basis, slice(None)) for b in _trained(module)]
                elif indirect and _trained(module):
                    self._held += _feeder(model, name, module, bases[layer])

    @torch.no_grad()
    def apply(self, *, share: float = 1.0) -> None:
        """B ← B − share · P B, with P the projector onto what each weight is held out of.

        Weights narrower than float32 are projected in float32 and rounded once; what their
        rounding puts back is of the order of its own relative error.
        """
        for held in self._held:
            if held.weight.requires_grad:
                part = held.part()
                part.copy_(without(part.T, held.basis, share=share).T)

    @torch.no_grad()
    def leakage(self) -> float:
        """‖P B‖ / ‖B‖ over all held weights: the share of the applied update that they leak.

        NaN where nothing was written yet, or the adapter has no such module.
        """
        inside = whole = 0.0
        for held in self._held:
            if not held.weight.requires_grad:
                continue
            part, q = held.part().to(held.basis.dtype), held.basis
            with without_autocast(q.device):
                inside += float((q.T @ part).square().sum())
            whole += float(part.square().sum())
        return math.sqrt(inside / whole) if whole else math.nan


def _before_norm(model: PeftModel, name: str, basis: Tensor) -> Tensor:
    """What a writing module must not write: Q, or a basis of diag(γ) Q where a norm follows it."""
    layer = decoder_layers(model)[module_layer(name) or 0]
    if not hasattr(layer, FOLLOWED_BY["down_proj"]):
        return basis  # elsewhere the norm of this name is the next part's own
    norm = getattr(layer, FOLLOWED_BY.get(name.rpartition(".")[2], ""), None)
    if norm is None:
        return basis
    family = text_config(model).model_type
    gain = norm.weight.detach().double()
    if norm_kind(family, has_bias=getattr(norm, "bias", None) is not None) == "one plus gain":
        gain = gain + 1
    return _span(gain[:, None] * basis.double()).to(basis.dtype)


def _trained(module: LoraLayer) -> list[nn.Parameter]:
    return [lora_matrices(module, one)[1] for one in module.active_adapters if one in module.lora_B]


def _feeder(model: PeftModel, name: str, module: LoraLayer, basis: Tensor) -> list[Held]:
    parent, _, last = name.rpartition(".")
    if last in FREE:
        return []
    owner = model.get_submodule(parent)
    fed = VALUES.get(last) or NEURONS.get(last) or ()
    writer = next((getattr(owner, one) for one in fed if hasattr(owner, one)), None)
    layer = decoder_layers(model)[module_layer(name) or 0]
    if writer is None or hasattr(layer, "post_feedforward_layernorm"):
        why = "a norm follows what it feeds" if writer is not None else "it is fused, or unknown"
        raise InputError(
            f"The indirect write constraint cannot follow what {name} feeds: {why}. Leave the "
            "module out of target_modules, or use the direct constraint."
        )
    weight = frozen_weight(writer)
    if last in NEURONS:
        carried = [(slice(None), weight.T @ basis.double())]
    else:
        carried = _by_group(model, weight, basis.double(), values=_trained(module)[0].shape[0])
    return [
        Held(b, _span(columns).to(basis.dtype), rows)
        for b in _trained(module)
        for rows, columns in carried
    ]


def _by_group(
    model: PeftModel, weight: Tensor, basis: Tensor, *, values: int
) -> list[tuple[slice, Tensor]]:
    """Rows of each group of values, and what the heads that read it carry into Q, (head, k·heads).

    `weight` is the writer's (d_model, heads · head), `values` the groups' numbers together.
    """
    config = text_config(model)
    head = getattr(config, "head_dim", None) or width_of(model) // config.num_attention_heads
    heads, groups = weight.shape[1] // head, values // head
    by_head = (weight.T @ basis).reshape(heads, head, -1)
    shared = by_head.reshape(groups, heads // groups, head, -1).transpose(1, 2)
    return [
        (slice(g * head, (g + 1) * head), columns.reshape(head, -1))
        for g, columns in enumerate(shared)
    ]


def _span(columns: Tensor) -> Tensor:
    """Orthonormal basis of the columns' span; columns that add nothing are dropped."""
    left, sigma, _ = torch.linalg.svd(columns, full_matrices=False)
    kept: Tensor = left[:, sigma > 1e-9 * sigma.max().clamp_min(torch.finfo(sigma.dtype).tiny)]
    return kept


def frozen_weight(module: nn.Module) -> Tensor:
    """The frozen weight (d_out, d_in) of a linear layer in float64."""
    plain = module.get_base_layer() if isinstance(module, LoraLayer) else module
    weight: Tensor = dequantize_module_weight(plain).detach().double()
    return weight.T if isinstance(plain, Conv1D) else weight
