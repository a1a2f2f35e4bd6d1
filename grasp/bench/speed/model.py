"""A causal language model with random weights, and adapters and data for it."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from grasp.model.forward import Batch


@dataclass(frozen=True)
class Size:
    """The shape of a Llama model, and of its batches."""

    layers: int
    d_model: int
    d_ffn: int
    vocabulary: int
    rows: int
    tokens: int
    r: int = 16

    def batch(self, *, seed: int) -> Batch:
        """Random tokens (rows, tokens) without padding; the second half of each row is trained."""
        source = torch.Generator().manual_seed(seed)
        ids = torch.randint(8, self.vocabulary, (self.rows, self.tokens), generator=source)
        labels = ids.clone()
        labels[:, : self.tokens // 2] = -100
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def random_model(size: Size) -> LlamaForCausalLM:
    """A Llama in float32 on the CPU, without tied weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=size.d_model,
        intermediate_size=size.d_ffn,
        num_hidden_layers=size.layers,
        num_attention_heads=size.d_model // 64 or 1,
        num_key_value_heads=max(1, size.d_model // 256),
        vocab_size=size.vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    model.eval()
    return model


def share_weights(base: LlamaForCausalLM) -> LlamaForCausalLM:
    """A copy with its own modules that shares the weights of `base`."""
    return copy.deepcopy(base, {id(weight): weight for weight in base.parameters()})


def attach_adapter(base: LlamaForCausalLM, size: Size) -> PeftModel:
    """A copy with its own adapter; the frozen weights are shared with `base`."""
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=size.r, lora_alpha=2 * size.r, target_modules="all-linear"
    )
    model = get_peft_model(share_weights(base), lora)
    assert isinstance(model, PeftModel)
    return model
