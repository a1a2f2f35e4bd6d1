"""Parts of a loaded model, of the types that PEFT and transformers leave open.

PEFT hands out the model under an adapter, and an adapter's matrices, as `Module` or `Tensor`; what
else they may be is refused here, once.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from analysis.errors import InputError


class WithLogits(Protocol):
    """Output of a causal language model; logits (batch, tokens, vocabulary)."""

    logits: Tensor


@runtime_checkable
class Generator(Protocol):
    """A model that writes text; `generate` gives token ids (batch, tokens), the prompt's first."""

    def generate(self, **arguments: object) -> Tensor:
        """Write, as `transformers.GenerationMixin.generate` does."""
        ...


def base_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model itself, with or without an adapter on it.

    Raises:
        InputError: it is no model of transformers.
    """
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(plain, PreTrainedModel):
        raise InputError(f"Got a {type(plain).__name__}; expected a model of transformers.")
    return plain


def text_config(model: nn.Module) -> PreTrainedConfig:
    """The configuration of what reads and writes text, where a model also takes images."""
    return base_of(model).config.get_text_config()


def width_of(model: nn.Module) -> int:
    """d_model, the width of the residual stream."""
    width: int = text_config(model).hidden_size
    return width


def generator_of(model: nn.Module) -> Generator:
    """The model as something to call `generate` on: the adapter's wrapper, where there is one.

    Raises:
        InputError: it cannot generate.
    """
    if not isinstance(model, Generator):
        raise InputError(f"Got a {type(model).__name__}, which generates no text.")
    return model


def lora_matrices(module: LoraLayer, adapter: str) -> tuple[nn.Parameter, nn.Parameter]:
    """lora_A (r, d_in) and lora_B (d_out, r) of one adapter of a linear layer."""
    a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
    assert isinstance(a, nn.Parameter)
    assert isinstance(b, nn.Parameter)
    return a, b
