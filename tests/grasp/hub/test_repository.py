"""Adapters by their Hub id, from a server of the test's own: what is downloaded, pinned and stored,
what an unreachable Hub leaves, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.errors import InputError, NotFoundError
from analysis.store.workspace import Workspace
from grasp.__main__ import main
from grasp.commands.resolve import adapter_place
from grasp.hub.repository import HubName, fetch_adapter, hub_name, pin_revision
from tests.support.hub_server import Hub, reached

WriteAdapter = Callable[..., Path]
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub, with a cache of its own; the constants are what the environment would set."""
    with reached(monkeypatch, tmp_path / "cache") as server:
        yield server


def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


def repository(folder: Path, write_adapter: WriteAdapter) -> Path:
    """An adapter beside what else such repositories hold."""
    write_adapter(folder=folder)
    for name in ("training_args.bin", "adapter_model.bin", "optimizer.pt", "README.md"):
        (folder / name).write_text("not to be downloaded")
    return folder


# What a word means


@pytest.mark.parametrize(
    ("word", "expected"),
    {
        "org/name": HubName("org/name"),
        "org/name@v1.0": HubName("org/name", revision="v1.0"),
        "org/name@refs/pr/3": HubName("org/name", revision="refs/pr/3"),
        "org/name/checkpoint-100": HubName("org/name", "checkpoint-100"),
        "o-r.g/n_a.me/a/b@main": HubName("o-r.g/n_a.me", "a/b", "main"),
        "name": None,
        "./org/name": None,
        "/org/name": None,
        "../name": None,
        "org/../name": None,
        "org/name/../x": None,
        "org/name@": None,
        "org/na--me": None,
        "org/name/": None,
        "org name/x": None,
        "": None,
    }.items(),
)
def test_a_hub_id_is_told_from_a_path(word: str, expected: HubName | None) -> None:
    assert hub_name(word) == expected
    assert expected is None or str(expected) == word


@given(st.text(max_size=30))
def test_no_word_means_a_place_outside_its_repository(word: str) -> None:
    name = hub_name(word)
    if name is not None:
        parts = f"{name.repository}/{name.subfolder}".split("/")
        assert ".." not in parts
        assert not word.startswith(("/", "."))


# What is downloaded and stored


def test_the_command_takes_a_hub_id_and_says_which_commit_it_read(
    tmp_path: Path, hub: Hub, write_adapter: WriteAdapter
) -> None:
    """In a process of its own, with nothing but the environment to say where the Hub is."""
    commit = hub.publish("org/name", repository(tmp_path / "remote", write_adapter))
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    env.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-m", "grasp", "spectrum", "org/name", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["source"] == {"repository": "org/name", "revision": commit, "asked": "org/name"}
    assert len(found["modules"]) == 4
    assert sorted(p.name for p in (tmp_path / "home").rglob("*.json") if p.is_symlink())
    assert not (tmp_path / "workspace").exists()


def test_only_the_adapters_files_are_downloaded(
    tmp_path: Path, hub: Hub, write_adapter: WriteAdapter
) -> None:
    commit = hub.publish("org/name", repository(tmp_path / "remote", write_adapter))
    folder, source = fetch_adapter(HubName("org/name"))
    assert sorted(p.name for p in folder.iterdir()) == sorted(ADAPTER)
    assert folder.name == source["revision"] == commit
    for name in ADAPTER:
        assert (folder / name).read_bytes() == (tmp_path / "remote" / name).read_bytes()
    assert not any("bin" in asked or "optimizer" in asked for asked in hub.asked)


