"""What an adapter on the Hub holds, according to its config and the headers of its weights.

The weights themselves are not downloaded, so a large adapter is inspected as fast as a small one.
Torch-free.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from analysis.adapters.choices import is_dora
from analysis.adapters.files import INDEX, WEIGHTS, read_json
from analysis.adapters.load import load_adapter
from analysis.errors import AdapterError, NotFoundError
from analysis.spectra.report import adapter_report
from grasp.hub.repository import (
    ADAPTER_CONFIG,
    HubName,
    Pinned,
    check_adapter,
    download_snapshot,
    fetch_adapter,
    pin_revision,
)


@dataclass(frozen=True)
class Listing:
    """A repository at a commit, and the adapters in it."""

    at: Pinned
    adapters: tuple[HubName, ...]


@dataclass(frozen=True)
class Outline:
    """A report as in `analysis.spectra.report`, its origin, and whether the adapter is a DoRA.

    `report` is None for a DoRA unless its low-rank part was asked for.
    """

    report: dict[str, Any] | None
    source: dict[str, str]
    dora: bool


def list_adapters(name: HubName) -> Listing:
    """The adapters in a repository, or in the subfolder that is named.

    Raises:
        NotFoundError: as `grasp.hub.repository.pin_revision`.
    """
    at = pin_revision(name.repository, name.revision)
    if at.files is None:
        return Listing(at, (name,))
    ending = f"/{ADAPTER_CONFIG}"
    folders = sorted(
        file.removesuffix(ADAPTER_CONFIG).rstrip("/")
        for file in at.files
        if f"/{file}".endswith(ending)
    )
    within = [one for one in folders if f"{one}/".startswith(f"{name.subfolder}/".lstrip("/"))]
    return Listing(at, tuple(replace(name, subfolder=one) for one in within))


def read_outline(name: HubName, at: Pinned, *, low_rank_part: bool = False) -> Outline:
    """What one adapter of a repository holds; from the local cache if the Hub is unreachable.

    Raises:
        NotFoundError: it cannot be reached or read.
        InputError: it is not an adapter, or is refused; the message says why.
    """
    if at.files is None:
        folder, source = fetch_adapter(name)
        return _read(name, folder, source, low_rank_part)
    prefix = f"{name.subfolder}/" if name.subfolder else ""
    check_adapter(name, at.files, prefix, pickle=False)
    snapshot = download_snapshot(at, [prefix + ADAPTER_CONFIG, prefix + INDEX]) / name.subfolder
    source = {"repository": at.repository, "revision": at.commit, "asked": str(name)}
    with tempfile.TemporaryDirectory(prefix="grasp-") as temporary:
        folder = Path(temporary)
        _copy_headers(snapshot, folder, at, prefix)
        return _read(name, folder, source, low_rank_part)


def _read(name: HubName, folder: Path, source: dict[str, str], low_rank_part: bool) -> Outline:
    try:
        dora = is_dora(read_json(folder, ADAPTER_CONFIG))
        if dora and not low_rank_part:
            return Outline(None, source, dora)
        found = adapter_report(load_adapter(folder, low_rank_part=low_rank_part))
    except AdapterError as error:
        raise AdapterError(str(error).replace(str(folder), str(name))) from None
    return Outline(found | {"path": str(name)}, source, dora)


def _copy_headers(snapshot: Path, folder: Path, at: Pinned, prefix: str) -> None:
    """Copy config and index, and write each weight file with its full size but only its header."""
    shutil.copyfile(snapshot / ADAPTER_CONFIG, folder / ADAPTER_CONFIG)
    files = [WEIGHTS]
    if at.files is not None and f"{prefix}{INDEX}" in at.files:
        shutil.copyfile(snapshot / INDEX, folder / INDEX)
        placed = read_json(folder, INDEX).get("weight_map")
        names = placed.values() if isinstance(placed, dict) else ()
        files = sorted(
            {name for name in names if isinstance(name, str) and Path(name).name == name}
        )
    for name in files:
        _write_header(at, prefix + name, folder / name)


def _write_header(at: Pinned, file: str, target: Path) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub import constants as hub

    try:
        found = HfApi(endpoint=hub.ENDPOINT).parse_safetensors_file_metadata(
            at.repository, file, revision=at.commit
        )
        end = max((one.data_offsets[1] for one in found.tensors.values()), default=0)
        header = json.dumps(
            {
                key: {"dtype": one.dtype, "shape": one.shape, "data_offsets": one.data_offsets}
                for key, one in found.tensors.items()
            }
        ).encode()
        with target.open("wb") as stream:
            stream.write(len(header).to_bytes(8, "little") + header)
            stream.truncate(8 + len(header) + end)  # a hole, which takes no disk space
    except Exception as error:  # an error of the HTTP library, or an invalid header
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise NotFoundError(
            f"The header of {file} in {at.repository} could not be read ({reason}); try again, or "
            "download the repository and give its folder."
        ) from None
