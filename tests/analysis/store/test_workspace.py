"""Records in a workspace: written whole or not at all, found again, refused in words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from analysis.errors import InputError, NotFoundError, SchemaError
from analysis.store.factor_table import COLUMNS as FACTOR_COLUMNS
from analysis.store.factor_table import (
    FactorTable,
    read_factors,
    read_run_factors,
    select_directions,
    write_factors,
)
from analysis.store.recording import activation_file, read_recording, write_recording
from analysis.store.records import (
    FactorsManifest,
    Prompt,
    RecordingManifest,
    RunManifest,
    read_jsonl,
    read_manifest,
    sha256,
    split_of,
    write_jsonl,
)
from analysis.store.workspace import (
    Workspace,
    check_not_written,
    partial_of,
    workspace_of,
    writing_folder,
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.create(tmp_path / "w")


def run(run_id: str = "a", **fields: Any) -> RunManifest:
    values = {"title": "t", "method": "naive", "root": run_id, "base_model": "b", "config": {}}
    return RunManifest(id=run_id, **{**values, **fields})


def add(workspace: Workspace, manifest: RunManifest) -> Path:
    with workspace.writing("runs", manifest.id) as folder:
        (folder / "manifest.json").write_text(manifest.model_dump_json())
    return workspace.folder("runs", manifest.id)


def write_and_fail(final: Path, text: str, *, keep: bool) -> None:
    with writing_folder(final, keep=keep) as folder:
        (folder / "manifest.json").write_text(text)
        raise RuntimeError("in the middle")


# Writing


def test_a_folder_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "a"
    with writing_folder(final) as folder:
        (folder / "x").write_text("1")
        assert not final.exists()
    assert (final / "x").read_text() == "1"
    assert list(final.parent.iterdir()) == [final]


@pytest.mark.parametrize("keep", [False, True])
def test_a_failure_leaves_the_old_record_and_nothing_that_is_listed(
    workspace: Workspace, keep: bool
) -> None:
    old = run("a", title="old")
    final = add(workspace, old)
    with pytest.raises(RuntimeError, match="in the middle"):
        write_and_fail(final, run("a", title="new").model_dump_json(), keep=keep)
    listing = workspace.runs()
    assert (listing.records, listing.broken) == ([old], [])
    assert workspace.partial("runs", "a").exists() is keep


def test_what_a_kept_attempt_left_is_found_by_the_next(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="in the middle"):
        write_and_fail(tmp_path / "a", "1", keep=True)
    with writing_folder(tmp_path / "a", keep=True) as folder:
        assert (folder / "manifest.json").read_text() == "1"
    with writing_folder(tmp_path / "a") as folder:
        assert not list(folder.iterdir())
    assert not (tmp_path / "a" / "manifest.json").exists()


_DIES = """
import os, signal, sys
from analysis.store.workspace import Workspace
with Workspace(sys.argv[1]).writing("runs", "b") as folder:
    (folder / "manifest.json").write_text("{")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_is_killed_while_it_writes_leaves_nothing_listed(
    workspace: Workspace,
) -> None:
    add(workspace, run("a"))
    killed = subprocess.run([sys.executable, "-c", _DIES, str(workspace.root)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert workspace.partial("runs", "b").exists()
    listing = workspace.runs()
    assert [r.id for r in listing.records] == ["a"]
    assert listing.broken == []
    with pytest.raises(NotFoundError, match=r"has no 'b'; it has: a\."):
        workspace.run("b")
    add(workspace, run("b"))
    assert [r.id for r in workspace.runs().records] == ["a", "b"]


# Finding


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a", "a/b", "/etc", "a\\b", ".hidden", "-a", "a b", "a\n", "é", "a" * 101],
)
@pytest.mark.parametrize("kind", ["runs", "factors", "recordings", "evaluations"])
def test_an_id_that_would_leave_the_folder_is_refused(
    workspace: Workspace, kind: Any, name: str
) -> None:
    with pytest.raises(InputError, match="is not a valid id; use up to 100 letters"):
        workspace.folder(kind, name)


@given(st.text(max_size=12))
def test_an_id_lies_in_its_folder_or_is_refused(name: str) -> None:
    workspace = Workspace("/somewhere")
    try:
        path = workspace.folder("runs", name)
    except InputError:
        return
    assert path.resolve().parent == Path("/somewhere/runs")
    assert path.name == name


def test_records_are_listed_oldest_first_and_read_back_as_they_were(workspace: Workspace) -> None:
    made = [run(name) for name in ("z", "b", "m")]
    for manifest in reversed(made):
        add(workspace, manifest)
    assert workspace.runs().records == made
    assert workspace.run("b") == made[1]
    assert Workspace(workspace.root / "none").runs().records == []


def test_a_missing_record_names_those_there_are(workspace: Workspace) -> None:
    with pytest.raises(NotFoundError, match=r"runs has no 'a'; it is empty so far\."):
        workspace.run("a")
    add(workspace, run("b"))
    with pytest.raises(NotFoundError, match=r"runs has no 'a'; it has: b\."):
        workspace.run("a")


BROKEN = {
    "an unknown schema": (
        run().model_dump(mode="json") | {"schema_version": 99},
        "has schema version 99; this version of grasp-workbench reads 1. Install the version",
    ),
    "no schema": ({"id": "a"}, "has schema version None"),
    "no object": ([1], "has schema version None"),
    "an unknown field": (
        run().model_dump(mode="json") | {"colour": "red"},
        "does not match its schema: colour: Extra inputs are not permitted.",
    ),
    "another kind": (
        run().model_dump(mode="json") | {"kind": "factors"},
        "does not match its schema: kind: Input should be 'run'.",
    ),
    "half a file": ('{"schema_version": 1, ', "cannot be read as JSON"),
    "no text": (b"\xff\xfe\x00", "cannot be read as JSON"),
    "no file": (None, "is missing; the folder is not a complete record."),
    "a folder": ("", "cannot be read as JSON"),
    "deep": ('{"schema_version": 1, "config": ' + "[" * 100_000, "cannot be read as JSON"),
    "no zone": (
        run("bad").model_dump(mode="json") | {"created": "2026-01-01T00:00:00"},
        "does not match its schema: created: Input should have timezone info.",
    ),
    "a pipe": (None, "manifest.json is neither a file nor a folder; remove it."),
    "another id": (
        run("good").model_dump(mode="json"),
        "a record's folder has its id for a name, so rename it to 'good'.",
    ),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_manifest_that_cannot_be_read_is_listed_as_broken(
    workspace: Workspace, damage: str
) -> None:
    content, message = BROKEN[damage]
    add(workspace, run("good"))
    path = workspace.root / "runs" / "bad" / "manifest.json"
    path.parent.mkdir()
    if damage == "a folder":
        path.mkdir()
    elif damage == "a pipe":
        os.mkfifo(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    listing = workspace.runs()
    assert [r.id for r in listing.records] == ["good"]
    assert [b.id for b in listing.broken] == ["bad"]
    assert message in listing.broken[0].reason
    with pytest.raises(SchemaError) as error:
        workspace.run("bad")
    assert str(error.value) == listing.broken[0].reason


@pytest.mark.parametrize("name", ["code grasp", "code..grasp", os.fsdecode(b"a\xff"), "a\n"])
def test_a_run_whose_folder_was_renamed_is_listed_with_what_to_do(
    workspace: Workspace, name: str
) -> None:
    add(workspace, run("good"))
    add(workspace, run("bad"))
    (workspace.root / "runs" / "bad").rename(workspace.root / "runs" / name)
    listing = workspace.runs()
    assert [r.id for r in listing.records] == ["good"]
    (broken,) = listing.broken
    assert broken.id.isprintable()
    said = "rename it to 'bad'" if name == "code..grasp" else "no valid id for a name; rename it"
    assert said in broken.reason


def test_a_file_beside_the_records_is_not_one(workspace: Workspace) -> None:
    (workspace.root / "runs" / "notes.txt").write_text("x")
    assert workspace.runs() == type(workspace.runs())([], [])


def test_a_manifest_says_how_it_was_made() -> None:
    manifest = run()
    assert manifest.code_version.startswith("0.1.0")
    assert {"torch", "numpy", "peft"} <= manifest.packages.keys()
    assert manifest.created.tzinfo is not None


def test_numbers_that_are_no_numbers_survive_a_manifest(tmp_path: Path) -> None:
    manifest = run(results={"loss": float("nan"), "steps": 3})
    (tmp_path / "manifest.json").write_text(manifest.model_dump_json())
    found = read_manifest(tmp_path / "manifest.json", RunManifest)
    assert np.isnan(found.results["loss"])
    assert found.results["steps"] == 3


# Paths


def test_references_move_with_the_workspace(workspace: Workspace, tmp_path: Path) -> None:
    inside, outside = workspace.root / "data" / "a.jsonl", tmp_path / "b.jsonl"
    for file in (inside, outside):
        file.touch()
    assert workspace.reference(inside) == "data/a.jsonl"
    assert workspace.reference(outside) == str(outside)
    assert workspace.reference("some-org/some-model") == "some-org/some-model"
    moved = Workspace(workspace.root.rename(tmp_path / "moved"))
    assert moved.resolve("data/a.jsonl") == str(tmp_path / "moved" / "data" / "a.jsonl")
    assert moved.resolve(str(outside)) == str(outside)
    assert moved.resolve("some-org/some-model") == "some-org/some-model"


def test_a_workspace_is_found_from_what_lies_in_a_run(workspace: Workspace, tmp_path: Path) -> None:
    folder = add(workspace, run("a"))
    for path in (folder, folder / "adapter"):
        found = workspace_of(path)
        assert found is not None
        assert found.root == workspace.root
    assert workspace_of(tmp_path / "runs" / "a") is None
    assert workspace_of(workspace.root / "data") is None


def test_a_file_is_no_workspace(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(InputError, match="is a file, but a workspace is a folder"):
        Workspace.create(tmp_path / "x")


def test_another_database_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRASP_DATABASE_URL", f"sqlite:///{tmp_path / 'team.db'}")
    Workspace.create(tmp_path / "w")
    assert (tmp_path / "team.db").exists()
    assert not (tmp_path / "w" / "workspace.db").exists()


# Hashes, splits, lines


def test_a_hash_is_of_names_and_contents(tmp_path: Path) -> None:
    def tree(**files: str) -> str:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, text in files.items():
            path = root / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return sha256(root)

    assert tree(a="1", sub__b="2") == tree(sub__b="2", a="1")
    distinct = [tree(a="1"), tree(b="1"), tree(a="2"), tree(a="1", b=""), tree(sub__a="1")]
    assert len(set(distinct)) == 5
    (tmp_path / "file").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "file") == known


def prompt(prompt_id: str, item: str | None) -> Prompt:
    return Prompt(
        id=prompt_id,
        messages=[{"role": "user", "content": "q"}],
        group="g",
        item=item,
        role="task",
        scorer="ended",
    )


@given(st.text(max_size=8), st.text(max_size=8))
def test_prompts_about_one_item_are_of_one_split(first: str, second: str) -> None:
    assert prompt(first, "i").split == prompt(second, "i").split == split_of("g/i")
    assert prompt(first, None).split == split_of(first)


def test_splits_are_halves_that_do_not_move() -> None:
    splits = [split_of(str(n)) for n in range(2000)]
    assert 900 < splits.count("confirmation") < 1100
    # Another hash would mix what was tuned on into what is reported.
    assert [split_of(name)[0] for name in "abcdefgh"] == list("eeeeccce")


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [prompt("ä\u2028\x85", "i").model_dump(), prompt("b", None).model_dump()]
    write_jsonl(tmp_path / "p.jsonl", rows)
    assert [p.model_dump() for p in read_jsonl(tmp_path / "p.jsonl", Prompt)] == rows


def test_lines_may_hold_separators_that_are_no_line_breaks(tmp_path: Path) -> None:
    """JSON allows U+2028 and U+0085 as they are, and other tools write them so."""
    text = json.dumps(prompt("a\u2028b\x85c", None).model_dump(), ensure_ascii=False)
    (tmp_path / "p.jsonl").write_text(text + "\n", encoding="utf-8")
    assert [p.id for p in read_jsonl(tmp_path / "p.jsonl", Prompt)] == ["a\u2028b\x85c"]


# Factors


def factors(run_id: str = "a", *, k: int = 3, width: int = 8) -> FactorTable:
    rng = np.random.default_rng(0)
    rows = {name: np.arange(k, dtype=float) for name in FACTOR_COLUMNS}
    rows |= {
        "id": [f"w{i + 1}" for i in range(k)],
        "side": ["write"] * k,
        "significant": [True] * k,
        "promoted": [["x"]] * k,
        "suppressed": [[]] * k,
    }
    manifest = FactorsManifest(id=run_id, run=run_id, base_model=None, config={})
    directions = rng.standard_normal((width, k)).T  # lies transposed in memory
    return FactorTable(manifest, pd.DataFrame(rows), directions.astype(np.float32))


def save(workspace: Workspace, table: FactorTable) -> Path:
    with workspace.writing("factors", table.manifest.id) as folder:
        write_factors(folder, table)
    return workspace.folder("factors", table.manifest.id)


def test_factors_are_read_back_in_their_order(workspace: Workspace) -> None:
    written = factors()
    save(workspace, written)
    found = read_run_factors(workspace, "a")
    np.testing.assert_array_equal(found.directions, written.directions)
    assert list(found.table["id"]) == ["w1", "w2", "w3"]
    assert list(found.table.columns) == list(FACTOR_COLUMNS)
    assert found.manifest == written.manifest
    np.testing.assert_array_equal(found.direction("w2"), written.directions[1])
    assert found.sha256("w2") == written.sha256("w2") != found.sha256("w1")
    with pytest.raises(NotFoundError, match="Run 'a' has no factor 'w9'; it has w1, w2, w3"):
        found.direction("w9")


def test_factors_are_named_by_run_or_folder(workspace: Workspace, tmp_path: Path) -> None:
    save(workspace, factors("a"))
    (tmp_path / "other").mkdir()
    write_factors(tmp_path / "other", factors("b"))
    names, directions = select_directions(
        workspace, ["w2", f"{tmp_path / 'other'}/w1", "a/w3"], run="a"
    )
    assert names == ["a/w2", "b/w1", "a/w3"]
    np.testing.assert_array_equal(directions, factors().directions[[1, 0, 2]])


def test_factors_of_two_widths_are_refused(workspace: Workspace) -> None:
    save(workspace, factors("a"))
    save(workspace, factors("b", width=9))
    with pytest.raises(InputError, match="a/w1, b/w1 belong to models of different width"):
        select_directions(workspace, ["w1", "b/w1"], run="a")
    with pytest.raises(InputError, match="A factor is given twice in w1, a/w1"):
        select_directions(workspace, ["w1", "a/w1"], run="a")
    with pytest.raises(NotFoundError, match="Run 'c' has no factors yet; compute them"):
        select_directions(workspace, ["c/w1"], run="a")


def test_damaged_factors_are_refused_in_words(workspace: Workspace) -> None:
    folder = save(workspace, factors("a"))
    write_factors(folder, factors("a", k=2))
    good = (folder / "factors.safetensors").read_bytes()
    write_factors(folder, factors("a", k=3))
    (folder / "factors.safetensors").write_bytes(good)
    with pytest.raises(SchemaError, match="are inconsistent: 3 rows, 2 directions"):
        read_factors(folder)
    for content in (b"", b"x" * 100, good[:50]):
        (folder / "factors.safetensors").write_bytes(content)
        with pytest.raises(SchemaError, match=r"The factors in .* cannot be read"):
            read_factors(folder)
    (folder / "factors.safetensors").write_bytes(good)
    (folder / "factors.parquet").write_bytes(b"PAR1")
    with pytest.raises(SchemaError, match=r"The factors in .* cannot be read"):
        read_factors(folder)


# Recordings


def test_activations_are_written_in_any_order_and_only_where_they_fit(tmp_path: Path) -> None:
    rng, shape = np.random.default_rng(0), (2, 5, 3)
    whole = {name: rng.standard_normal(shape).astype(np.float16) for name in ("base", "adapted")}
    with activation_file(tmp_path, shape=shape) as file:
        for layer, start, end in [(1, 3, 5), (0, 0, 3), (1, 0, 3), (0, 3, 5)]:
            for name, values in whole.items():
                file.put(name, layer, start, values[layer, start:end])
        misfits = [
            (2, 0, np.zeros((1, 3), np.float16)),
            (0, 4, np.zeros((2, 3), np.float16)),
            (0, 0, np.zeros((1, 4), np.float16)),
            (0, 0, np.zeros((1, 3), np.float32)),
        ]
        for layer, token, values in misfits:
            with pytest.raises(
                ValueError, match="expected float16 \\(n, 3\\) within 2 layers of 5"
            ):
                file.put("base", layer, token, values)
    written = load_file(tmp_path / "activations.safetensors")
    for name, values in whole.items():
        np.testing.assert_array_equal(written[name], values)


def test_a_recording_is_read_back_layer_by_layer(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base, adapted = rng.standard_normal((2, 4, 5, 2)).astype(np.float32).swapaxes(1, 3)
    probes = pd.DataFrame(
        {
            "id": ["p", "q"],
            "group": ["g", "g"],
            "variant": ["good", "evil"],
            "tokens": [["a", "b"], ["c", "d", "e"]],
            "answer": [[False, True], [False, True, True]],
            "offset": [0, 2],
        }
    )
    manifest = RecordingManifest(id="a", run="a", base_model="b", layers=[1, 3])
    write_recording(tmp_path, manifest=manifest, probes=probes, base=base, adapted=adapted)
    for row, layer in enumerate((1, 3)):
        found = read_recording(tmp_path, layer=layer)
        np.testing.assert_array_equal(found.base[0], base[row].astype(np.float16))
        np.testing.assert_array_equal(found.adapted[0], adapted[row].astype(np.float16))
        assert found.base.dtype == np.float32
        assert [list(t) for t in found.probes["tokens"]] == [["a", "b"], ["c", "d", "e"]]
    with pytest.raises(SchemaError, match=r"has no layer 2; it has \[1, 3\]"):
        read_recording(tmp_path, layer=2)
    written = load_file(tmp_path / "activations.safetensors")  # oracle: the library's own reader
    np.testing.assert_array_equal(written["adapted"], adapted.astype(np.float16))
    (tmp_path / "activations.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(SchemaError, match=r"The recording in .* cannot be read"):
        read_recording(tmp_path, layer=1)


_WRITES = """
import sys, time
from pathlib import Path
from analysis.store.workspace import writing_folder
with writing_folder(Path(sys.argv[1])) as folder:
    (folder / "half").touch()
    print("writing", flush=True)
    time.sleep(600)
"""


def test_a_folder_has_one_writer_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    final = tmp_path / "a"
    command = [sys.executable, "-c", _WRITES, str(final)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        refused = pytest.raises(InputError, match="is being written by another process")
        with refused, writing_folder(final):
            pass
        with pytest.raises(InputError, match="is being written by another process"):
            check_not_written(final)
        assert (partial_of(final) / "half").exists()
        writer.kill()
    check_not_written(final)
    with writing_folder(final) as folder:
        (folder / "whole").touch()
    assert [path.name for path in final.iterdir()] == ["whole"]


def test_a_link_is_never_written_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="already exists"), writing_folder(tmp_path / "a"):
        pass
    assert (tmp_path / "elsewhere").is_dir()
