"""Recorded activations: base and adapted residual stream on the same probes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from analysis.errors import SchemaError
from analysis.records import RecordingManifest, read_manifest

COLUMNS = (
    "id",
    "group",  # topic
    "variant",  # which end of a latent the answers show: "good", "evil", …
    "tokens",  # list of str
    "answer",  # list of bool: the token is part of an assistant's answer
    "offset",  # row of the first token in the activation arrays
)


@dataclass(frozen=True)
class Recording:
    """Activations (layers, tokens, d_model) of both models; `probes` has COLUMNS."""

    manifest: RecordingManifest
    probes: pd.DataFrame
    base: NDArray[np.floating]
    adapted: NDArray[np.floating]


def write_recording(
    folder: Path,
    *,
    manifest: RecordingManifest,
    probes: pd.DataFrame,
    base: NDArray[np.floating],
    adapted: NDArray[np.floating],
) -> None:
    """Write a recording into `folder`; activations are kept in half precision."""
    probes.loc[:, list(COLUMNS)].to_parquet(folder / "prompts.parquet", index=False)
    # safetensors writes an array's memory as it lies, so a transposed one would be scrambled.
    arrays = {
        name: np.ascontiguousarray(array, dtype=np.float16)
        for name, array in (("base", base), ("adapted", adapted))
    }
    save_file(arrays, folder / "activations.safetensors")
    (folder / "manifest.json").write_text(manifest.model_dump_json(indent=2), encoding="utf-8")


def read_recording(folder: Path, *, layer: int) -> Recording:
    """Read one layer of a recording, as float32 arrays (1, tokens, d_model).

    Raises:
        SchemaError: a file is missing or damaged, or the layer was not recorded.
    """
    manifest = read_manifest(folder / "manifest.json", RecordingManifest)
    if layer not in manifest.layers:
        raise SchemaError(f"{folder} has no layer {layer}; recorded were {manifest.layers}.")
    row = manifest.layers.index(layer)
    try:
        probes = pd.read_parquet(folder / "prompts.parquet")
        with safe_open(folder / "activations.safetensors", framework="np") as file:
            base, adapted = (
                file.get_slice(name)[row : row + 1].astype(np.float32)
                for name in ("base", "adapted")
            )
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise SchemaError(f"The recording in {folder} cannot be read ({error}).") from None
    return Recording(manifest, probes, base, adapted)
