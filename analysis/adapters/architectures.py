"""Which modules write the residual stream, which read it, and in which layer they are.

A module path is matched by its ending, so families that share names share entries.  To add a
family, add a `Family` here, or give one in a file (`read_family`); the order of its entries is
the order in which the modules of one layer are listed.

Directions are in the coordinates of the module itself.  A norm with a learned gain lies
between the residual stream and a reading module, and in Gemma 2, Gemma 3 and OLMo 2 another
one between a writing module and the stream.  These gains rescale coordinates; they are not
applied here, because an adapter folder does not contain them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from analysis.errors import InputError

Side = Literal["write", "read", "other"]


@dataclass(frozen=True)
class Family:
    """Module path endings of one naming scheme; `inner` modules neither read nor write.

    `stack` is the path of the decoder whose residual stream is meant, in a model of several; None
    for that with the most modules.
    """

    name: str
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    stack: str | None = None


FAMILIES = (
    Family(
        "Token and position embeddings, before the first layer",
        write=(
            *("embed_tokens", "embed_positions", "project_in"),
            *("wte", "wpe", "embed_in", "word_embeddings"),
        ),
    ),
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
        "Experts of Mixtral, Qwen, DeepSeek, gpt-oss, Llama 4, and their routers",
        read=(
            *("w1", "w3", "gate_proj", "up_proj", "gate_up_proj"),
            *("block_sparse_moe.gate", "mlp.gate", "mlp.shared_expert_gate"),
            *("mlp.router", "feed_forward.router", "block_sparse_moe.router"),
        ),
        write=("w2", "down_proj"),
    ),
    Family(
        "DeepSeek latent attention",
        read=("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"),
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
    Family("Unembedding, after the last layer", read=("lm_head", "embed_out", "project_out")),
)

# Parts of a model that have a residual stream of their own, or none.
_FOREIGN = frozenset(
    [
        *("vision_tower", "vision_model", "visual", "audio_tower", "multi_modal_projector"),
        *("encoder", "encoder_attn", "crossattention", "cross_attn"),
    ]
)
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,6})(?:\.|$)")
_LONGEST = 3  # path segments in an ending


def read_family(path: str | Path) -> Family:
    """Read a naming scheme from a YAML file: lists of path endings under `read`, `write`, `inner`.

    The path of one decoder of several may stand under `stack`.

    Raises:
        InputError: the file is not such a mapping, or an ending appears twice.
    """
    from analysis.yaml_files import read_mapping

    keys = ("read", "write", "inner")
    content = read_mapping(Path(path), what="sides of modules", example="write: [self_attn.o_proj]")
    if not content or not set(content) <= {*keys, "stack"}:
        raise InputError(
            f"{path} is not a mapping of sides; expected lists of module path endings under "
            "read, write or inner, or the path of a decoder under stack."
        )
    stack = content.get("stack")
    if not isinstance(stack, str | None):
        raise InputError(
            f"{path} has stack = {stack!r}"[:160] + "; expected the path of a decoder."
        )
    lists = {key: content.get(key) or [] for key in keys}
    for key, endings in lists.items():
        if not isinstance(endings, list) or not all(_is_ending(one) for one in endings):
            raise InputError(
                f"{path} has {key} = {endings!r}"[:160]
                + "; expected a list of module path endings "
                f"of at most {_LONGEST} segments, such as mlp.down_proj."
            )
    everything = [ending for endings in lists.values() for ending in endings]
    twice = sorted({ending for ending in everything if everything.count(ending) > 1})
    if twice:
        raise InputError(f"{path} lists {twice[0]} more than once; expected each ending once.")
    found = {key: tuple(endings) for key, endings in lists.items()}
    return Family(str(path), **found, stack=stack)


def module_side(name: str, family: Family | None = None) -> Side:
    """Side of a module, from its path in the base model; "other" if no entry matches.

    Entries of `family` take precedence over those of FAMILIES.
    """
    return _entry(name, family)[0]


def module_layer(name: str) -> int | None:
    """Decoder layer number in a module path, counted from 0; None outside the layers."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def module_stack(name: str) -> str | None:
    """The path of the decoder that a module lies in the layers of; None outside the layers."""
    found = _LAYER.search(name)
    return name[: found.start()] if found else None


def module_order(
    name: str, family: Family | None = None
) -> tuple[int, int, int, tuple[tuple[int, int | str], ...]]:
    """Sort key: modules before the layers, in the layers, after them; then table order, then name.

    Numbers inside a name compare as numbers, so expert 10 comes after expert 9.
    """
    layer, (side, position) = module_layer(name), _entry(name, family)
    natural = tuple(
        (0, int(part)) if part.isdecimal() and part.isascii() and len(part) < 10 else (1, part)
        for part in name.split(".")
    )
    place = 1 if layer is not None else 0 if side == "write" else 2
    return place, layer or 0, position, natural


def _is_ending(value: object) -> bool:
    parts = value.split(".") if isinstance(value, str) else [""]
    return len(parts) <= _LONGEST and "" not in parts


@cache
def _table(families: tuple[Family, ...]) -> dict[str, tuple[Side, int]]:
    """Ending -> (side, position); the first entry for an ending counts."""
    table: dict[str, tuple[Side, int]] = {}
    for family in families:
        sides: tuple[tuple[Side, tuple[str, ...]], ...] = (
            ("read", family.read),
            ("other", family.inner),
            ("write", family.write),
        )
        for side, endings in sides:
            for ending in endings:
                table.setdefault(ending, (side, len(table)))
    return table


def _entry(name: str, family: Family | None) -> tuple[Side, int]:
    """Side and position; `family` takes precedence, and in each table the longest ending."""
    own, known = _table((family,) if family else ()), _table(FAMILIES)
    parts = name.split(".")
    endings = [".".join(parts[-length:]) for length in range(_LONGEST, 0, -1)]
    for ending in endings:
        if ending in own:
            return own[ending]
    for ending in endings if _FOREIGN.isdisjoint(parts) else ():
        if ending in known:
            side, position = known[ending]
            return side, len(own) + position
    return "other", len(own) + len(known)
