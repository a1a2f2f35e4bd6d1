"""Recorded activations: the residual streams of base and adapted model on the same probes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from analysis.errors import SchemaError
from analysis.store.records import RecordingManifest, read_manifest

Model = Literal["base", "adapted"]
MODELS: tuple[Model, ...] = ("base", "adapted")
ACTIVATIONS = "activations.safetensors"

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


class ActivationFile:
    """A file of both models' activations that is being written, in half precision.

    The file has its final size from the start and is written in place, so a recording needs
    only the memory of one batch.
    """

    def __init__(self, descriptor: int, start: int, shape: tuple[int, int, int]) -> None:
        self._descriptor, self._start, self._shape = descriptor, start, shape

    def put(self, model: Model, layer: int, token: int, values: NDArray[np.float16]) -> None:
        """Write activations (n, d_model) of n consecutive tokens, the first of which is `token`.

        `layer` counts the recorded layers from 0.

        Raises:
            ValueError: the values have the wrong dtype or shape, or exceed the file.
        """
        layers, tokens, width = self._shape
        fits = 0 <= layer < layers and 0 <= token <= tokens - len(values)
        if not fits or values.shape[1:] != (width,) or values.dtype != np.float16:
            raise ValueError(
                f"Got {values.dtype} {values.shape} for layer {layer}, token {token}; expected "
                f"float16 (n, {width}) within {layers} layers of {tokens} tokens."
            )
        row = (MODELS.index(model) * layers + layer) * tokens + token
        data = memoryview(values.tobytes())
        place = self._start + row * width * values.itemsize
        while data:
            written = os.pwrite(self._descriptor, data, place)
            data, place = data[written:], place + written


@contextmanager
def activation_file(folder: Path, *, shape: tuple[int, int, int]) -> Iterator[ActivationFile]:
    """Create the activation file of a recording, (layers, tokens, d_model) for each model.

    Source: the safetensors format: a length, a JSON header, and the arrays.
    """
    size = 2 * math.prod(shape)
    places = {name: [i * size, (i + 1) * size] for i, name in enumerate(MODELS)}
    header = json.dumps(
        {n: {"dtype": "F16", "shape": shape, "data_offsets": at} for n, at in places.items()}
    ).encode()
    header += b" " * (-len(header) % 8)
    with (folder / ACTIVATIONS).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.flush()
        start = 8 + len(header)
        os.truncate(file.fileno(), start + len(MODELS) * size)
        yield ActivationFile(file.fileno(), start, shape)


def write_recording(
    folder: Path,
    *,
    manifest: RecordingManifest,
    probes: pd.DataFrame,
    base: NDArray[np.floating],
    adapted: NDArray[np.floating],
) -> None:
    """Write a recording held in memory into `folder`, in the format of `activation_file`."""
    layers, tokens, width = base.shape
    with activation_file(folder, shape=(layers, tokens, width)) as file:
        for layer in range(layers):
            file.put("base", layer, 0, base[layer].astype(np.float16))
            file.put("adapted", layer, 0, adapted[layer].astype(np.float16))
    write_tables(folder, manifest=manifest, probes=probes)


def write_tables(folder: Path, *, manifest: RecordingManifest, probes: pd.DataFrame) -> None:
    """Write the manifest and the probes of a recording."""
    probes.loc[:, list(COLUMNS)].to_parquet(folder / "prompts.parquet", index=False)
    (folder / "manifest.json").write_text(manifest.model_dump_json(indent=2), encoding="utf-8")


def read_recording(folder: Path, *, layer: int) -> Recording:
    """Read one layer of a recording as float32 arrays (1, tokens, d_model).

    Raises:
        SchemaError: a file is missing or damaged, or the layer was not recorded.
    """
    manifest = read_manifest(folder / "manifest.json", RecordingManifest)
    if layer not in manifest.layers:
        raise SchemaError(
            f"The recording in {folder} has no layer {layer}; it has {manifest.layers}."
        )
    row = manifest.layers.index(layer)
    try:
        probes = pd.read_parquet(folder / "prompts.parquet")
        with safe_open(folder / ACTIVATIONS, framework="np") as file:
            base, adapted = (
                file.get_slice(name)[row : row + 1].astype(np.float32) for name in MODELS
            )
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise SchemaError(
            f"The recording in {folder} cannot be read ({error}); record the run again."
        ) from None
    if missing := [name for name in COLUMNS if name not in probes]:
        raise SchemaError(
            f"The recording in {folder} lacks the columns {', '.join(missing)}; record the run "
            "again."
        )
    return Recording(manifest, probes, base, adapted)
