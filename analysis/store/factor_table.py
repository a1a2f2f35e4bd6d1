"""The saved factors of a run: one row per factor, and the directions in the same order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from analysis.errors import InputError, NotFoundError, SchemaError
from analysis.store.labels import direction_sha256
from analysis.store.records import FactorsManifest, read_manifest
from analysis.store.workspace import Workspace
from analysis.values import TableRow

COLUMNS: TableRow = {
    # Identity and origin.  "w2": second factor of the write side; "w2.L1": the same from writing
    # modules up to layer 1; "e1": first rotated factor; "a1.L1": first axis of layer 1's shifts.
    "id": "",
    "route": "weights",  # weights, joint, rotation, activations, contrast, import
    "side": "write",  # write or read: the updates it is compared with
    "index": 0,  # from 1, within its route, side and layer
    "max_layer": math.nan,  # last layer whose modules were used; NaN for all
    "layer": math.nan,  # the layer it was found at; NaN if it holds for all
    "source": "",  # in words
    # In the weights.
    "singular_value": math.nan,  # or the strength along it, ‖uᵀ[ΔW …]‖, in units of W
    "energy": math.nan,  # singular_value² / Σσ² on its side
    "null_median": math.nan,  # median strength in random adapters with the same norms
    "null_high": math.nan,  # 95 % quantile of the same
    "others_low": math.nan,  # smallest strength along it in other checkpoints or seeds
    "others_high": math.nan,  # largest of the same
    "stability": math.nan,  # 0–1, how well other checkpoints or seeds span it; NaN if none
    # In the model.
    "first_order": math.nan,  # share of the off-task change due to it, estimated by gradients
    "off_task": math.nan,  # share of the change on unrelated prompts undone by setting it back
    "off_low": math.nan,  # 95 % interval of the same, clustered by item
    "off_high": math.nan,
    "on_task": math.nan,  # the same share on task prompts
    "effect_ratio": math.nan,  # off_task / on_task
    "specificity": math.nan,  # √(off_task / (off_task + on_task))
    "effect": math.nan,  # total variation by which setting it back moves an unrelated answer
    "effect_low": math.nan,  # 95 % interval of the same
    "effect_high": math.nan,
    "effect_random": math.nan,  # the largest such effect of random directions
    # Conclusions.
    "significant_energy": False,  # singular_value > null_high
    "significant_effect": pd.NA,  # effect_low > effect_random and a floor; unknown without a model
    "significant": False,  # both, as far as they are known
    "score": math.nan,  # the list is sorted by it
    "explanation": "",  # one sentence
    "promoted": [],  # tokens whose logits the direction raises most (list of str)
    "suppressed": [],  # tokens whose logits it lowers most
}
"""The columns in order, each with the value that stands for unknown."""

_LATER = {"route", "layer", "source", "others_low", "others_high", "first_order", "off_low",
          "off_high", "specificity", "effect", "effect_low", "effect_high", "effect_random",
          "significant_energy", "significant_effect", "explanation"}  # fmt: skip
"""Columns that tables of the first version lack."""


@dataclass(frozen=True)
class FactorTable:
    """Factors of one run: `table` has COLUMNS, `directions` is (k, d_model) in row order."""

    manifest: FactorsManifest
    table: pd.DataFrame
    directions: NDArray[np.float32]

    def direction(self, factor: str) -> NDArray[np.float32]:
        """The unit direction (d_model,) of a factor such as "w2".

        Raises:
            NotFoundError: the table has no such factor; the message lists the existing ones.
        """
        direction: NDArray[np.float32] = self.directions[self.position(factor)]
        return direction

    def position(self, factor: str) -> int:
        """The row number of a factor such as "w2".

        Raises:
            NotFoundError: the table has no such factor; the message lists the existing ones.
        """
        ids = list(self.table["id"])
        if factor not in ids:
            raise NotFoundError(
                f"Run {self.manifest.run!r} has no factor {factor!r}; it has {', '.join(ids)}."
            )
        return ids.index(factor)

    def sha256(self, factor: str) -> str:
        """SHA-256 of a factor's direction, as labels store it."""
        return direction_sha256(self.direction(factor))


def write_factors(folder: Path, factors: FactorTable) -> None:
    """Write a table of factors and its directions into `folder`."""
    table = _with_later(factors.table).loc[:, list(COLUMNS)]
    table.to_parquet(folder / "factors.parquet", index=False)
    unit = np.ascontiguousarray(factors.directions, dtype=np.float32)
    save_file({"directions": unit}, folder / "factors.safetensors")
    manifest = factors.manifest.model_dump_json(indent=2)
    (folder / "manifest.json").write_text(manifest, encoding="utf-8")


def read_factors(folder: Path) -> FactorTable:
    """Read what `write_factors` wrote.

    Raises:
        SchemaError: a file is missing or damaged, or the files disagree.
    """
    manifest = read_manifest(folder / "manifest.json", FactorsManifest)
    try:
        table = _with_later(pd.read_parquet(folder / "factors.parquet"))
        directions = load_file(folder / "factors.safetensors")["directions"]
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise SchemaError(
            f"The factors in {folder} cannot be read ({error}). Run `grasp factors` again."
        ) from None
    missing = [name for name in COLUMNS if name not in table]
    if missing or len(table) != len(directions):
        raise SchemaError(
            f"The factors in {folder} are inconsistent: {len(table)} rows, {len(directions)} "
            f"directions, missing columns {missing}. Run `grasp factors` again."
        )
    return FactorTable(manifest, table.loc[:, list(COLUMNS)], directions)


def _with_later(table: pd.DataFrame) -> pd.DataFrame:
    """A table of any version with the columns that were added after the first one."""
    known = {"significant_energy": table["significant"]} if "significant" in table else {}
    fills = {name: [COLUMNS[name]] * len(table) for name in COLUMNS if name in _LATER} | known
    return table.assign(**{name: fill for name, fill in fills.items() if name not in table})


def read_run_factors(workspace: Workspace, run_id: str) -> FactorTable:
    """The factors of a run.

    Raises:
        NotFoundError: they have not been computed; the message says how to.
    """
    folder = workspace.folder("factors", run_id)
    if not folder.is_dir():
        raise NotFoundError(
            f"Run {run_id!r} has no factors yet; compute them with `grasp factors`."
        )
    return read_factors(folder)


def select_directions(
    workspace: Workspace, factors: list[str], *, run: str
) -> tuple[list[str], NDArray[np.float32]]:
    """Full ids and unit directions (k, d_model) of the named factors.

    Args:
        workspace: the workspace with the factors of its runs.
        factors: "w2" (of `run`), "other-run/w2", or "path/to/folder/w2".
        run: the run that names without a run belong to.

    Raises:
        InputError: no factor is given, one is given twice, or their widths differ.
        NotFoundError: a factor or its table does not exist.
    """
    if not factors:
        raise InputError("No factor is given; give at least one id, such as w2.")
    names, rows = [], []
    for factor in factors:
        owner, _, name = factor.rpartition("/")
        folder = Path(owner)
        is_folder = bool(owner) and (folder / "factors.safetensors").exists()
        table = read_factors(folder) if is_folder else read_run_factors(workspace, owner or run)
        rows.append(table.direction(name))
        names.append(f"{table.manifest.run}/{name}")
    if len(set(names)) < len(names):
        raise InputError(f"A factor is given twice in {', '.join(factors)}; give each one once.")
    if len({row.shape for row in rows}) > 1:
        raise InputError(
            f"The factors {', '.join(names)} belong to models of different width; "
            "expected factors of one base model."
        )
    return names, np.stack(rows)
