"""The tensors of an adapter's safetensors files: headers are read at once, values on demand.

Values are read with plain file reads rather than through a memory map, so that streaming an
adapter of any size keeps only the current tensor in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from analysis.errors import AdapterError
from analysis.text import escape_unprintable
from analysis.values import Json

CONFIG = "adapter_config.json"
STEM = "adapter_model"
WEIGHTS = f"{STEM}.safetensors"
INDEX = f"{WEIGHTS}.index.json"
SHARDS = f"{STEM}-*.safetensors"
PICKLE = f"{STEM}.bin"
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}

_MAX_JSON_BYTES = 64 << 20
_MAX_HEADER_BYTES = 64 << 20


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as its file's header describes it; `kind` is the safetensors name of its dtype."""

    file: Path
    key: str
    kind: str
    shape: tuple[int, ...]
    offset: int

    def read(self) -> NDArray[np.float32]:
        """The values as float32, of the tensor's shape.

        Raises:
            AdapterError: they cannot be read, or are not finite in float32.
        """
        stored = np.uint16 if self.kind == "BF16" else np.dtype(DTYPES[self.kind])
        count = math.prod(self.shape)
        try:
            values = np.fromfile(self.file, stored, count, offset=self.offset)
        except OSError as error:
            raise AdapterError(f"{self.file} cannot be read ({error.strerror}).") from error
        if values.size != count:
            refuse(self.file, f"ended within {self.key}: it was truncated or changed while being "
                   "read", "copy or download it again")  # fmt: skip
        return self._finite(_float32(values)).reshape(self.shape)

    def _finite(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        if not np.isfinite(values).all():
            refuse(self.file.parent, f"holds NaN or infinite values in {self.key}",
                   "use an earlier checkpoint or train again")  # fmt: skip
        return values


@dataclass(frozen=True, eq=False)
class StoredHalf:
    """One stored half of an update: a whole tensor, or one expert's part of a fused parameter.

    PEFT stacks the experts' halves: expert e has rows e·r … (e+1)·r − 1 of lora_A (E·r, d_in)
    and every E-th column, from column e on, of lora_B (d_out, r·E).  If `turned`, the half is
    the transpose of what is stored.
    """

    tensor: StoredTensor
    half: str
    expert: int = 0
    experts: int = 1
    turned: bool = False
    last: dict[str, NDArray[np.float32]] = field(default_factory=dict, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(r, d_in) for a lora_A, (d_out, r) for a lora_B; swapped if `turned`."""
        rows, columns = self._shape
        return (columns, rows) if self.turned else (rows, columns)

    @property
    def _shape(self) -> tuple[int, int]:
        rows, columns = self.tensor.shape
        if self.half == "A":
            return rows // self.experts, columns
        return rows, columns // self.experts

    def read(self) -> NDArray[np.float32]:
        """The values as float32; raises AdapterError as `StoredTensor.read`."""
        if self.experts == 1:
            values = self.tensor.read()
        elif self.half == "A":
            values = self._rows().read()
        else:
            values = np.ascontiguousarray(self._whole()[:, self.expert :: self.experts])
        return values.T if self.turned else values

    def transposed(self) -> StoredHalf:
        """The same half with rows and columns swapped."""
        return replace(self, turned=not self.turned)

    def _rows(self) -> StoredTensor:
        r, d_in = self._shape
        size = 2 if self.tensor.kind == "BF16" else np.dtype(DTYPES[self.tensor.kind]).itemsize
        skipped = self.expert * r * d_in * size
        one = self.tensor
        return StoredTensor(one.file, one.key, one.kind, (r, d_in), one.offset + skipped)

    def _whole(self) -> NDArray[np.float32]:
        """All experts' columns; they are interleaved, so `last` keeps the tensor read last."""
        if self.tensor.key not in self.last:
            self.last.clear()
            self.last[self.tensor.key] = self.tensor.read()
        return self.last[self.tensor.key]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder's safetensors file, or of the shards its index lists.

    Only headers are read.

    Raises:
        AdapterError: files are missing, damaged, inconsistent, or links out of the folder.
    """
    if (folder / INDEX).exists():
        if (folder / WEIGHTS).exists():
            refuse(
                folder, f"holds both {WEIGHTS} and {INDEX}", "remove the one that is out of date"
            )
        return _shards(folder, _weight_map(folder))
    if not (folder / WEIGHTS).exists() and (folder / PICKLE).exists():
        refuse(folder, f"has only {PICKLE}, a pickle, which can run code when it is read",
               "save the adapter again with safe_serialization=True, or allow it with "
               "--allow-pickle")  # fmt: skip
    return _header(folder, WEIGHTS)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the folder's weights: one safetensors file, or an index and its shards.

    Raises:
        AdapterError: as `own_file`, or the index is damaged.
    """
    if not (folder / INDEX).exists():
        return [own_file(folder, WEIGHTS)]
    shards = sorted(set(_weight_map(folder).values()))
    return [own_file(folder, name) for name in (INDEX, *shards)]


def own_file(folder: Path, name: str) -> Path:
    """The path of file `name` in a folder.

    Links out of the folder are refused, since a folder may come from anywhere.  The exception
    are links of a Hugging Face Hub cache, from `snapshots/<revision>` to the `blobs` next to it.

    Raises:
        AdapterError: the file is missing, not a regular file, or a link out of the folder.
    """
    file = folder / name
    if not file.is_file():
        refuse(folder, f"has no file {name}", "copy the whole folder that PEFT saved")
    target, home = file.resolve(), folder.resolve()
    in_cache = any(
        parent.parent.name == "snapshots" and target.parent == parent.parent.parent / "blobs"
        for parent in (home, *home.parents[:2])
    )
    if not target.is_relative_to(home) and not in_cache:
        refuse(folder, f"links {name} to a file outside the folder", "copy the file itself")
    return file


def read_json(folder: Path, name: str, *, limit: int = _MAX_JSON_BYTES) -> Json:
    """The JSON object in a file of the folder.

    Raises:
        AdapterError: the file is missing, larger than `limit` bytes, or not a JSON object.
    """
    file = own_file(folder, name)
    if file.stat().st_size > limit:
        refuse(folder, f"has a {name} of more than {limit >> 20} MiB", "save the adapter again")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise AdapterError(
            f"{folder}: {name} is not valid JSON ({_one_line(error)}); save the adapter again."
        ) from error
    except OSError as error:
        raise AdapterError(f"{folder}: {name} cannot be read ({error.strerror}).") from error
    if not isinstance(content, dict):
        refuse(folder, f"has a {name} that is not a JSON object", "save the adapter again")
    return content


def refuse(folder: Path, problem: str, remedy: str) -> NoReturn:
    """Raise AdapterError with the message "<folder> <problem>; <remedy>."."""
    raise AdapterError(escape_unprintable(f"{folder} {problem}; {remedy}."))


def _weight_map(folder: Path) -> dict[str, str]:
    weight_map = read_json(folder, INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        refuse(folder, f"has an {INDEX} without a weight_map of tensors", "save the adapter again")
    for key, name in weight_map.items():
        plain = isinstance(name, str) and name.endswith(".safetensors") and "\0" not in name
        if not plain or Path(name).name != name or "\\" in name:
            shown = repr(name)[:60]
            refuse(folder, f"has an {INDEX} that puts {key[:120]} into {shown}",
                   "expected the name of a safetensors file in the folder")  # fmt: skip
    return weight_map


def _shards(folder: Path, weight_map: Mapping[str, str]) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for name in sorted(set(weight_map.values())):
        for key, tensor in _header(folder, name).items():
            if key in found:
                refuse(folder, f"holds {key} in {found[key].file.name} and in {name}",
                       "remove the shard that is out of date")  # fmt: skip
            if weight_map.get(key) != name:
                refuse(folder, f"holds {key} in {name}, where its index does not put it",
                       "copy the index and its shards together")  # fmt: skip
            found[key] = tensor
    missing = sorted(set(weight_map) - set(found))
    if missing:
        refuse(folder, f"has no {missing[0]} in {weight_map[missing[0]]}, where its index puts it",
               "copy the index and its shards together")  # fmt: skip
    return found


def _header(folder: Path, name: str) -> dict[str, StoredTensor]:
    """Tensors of one file; opening it with safetensors checks that sizes and offsets agree."""
    file = own_file(folder, name)
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = stream.read(length) if length <= _MAX_HEADER_BYTES else b""
        if header:
            with safe_open(file, framework="numpy"):
                entries = json.loads(header)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise AdapterError(
            f"{folder}: {name} is truncated or not a safetensors file ({_one_line(error)}); "
            "copy or download it again."
        ) from error
    if not header:
        refuse(folder, f"has a {name} whose header claims {length} bytes (expected 1 byte to "
               f"{_MAX_HEADER_BYTES >> 20} MiB)", "copy or download it again")  # fmt: skip
    return {
        key: StoredTensor(
            file, key, one["dtype"], tuple(one["shape"]), length + 8 + one["data_offsets"][0]
        )
        for key, one in entries.items()
        if key != "__metadata__"
    }


def _float32(values: NDArray[np.generic]) -> NDArray[np.float32]:
    if values.dtype == np.uint16:
        # bfloat16 is the upper half of float32, so shifting is exact.
        return (values.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # the caller refuses values that overflow float32
        return values.astype(np.float32, copy=False)


def _one_line(error: Exception) -> str:
    return escape_unprintable(" ".join(str(error).split()))[:160]
