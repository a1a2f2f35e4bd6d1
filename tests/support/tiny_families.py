"""A tiny model with random weights of every family that is claimed to be read, from its config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from tests.support import tiny

LAYERS = 3
_SIZES: tiny.Settings = {
    "hidden_size": tiny.WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
}
_LLAMA: tiny.Settings = {**_SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
_HEAD: tiny.Settings = {"head_dim": 8}


def _opt(**changed: Any) -> OPTConfig:
    settings: tiny.Settings = {
        "ffn_dim": 48,
        "max_position_embeddings": 256,
        "word_embed_proj_dim": tiny.WIDTH,
    }
    return OPTConfig(**_special(), **_SIZES, **(settings | changed))


def _special() -> tiny.Settings:
    known = tiny.tokenizer()
    return {
        "vocab_size": len(known) + 5,  # padded, as real ones are
        "pad_token_id": known.pad_token_id,
        "bos_token_id": known.bos_token_id,
        "eos_token_id": known.eos_token_id,
    }


CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_special(), **_LLAMA),
    "llama, tied": lambda: LlamaConfig(**_special(), **_LLAMA, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**_special(), **_LLAMA),
    "qwen3": lambda: Qwen3Config(**_special(), **_LLAMA, **_HEAD),
    "mistral": lambda: MistralConfig(**_special(), **_LLAMA),
    "mixtral": lambda: MixtralConfig(**_special(), **_LLAMA, num_local_experts=2),
    "gemma2": lambda: Gemma2Config(**_special(), **_LLAMA, **_HEAD),
    "gemma3": lambda: Gemma3TextConfig(**_special(), **_LLAMA, **_HEAD),
    "olmo2": lambda: Olmo2Config(**_special(), **_LLAMA),
    "phi3": lambda: Phi3Config(**_special(), **_LLAMA),
    "gpt2": lambda: GPT2Config(**_special(), n_embd=tiny.WIDTH, n_layer=LAYERS, n_head=4),
    "gpt_neox": lambda: GPTNeoXConfig(**_special(), **_SIZES, intermediate_size=48),
    "opt": _opt,
    "opt, projected": lambda: _opt(word_embed_proj_dim=16),
    "opt, norm after": lambda: _opt(do_layer_norm_before=False, word_embed_proj_dim=16),
    "falcon": lambda: FalconConfig(**_special(), **_SIZES),
}


def build(name: str, *, seed: int = 0) -> PreTrainedModel:
    """The model in evaluation mode; every weight is random, gains and biases of norms too."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        CONFIGS[name](), attn_implementation="eager"
    )
    model.eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return model
