"""Adapters of every kind on the pages: looked at, added, drawn; and what is said where one is not.

The adapters are PEFT's own, on tiny models made from configs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from analysis.adapters.checkpoints import list_checkpoints
from analysis.adapters.choices import adapter_choices
from analysis.errors import InputError
from analysis.store.workspace import Workspace
from dashboard.panels import adapter_facts
from dashboard.queue import needs
from dashboard.state import adapter_cache
from dashboard.state.selection import Key
from grasp.__main__ import main
from grasp.hub.outline import list_adapters, read_outline
from grasp.hub.repository import hub_name
from grasp.jobs import queue
from tests.conftest import WriteAdapter
from tests.dashboard.conftest import Open, words
from tests.support import tiny
from tests.support.hub_server import Hub, reached
from tests.support.peft_oracle import saved

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "experts": (
        "mixtral",
        {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
    "ends": (
        "llama",
        {
            "target_modules": ["embed_tokens", "o_proj", "lm_head"],
            "rank_pattern": {"o_proj": 5},
        },
    ),
    "one-layer": (
        "llama",
        {
            "target_modules": ["q_proj", "o_proj"],
            "layers_to_transform": 1,
            "modules_to_save": ["lm_head"],
        },
    ),
    "dora": ("llama", {"target_modules": ["o_proj"], "use_dora": True}),
}
Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("adapters")
    return cache(lambda kind: saved(root / kind, KINDS[kind][0], **KINDS[kind][1]).folder)


@pytest.fixture
def several(made: Made, tmp_path: Path) -> Path:
    for name in ("persona", "task"):
        shutil.copytree(made("one-layer"), tmp_path / "several" / name)
    return tmp_path / "several"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with reached(monkeypatch, tmp_path / "cache") as server:
        yield server


def imported(folder: Path | str, workspace: Workspace, *options: str) -> str:
    """The id of a run made of an adapter by the command that the page shows."""
    name = Path(folder).name
    argv = ["import", str(folder), "--base", "some/base", "--out", name, *options]
    assert main([*argv, "--workspace", str(workspace.root)]) == 0
    return name


def look(test: Any, word: str) -> Any:
    test.text_input(key=Key.ADAPTER_PATH).set_value(word)
    return test.button(key=Key.ADAPTER_LOOK).click().run()


# Looking and adding


def test_a_folder_is_looked_at_then_added_by_the_command_that_is_shown(
    made: Made, empty: Workspace, open_page: Open, no_workers: list[list[str]]
) -> None:
    folder = made("one-layer")
    test = look(open_page("workspace", empty), f" {folder} ")
    said = words(test)
    assert "2 modules in layer 1 · 432 parameters · float32" in said
    assert "fully trained modules" in said
    assert "The adapter names no base model" in said
    assert test.button(key=Key.ADAPTER_ADD).disabled
    assert queue.list_recent(empty.database) == []
    test.text_input(key=f"{Key.ADAPTER_BASE}:{folder}").set_value("org/base").run()
    command = f"import {folder} --out one-layer --base org/base --workspace {empty.root}"
    assert f"grasp {command}" in words(test)
    test.button(key=Key.ADAPTER_ADD).click().run()
    assert not test.exception
    (job,) = queue.list_recent(empty.database)
    assert job.argv == command.split()
    assert f"Job {job.id}: Import one-layer" in words(test)
    assert test.text_input(key=Key.ADAPTER_PATH).value == f" {folder} "
    assert len(no_workers) == 1
    assert main(job.argv) == 0
    assert empty.run("one-layer").base_model == "org/base"


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        ("", "Name the folder of an adapter"),
        ("/no/such/folder", "is neither a folder on this machine nor a Hub id"),
        ("org/name/../x", "is neither a folder on this machine nor a Hub id"),
    ],
)
def test_what_is_no_adapter_is_said_and_what_was_typed_stays(
    typed: str, reason: str, empty: Workspace, open_page: Open
) -> None:
    test = look(open_page("workspace", empty), typed)
    assert reason in words(test)
    assert test.text_input(key=Key.ADAPTER_PATH).value == typed
    assert Key.ADAPTER_ADD not in [button.key for button in test.button]
    assert queue.list_recent(empty.database) == []


def test_a_name_that_is_taken_is_refused_and_nothing_typed_is_lost(
    made: Made, empty: Workspace, open_page: Open
) -> None:
    folder = made("one-layer")
    imported(folder, empty)
    test = look(open_page("workspace", empty), str(folder))
    out = f"{Key.ADAPTER_OUT}:{folder}:one-layer"
    base = f"{Key.ADAPTER_BASE}:{folder}"
    assert test.text_input(key=out).value == "one-layer-2"
    test.text_input(key=base).set_value("org/base")
    for wanted, reason in (
        ("one-layer", "A run named one-layer already exists"),
        ("a b", "letters"),
    ):
        test.text_input(key=out).set_value(wanted).run()
        assert reason in words(test)
        assert test.button(key=Key.ADAPTER_ADD).disabled
        assert test.text_input(key=base).value == "org/base"


def test_one_of_several_adapters_is_chosen_from_a_list(
    several: Path, empty: Workspace, open_page: Open
) -> None:
    test = look(open_page("workspace", empty), str(several))
    assert Key.ADAPTER_ADD not in [button.key for button in test.button]
    choice = test.selectbox(key=f"{Key.ADAPTER_NAME}:{several}")
    assert choice.options == ["persona", "task"]
    assert choice.value is None
    choice.set_value("task").run()
    assert f"grasp import {several} --out task --name task" in words(test)


def test_a_dora_is_added_only_in_so_many_words(
    made: Made, empty: Workspace, open_page: Open
) -> None:
    folder = made("dora")
    test = look(open_page("workspace", empty), str(folder))
    assert adapter_facts.LOW_RANK in words(test)
    assert Key.ADAPTER_ADD not in [button.key for button in test.button]
    test.checkbox(key=f"{Key.ADAPTER_LOW_RANK}:{folder}").check().run()
    said = words(test)
    assert "--low-rank-part" in said
    assert "trained DoRA magnitudes" in said


def trajectory(made: Made, root: Path) -> Path:
    for step in (5, 10, 15):
        shutil.copytree(made("one-layer"), root / f"checkpoint-{step}")
    return root


def test_a_folder_of_checkpoints_becomes_one_run_with_a_trajectory(
    made: Made, tmp_path: Path, empty: Workspace, open_page: Open
) -> None:
    folder = trajectory(made, tmp_path / "trained")
    test = look(open_page("workspace", empty), str(folder))
    assert f"grasp import {folder} --out trained --checkpoints" in words(test)
    run = imported(folder, empty, "--checkpoints")
    copied = list_checkpoints(empty.folder("runs", run))
    assert [one.step for one in copied] == [5, 10, 15, None]
    test = open_page("spectra", empty, run=run)
    said = words(test)
    assert "Over training" in said
    assert not test.error
    # Only one of the checkpoints is chosen where no trajectory is wanted.
    test = look(open_page("workspace", empty), str(folder))
    test.checkbox(key=f"{Key.ADAPTER_STEPS}:{folder}").uncheck().run()
    names = test.selectbox(key=f"{Key.ADAPTER_NAME}:{folder}").options
    assert names == ["checkpoint-5", "checkpoint-10", "checkpoint-15"]


def test_checkpoints_below_a_folder_are_looked_at_where_they_lie(
    made: Made, tmp_path: Path, empty: Workspace, open_page: Open
) -> None:
    """As a run of the workbench that was stopped has them."""
    folder = tmp_path / "stopped"
    trajectory(made, folder / "checkpoints")
    test = look(open_page("workspace", empty), str(folder))
    assert f"grasp import {folder} --out stopped --checkpoints" in words(test)
    assert "Include its 3 checkpoints, steps 5 to 15" in [box.label for box in test.checkbox]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "not valid JSON"),
        (
            lambda folder: (folder / "adapter_model.safetensors").write_bytes(
                (folder / "adapter_model.safetensors").read_bytes()[:-4]
            ),
            "truncated or not a safetensors file",
        ),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no file"),
    ],
)
def test_a_half_written_folder_is_refused_in_words(
    spoil: Callable[[Path], object], reason: str, made: Made, tmp_path: Path,
    empty: Workspace, open_page: Open,
) -> None:  # fmt: skip
    folder = tmp_path / "half"
    shutil.copytree(made("one-layer"), folder)
    spoil(folder)
    test = look(open_page("workspace", empty), str(folder))
    assert reason in words(test)
    assert Key.ADAPTER_ADD not in [button.key for button in test.button]


# The Hub


def test_an_adapter_on_the_hub_is_looked_at_by_its_header_alone(
    hub: Hub, made: Made, empty: Workspace, open_page: Open, tmp_path: Path
) -> None:
    commit = hub.publish("org/name", made("one-layer"))
    test = look(open_page("workspace", empty), "https://huggingface.co/org/name")
    said = words(test)
    assert "2 modules in layer 1 · 432 parameters" in said
    assert f"org/name, commit {commit}" in said
    assert "grasp import org/name --out name" in said
    snapshot = next((tmp_path / "cache").rglob("adapter_config.json")).parent
    assert not (snapshot / "adapter_model.safetensors").exists()
    run = imported("org/name", empty)
    test = open_page("workspace", empty)
    assert f"org/name, commit {commit}" in words(test)
    assert empty.run(run).source["revision"] == commit


def test_one_of_several_adapters_on_the_hub_is_chosen(
    hub: Hub, several: Path, empty: Workspace, open_page: Open
) -> None:
    hub.publish("org/two", several)
    test = look(open_page("workspace", empty), "org/two@main")
    choice = test.selectbox(key=f"{Key.ADAPTER_NAME}:org/two@main")
    assert choice.options == ["org/two/persona@main", "org/two/task@main"]
    choice.set_value("org/two/task@main").run()
    assert "grasp import org/two/task@main --out task" in words(test)


def test_a_hub_that_cannot_be_reached_is_one_sentence(
    hub: Hub, empty: Workspace, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    test = look(open_page("workspace", empty), "org/far")
    assert "nor in the Hub's local cache, and the Hub cannot be reached" in words(test)
    assert test.text_input(key=Key.ADAPTER_PATH).value == "org/far"


def test_outlines_are_what_the_loader_says_of_the_whole_folder(
    hub: Hub, made: Made, write_adapter: WriteAdapter
) -> None:
    for kind in ("experts", "one-layer"):
        hub.publish(f"org/{kind}", made(kind))
        name = hub_name(f"org/{kind}")
        assert name is not None
        found = read_outline(name, list_adapters(name).at).report
        whole = adapter_cache.adapter_report(adapter_cache.load_adapter(made(kind)))
        assert found == whole | {"path": f"org/{kind}"}


def test_damaged_headers_on_the_hub_are_refused(hub: Hub, made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(made("one-layer"), folder)
    (folder / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    hub.publish("org/damaged", folder)
    name = hub_name("org/damaged")
    assert name is not None
    with pytest.raises(LookupError, match=r"header of adapter_model\.safetensors in org/damaged"):
        read_outline(name, list_adapters(name).at)
    (folder / "adapter_model.safetensors").unlink()
    hub.publish("org/damaged", folder)
    with pytest.raises(InputError, match="has no weights"):
        read_outline(name, list_adapters(name).at)


def test_checkpoints_of_a_repository_are_not_promised(
    hub: Hub, made: Made, empty: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.publish("org/name", made("one-layer"))
    argv = ["import", "org/name", "--checkpoints", "--workspace", str(empty.root)]
    assert main(argv) == 2
    assert "is on the Hub, and --checkpoints needs a folder" in capsys.readouterr().err


# Choices


def test_choices_of_names_within_one_file(write_adapter: WriteAdapter, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = write_adapter()
    file = folder / "adapter_model.safetensors"
    plain = load_file(file)
    save_file(
        {
            key.replace(".weight", f".{name}.weight"): value
            for key, value in plain.items()
            for name in ("a", "b")
        },
        file,
    )
    found = adapter_choices(folder)
    assert found.names == ("a", "b")
    assert not found.itself
    assert adapter_choices(tmp_path / "nowhere").names == ()


# Spectra


@pytest.mark.parametrize("kind", ["gpt2", "experts", "ends", "one-layer"])
def test_spectra_of_every_kind_are_drawn(
    kind: str, made: Made, empty: Workspace, open_page: Open
) -> None:
    run = imported(made(kind), empty)
    test = open_page("spectra", empty, run=run)
    assert not test.error
    squares = test.selectbox(key=Key.MODULE).options
    count = len(adapter_cache.spectra(made(kind)))
    assert f"grasp factors {run} --workspace {empty.root}" in words(test)
    if kind == "experts":
        assert "layer 1, experts.gate_up_proj (3 modules)" in squares
        assert len(squares) < count
        name = "model.layers.1.mlp.experts.2.gate_up_proj"
        test = open_page("spectra", empty, run=run, module=name)
        assert test.selectbox(key=Key.MEMBER).value == name
        assert test.query_params["module"] == name
        test.selectbox(key=Key.MEMBER).select(name.replace(".2.", ".0.")).run()
        assert test.query_params["module"] == name.replace(".2.", ".0.")
    else:
        assert len(squares) == count
    measures = test.segmented_control(key=Key.MAP_MEASURE).options
    assert ("Rank of the adapter" in str(measures)) == (kind in ("ends", "experts"))


def test_a_dora_is_drawn_only_as_its_low_rank_part(
    made: Made, empty: Workspace, open_page: Open
) -> None:
    run = imported(made("dora"), empty, "--low-rank-part")
    test = open_page("spectra", empty, run=run)
    assert f"{run} is a DoRA" in words(test)
    assert Key.MODULE not in [box.key for box in test.selectbox]
    test.checkbox(key=f"{Key.LOW_RANK}-{run}").check().run()
    assert not test.error
    assert len(test.selectbox(key=Key.MODULE).options) == 2


def test_an_adapter_that_went_away_is_said(made: Made, empty: Workspace, open_page: Open) -> None:
    run = imported(made("one-layer"), empty)
    test = open_page("spectra", empty, run=run)
    assert not test.error
    shutil.rmtree(empty.folder("runs", run) / "adapter")
    assert not test.run().exception
    assert "No runs yet" in words(test)
    assert f"The adapter of {run} cannot be read." in words(open_page("workspace", empty))


def test_spectra_are_kept_by_what_the_files_hold(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter_cache.spectra(made("one-layer"))
    shutil.copytree(made("one-layer"), tmp_path / "copy")
    loaded: list[str] = []
    real = adapter_cache.load_adapter

    def counted(path: str, **options: Any) -> Any:
        loaded.append(path)
        return real(path, **options)

    monkeypatch.setattr(adapter_cache, "load_adapter", counted)
    adapter_cache.spectra(tmp_path / "copy")
    assert loaded == []
    config = tmp_path / "copy" / "adapter_config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"lora_alpha": 2 * content["lora_alpha"]}))
    (first, *_) = adapter_cache.spectra(tmp_path / "copy")
    (before, *_) = adapter_cache.spectra(made("one-layer"))
    assert loaded == [str(tmp_path / "copy")]
    assert first.scaling == 2 * before.scaling


# Factors without a base model


def test_factors_of_an_import_need_no_base_and_say_what_the_rest_needs(
    made: Made, empty: Workspace, open_page: Open
) -> None:
    run = imported(made("gpt2"), empty)
    where = ["--workspace", str(empty.root)]
    test = open_page("factors", empty, run=run)
    assert f"grasp factors {run} --workspace {empty.root}" in words(test)
    assert main(["factors", run, *where]) == 0
    for kind, needed in (
        ("activations", "has no probes; give chats to record with --probes FILE."),
        ("dose", "has no prompts; give a prompt set with --prompts FILE."),
        ("rows", "was imported, so its training data is not known"),
        ("overlap", "has no prompts"),
    ):
        test = open_page("factors", empty, run=run, evidence=kind)
        said = words(test)
        assert "Its base model some/base is not on this machine" in said
        assert needed in said
        assert not {Key.RECORD, Key.measure(kind)} & {button.key for button in test.button}
    assert f"grasp dose {run} " in words(open_page("factors", empty, run=run, evidence="dose"))
    assert queue.list_recent(empty.database) == []


def test_tokens_are_read_from_the_files_of_a_base_model_that_is_named(
    made: Made, empty: Workspace, open_page: Open, tmp_path: Path, no_workers: list[list[str]]
) -> None:
    base = tiny.save_base(tmp_path / "base")
    run = imported(made("ends"), empty)
    assert main(["factors", run, "--workspace", str(empty.root)]) == 0
    test = open_page("factors", empty, run=run)
    assert "some/base is neither a folder nor in the Hub's local cache" in words(test)
    test.text_input(key=Key.TOKENS_BASE).set_value(str(base)).run()
    test.button(key=Key.TOKENS_READ).click().run()
    (job,) = queue.list_recent(empty.database)
    assert job.argv[:5] == ["factors", run, "--base", str(base), "--weights-only"]
    assert main(job.argv) == 0
    test = open_page("factors", empty, run=run)
    assert "Not known" not in words(test)
    assert 'class="token"' in "".join(one.value for one in test.html)


def test_a_base_model_is_there_only_when_all_of_it_is(
    made: Made, empty: Workspace, tmp_path: Path
) -> None:
    run = empty.run(imported(made("one-layer"), empty))
    base = tmp_path / "model"
    base.mkdir()
    here = run.model_copy(update={"base_model": str(base)})
    assert "has no weights" in needs.missing_base(empty, here)
    (base / "config.json").write_text("{}")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    (base / "model-1.safetensors").touch()
    assert "has no weights" in needs.missing_base(empty, here)
    (base / "model-2.safetensors").touch()
    assert needs.missing_base(empty, here) == ""
    file = tmp_path / "model.gguf"
    packed = run.model_copy(update={"base_model": str(file)})
    assert "restore it" in needs.missing_base(empty, packed)
    file.touch()
    assert needs.missing_base(empty, packed) == ""
    gone = run.model_copy(update={"base_model": "/no/such/model"})
    assert "restore it" in needs.missing_base(empty, gone)


def test_factors_of_a_dora_are_those_of_its_low_rank_part_once_that_is_said(
    made: Made, empty: Workspace, open_page: Open
) -> None:
    run = imported(made("dora"), empty, "--low-rank-part")
    test = open_page("factors", empty, run=run)
    assert Key.COMPUTE_FACTORS not in [button.key for button in test.button]
    test.checkbox(key=f"{Key.LOW_RANK}-{run}").check().run()
    command = f"factors {run} --low-rank-part --workspace {empty.root}"
    assert f"grasp {command}" in words(test)
    assert main(command.split()) == 0
    assert ": promoted tokens" in words(open_page("factors", empty, run=run))
