"""Tiny models of every family with real PEFT adapters on them, and PEFT's own delta weights."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Embedding, ParamWrapper
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from analysis.values import Json

torch.set_num_threads(1)

WIDTH = 32
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "head_dim": 10,
    **HEADS,
}
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
GPT2 = {"n_embd": WIDTH, "n_layer": 2, "n_head": 4}
NEOX = {k: v for k, v in LLAMA.items() if k not in ("head_dim", "num_key_value_heads")}
OPT = {"hidden_size": WIDTH, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
FALCON = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_hidden_size": 48,
}
FAMILIES: dict[str, tuple[str, Json]] = {
    "llama": ("llama", LLAMA),
    "qwen2": ("qwen2", LLAMA),
    "qwen3": ("qwen3", LLAMA),
    "mistral": ("mistral", LLAMA),
    "mixtral": ("mixtral", {**LLAMA, "num_local_experts": 3, "num_experts_per_tok": 2}),
    "qwen2-moe": ("qwen2_moe", {**LLAMA, **EXPERTS, "shared_expert_intermediate_size": 40}),
    "qwen3-moe": ("qwen3_moe", {**LLAMA, **EXPERTS}),
    "gpt-oss": ("gpt_oss", {**LLAMA, "num_local_experts": 3, "num_experts_per_tok": 2}),
    "llama4": (
        "llama4_text",
        {**LLAMA, "num_local_experts": 3, "num_experts_per_tok": 1, "intermediate_size_mlp": 48},
    ),
    "gemma2": ("gemma2", LLAMA),
    "gemma3": ("gemma3_text", LLAMA),
    "phi3": ("phi3", LLAMA),
    "gpt2": ("gpt2", GPT2),
    "neox": ("gpt_neox", NEOX),
    "opt": ("opt", {**OPT, "word_embed_proj_dim": WIDTH}),
    "opt-projected": ("opt", {**OPT, "word_embed_proj_dim": 20}),
    "falcon": ("falcon", {**FALCON, "bias": False}),
    "falcon-new": ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
}
PEFT_SAYS = (
    # PEFT asks transformers for an attribute that the pinned transformers deprecates.
    "`is_gradient_checkpointing` is deprecated",
    # Of experts under their old names it makes patterns for parameters, and misses modules.
    "The following (rank|alpha)_pattern keys did not match",
    "Model has `tie_word_embeddings=True` and a tied layer is part of the adapter",
    # A bias of a LoRA layer has one dimension.
    "Adapter 'default': 2 LoRA tensor.s. have invalid shape: .*lora_B.bias",
)
TOKENS = {"vocab_size": 56, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}


@dataclass(frozen=True)
class Saved:
    """A saved adapter, its model, and PEFT's delta weights as W of y = W x, by module."""

    folder: Path
    model: PeftModel
    deltas: dict[str, NDArray[np.float64]]


def base_model(family: str, **changed: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    name, sizes = FAMILIES[family]
    config = AutoConfig.for_model(name, **{**TOKENS, **sizes, **changed})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.eval()
    return model


def adapted(family: str, *, dtype: str = "float32", **lora: Any) -> PeftModel:
    """LoRA with random halves of both kinds on a tiny model."""
    for message in PEFT_SAYS:
        warnings.filterwarnings("ignore", message=message)
    settings = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", "r": 3, **lora}
    if family == "gpt2":
        settings.setdefault("fan_in_fan_out", "target_parameters" not in lora)
    model = get_peft_model(base_model(family), LoraConfig(**settings))
    for key, parameter in model.named_parameters():
        if "lora_" in key and "magnitude" not in key:
            parameter.data = torch.randn_like(parameter).to(getattr(torch, dtype))
    return model.eval()


def saved(folder: Path, family: str, **lora: Any) -> Saved:
    """Saved as PEFT does, without its questions to the Hub."""
    model = adapted(family, **lora)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return Saved(folder, model, deltas(model))


def deltas(model: PeftModel, adapter: str = "default") -> dict[str, NDArray[np.float64]]:
    found: dict[str, NDArray[np.float64]] = {}
    for path, layer in model.get_base_model().named_modules():
        if hasattr(layer, "get_delta_weight") and adapter in layer.scaling:
            layer.to(torch.float32)
            delta = layer.get_delta_weight(adapter).detach().double().numpy()
            found |= _named(path, layer, delta)
    return found


def _named(
    path: str, layer: LoraLayer, delta: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    if isinstance(layer, ParamWrapper):
        module = path.replace(".base_layer", "")
        if delta.ndim == 2:
            return {module: delta}
        # W of y = W x reads the stream in gate_up_proj and writes it in down_proj; no other
        # dimension of the experts here is the stream's.
        stream = 1 if layer.parameter_name == "gate_up_proj" else 0
        turned = delta if delta.shape[1 + stream] == WIDTH else delta.transpose(0, 2, 1)
        return {f"{module}.{e}.{layer.parameter_name}": one for e, one in enumerate(turned)}
    flipped = isinstance(layer, Embedding) or getattr(layer, "fan_in_fan_out", False)
    return {path: delta.T if flipped else delta}
