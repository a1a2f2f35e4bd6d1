"""Tables that are drawn as they stand: settings that differ, metrics of a live run, checkpoints."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.spectra.spectrum import ModuleSpectrum
from analysis.store.records import RunManifest

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_WITHIN_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.\d+\.(.+)$")


def flatten(settings: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, `{"lora": {"r": 8}}` as `{"lora.r": 8}`; lists stay whole."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, prefix=f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def settings_table(runs: Sequence[RunManifest], *, only_different: bool) -> pd.DataFrame:
    """Settings (rows) of runs (columns) as text; a setting that a run has not is "".

    With `only_different`, rows that are the same in all runs are left out.
    """
    columns = {run.id: _settings(run) for run in runs}
    names = dict.fromkeys(name for settings in columns.values() for name in settings)
    rows = {name: [settings.get(name, "") for settings in columns.values()] for name in names}
    if only_different:
        rows = {name: values for name, values in rows.items() if len(set(values)) > 1}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(columns), dtype=str)
    return table.rename_axis("setting").reset_index()


def _settings(run: RunManifest) -> dict[str, str]:
    settings = {
        "method": run.method,
        "factors": ", ".join(run.factors),
        "intervention": run.intervention or "",
        "seed": "" if run.seed is None else str(run.seed),
        "base_model": run.base_model,
        "code_version": run.code_version,
    }
    named = {"config": run.config, "protection": run.protection or {}}
    for group, values in named.items():
        settings |= {f"{group}.{name}": _text(value) for name, value in flatten(values).items()}
    settings |= {f"package.{name}": version for name, version in run.packages.items()}
    return settings | {f"sha256.{name}": digest for name, digest in run.inputs.items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def read_metrics(file: Path) -> pd.DataFrame:
    """Lines of a run's metrics.jsonl as columns, by step; `drift_by_layer` as `drift_layer_0`, ….

    A line that is still being written, or is no object with a step, is passed over.  No file
    gives an empty table with the column step.
    """
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    rows = [row for line in lines if (row := _metrics_row(line)) is not None]
    return pd.DataFrame(rows) if rows else pd.DataFrame({"step": pd.Series(dtype=float)})


def _metrics_row(line: str) -> dict[str, float] | None:
    try:
        data = json.loads(line)
    except ValueError:
        return None
    if not isinstance(data, dict) or not _is_number(data.get("step")):
        return None
    row = {str(name): float(value) for name, value in data.items() if _is_number(value)}
    by_layer = data.get("drift_by_layer")
    for layer, value in enumerate(by_layer if isinstance(by_layer, list) else []):
        if _is_number(value):
            row[f"drift_layer_{layer}"] = float(value)
    return row


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def checkpoints(run_folder: Path) -> list[Path]:
    """Folders checkpoints/checkpoint-<step> that hold a whole adapter, by step."""
    found = []
    for path in (run_folder / "checkpoints").glob("checkpoint-*"):
        step = path.name.removeprefix("checkpoint-")
        if step.isdecimal() and (path / CONFIG_FILE).is_file() and (path / WEIGHTS_FILE).is_file():
            found.append((int(step), path))
    return [path for _, path in sorted(found)]


def tail(file: Path, *, lines: int) -> str:
    """The last lines of a text file, "" where there is none; reads at most its last 64 KiB."""
    try:
        with file.open("rb") as handle:
            handle.seek(0, 2)
            handle.seek(max(0, handle.tell() - (1 << 16)))
            text = handle.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def module_table(spectra: Sequence[ModuleSpectrum]) -> pd.DataFrame:
    """One row a module: name, layer (NaN outside), place in its layer, side, rank, and measures.

    `top` is the largest singular value in the units of W; `energy_top1` and `effective_rank`
    are those of `analysis.spectra.spectrum`.
    """
    rows = [
        {
            "name": one.name,
            "layer": one.layer,
            "place": module_place(one.name),
            "side": one.side,
            "r": one.r,
            "top": float(one.singular_values.max(initial=0.0)),
            "energy_top1": one.energy_top1,
            "effective_rank": one.effective_rank,
        }
        for one in spectra
    ]
    return pd.DataFrame(rows)


def module_place(name: str) -> str:
    """A module's path within its layer, `self_attn.o_proj` as `o_proj`; whole outside layers."""
    match = _WITHIN_LAYER.search(name)
    if match is None:
        return name
    place = match[1]
    return place.split(".", 1)[1] if place.count(".") == 1 else place


def flips(answers: pd.DataFrame, *, arm: str, against: str, threshold: float) -> pd.DataFrame:
    """Prompts whose score is on the other side of `threshold` in `arm` than in `against`.

    Args:
        answers: as `analysis.comparison.comparison.answers` gives them.
        arm: run id, or "base".
        against: run id, or "base".
        threshold: scores above it count as yes; prompts that one of the two did not
            answer are left out.

    Returns:
        Columns prompt_id, role, group, prompt, then score and answer of both, largest
        difference first.
    """
    columns = [f"{what}:{name}" for name in (against, arm) for what in ("score", "answer")]
    before, after = answers[f"score:{against}"], answers[f"score:{arm}"]
    known = before.notna() & after.notna()
    flipped = answers[known & ((before > threshold) != (after > threshold))]
    size = (flipped[f"score:{arm}"] - flipped[f"score:{against}"]).abs()
    order = size.sort_values(ascending=False, kind="stable").index
    return flipped.loc[order, ["prompt_id", "role", "group", "prompt", *columns]]
