"""The settings of several runs side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.store.records import RunManifest


def settings_table(runs: Sequence[RunManifest], *, only_different: bool) -> pd.DataFrame:
    """Settings (rows) of runs (columns) as text; a setting that is not set, or lacking, is "".

    With `only_different`, rows that are equal in all runs are left out.
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
        "title": run.title,
        "method": run.method,
        "factors": ", ".join(run.factors),
        "intervention": run.intervention or "",
        "seed": "" if run.seed is None else str(run.seed),
        "base_model": run.base_model,
        "code_version": run.code_version,
    }
    # What the manifest says of the run itself is not said again.
    config = {name: value for name, value in run.config.items() if name not in settings}
    named = {"config": config, "protection": run.protection or {}}
    for group, values in named.items():
        settings |= {f"{group}.{name}": _text(value) for name, value in _flatten(values).items()}
    settings |= {f"package.{name}": version for name, version in run.packages.items()}
    return settings | {f"sha256.{name}": digest for name, digest in run.inputs.items()}


def _flatten(settings: Mapping[str, object], *, prefix: str = "") -> dict[str, object]:
    """Flatten nested settings, `{"lora": {"r": 8}}` to `{"lora.r": 8}`; lists are kept."""
    flat: dict[str, object] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, prefix=f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # which of the two a file has says nothing
    return value if isinstance(value, str) else json.dumps(value, default=str)
