"""What pages ask about runs: families, names on screen, which adapter lies where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from analysis.errors import InputError
from analysis.store.database import LabelEvent
from analysis.store.records import RunManifest
from analysis.store.workspace import Workspace
from grasp.settings.methods import METHODS


def families(runs: Sequence[RunManifest]) -> dict[str, list[RunManifest]]:
    """Root id → its runs, the naive one first, then in the order of METHODS, then by time."""
    order = {name: position for position, name in enumerate(METHODS)}
    grouped: dict[str, list[RunManifest]] = {}
    for run in runs:
        grouped.setdefault(run.root, []).append(run)
    return {
        root: sorted(group, key=lambda run: (run.id != run.root, order.get(run.method, len(order))))
        for root, group in grouped.items()
    }


def method_label(method: str) -> str:
    """A method's name on screen; one that is not known here is shown as it is."""
    return METHODS[method].label if method in METHODS else method


def arm_labels(runs: Sequence[RunManifest]) -> dict[str, str]:
    """Run id → a short name, unique among `runs`: the method, with the id where two share it."""
    methods = [run.method for run in runs]
    return {
        run.id: method_label(run.method)
        if methods.count(run.method) == 1
        else f"{method_label(run.method)} ({run.id})"
        for run in runs
    }


def adapter_folder(workspace: Workspace, run_id: str) -> Path:
    """Where a run's adapter lies."""
    return workspace.folder("runs", run_id) / "adapter"


def has_adapter(workspace: Workspace, run_id: str) -> bool:
    """Whether a run has an adapter of its own; inference ablation uses the naive one."""
    try:
        return (adapter_folder(workspace, run_id) / "adapter_config.json").is_file()
    except InputError:  # a manifest may call itself anything
        return False


def label_names(claims: Mapping[str, LabelEvent]) -> str:
    """Names that stand for one factor, each once, in the order they were given."""
    return ", ".join(dict.fromkeys(claim.name for claim in claims.values()))


def factor_name(run: str, factor: str) -> str:
    """Full id of a factor, as labels and manifests have it."""
    return f"{run}/{factor}"


def belongs(factor: str, run: str) -> bool:
    """Whether a full factor id names a factor of `run`."""
    return factor.rpartition("/")[0] == run
