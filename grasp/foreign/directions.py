"""Directions found elsewhere: persona vectors as .pt, or .npy files with a choice in JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.errors import InputError
from analysis.factors.routes import LayerDirections

FloatArray = NDArray[np.floating]


@dataclass(frozen=True)
class Import:
    """A file of directions.

    `choice` is a JSON file that selects directions; `layer` keeps only one decoder layer.  If each
    layer has its own .npy file, as in CAFT, `file` is the common beginning of their names.
    """

    file: Path
    choice: Path | None = None
    layer: int | None = None


def read_directions(source: Import, *, n_layers: int, width: int) -> LayerDirections:
    """Read directions in one of two published formats.

    Without a choice, a .pt (or .npy) file holds one direction per layer, the form of persona
    vectors: a matrix (layers, d_model), or (layers + 1, d_model) with the embedding first.  With
    a choice, a JSON object `{"layer": [indices]}` (or `"all"`), plain or under "dict", selects rows
    of matrices (n, d_model), either from `<file><layer>.npy` for each layer or from the one file.

    Args:
        source: the file, and what to take from it.
        n_layers: number of decoder layers of the model.
        width: d_model.

    Raises:
        InputError: a file cannot be read, or does not fit the model.

    Source: github.com/safety-research/persona_vectors (arXiv:2507.21509), whose rows are those
    of `hidden_states`; github.com/cadentj/caft (arXiv:2507.16795).
    """
    if source.choice is None:
        rows, layers = _by_layer(source, n_layers)
    else:
        rows, layers = _chosen(source, source.choice)
    wrong = [layer for layer in layers if not 0 <= layer < n_layers]
    if wrong:
        raise InputError(
            f"{source.file} names layer {wrong[0]}; the model has layers 0 to {n_layers - 1}."
        )
    if source.layer is not None:
        kept = [i for i, layer in enumerate(layers) if layer == source.layer]
        if not kept:
            raise InputError(f"{source.file} has no direction of layer {source.layer}.")
        rows, layers = rows[kept], [source.layer] * len(kept)
    return _checked(source.file, rows, layers, width)


def _by_layer(source: Import, n_layers: int) -> tuple[FloatArray, list[int]]:
    rows = _array(source.file)
    if rows.ndim == 1 and source.layer is not None:
        return rows[None], [source.layer]
    if rows.ndim != 2 or len(rows) not in (n_layers, n_layers + 1):
        raise InputError(
            f"{source.file} holds an array of shape {rows.shape}; expected {n_layers} rows, one "
            f"per decoder layer, or {n_layers + 1} with the embedding first. For a single "
            "direction, name its layer with --layer; to select among several, use --import-json."
        )
    return rows[len(rows) - n_layers :], list(range(n_layers))


def _chosen(source: Import, choice: Path) -> tuple[FloatArray, list[int]]:
    rows, layers = [], []
    for layer, indices in _choice(choice).items():
        matrix = _array(_layer_file(source.file, layer))
        if matrix.ndim != 2:
            raise InputError(
                f"{source.file} holds an array of shape {matrix.shape} for layer {layer}; expected "
                "(directions, d_model)."
            )
        picked = list(range(len(matrix))) if isinstance(indices, str) else indices
        missing = [index for index in picked if not 0 <= index < len(matrix)]
        if missing:
            raise InputError(
                f"{choice} asks for direction {missing[0]} of layer {layer}; {source.file} has "
                f"{len(matrix)}."
            )
        rows += [matrix[index] for index in picked]
        layers += [layer] * len(picked)
    if len({row.shape for row in rows}) != 1:
        raise InputError(f"{choice} selects no directions, or directions of different widths.")
    return np.stack(rows), layers


def _layer_file(file: Path, layer: int) -> Path:
    """The file itself, or the file of this layer if `file` is only the beginning of its name."""
    return file if file.is_file() else Path(f"{file}{layer}.npy")


def _choice(path: Path) -> dict[int, list[int] | str]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}).") from None
    chosen = data.get("dict", data) if isinstance(data, dict) else None
    if not isinstance(chosen, dict) or not all(_is_choice(*item) for item in chosen.items()):
        raise InputError(
            f"{path} is not a choice of directions; expected an object such as "
            '{"12": [0, 3], "20": "all"}.'
        )
    return {int(layer): indices for layer, indices in chosen.items()}


def _is_choice(layer: str, indices: object) -> bool:
    whole = isinstance(indices, list) and all(type(index) is int for index in indices)
    return layer.isdecimal() and (whole or indices == "all")


def _array(file: Path) -> FloatArray:
    """An array in float32 or wider from a .pt or .npy file; nothing in it is executed."""
    if not file.is_file():
        raise InputError(f"There is no file {file}; expected directions as .pt or .npy.")
    found = _tensor(file) if file.suffix in (".pt", ".pth") else _numpy(file)
    if not np.issubdtype(found.dtype, np.floating):
        raise InputError(f"{file} holds numbers of type {found.dtype}; expected floating point.")
    array: FloatArray = found
    return array


def _tensor(file: Path) -> NDArray[Any]:
    import torch

    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling may raise anything
        problem = str(error).strip().splitlines()[0][:160]
        raise InputError(
            f"{file} cannot be read as a plain tensor ({problem}); save a single tensor with "
            "torch.save, or a .npy file."
        ) from None
    if not isinstance(found, torch.Tensor):
        raise InputError(f"{file} holds a {type(found).__name__}; expected one tensor.")
    return (found.float() if found.is_floating_point() else found).numpy()


def _numpy(file: Path) -> NDArray[Any]:
    try:
        found: NDArray[Any] = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as a .npy array ({error}).") from None
    return found


def _checked(file: Path, rows: FloatArray, layers: list[int], width: int) -> LayerDirections:
    if rows.shape[1] != width:
        raise InputError(
            f"{file} holds directions of {rows.shape[1]} dimensions; the adapter's residual stream "
            f"has {width}, so they belong to another model."
        )
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise InputError(f"{file} holds a direction that is zero or not finite; remove it.")
    names = tuple(f"{file.name}, layer {layer}" for layer in layers)
    return LayerDirections(np.asarray(rows / lengths, np.float64), tuple(layers), names)
