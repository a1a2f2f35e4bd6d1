"""Sort an adapter's tensors by name: LoRA halves, what was saved with them, and the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from analysis.adapters.config import AdapterConfig, names_of
from analysis.adapters.files import DTYPES, StoredTensor
from analysis.adapters.rejection import reject

PREFIX = "base_model.model."
BESIDE = {
    "modules_to_save": "fully trained modules",
    "biases": "trained biases of the base model",
    "lora_biases": "trained biases of LoRA layers (lora_bias)",
    "token_rows": "trained token embeddings (trainable_token_indices)",
    "dora_magnitudes": "trained DoRA magnitudes",
    "base_weights": "complete weights of the base model",
}
"""What PEFT saves next to low-rank updates; none of it belongs to a ΔW."""

_LINEAR = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
_EMBEDDING = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<half>[AB])(?:\.(?P<adapter>[^.]+))?")
# PEFT also saves the base layers of embeddings that have LoRA, and embeddings that were resized.
_SAVED_WHOLE = (".base_layer.weight.", ".embed_tokens.weight.", ".lm_head.weight.")


@dataclass(frozen=True)
class Halves:
    """The stored halves of one LoRA layer; `embedding` tells an embedding from a linear layer."""

    tensors: Mapping[str, StoredTensor]
    embedding: bool


@dataclass(frozen=True)
class Contents:
    """Tensors sorted by meaning: halves by module, others by their kind in `BESIDE`, the rest.

    `name` is the adapter's name if the names of the halves contain it.
    """

    name: str | None
    halves: dict[str, Halves]
    beside: dict[str, tuple[StoredTensor, ...]]
    unused: tuple[str, ...]


def sort_tensors(
    tensors: Mapping[str, StoredTensor],
    config: AdapterConfig,
    *,
    adapter: str | None,
) -> Contents:
    """Sort the tensors of a file by what their names mean.

    Names may contain an adapter's name (`….lora_A.persona.weight`), as in the state dict of a
    PEFT model; `adapter` chooses one if there are several.

    Raises:
        AdapterError: a LoRA tensor is of an unknown kind, dtype or shape, or the file holds
            several adapters and none is chosen.
    """
    found: dict[str | None, dict[str, dict[str, StoredTensor]]] = {}
    embeddings: set[str] = set()
    beside: dict[str, list[StoredTensor]] = {}
    unused = []
    for key, tensor in sorted(tensors.items()):
        match = _LINEAR.fullmatch(key) or _EMBEDDING.fullmatch(key)
        if match is not None:
            _check(tensor)
            module = _module(key, match["module"])
            half = found.setdefault(match["adapter"], {}).setdefault(module, {})
            if half and (module in embeddings) != ("lora_embedding_" in key):
                reject(f"holds a lora_embedding half and a linear one for {module}",
                       "save the adapter again")  # fmt: skip
            half[match["half"]] = tensor
            if "lora_embedding_" in key:
                embeddings.add(module)
            continue
        kind = _kind(key, config)
        if kind is not None:
            beside.setdefault(kind, []).append(tensor)
        elif "lora_" in key:
            reject(f"holds {key}, a LoRA tensor of an unknown kind",
                   "expected names ending in lora_A.weight or lora_B.weight")  # fmt: skip
        else:
            unused.append(key)
    name = _chosen(found, adapter)
    return Contents(
        name,
        {module: Halves(halves, module in embeddings) for module, halves in found[name].items()},
        {kind: tuple(beside[kind]) for kind in BESIDE if kind in beside},
        tuple(unused),
    )


def _chosen(found: Mapping[str | None, object], adapter: str | None) -> str | None:
    """The chosen adapter of those in a file: `adapter`, or the only one."""
    if not found:
        reject("has no LoRA weights in its safetensors",
               "expected tensors named …lora_A.weight")  # fmt: skip
    names = sorted(name or "(without a name)" for name in found)
    if adapter is not None and adapter not in found:
        reject(f"holds no adapter {adapter!r}, but {', '.join(names)}",
               "give one of these names, or the name of a subfolder")  # fmt: skip
    if adapter is None and len(found) > 1:
        reject(f"holds the adapters {', '.join(names)} in one file",
               "give the name of one of them")  # fmt: skip
    return adapter or next(iter(found))


def _module(key: str, module: str) -> str:
    if not module.startswith(PREFIX) or module == PREFIX:
        reject(f"holds {key}, whose name does not begin with {PREFIX}",
               "save the adapter with PEFT's save_pretrained")  # fmt: skip
    return module.removeprefix(PREFIX)


def _check(tensor: StoredTensor) -> None:
    key, kind, shape = tensor.key, tensor.kind, tensor.shape
    if kind not in DTYPES:
        reject(f"holds {key} of dtype {kind}", "expected float32, float16 or bfloat16")
    if len(shape) != 2:
        reject(f"holds {key} of shape {shape}",
               "expected a matrix, since only LoRA on linear modules is read")  # fmt: skip
    if 0 in shape:
        reject(f"holds {key} of shape {shape}, which is empty",
               "gather the weights before saving (DeepSpeed ZeRO-3 and FSDP)")  # fmt: skip


def _kind(key: str, config: AdapterConfig) -> str | None:
    """Key of `BESIDE`; None for an unknown tensor."""
    name = f".{key.removeprefix(PREFIX)}."
    trained = (*names_of(config.get("modules_to_save")), "modules_to_save")
    signs = {
        "dora_magnitudes": (".lora_magnitude_vector.",),
        "lora_biases": (".lora_B.bias.",),
        "token_rows": (".trainable_tokens_",),
        "base_weights": (".original_module.",),
        "modules_to_save": tuple(f".{module}." for module in trained),
        "biases": (".bias.",) if config.get("bias") in ("all", "lora_only") else (),
    }
    found = (kind for kind, parts in signs.items() if any(part in name for part in parts))
    saved_whole = any(part in name for part in _SAVED_WHOLE)
    return next(found, "base_weights" if saved_whole else None)
