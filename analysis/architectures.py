"""Which modules write the residual stream, which read it, and in which layer they sit.

A module path is matched by its ending, so one table serves every family that shares
names.  To add a family, add a `Family`; the order of its entries is the order in
which modules of one layer are listed.

Directions are in the coordinates of the module itself.  Between a reading module and
the residual stream sits a norm with a learned gain, and in Gemma 2, Gemma 3 and
OLMo 2 another sits between a writing module and the stream; a norm's gain rescales
coordinates and is not applied here, since an adapter folder does not hold it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Side = Literal["write", "read", "other"]


@dataclass(frozen=True)
class Family:
    """Module path endings of one naming scheme; `inner` touches the stream on neither side."""

    name: str
    read: tuple[str, ...]
    write: tuple[str, ...]
    inner: tuple[str, ...] = ()


FAMILIES = (
    Family(
        "Llama, Qwen, Mistral, Gemma, Phi-3",
        read=(
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.qkv_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.gate_up_proj",
        ),
        write=("self_attn.o_proj", "mlp.down_proj"),
    ),
    Family(
        "Mixtral, Qwen and DeepSeek experts, one module per expert",
        read=("w1", "w3", "gate_proj", "up_proj", "block_sparse_moe.gate", "mlp.gate"),
        write=("w2", "down_proj"),
    ),
    Family(
        "DeepSeek latent attention",
        read=("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"),
        write=(),
        inner=("self_attn.q_b_proj", "self_attn.kv_b_proj"),
    ),
    Family(
        "GPT-2, GPT-BigCode",
        read=("attn.c_attn", "mlp.c_fc"),
        write=("attn.c_proj", "mlp.c_proj"),
    ),
    Family(
        "GPT-NeoX, Pythia",
        read=("attention.query_key_value", "mlp.dense_h_to_4h"),
        write=("attention.dense", "mlp.dense_4h_to_h"),
    ),
    Family(
        "Falcon, BLOOM",
        read=("self_attention.query_key_value",),
        write=("self_attention.dense",),
    ),
    Family("OPT, Phi", read=("fc1",), write=("self_attn.out_proj", "self_attn.dense", "fc2")),
    Family(
        "GPT-J",
        read=("attn.q_proj", "attn.k_proj", "attn.v_proj", "mlp.fc_in"),
        write=("attn.out_proj", "mlp.fc_out"),
    ),
    Family("Unembedding", read=("lm_head", "embed_out"), write=()),
)

# Parts of a model with a residual stream of their own, or none.
_FOREIGN = frozenset(
    [
        *("vision_tower", "vision_model", "visual", "audio_tower", "multi_modal_projector"),
        *("encoder", "encoder_attn", "crossattention", "cross_attn"),
    ]
)
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,6})(?:\.|$)")


def _table() -> dict[str, tuple[Side, int]]:
    """Ending -> (side, position), first mention first."""
    table: dict[str, tuple[Side, int]] = {}
    for family in FAMILIES:
        sides: tuple[tuple[Side, tuple[str, ...]], ...] = (
            ("read", family.read),
            ("other", family.inner),
            ("write", family.write),
        )
        for side, endings in sides:
            for ending in endings:
                table.setdefault(ending, (side, len(table)))
    return table


_TABLE = _table()


def _entry(name: str) -> tuple[Side, int]:
    parts = name.split(".")
    if _FOREIGN.isdisjoint(parts):
        for length in (3, 2, 1):
            found = _TABLE.get(".".join(parts[-length:]))
            if found is not None:
                return found
    return "other", len(_TABLE)


def module_side(name: str) -> Side:
    """Side of a module by its path in the base model; "other" where no entry explains it."""
    return _entry(name)[0]


def module_layer(name: str) -> int | None:
    """Decoder layer number in a module path, counted from 0; None outside the layers."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def module_order(name: str) -> tuple[bool, int, int, tuple[tuple[int, int | str], ...]]:
    """Sort key: by layer (modules outside the layers last), then table position, then name.

    Numbers inside the name compare as numbers, so expert 10 comes after expert 9.
    """
    layer = module_layer(name)
    natural = tuple(
        (0, int(part)) if part.isdecimal() and part.isascii() else (1, part)
        for part in name.split(".")
    )
    return layer is None, layer if layer is not None else 0, _entry(name)[1], natural
