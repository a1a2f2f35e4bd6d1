"""Read a LoRA adapter folder as PEFT writes it, straight from safetensors to numpy.

Opening a folder reads its config and the headers of its files.  The values of a module are read
on demand and not kept.  Every tensor of the file is used, listed in `Adapter.beside` (by kind) or
in `Adapter.unused`, or makes the folder be refused.  Updates that the saved weights alone do not
determine are refused too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analysis.adapters.architectures import (
    Family,
    Side,
    module_layer,
    module_order,
    module_side,
    module_stack,
)
from analysis.adapters.config import (
    AdapterConfig,
    check_config,
    is_target,
    module_rank,
    module_scaling,
)
from analysis.adapters.files import (
    CONFIG,
    DTYPES,
    StoredHalf,
    StoredTensor,
    read_json,
    stored_tensors,
)
from analysis.adapters.fused_experts import expert_halves, is_transposed, match_parameters
from analysis.adapters.place import Place, adapters_within, find_adapter
from analysis.adapters.rejection import naming, reject
from analysis.adapters.tensors import Contents, Halves, sort_tensors

_MAX_CONFIG_BYTES = 4 << 20

Half = NDArray[np.float32] | StoredHalf


@dataclass(frozen=True, eq=False)
class LoraModule:
    """One low-rank update ΔW = scaling · B A of y = W x.

    `lora_A` is (r, d_in) and `lora_B` (d_out, r) for every kind of base layer: if the base
    stores W transposed (Conv1D, `fan_in_fan_out`), PEFT transposes the product, not the halves.
    An embedding is y = W x with x a token's one-hot vector, so its d_in is the vocabulary.

    `A` and `B` are arrays, or halves in a file, which `lora_A` and `lora_B` then read as float32
    at every access, without keeping them.
    """

    name: str
    layer: int | None
    side: Side
    A: Half
    B: Half
    scaling: float

    @property
    def lora_A(self) -> NDArray[np.float32]:
        """(r, d_in); raises AdapterError if the file cannot be read or has NaN."""
        return self.A.read() if isinstance(self.A, StoredHalf) else self.A

    @property
    def lora_B(self) -> NDArray[np.float32]:
        """(d_out, r); raises AdapterError if the file cannot be read or has NaN."""
        return self.B.read() if isinstance(self.B, StoredHalf) else self.B

    @property
    def r(self) -> int:
        """LoRA rank."""
        return int(self.A.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of W."""
        return int(self.B.shape[0]), int(self.A.shape[1])


@dataclass(frozen=True)
class Adapter:
    """An opened adapter.

    `beside` has what was saved next to the LoRA weights, by kind
    (`analysis.adapters.tensors.BESIDE`); `unused` names unknown tensors, and `others` adapters in
    subfolders.  With `low_rank_part` the modules are scaling · B A of a DoRA adapter, not its ΔW.
    `key_name` is the adapter's name if the names of its tensors contain it.  `other_stacks` counts
    the modules of decoders besides the one whose residual stream is meant, by path.
    """

    path: Path
    modules: tuple[LoraModule, ...]
    base_model: str | None
    base_revision: str | None
    config: AdapterConfig
    n_parameters: int
    dtype: str
    unused: tuple[str, ...]
    beside: dict[str, tuple[StoredTensor, ...]]
    others: tuple[str, ...]
    low_rank_part: bool
    key_name: str | None
    other_stacks: dict[str, int]


def load_adapter(
    path: str | Path,
    *,
    name: str | None = None,
    family: Family | None = None,
    low_rank_part: bool = False,
) -> Adapter:
    """Open a PEFT LoRA folder without torch; values are read as float32 on demand.

    The folder of a run stands for its subfolder `adapter/`.  Modules are sorted by layer, then by
    their place in the layer.  Scaling is PEFT's: lora_alpha / r, or lora_alpha / √r under rsLoRA,
    with `rank_pattern` and `alpha_pattern` matched as PEFT does.

    Args:
        path: the folder.
        name: the adapter, if the folder has several, in subfolders or in one file.
        family: sides of modules that the package's own table lacks.
        low_rank_part: accept DoRA and use scaling · B A, which is not its ΔW.

    Raises:
        AdapterError: the folder cannot be read exactly; the message says why.  NaN and infinite
            values are found only when a module's values are read.

    Source: peft 0.21 `tuners/lora/layer.py` (scaling), `utils/other.py` (patterns).
    """
    return read_adapter(find_adapter(path, name), family=family, low_rank_part=low_rank_part)


def read_adapter(
    place: Place, *, family: Family | None = None, low_rank_part: bool = False
) -> Adapter:
    """As `load_adapter`, of an adapter that was found already."""
    folder = place.folder
    read = read_json(folder, CONFIG, limit=_MAX_CONFIG_BYTES)
    with naming(folder / CONFIG):
        config = check_config(read, low_rank_part=low_rank_part)
    tensors = stored_tensors(folder)
    with naming(folder):
        contents = sort_tensors(tensors, config, adapter=place.name)
        is_dora = "dora_magnitudes" in contents.beside
        if is_dora and not low_rank_part:
            reject("holds DoRA magnitudes, so its update depends on the base weights",
                   "use --low-rank-part to analyse its low-rank part, scaling · B A")  # fmt: skip
        found = _modules(contents, config, family)
        main, stacks = _stacks(found, family)
        modules = _of_one_stream(found, main, [*stacks])
    halves = [tensor for one in contents.halves.values() for tensor in one.tensors.values()]
    return Adapter(
        path=folder,
        modules=tuple(sorted(modules, key=lambda module: module_order(module.name, family))),
        base_model=config.get("base_model_name_or_path") or None,
        base_revision=config.get("revision") or None,
        config=config,
        n_parameters=sum(math.prod(tensor.shape) for tensor in halves),
        dtype=", ".join(sorted({DTYPES[tensor.kind] for tensor in halves})),
        unused=contents.unused,
        beside=contents.beside,
        others=tuple(adapters_within(folder)),
        low_rank_part=low_rank_part and is_dora,
        key_name=contents.name,
        other_stacks=stacks,
    )


