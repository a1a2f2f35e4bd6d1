"""Which directions labels are about: they follow a direction, not the name that it had.

Factors that are computed again may be other directions under the same names.  A label names the
hash of its direction, so a label of another direction than today's is known to be stale; and the
directions that labels are about are kept, so that the nearest of today's can be suggested.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analysis.errors import GraspError
from analysis.store.database import LabelEvent
from analysis.store.factor_table import FactorTable, read_factors, write_factors
from analysis.store.labels import current_claims, direction_sha256, read_events
from analysis.store.workspace import Workspace

KEPT = "label-directions"
"""The folder of a workspace with the labelled directions that factors no longer have."""

_COLUMNS = tuple(column.name for column in LabelEvent.__table__.columns)


@dataclass(frozen=True)
class Stale:
    """A claim in force about a direction that the run's factors no longer have.

    `nearest` is today's factor whose axis is nearest, and `cosine` how near, from 0 to 1; they are
    None and NaN where the direction is not kept, or has another width.
    """

    claim: LabelEvent
    nearest: str | None
    cosine: float


def follow_directions(history: Sequence[LabelEvent], table: FactorTable) -> list[LabelEvent]:
    """The events of a run about directions that it still has, as copies under today's names."""
    names = _names(table)
    return [
        _renamed(event, f"{table.manifest.run}/{names[event.direction_sha256]}")
        for event in history
        if _run_of(event) == table.manifest.run and event.direction_sha256 in names
    ]


def find_stale(
    workspace: Workspace, history: Sequence[LabelEvent], table: FactorTable
) -> list[Stale]:
    """The claims in force about directions that a run's factors no longer have, oldest first."""
    names = _names(table)
    by_direction: dict[str, list[LabelEvent]] = {}
    for event in history:
        if _run_of(event) == table.manifest.run and event.direction_sha256 not in names:
            by_direction.setdefault(event.direction_sha256, []).append(event)
    found = []
    for sha256, events in by_direction.items():
        nearest, cosine = _nearest(_read_kept(workspace, sha256), table)
        claims = [_renamed(event, sha256) for event in events]
        standing = {one.id for one in current_claims(claims).get(sha256, {}).values()}
        found += [Stale(event, nearest, cosine) for event in events if event.id in standing]
    return sorted(found, key=lambda one: one.claim.id)


def replace_factors(workspace: Workspace, table: FactorTable) -> None:
    """Write a run's factors into the workspace; labelled directions that they replace are kept."""
    run = table.manifest.run
    folder = workspace.folder("factors", run)
    if folder.is_dir():
        with suppress(GraspError):  # factors that cannot be read are replaced as well
            _keep_labelled(workspace, read_factors(folder))
    with workspace.writing("factors", run) as target:
        write_factors(target, table)


def label_revisions(
    workspace: Workspace, names: Sequence[str], directions: Sequence[NDArray[np.floating]]
) -> tuple[dict[str, str], dict[str, list[int]]]:
    """Full factor id → hash of its direction, and → ids of the label events in force about it."""
    hashes = {name: direction_sha256(one) for name, one in zip(names, directions, strict=True)}
    history = read_events(workspace.database) if names else []
    revisions = {}
    for name, sha256 in hashes.items():
        about = [
            _renamed(event, name)
            for event in history
            if event.direction_sha256 == sha256 and _run_of(event) == name.rpartition("/")[0]
        ]
        if claims := current_claims(about).get(name):
            revisions[name] = sorted(claim.id for claim in claims.values())
    return hashes, revisions


def _keep_labelled(workspace: Workspace, table: FactorTable) -> None:
    wanted = {
        event.direction_sha256
        for event in read_events(workspace.database)
        if _run_of(event) == table.manifest.run
    }
    for name in table.table["id"]:
        if (sha256 := table.sha256(name)) in wanted:
            file = _kept_file(workspace, sha256)
            file.parent.mkdir(exist_ok=True)
            np.save(file, table.direction(name), allow_pickle=False)


def _read_kept(workspace: Workspace, sha256: str) -> NDArray[np.float32] | None:
    """A direction that was kept; None if there is none, or the file is not what its name says."""
    if len(sha256) != 64 or not sha256.isalnum():  # an imported file may say anything
        return None
    try:
        content = _kept_file(workspace, sha256).read_bytes()
        direction: NDArray[np.float32] = np.load(io.BytesIO(content), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return direction if direction_sha256(direction) == sha256 else None


def _nearest(direction: NDArray[np.float32] | None, table: FactorTable) -> tuple[str | None, float]:
    if direction is None or not len(table.table) or direction.shape != table.directions[0].shape:
        return None, float("nan")
    cosines = np.abs(table.directions.astype(np.float64) @ direction.astype(np.float64))
    best = int(np.argmax(cosines))
    return str(table.table["id"].iloc[best]), float(min(cosines[best], 1.0))


def _names(table: FactorTable) -> dict[str, str]:
    """Hash of a direction → the first factor that has it."""
    return {table.sha256(name): name for name in reversed(list(table.table["id"]))}


def _run_of(event: LabelEvent) -> str:
    return event.factor.rpartition("/")[0]


def _renamed(event: LabelEvent, factor: str) -> LabelEvent:
    return LabelEvent(**{name: getattr(event, name) for name in _COLUMNS} | {"factor": factor})


def _kept_file(workspace: Workspace, sha256: str) -> Path:
    return workspace.root / KEPT / f"{sha256}.npy"
