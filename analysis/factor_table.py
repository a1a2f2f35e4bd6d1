"""A run's factors as they are saved: one row a factor, and the directions in the same order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from analysis.errors import InputError, NotFoundError, SchemaError
from analysis.labels import direction_sha256
from analysis.records import FactorsManifest, read_manifest
from analysis.workspace import Workspace

COLUMNS = (
    "id",  # "w2": second factor of the write side; "w2.L1": of writing modules up to layer 1
    "side",  # write, read
    "index",  # 1 is the largest singular value
    "max_layer",  # last layer whose modules were taken; NaN for all
    "singular_value",  # in the units of the weights
    "energy",  # σ² / Σσ² on its side
    "null_median",  # of the factor with this index in random adapters of the same norms
    "null_high",  # 95 % quantile of the same
    "significant",  # singular_value > null_high
    "stability",  # 0–1, found again in other checkpoints or seeds; NaN where there are none
    "off_task",  # share of the change on unrelated prompts that goes when it is set back
    "on_task",  # the same share on task prompts
    "effect_ratio",  # off_task / on_task
    "score",  # what the list is ordered by
    "promoted",  # tokens that the direction writes, through the final norm (list of str)
    "suppressed",  # tokens that its opposite writes
)


@dataclass(frozen=True)
class FactorTable:
    """Factors of one run: `table` has COLUMNS, `directions` is (k, d_model) in row order."""

    manifest: FactorsManifest
    table: pd.DataFrame
    directions: NDArray[np.float32]

    def direction(self, factor: str) -> NDArray[np.float32]:
        """The unit direction (d_model,) of factor `factor`, such as "w2"."""
        direction: NDArray[np.float32] = self.directions[self.position(factor)]
        return direction

    def position(self, factor: str) -> int:
        """The row of factor `factor`.

        Raises:
            NotFoundError: the table has no such factor; those it has are listed.
        """
        ids = list(self.table["id"])
        if factor not in ids:
            raise NotFoundError(
                f"Run {self.manifest.run!r} has no factor {factor!r}; it has {', '.join(ids)}."
            )
        return ids.index(factor)

    def sha256(self, factor: str) -> str:
        """Hash of a factor's direction, for labels."""
        return direction_sha256(self.direction(factor))


def write_factors(folder: Path, factors: FactorTable) -> None:
    """Write a table of factors and its directions into `folder`."""
    factors.table.loc[:, list(COLUMNS)].to_parquet(folder / "factors.parquet", index=False)
    unit = np.ascontiguousarray(factors.directions, dtype=np.float32)
    save_file({"directions": unit}, folder / "factors.safetensors")
    manifest = factors.manifest.model_dump_json(indent=2)
    (folder / "manifest.json").write_text(manifest, encoding="utf-8")


def read_factors(folder: Path) -> FactorTable:
    """Read what `write_factors` wrote.

    Raises:
        SchemaError: a file is missing or does not fit the others.
    """
    manifest = read_manifest(folder / "manifest.json", FactorsManifest)
    try:
        table = pd.read_parquet(folder / "factors.parquet")
        directions = load_file(folder / "factors.safetensors")["directions"]
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise SchemaError(f"The factors in {folder} cannot be read ({error}).") from None
    missing = [name for name in COLUMNS if name not in table]
    if missing or len(table) != len(directions):
        raise SchemaError(
            f"The factors in {folder} do not fit together: {len(table)} rows, {len(directions)} "
            f"directions, missing columns {missing}. Run `grasp factors` again."
        )
    return FactorTable(manifest, table, directions)


def run_factors(workspace: Workspace, run_id: str) -> FactorTable:
    """The factors of a run.

    Raises:
        NotFoundError: none have been computed; the message says how.
    """
    folder = workspace.folder("factors", run_id)
    if not folder.is_dir():
        raise NotFoundError(f"Run {run_id!r} has no factors yet; `grasp factors` makes them.")
    return read_factors(folder)


def select_directions(
    workspace: Workspace, factors: list[str], *, run: str
) -> tuple[list[str], NDArray[np.float32]]:
    """Full ids and unit directions (k, d_model) of named factors.

    Args:
        workspace: where runs' factors lie.
        factors: "w2" (of `run`), "other-run/w2", or "path/to/folder/w2".
        run: the run that bare names belong to.

    Raises:
        InputError: none are named, one is named twice, or the dimensions differ.
        NotFoundError: a factor or its table does not exist.
    """
    if not factors:
        raise InputError("No factors are named; give at least one id, such as w2.")
    names, rows = [], []
    for factor in factors:
        owner, _, name = factor.rpartition("/")
        folder = Path(owner)
        is_folder = bool(owner) and (folder / "factors.safetensors").exists()
        table = read_factors(folder) if is_folder else run_factors(workspace, owner or run)
        rows.append(table.direction(name))
        names.append(f"{table.manifest.run}/{name}")
    if len(set(names)) < len(names):
        raise InputError(f"A factor is named twice in {', '.join(factors)}.")
    if len({row.shape for row in rows}) > 1:
        raise InputError(f"The factors {', '.join(names)} belong to models of different width.")
    return names, np.stack(rows)