def check_values(adapter: Adapter) -> None:
    """Read every module once.

    Raises:
        AdapterError: a value is NaN, infinite, or cannot be read.
    """
    for module in adapter.modules:
        _ = module.lora_A, module.lora_B


def stream_width(modules: Iterable[LoraModule]) -> int | None:
    """d_model of most modules in the layers that read or write the stream; None without any."""
    sizes = (
        module.shape[0 if module.side == "write" else 1]
        for module in modules
        if module.side != "other" and module.layer is not None
    )
    common = Counter(sizes).most_common(1)
    return common[0][0] if common else None


def _modules(contents: Contents, config: AdapterConfig, family: Family | None) -> list[LoraModule]:
    plain, fused = {}, {}
    for name, halves in contents.halves.items():
        missing = [half for half in "AB" if half not in halves.tensors]
        if missing:
            kind = "lora_embedding_" if halves.embedding else "lora_"
            reject(f"has no {kind}{missing[0]} for {name}", "copy the whole file again")
        if is_target(config, name):
            plain[name] = halves
        elif config.get("target_parameters"):
            fused[name] = halves.tensors
        else:
            reject(f"holds weights for {name}, which is not a target module of its config, so "
                   "PEFT would ignore them", "use the config they were trained with")  # fmt: skip
    found = [_plain(name, halves, config, family) for name, halves in plain.items()]
    width = stream_width(found)
    wrapped = match_parameters(fused, config)
    for one in wrapped:
        flipped = is_transposed(one, wrapped, d_model=width, config=config)
        scaling = _scaling(config, one.path)
        experts = expert_halves(one, config, flipped=flipped)
        found += [_module(name, A, B, scaling, family) for name, (A, B) in experts.items()]
    return found


def _plain(
    name: str,
    halves: Halves,
    config: AdapterConfig,
    family: Family | None,
) -> LoraModule:
    A, B, r = halves.tensors["A"], halves.tensors["B"], module_rank(config, name)
    if (A.shape[0], B.shape[1]) != (r, r):
        reject(f"has lora_A {A.shape} and lora_B {B.shape} for {name}",
               f"expected the rank {r} in {CONFIG}")  # fmt: skip
    scaling = _scaling(config, name)
    return _module(name, StoredHalf(A, "A"), StoredHalf(B, "B"), scaling, family)


def _module(
    name: str, A: StoredHalf, B: StoredHalf, scaling: float, family: Family | None
) -> LoraModule:
    return LoraModule(name, module_layer(name), module_side(name, family), A, B, scaling)


def _scaling(config: AdapterConfig, name: str) -> float:
    scaling = module_scaling(config, name)
    if not math.isfinite(scaling):
        reject(f"gives {name} the scaling {scaling}", "expected a finite lora_alpha")
    return scaling


def _stacks(
    modules: Sequence[LoraModule], family: Family | None
) -> tuple[str | None, dict[str, int]]:
    """The decoder whose residual stream is meant, and how many modules are in each other one.

    It is the one that a file of sides names, else that with the most modules, then the widest.
    """
    found: dict[str, list[LoraModule]] = {}
    for module in modules:
        stack = module_stack(module.name)
        if stack is not None and module.side != "other":
            found.setdefault(stack, []).append(module)
    if not found:
        return None, {}
    main = family.stack if family is not None else None
    if main is not None and main not in found:
        reject(f"has no modules in a decoder {main!r}", f"choose among {', '.join(found)}")
    main = main or max(found, key=lambda one: (len(found[one]), stream_width(found[one]) or 0))
    return main, {stack: len(inside) for stack, inside in found.items() if stack != main}


def _of_one_stream(
    modules: list[LoraModule], main: str | None, others: Sequence[str]
) -> list[LoraModule]:
    """Set the side to "other" of what does not belong to the stream of the decoder `main`.

    These are other decoders, their embeddings, and embeddings narrower than the stream (as in
    OPT-350m).
    """
    width = stream_width([one for one in modules if module_stack(one.name) == main])
    return [
        replace(module, side="other")
        if _is_of(module, others)
        or (module.layer is None and width not in (None, *_stream_sizes(module)))
        else module
        for module in modules
    ]


def _is_of(module: LoraModule, stacks: Sequence[str]) -> bool:
    stack = module_stack(module.name)
    if stack is not None:
        return stack in stacks
    return any(one and module.name.startswith(f"{one}.") for one in stacks)


def _stream_sizes(module: LoraModule) -> tuple[int, ...]:
    return () if module.side == "other" else (module.shape[0 if module.side == "write" else 1],)
