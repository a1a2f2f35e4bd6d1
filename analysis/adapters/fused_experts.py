"""LoRA on bare parameters (`target_parameters`), such as the experts that a layer fuses into one.

PEFT wraps the module that holds the parameter, once for each parameter, and saves the wrappers'
halves under the module's name alone: `experts.base_layer.lora_A` is the inner wrapper's,
`experts.lora_A` the outer's.  Which parameter each one is, how many experts there are and
which way round a parameter lies is not in the file; it follows from the config, from the
order in which a module declares its parameters, and from shapes, or the adapter is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from analysis.adapters.config import module_rank, target_parameters
from analysis.adapters.files import StoredHalf, StoredTensor, refuse

# The order in which transformers 5 declares the parameters of its fused experts, so that the
# first one is wrapped first and its wrapper lies inmost.
_DECLARED = ("gate_up_proj", "down_proj")
_BASE = ".base_layer"
_OLD = (0, 19)  # before PEFT 0.19, halves followed the parameter's axes whatever they meant

Touches = Literal["read", "write"]
_TOUCHES: dict[str, Touches] = {"gate_up_proj": "read", "down_proj": "write"}


@dataclass(frozen=True)
class Parameter:
    """LoRA on one parameter: its own name in the module that holds it, and its stored halves."""

    module: str
    name: str
    A: StoredTensor
    B: StoredTensor

    @property
    def path(self) -> str:
        """The parameter's path, by which PEFT matches patterns."""
        return f"{self.module}.{self.name}"


def parameters(
    halves: Mapping[str, Mapping[str, StoredTensor]], config: Mapping[str, Any], folder: Path
) -> list[Parameter]:
    """Which parameter each pair of halves belongs to, by the names they are saved under.

    Raises:
        AdapterError: the config or the order of wrappers does not tell.
    """
    levels: dict[str, list[str]] = {}
    for name in sorted(halves, key=len, reverse=True):  # inmost first
        levels.setdefault(name.replace(_BASE, ""), []).append(name)
    found = []
    for module, names in sorted(levels.items()):
        wanted = _wanted(config, module, len(names))
        if not wanted and not any(target_parameters(config, module)):
            refuse(folder, f"holds weights for {names[-1]}, which neither target_modules nor "
                   "target_parameters names",
                   "PEFT would ignore them; use the config they were trained with")  # fmt: skip
        if not wanted or [name.count(_BASE) for name in names] != [*range(len(names))][::-1]:
            refuse(folder, f"holds LoRA on {len(names)} parameters of {module}, but its config "
                   "does not tell which is which",
                   "train them with names in target_parameters")  # fmt: skip
        for saved, name in zip(names, wanted, strict=True):
            pair = halves[saved]
            found.append(Parameter(module, name, pair["A"], pair["B"]))
    return found


def _wanted(config: Mapping[str, Any], module: str, levels: int) -> list[str]:
    """Names of a module's parameters, that of the inmost wrapper first; none where unclear."""
    own, others = target_parameters(config, module)
    fitting = next((names for names in (own | others, own) if len(names) == levels), set())
    if len(fitting) < 2:
        return list(fitting)
    return list(_DECLARED) if fitting == set(_DECLARED) else []


def expert_halves(
    parameter: Parameter, config: Mapping[str, Any], folder: Path, *, flipped: bool
) -> dict[str, tuple[StoredHalf, StoredHalf]]:
    """lora_A and lora_B of each expert's update of y = W x, by the expert's path.

    `flipped` says that the halves were laid out for the transposed parameter.

    Raises:
        AdapterError: the stored ranks are no multiple of the config's.
    """
    A, B, r = parameter.A, parameter.B, module_rank(config, parameter.path)
    if A.shape[0] != B.shape[1] or A.shape[0] % r:
        refuse(folder, f"has lora_A {A.shape} and lora_B {B.shape} for {parameter.path}",
               f"expected a multiple of rank {r} as adapter_config.json says")  # fmt: skip
    experts = A.shape[0] // r
    if parameter.name == "weight" and experts == 1:
        return {parameter.module: (StoredHalf(A, "A"), StoredHalf(B, "B"))}
    if parameter.name not in _TOUCHES:
        refuse(folder, f"holds LoRA on the parameter {parameter.path}, whose layout is not known",
               "train with LoRA on the weights of linear modules or on fused experts "
               f"({' and '.join(_DECLARED)})")  # fmt: skip
    last: dict[str, Any] = {}  # experts of one parameter share the tensor read last
    return {
        f"{parameter.module}.{e}.{parameter.name}": _oriented(
            StoredHalf(A, "A", e, experts, last=last),
            StoredHalf(B, "B", e, experts, last=last),
            flipped,
        )
        for e in range(experts)
    }


def lies_flipped(
    parameter: Parameter,
    siblings: Iterable[Parameter],
    *,
    d_model: int | None,
    config: Mapping[str, Any],
    folder: Path,
) -> bool:
    """Whether the halves are those of the transposed parameter, by where d_model lies.

    `d_model` is the width of the stream as other modules show it, else as the other parameter
    of the same module does.

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
        refuse(folder, f"has updates of {d_out} × {d_in} for {parameter.path}, where the residual "
               f"stream has {d_model} dimensions", "save the adapter again with PEFT")  # fmt: skip
    if d_model is not None and straight != turned:
        return straight != d_model
    if _version(config) < _OLD or ".feed_forward." in parameter.path:
        refuse(folder, f"does not show which way round {parameter.path} lies, and PEFT "
               f"{str(config.get('peft_version') or 'of an unknown version')[:20]} does not say",
               "train LoRA on attention too, which shows the width of the stream")  # fmt: skip
    return False


def _ends(parameter: Parameter) -> tuple[int, int]:
    return parameter.A.shape[1], parameter.B.shape[0]


def _version(config: Mapping[str, Any]) -> tuple[int, int]:
    numbers = re.match(r"(\d{1,6})\.(\d{1,6})", str(config.get("peft_version", "")))
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def _oriented(A: StoredHalf, B: StoredHalf, flipped: bool) -> tuple[StoredHalf, StoredHalf]:
    return (B.transposed(), A.transposed()) if flipped else (A, B)
