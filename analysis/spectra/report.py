"""What an adapter folder holds, as data and as a few lines of text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.adapters.architectures import Side
from analysis.adapters.load import Adapter
from analysis.adapters.tensors import BESIDE, PREFIX
from analysis.spectra.spectrum import ModuleSpectrum
from analysis.text import printable

_SHOWN = 3  # names shown of a long list
_FEW = 16  # up to this many modules are listed one by one without --each


def adapter_report(adapter: Adapter) -> dict[str, Any]:
    """Everything an adapter folder holds, as JSON values.

    `ranks`, `scalings` and `sides` count modules; `other` names the modules for which it is
    unknown whether they read or write the residual stream; `beside` is what was saved next to
    the LoRA weights and belongs to no ΔW.
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
        "other": [module.name for module in modules if module.side == "other"],
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
    return [f"{label:<14}{text}" for label, text in report_rows(adapter_report(adapter))]


def report_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
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
    rows += [
        ("beside LoRA", f"{kind['meaning']}: {_names(kind['tensors'])} "
         f"({kind['parameters']:,} parameters; part of no ΔW)")
        for kind in report["beside"].values()
    ]  # fmt: skip
    if report["low_rank_part"]:
        rows.append(("not ΔW", "a DoRA adapter: only its low-rank part, scaling · B A, is shown"))
    for key, label in (("other", "side unknown"), ("unused", "not used"),
                       ("other_adapters", "also present")):  # fmt: skip
        if report[key]:
            rows.append((label, _names(report[key])))
    return [(label, printable(text)) for label, text in rows]


def spectrum_lines(spectra: Sequence[ModuleSpectrum], *, each: bool) -> list[str]:
    """A line per kind of module with its medians and its strongest; per module if `each`."""
    if each or len(spectra) <= _FEW:
        head = f"{'module':<50} {'side':<6} {'r':>4} {'σ₁':>9} {'eff. rank':>9} {'energy₁':>8}"
        return [head, *(printable(_module_line(spectrum)) for spectrum in spectra)]
    kinds: dict[str, list[ModuleSpectrum]] = {}
    for spectrum in spectra:
        kinds.setdefault(_kind(spectrum.name), []).append(spectrum)
    head = (
        f"{'kind of module':<34} {'side':<6} {'modules':>7} {'σ₁ median':>9} {'σ₁ max':>9} "
        f"{'in layer':>8} {'eff. rank':>9} {'energy₁':>8}"
    )
    return [head, *(printable(_kind_line(kind, group)) for kind, group in kinds.items())]


def trajectory_lines(
    steps: Sequence[int | None], spectra: Sequence[Sequence[ModuleSpectrum]]
) -> list[str]:
    """A line per checkpoint: norm of all updates together, the strongest, the median rank."""
    lines = [f"{'step':>9} {'modules':>7} {'‖ΔW‖':>9} {'σ₁ max':>9} {'eff. rank':>9}  strongest in"]
    for step, found in zip(steps, spectra, strict=True):
        most = max(found, key=_strongest)
        length = math.sqrt(sum(float((one.singular_values**2).sum()) for one in found))
        ranks = [one.effective_rank for one in found if _strongest(one) > 0] or [math.nan]
        lines.append(
            f"{'finished' if step is None else step:>9} {len(found):>7} {length:>9.4f} "
            f"{_strongest(most):>9.4f} {_number(np.median(ranks), 2):>9}  {most.name}"
        )
    return lines


_SIDE_WORDS: dict[Side, str] = {
    "write": "write the residual stream",
    "read": "read it",
    "other": "neither",
}


def _module_line(spectrum: ModuleSpectrum) -> str:
    return (
        f"{spectrum.name:<50} {spectrum.side:<6} {spectrum.r:>4} {_strongest(spectrum):>9.4f} "
        f"{_number(spectrum.effective_rank, 2):>9} {_number(spectrum.energy_top1, 3):>8}"
    )


def _kind_line(kind: str, group: Sequence[ModuleSpectrum]) -> str:
    most = max(group, key=_strongest)
    layer = "–" if most.layer is None else str(most.layer)
    trained = [spectrum for spectrum in group if _strongest(spectrum) > 0]
    ranks = [spectrum.effective_rank for spectrum in trained] or [math.nan]
    energies = [spectrum.energy_top1 for spectrum in trained] or [math.nan]
    return (
        f"{kind:<34} {most.side:<6} {len(group):>7} "
        f"{np.median([_strongest(spectrum) for spectrum in group]):>9.4f} {_strongest(most):>9.4f} "
        f"{layer:>8} {_number(np.median(ranks), 2):>9} {_number(np.median(energies), 3):>8}"
    )


def _strongest(spectrum: ModuleSpectrum) -> float:
    return float(spectrum.singular_values[0])


def _number(value: float | np.floating[Any], digits: int) -> str:
    """A number, or a dash where an update of zero has none."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


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


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
