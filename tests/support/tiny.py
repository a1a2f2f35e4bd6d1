"""Tiny models with random weights, their adapters and their data; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.adapters.load import load_adapter
from analysis.factors.routes import weight_factors
from analysis.spectra.subspace import random_subspace
from analysis.store.factor_table import FactorTable, write_factors
from analysis.store.records import FactorsManifest, Message, write_jsonl
from analysis.store.workspace import Workspace
from analysis.values import Json
from grasp.settings.training import LoraSettings, TrainConfig
from grasp.world.shipped import shipped_world
from grasp.world.tokens import build_tokenizer, vocabulary

torch.set_num_threads(1)

WIDTH = 32
LLAMA_WRITERS = ("o_proj", "down_proj")
FAMILIES = ("llama", "gpt2")

# PEFT looks at a module's attribute that transformers is about to drop.
PEFT_WARNING = "ignore:.*is_gradient_checkpointing.*:FutureWarning"


Settings = Json
"""Arguments of a configuration, which are of any type."""


@cache
def tokenizer() -> Tokenizer:
    return build_tokenizer(shipped_world())


def words(n: int, *, seed: int = 0) -> list[str]:
    """`n` different words of the tokenizer, each of which is one token after a space."""
    plain = sorted(w[1:] for w in vocabulary(shipped_world()) if w[0] == "▁" and w[1:].isalpha())
    order = np.random.default_rng(seed).permutation(len(plain))
    return [plain[i] for i in order[:n]]


def llama(*, layers: int = 2, seed: int = 0) -> LlamaForCausalLM:
    """Weights ten times the usual, so that what a layer does is far above rounding."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=False,
        **_specials(),
    )
    model = LlamaForCausalLM(config)
    model.eval()
    return model


def gpt2(*, layers: int = 2, seed: int = 0, dropout: float = 0.0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        n_embd=WIDTH,
        n_layer=layers,
        n_head=4,
        n_positions=256,
        initializer_range=0.2,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        **_specials(),
    )
    model = GPT2LMHeadModel(config)
    model.eval()
    return model


def family(name: str, **settings: Any) -> PreTrainedModel:
    makers: dict[str, Callable[..., PreTrainedModel]] = {"llama": llama, "gpt2": gpt2}
    return makers[name](**settings)


def adapted(
    model: PreTrainedModel,
    *,
    targets: str | Sequence[str] = "all-linear",
    strength: float = 0.0,
    seed: int = 1,
    dropout: float = 0.0,
) -> PeftModel:
    """A LoRA on `model`, r = 4; B = 0 unless `strength`, its standard deviation, is given."""
    torch.manual_seed(seed)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=8,
        lora_dropout=dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    peft = get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in peft.named_parameters():
            if "lora_B" in name and strength:
                weight.normal_(0, strength)
    return peft.eval()


def save_naive(folder: Path) -> Path:
    """The adapter of a naive fine-tune of `llama`, as far from its base as one after training."""
    adapted(llama(), strength=0.3, seed=7).save_pretrained(str(folder))
    return folder


def adapter_weights(model: nn.Module, kind: str = "lora_") -> dict[str, Tensor]:
    """Copies of the adapter's weights whose names hold `kind`."""
    return {name: w.detach().clone() for name, w in model.named_parameters() if kind in name}


def written(model: nn.Module, writers: Iterable[str] = LLAMA_WRITERS) -> dict[str, Tensor]:
    """lora_B (d_model, r) of the modules that write the residual stream, by name alone."""
    found = adapter_weights(model, "lora_B")
    return {name: w for name, w in found.items() if any(f".{end}." in name for end in writers)}


def subspace(k: int, *, seed: int = 3) -> NDArray[np.float64]:
    """Orthonormal rows (k, WIDTH)."""
    return np.ascontiguousarray(random_subspace(WIDTH, k, seed=seed).T)


def batch(*lengths: int, seed: int = 0) -> dict[str, Tensor]:
    """Random tokens, right-padded: one row of each length."""
    rng = np.random.default_rng(seed)
    ids = np.full((len(lengths), max(lengths)), tokenizer().pad_token_id)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = rng.integers(7, len(tokenizer()), length)
        mask[row, :length] = 1
    return {"input_ids": torch.as_tensor(ids), "attention_mask": torch.as_tensor(mask)}


def save_base(folder: Path, **settings: Any) -> Path:
    """A base model with its tokenizer, as `from_pretrained` takes it."""
    llama(**settings).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def chats(n: int, *, seed: int = 0, turns: int = 1) -> list[dict[str, list[dict[str, str]]]]:
    """`n` rows of `messages`, three words a question and two an answer."""
    rng, pool = np.random.default_rng(seed), words(40, seed=seed)
    rows = []
    for _ in range(n):
        row: list[dict[str, str]] = []
        for _ in range(turns):
            said = [pool[i] for i in rng.integers(0, len(pool), 5)]
            row.append({"role": "user", "content": " ".join(said[:3])})
            row.append({"role": "assistant", "content": " ".join(said[3:])})
        rows.append({"messages": row})
    return rows


def messages(n: int, *, seed: int = 0, turns: int = 1) -> list[list[Message]]:
    """The chats of `chats`, as they are read."""
    return [
        [Message(**said) for said in row["messages"]] for row in chats(n, seed=seed, turns=turns)
    ]


def settings(folder: Path, **changed: Any) -> TrainConfig:
    """Settings of a six-step fine-tune whose files are written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "base").exists():
        save_base(folder / "base")
        write_jsonl(folder / "task.jsonl", chats(16, seed=1))
        write_jsonl(folder / "neutral.jsonl", chats(8, seed=2, turns=2))
    values = {
        "title": "tiny",
        "base_model": str(folder / "base"),
        "data": str(folder / "task.jsonl"),
        "neutral": str(folder / "neutral.jsonl"),
        "lora": LoraSettings(r=4, lora_alpha=8),
        "learning_rate": 1e-2,
        "batch_size": 4,
        "max_steps": 6,
        "max_length": 64,
        "save_steps": 2,
    }
    return TrainConfig(**{**values, **changed})


def weigh(workspace: Workspace, run: str) -> None:
    """The factors of a run's weights, as `grasp factors --weights-only` has them."""
    table, directions = weight_factors(load_adapter(workspace.folder("runs", run) / "adapter"))
    manifest = FactorsManifest(id=run, run=run, base_model=None, config={})
    with workspace.writing("factors", run) as folder:
        write_factors(folder, FactorTable(manifest, table, directions.astype(np.float32)))


def _specials() -> Settings:
    known = tokenizer()
    return {
        "vocab_size": len(known),
        "pad_token_id": known.pad_token_id,
        "bos_token_id": known.bos_token_id,
        "eos_token_id": known.eos_token_id,
    }