def test_an_adapters_own_tokenizer_comes_with_it(
    tmp_path: Path, hub: Hub, write_adapter: WriteAdapter
) -> None:
    remote = repository(tmp_path / "remote", write_adapter)
    (remote / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (remote / "tokenizer_config.json").write_text("{}")
    hub.publish("org/name", remote)
    folder, _ = fetch_adapter(HubName("org/name"))
    beside = {p.name for p in folder.iterdir()} - set(ADAPTER)
    assert beside == {"chat_template.jinja", "tokenizer_config.json"}
    workspace = Workspace.create(tmp_path / "w")
    assert main(["import", "org/name", "--workspace", str(workspace.root), "--base", "b"]) == 0
    run = workspace.run("name")
    assert run.config["model"] == {"tokenizer": "runs/name/adapter"}
    template = workspace.folder("runs", "name") / "adapter" / "chat_template.jinja"
    assert template.read_text() == "{{ messages[0].content }}"


def test_a_revision_and_a_subfolder_are_those_that_were_named(
    tmp_path: Path, hub: Hub, write_adapter: WriteAdapter
) -> None:
    write_adapter({"lora_alpha": 8}, folder=tmp_path / "old")
    old = hub.publish("org/name", tmp_path / "old", revision="v1")
    repository(tmp_path / "new" / "run", write_adapter)
    new = hub.publish("org/name", tmp_path / "new")
    folder, source = fetch_adapter(HubName("org/name", revision="v1"))
    assert source == {"repository": "org/name", "revision": old, "asked": "org/name@v1"}
    assert json.loads((folder / "adapter_config.json").read_text())["lora_alpha"] == 8
    folder, source = fetch_adapter(HubName("org/name", "run"))
    assert source["revision"] == new != old
    assert source["subfolder"] == folder.name == "run"
    assert fetch_adapter(HubName("org/name", revision=old[:40]))[1]["revision"] == old


def test_a_pickle_is_downloaded_only_where_it_is_asked_for(
    tmp_path: Path, hub: Hub, write_adapter: WriteAdapter
) -> None:
    repository(tmp_path / "remote", write_adapter)
    (tmp_path / "remote" / "adapter_model.safetensors").unlink()
    hub.publish("org/name", tmp_path / "remote")
    with pytest.raises(InputError, match=r"org/name has only adapter_model\.bin, a pickle"):
        fetch_adapter(HubName("org/name"))
    assert not any("adapter_model.bin" in asked for asked in hub.asked)
    folder, _ = fetch_adapter(HubName("org/name"), pickle=True)
    assert (folder / "adapter_model.bin").is_file()
    assert not (folder / "training_args.bin").exists()


def test_an_imported_run_names_its_commit_and_holds_its_files(
    tmp_path: Path, hub: Hub, write_adapter: WriteAdapter, capsys: pytest.CaptureFixture[str]
) -> None:
    repository(tmp_path / "remote" / "inner", write_adapter)
    write_adapter({"revision": "abc"}, folder=tmp_path / "remote")
    commit = hub.publish("org/name", tmp_path / "remote")
    fetch_adapter(HubName("org/name", "inner"))  # another adapter of the same snapshot
    argv = ["import", "org/name", "--workspace", str(tmp_path / "w"), "--json"]
    assert main(argv) == 0, capsys.readouterr().err
    run = Workspace(tmp_path / "w").run("name")
    assert run.source == {"repository": "org/name", "revision": commit, "asked": "org/name"}
    assert run.config["model"] == {"revision": "abc"}
    assert f"org/name on the Hub, commit {commit[:12]}" in run.verdict
    kept = tmp_path / "w" / "runs" / "name" / "adapter"
    assert sorted(p.name for p in kept.iterdir()) == sorted(ADAPTER)
    assert not any(p.is_symlink() for p in kept.iterdir())


# Without a network


def test_the_local_cache_serves_an_unreachable_hub(
    tmp_path: Path, hub: Hub, write_adapter: WriteAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.publish("org/name", repository(tmp_path / "remote", write_adapter))
    there = fetch_adapter(HubName("org/name"))
    unreachable(monkeypatch)
    assert fetch_adapter(HubName("org/name")) == there
    assert fetch_adapter(HubName("org/name", revision=commit))[0] == there[0]
    with pytest.raises(NotFoundError, match="nor in the Hub's local cache"):
        fetch_adapter(HubName("org/name", revision="other"))


def test_without_cache_an_unreachable_hub_is_one_sentence_at_once(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unreachable(monkeypatch)
    started = time.monotonic()
    assert main(["spectrum", "org/name"]) == 2
    assert time.monotonic() - started < 5
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "org/name is neither a folder nor in the Hub's local cache, and the Hub" in said
    assert "http://127.0.0.1:9" in said


def test_a_cache_that_is_not_whole_is_not_used(
    tmp_path: Path, hub: Hub, write_adapter: WriteAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("org/name", repository(tmp_path / "remote", write_adapter))
    folder, _ = fetch_adapter(HubName("org/name"))
    (folder / "adapter_model.safetensors").unlink()
    unreachable(monkeypatch)
    with pytest.raises(NotFoundError, match="org/name could not be downloaded from the Hub: "):
        fetch_adapter(HubName("org/name"))


# What is refused


def test_what_the_hub_does_not_give_is_one_sentence(
    tmp_path: Path, hub: Hub, write_adapter: WriteAdapter
) -> None:
    hub.publish("org/name", repository(tmp_path / "remote", write_adapter))
    hub.closed.add("org/name")
    with pytest.raises(NotFoundError, match="org/name is gated; accept its terms"):
        pin_revision("org/name", None)
    hub.closed.clear()
    with pytest.raises(
        NotFoundError, match="org/name has no revision 'v9'; give one of its branches"
    ):
        pin_revision("org/name", "v9")
    with pytest.raises(NotFoundError, match="The Hub has no repository org/other"):
        pin_revision("org/other", None)


def test_a_repository_without_an_adapter_is_refused_and_subfolders_are_named(
    tmp_path: Path, hub: Hub, write_adapter: WriteAdapter
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "config.json").write_text("{}")
    hub.publish("org/model", plain)
    with pytest.raises(InputError, match=r"org/model holds no adapter_config\.json"):
        fetch_adapter(HubName("org/model"))
    for name in ("a", "b"):
        write_adapter(folder=tmp_path / "several" / name)
    hub.publish("org/several", tmp_path / "several", revision="v1")
    with pytest.raises(InputError, match="give org/several/a@v1, org/several/b@v1"):
        fetch_adapter(HubName("org/several", revision="v1"))
    (tmp_path / "several" / "a" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="org/several/a@v1 has no weights"):
        fetch_adapter(HubName("org/several", "a", "v1"))


def test_a_folder_comes_before_the_hub(
    tmp_path: Path, hub: Hub, write_adapter: WriteAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapter(folder=tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    place = adapter_place(Workspace(tmp_path / "w"), "org/name")
    assert (place.folder, place.source, place.name) == (Path("org/name"), {}, "name")
    assert hub.asked == []


@pytest.mark.parametrize("word", ["none", "a/b/../c", "./none", "/no/where", "a b/c", "no name"])
def test_a_word_that_means_nothing_says_what_it_may_be(tmp_path: Path, word: str) -> None:
    with pytest.raises(NotFoundError, match=r"nor a run called .* or a Hub id"):
        adapter_place(Workspace(tmp_path / "w"), word)
