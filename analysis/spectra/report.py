"""What an adapter folder holds, as data and as a few lines of text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import TypedDict

from analysis.adapters.architectures import Side, module_stack
from analysis.adapters.load import Adapter
from analysis.adapters.tensors import BESIDE, PREFIX
from analysis.spectra.spectrum import ModuleSpectrum
from analysis.tables import align_columns
from analysis.text import escape_unprintable, number_text

_SHOWN = 3  # names shown of a long list
_FEW = 16  # up to this many modules are listed one by one without --each


class Beside(TypedDict):
    """What was saved next to the LoRA weights, of one kind."""

    meaning: str
    tensors: list[str]
    parameters: int


class AdapterReport(TypedDict):
    """Everything an adapter folder holds; see `adapter_report`."""

    path: str
    base_model: str | None
    base_revision: str | None
    peft_version: str | None
    modules: int
    parameters: int
    dtype: str
    ranks: dict[str, int]
    scalings: dict[str, int]
    layers: list[int]
    sides: dict[str, int]
    other: list[str]
    other_stacks: dict[str, int]
    beside: dict[str, Beside]
    unused: list[str]
    other_adapters: list[str]
    low_rank_part: bool


def adapter_report(adapter: Adapter) -> AdapterReport:
    """Everything an adapter folder holds, as JSON values.

    `ranks`, `scalings` and `sides` count modules; `other` names the modules for which it is
    unknown whether they read or write the residual stream; `other_stacks` counts the modules of
    other decoders in the model, which have a stream of their own; `beside` is what was saved next
    to the LoRA weights and belongs to no ΔW.
    """
    modules = adapter.modules
    layers = [module.layer for module in modules if module.layer is not None]
    return {
        "path": str(adapter.path),
        "base_model": adapter.base_model,
        "base_revision": adapter.base_revision,
        "peft_version": _text(adapter.config.get("peft_version")),
        "modules": len(modules),
        "parameters": adapter.n_parameters,
        "dtype": adapter.dtype,
        "ranks": _counts([str(module.r) for module in modules]),
        "scalings": _counts([f"{module.scaling:.6g}" for module in modules]),
        "layers": sorted(set(layers)),
        "sides": _counts([module.side for module in modules]),
        "other": [
            module.name
            for module in modules
            if module.side == "other" and module_stack(module.name) not in adapter.other_stacks
        ],
        "other_stacks": dict(adapter.other_stacks),
        "beside": {
            kind: {
                "meaning": BESIDE[kind],
                "tensors": [tensor.key for tensor in tensors],
                "parameters": sum(math.prod(tensor.shape) for tensor in tensors),
            }
            for kind, tensors in adapter.beside.items()
        },
        "unused": list(adapter.unused),
        "other_adapters": list(adapter.others),
        "low_rank_part": adapter.low_rank_part,
    }


def report_lines(adapter: Adapter) -> list[str]:
    """The report in a few lines, the most important first."""
    return align_columns(report_rows(adapter_report(adapter)))


def report_rows(report: AdapterReport) -> list[tuple[str, str]]:
    """The result of `adapter_report` as pairs of a label and a line, the most important first."""
    base = report["base_model"] or "not named"
    revision = f", revision {report['base_revision']}" if report["base_revision"] else ""
    version = f" · saved by PEFT {report['peft_version']}" if report["peft_version"] else ""
    sides = [f"{report['sides'].get(side, 0)} {what}" for side, what in _SIDE_WORDS.items()]
    rows = [
        ("adapter", f"{report['path']}{version}"),
        ("base model", f"{base}{revision}"),
        (
            "updates",
            f"{report['modules']} modules{_layers(report['layers'])} · "
            f"{report['parameters']:,} parameters · {report['dtype']}",
        ),
        ("rank", f"{_counted(report['ranks'])} · scaling {_counted(report['scalings'])}"),
        ("sides", ", ".join(sides)),
    ]
    rows += [("other decoder", line) for line in stack_lines(report)]
    rows += [
        ("beside LoRA", f"{kind['meaning']}: {_names(kind['tensors'])} "
         f"({kind['parameters']:,} parameters; part of no ΔW)")
        for kind in report["beside"].values()
    ]  # fmt: skip
    if report["low_rank_part"]:
        rows.append(("not ΔW", "a DoRA adapter: only its low-rank part, scaling · B A, is shown"))
    lists = {
        "side unknown": report["other"],
        "not used": report["unused"],
        "also present": report["other_adapters"],
    }
    rows += [(label, _names(names)) for label, names in lists.items() if names]
    return [(label, escape_unprintable(text)) for label, text in rows]


def stack_lines(report: AdapterReport) -> list[str]:
    """A line for each decoder of the model whose modules are part of no factor."""
    return [
        f"{stack}: {count} modules with a residual stream of its own, part of no factor; "
        f"`stack: {stack}` in a file for --sides takes it instead"
        for stack, count in report["other_stacks"].items()
    ]


def spectrum_lines(spectra: Sequence[ModuleSpectrum], *, each: bool) -> list[str]:
    """A line per kind of module with its medians and its strongest; per module if `each`."""
    if each or len(spectra) <= _FEW:
        names = ("module", "side", "r", "σ₁", "eff. rank", "energy₁")
        return align_columns([names, *map(_module_cells, spectra)], "<<>>>>")
    kinds: dict[str, list[ModuleSpectrum]] = {}
    for spectrum in spectra:
        kinds.setdefault(_kind(spectrum.name), []).append(spectrum)
    head = ("kind of module", "side", "modules", "σ₁ median", "σ₁ max", "in layer", "eff. rank",
            "energy₁")  # fmt: skip
    return align_columns(
        [head, *(_kind_cells(kind, group) for kind, group in kinds.items())], "<<>>>>>>"
    )


def trajectory_lines(
    steps: Sequence[int | None], spectra: Sequence[Sequence[ModuleSpectrum]]
) -> list[str]:
    """A line per checkpoint: norm of all updates together, the strongest, the median rank."""
    rows = [("step", "modules", "‖ΔW‖", "σ₁ max", "eff. rank", "strongest in")]
    for step, found in zip(steps, spectra, strict=True):
        most = max(found, key=_strongest)
        length = math.sqrt(sum(float((one.singular_values**2).sum()) for one in found))
        rank = _median([one.effective_rank for one in found if _strongest(one) > 0], 2)
        name = "finished" if step is None else str(step)
        numbers = (number_text(length, 4), number_text(_strongest(most), 4), rank)
        rows.append((name, str(len(found)), *numbers, escape_unprintable(most.name)))
    return align_columns(rows, ">>>>>")


_SIDE_WORDS: dict[Side, str] = {
    "write": "write the residual stream",
    "read": "read it",
    "other": "neither",
}


def _module_cells(spectrum: ModuleSpectrum) -> tuple[str, ...]:
    return (
        escape_unprintable(spectrum.name),
        spectrum.side,
        str(spectrum.r),
        number_text(_strongest(spectrum), 4),
        number_text(spectrum.effective_rank, 2, unknown="–"),
        number_text(spectrum.energy_top1, unknown="–"),
    )


def _kind_cells(kind: str, group: Sequence[ModuleSpectrum]) -> tuple[str, ...]:
    most = max(group, key=_strongest)
    trained = [spectrum for spectrum in group if _strongest(spectrum) > 0]
    return (
        escape_unprintable(kind),
        most.side,
        str(len(group)),
        _median([_strongest(spectrum) for spectrum in group], 4),
        number_text(_strongest(most), 4),
        "–" if most.layer is None else str(most.layer),
        _median([spectrum.effective_rank for spectrum in trained], 2),
        _median([spectrum.energy_top1 for spectrum in trained], 3),
    )


def _strongest(spectrum: ModuleSpectrum) -> float:
    return float(spectrum.singular_values[0])


def _median(values: Sequence[float], digits: int) -> str:
    """The median, or a dash where no update is more than zero."""
    return number_text(median(values), digits) if values else "–"


def _kind(name: str) -> str:
    """The path within its layer, without numbers: all experts are of one kind."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdecimal()]
    inner = parts[numbers[0] + 1 :] if numbers else parts
    return ".".join(part for part in inner if not part.isdecimal())


def _counts(values: Sequence[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _counted(counts: dict[str, int]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return _names([f"{value} ({count}×)" for value, count in counts.items()])


def _layers(layers: Sequence[int]) -> str:
    if not layers:
        return ""
    whole = list(layers) == list(range(layers[0], layers[-1] + 1))
    if len(layers) == 1:
        return f" in layer {layers[0]}"
    return f" in layers {layers[0]}–{layers[-1]}" if whole else f" in {len(layers)} layers"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name.removeprefix(PREFIX) for name in names[:_SHOWN]) + more


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
