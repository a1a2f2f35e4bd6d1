"""What pages need to know about runs: families, display names, which have an adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from analysis.adapters.place import is_adapter
from analysis.errors import InputError
from analysis.store.database import LabelEvent
from analysis.store.records import RunManifest
from analysis.store.workspace import Workspace
from grasp.settings.methods import METHODS


def families(runs: Sequence[RunManifest]) -> dict[str, list[RunManifest]]:
    """Root id → its runs: the naive one first, then in the order of METHODS, then by time."""
    order = {name: position for position, name in enumerate(METHODS)}
    grouped: dict[str, list[RunManifest]] = {}
    for run in runs:
        grouped.setdefault(run.root, []).append(run)
    return {
        root: sorted(group, key=lambda run: (run.id != run.root, order.get(run.method, len(order))))
        for root, group in grouped.items()
    }


def method_label(method: str) -> str:
    """The display name of a method; an unknown method keeps its own name."""
    return METHODS[method].label if method in METHODS else method


def arm_labels(runs: Sequence[RunManifest]) -> dict[str, str]:
    """Run id → a short name, unique among `runs`: the method, plus the id if two runs share it."""
    methods = [run.method for run in runs]
    return {
        run.id: method_label(run.method)
        if methods.count(run.method) == 1
        else f"{method_label(run.method)} ({run.id})"
        for run in runs
    }


def grasp_runs(runs: Sequence[RunManifest]) -> list[RunManifest]:
    """The GRASP runs among `runs`; if there is none of GRASP itself, those of its parts."""
    itself = [run for run in runs if run.method == "grasp"]
    return itself or [run for run in runs if _group(run.method) == "GRASP and its parts"]


def random_controls(runs: Sequence[RunManifest]) -> list[RunManifest]:
    """The runs that protect random directions."""
    return [run for run in runs if run.method == "random"]


def _group(method: str) -> str:
    return METHODS[method].group if method in METHODS else ""


def has_adapter(workspace: Workspace, run_id: str) -> bool:
    """Whether a run has its own adapter; inference ablation uses that of the naive run."""
    try:
        return is_adapter(workspace.adapter(run_id))
    except InputError:  # the id in a manifest may be anything
        return False


def label_names(claims: Mapping[str, LabelEvent]) -> str:
    """The names in the current labels of one factor, each once, in the order they were given."""
    return ", ".join(dict.fromkeys(claim.name for claim in claims.values()))


def factor_name(run: str, factor: str) -> str:
    """The full id of a factor, as used in labels and manifests."""
    return f"{run}/{factor}"
