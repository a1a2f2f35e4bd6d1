"""LoRA on bare parameters (`target_parameters`), such as experts fused into one tensor.

PEFT wraps the module that holds the parameter, once for each parameter, and saves the halves
of the wrappers under the module's name alone: `experts.base_layer.lora_A` belongs to the inner
wrapper, `experts.lora_A` to the outer one.  The file does not say which parameter each one is,
how many experts there are, or whether a parameter is transposed.  All this follows from the
config, from the order in which a module declares its parameters, and from shapes; where it does
not, the adapter is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from analysis.adapters.config import AdapterConfig, module_rank, target_parameters
from analysis.adapters.files import CONFIG, StoredHalf, StoredTensor
from analysis.adapters.rejection import reject

# The order in which transformers 5 declares the parameters of its fused experts: the first is
# wrapped first, so its wrapper is the innermost.
_DECLARED = ("gate_up_proj", "down_proj")
_BASE = ".base_layer"
_OLD = (0, 19)  # before PEFT 0.19, lora_A always took the parameter's last axis as its input

Touches = Literal["read", "write"]
_TOUCHES: dict[str, Touches] = {"gate_up_proj": "read", "down_proj": "write"}


@dataclass(frozen=True)
class Parameter:
    """LoRA on one parameter: its module, its name in that module, and its stored halves."""

    module: str
    name: str
    A: StoredTensor
    B: StoredTensor

    @property
    def path(self) -> str:
        """The parameter's path, which PEFT's patterns are matched against."""
        return f"{self.module}.{self.name}"


def match_parameters(
    halves: Mapping[str, Mapping[str, StoredTensor]], config: AdapterConfig
) -> list[Parameter]:
    """Find which parameter each pair of halves belongs to, by the name they are saved under.

    Raises:
        AdapterError: neither the config nor the order of the wrappers decides it.
    """
    levels: dict[str, list[str]] = {}
    for name in sorted(halves, key=len, reverse=True):  # innermost wrapper first
        levels.setdefault(name.replace(_BASE, ""), []).append(name)
    found = []
    for module, names in sorted(levels.items()):
        wanted = _wanted(config, module, len(names))
        if not wanted and not any(target_parameters(config, module)):
            reject(f"holds weights for {names[-1]}, which is in neither target_modules "
                   "nor target_parameters, so PEFT would ignore them",
                   "use the config they were trained with")  # fmt: skip
        if not wanted or [name.count(_BASE) for name in names] != [*range(len(names))][::-1]:
            reject(f"holds LoRA on {len(names)} parameters of {module}, but its config "
                   "does not say which is which",
                   "train with their full names in target_parameters")  # fmt: skip
        for saved, name in zip(names, wanted, strict=True):
            pair = halves[saved]
            found.append(Parameter(module, name, pair["A"], pair["B"]))
    return found


def _wanted(config: AdapterConfig, module: str, levels: int) -> list[str]:
    """Names of a module's parameters, innermost wrapper first; empty if that is unclear."""
    own, others = target_parameters(config, module)
    fitting = next((names for names in (own | others, own) if len(names) == levels), set())
    if len(fitting) < 2:
        return list(fitting)
    return list(_DECLARED) if fitting == set(_DECLARED) else []


def expert_halves(
    parameter: Parameter, config: AdapterConfig, *, flipped: bool
) -> dict[str, tuple[StoredHalf, StoredHalf]]:
    """lora_A and lora_B of each expert's update of y = W x, by the expert's path.

    `flipped` says that the halves belong to the transposed parameter.

    Raises:
        AdapterError: the stored ranks are not a multiple of the rank in the config.
    """
    A, B, r = parameter.A, parameter.B, module_rank(config, parameter.path)
    if A.shape[0] != B.shape[1] or A.shape[0] % r:
        reject(f"has lora_A {A.shape} and lora_B {B.shape} for {parameter.path}",
               f"expected a multiple of the rank {r} in {CONFIG}")  # fmt: skip
    experts = A.shape[0] // r
    if parameter.name == "weight" and experts == 1:
        return {parameter.module: (StoredHalf(A, "A"), StoredHalf(B, "B"))}
    if parameter.name not in _TOUCHES:
        reject(f"holds LoRA on the parameter {parameter.path}, whose layout is unknown",
               "train with LoRA on the weights of linear modules or on fused experts "
               f"({' and '.join(_DECLARED)})")  # fmt: skip
    # The experts of a parameter share the tensor read last.
    last: dict[str, NDArray[np.float32]] = {}
    return {
        f"{parameter.module}.{e}.{parameter.name}": _oriented(
            StoredHalf(A, "A", e, experts, last=last),
            StoredHalf(B, "B", e, experts, last=last),
            flipped,
        )
        for e in range(experts)
    }


def is_transposed(
    parameter: Parameter,
    siblings: Iterable[Parameter],
    *,
    d_model: int | None,
    config: AdapterConfig,
) -> bool:
    """Whether the halves belong to the transposed parameter, judged by which axis is d_model.

    `d_model` is the width of the residual stream if other modules show it; if it is None, the
    other parameter of the same module is used.

    Raises:
        AdapterError: no layout fits, or both do and the version of PEFT does not decide.
    """
    if parameter.name not in _TOUCHES:
        return False
    touches = _TOUCHES[parameter.name]
    if d_model is None:
        others = [one for one in siblings if one.module == parameter.module]
        widths = [set(_ends(one)) for one in others if one.name != parameter.name]
        shared = widths[0] & set(_ends(parameter)) if widths else set()
        d_model = next(iter(shared)) if len(shared) == 1 else None
    d_in, d_out = _ends(parameter)
    straight, turned = (d_in, d_out) if touches == "read" else (d_out, d_in)
    if d_model is not None and d_model not in (straight, turned):
        reject(f"has updates of {d_out} × {d_in} for {parameter.path}, but the residual "
               f"stream has {d_model} dimensions", "save the adapter again with PEFT")  # fmt: skip
    if d_model is not None and straight != turned:
        return straight != d_model
    if _version(config) < _OLD or ".feed_forward." in parameter.path:
        reject(f"does not show whether {parameter.path} is transposed, and neither does "
               f"PEFT {str(config.get('peft_version') or 'of an unknown version')[:20]}",
               "train LoRA on attention too, which shows the width of the stream")  # fmt: skip
    return False


def _ends(parameter: Parameter) -> tuple[int, int]:
    return parameter.A.shape[1], parameter.B.shape[0]


def _version(config: AdapterConfig) -> tuple[int, int]:
    numbers = re.match(r"(\d{1,6})\.(\d{1,6})", str(config.get("peft_version", "")))
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def _oriented(A: StoredHalf, B: StoredHalf, flipped: bool) -> tuple[StoredHalf, StoredHalf]:
    return (B.transposed(), A.transposed()) if flipped else (A, B)
