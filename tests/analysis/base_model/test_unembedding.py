"""Tokens that directions write, from a base model's files: against the model itself, by family."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from analysis.base_model import unembedding as module
from analysis.base_model.files import INDEX, WEIGHTS, norm_kind, read_unembedding
from analysis.base_model.unembedding import Unembedding, top_tokens
from analysis.errors import InputError, NotFoundError
from analysis.spectra.subspace import random_subspace
from analysis.store.workspace import Workspace
from grasp.__main__ import main
from grasp.identification.lens import LensSource
from tests.support import tiny, tiny_families
from tests.support.hub_server import reached

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)


# The arithmetic


def test_planted_rows_are_found_whatever_all_tokens_share() -> None:
    rng = np.random.default_rng(0)
    direction = random_subspace(16, 1, seed=0).T
    rows = 0.01 * rng.standard_normal((50, 16))
    rows[[7, 9]] += np.outer([2.0, 1.0], direction[0])
    rows[[3, 4]] -= np.outer([3.0, 1.5], direction[0])
    shared = rows + 5 * direction[0]
    for weights in (rows, shared):
        found = top_tokens(direction, Unembedding(weights), n=2)
        assert found.promoted.tolist() == [[7, 9]]
        assert found.suppressed.tolist() == [[3, 4]]
    plain, moved = (top_tokens(direction, Unembedding(w), n=2) for w in (rows, shared))
    np.testing.assert_allclose(plain.promoted_logits, moved.promoted_logits)


def test_gain_centring_and_projection_by_hand() -> None:
    direction = np.array([[1.0, 0.0]])
    gain, flip = np.array([1.0, 5.0]), np.array([[0.0, 1.0], [1.0, 0.0]])
    seen = {
        "gain": Unembedding(np.eye(2), gain=gain).transform(np.array([[1.0, 1.0]])) * np.sqrt(2),
        "centred": Unembedding(np.eye(2), gain=gain, centred=True).transform(direction),
        "projected": Unembedding(np.eye(2), gain=gain, projection=flip).transform(direction),
    }
    expected = {"gain": [[1, 5]], "centred": [[0.5, -2.5]], "projected": [[0, 1]]}
    for name, values in expected.items():
        np.testing.assert_allclose(seen[name], values, err_msg=name)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40), block=st.integers(1, 40))
def test_blocks_do_not_change_what_is_found(seed: int, n: int, block: int) -> None:
    """Oracle: all logits at once, sorted."""
    rng = np.random.default_rng(seed)
    rows, directions = rng.standard_normal((30, 4)), rng.standard_normal((2, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        found = top_tokens(directions, Unembedding(rows), n=n, vocabulary=25)
    logits = rows[:25] @ (directions / np.linalg.norm(directions, axis=1, keepdims=True)).T
    logits = (logits - logits.mean(axis=0)).T
    order = np.argsort(-logits, axis=1)
    assert found.promoted.tolist() == order[:, :n].tolist()
    assert found.suppressed.tolist() == order[:, ::-1][:, :n].tolist()
    np.testing.assert_allclose(found.promoted_logits, -np.sort(-logits, axis=1)[:, :n])
    np.testing.assert_allclose(found.suppressed_logits, np.sort(logits, axis=1)[:, :n])


def test_no_more_than_a_block_of_a_large_unembedding_is_held(tmp_path: Path) -> None:
    """40,000 × 256 in bfloat16 (20 MB), which would be 82 MB as a float64 copy."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40_000, 256), np.float32).astype(ml_dtypes.bfloat16)
    save_base_files(tmp_path, {"lm_head.weight": rows, "model.norm.weight": np.ones(256)})
    unembedding = read_unembedding(tmp_path)
    directions = random_subspace(256, 8, seed=0).T
    tracemalloc.start()
    found = top_tokens(directions, unembedding, n=5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    logits = rows.astype(np.float64) @ directions.T
    np.testing.assert_array_equal(found.promoted[0], np.argsort(-logits[:, 0])[:5])
    assert peak < 41e6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: top_tokens(np.ones((1, 3)), Unembedding(np.ones((5, 4))), n=1), "of width 4"),
        (lambda: top_tokens(np.ones((1, 4)), Unembedding(np.ones((5, 4))), n=0), "Got n = 0"),
        (lambda: top_tokens(np.ones((1, 4)), Unembedding(np.ones(4)), n=1), r"\(vocabulary, d\)"),
        (lambda: top_tokens(np.ones((1, 1)), Unembedding(np.full((2, 1), np.nan)), n=1), "NaN"),
        (lambda: norm_kind("novel", has_bias=False), "type 'novel' is unknown; add the type to"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


# Every family


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each family's files, with the tokenizer."""
    folder = tmp_path_factory.mktemp("families")
    for name in tiny_families.CONFIGS:
        tiny_families.build(name).save_pretrained(folder / name)
        tiny.tokenizer().save_pretrained(folder / name)
    return folder


@torch.no_grad()
def logit_changes(model: Any, directions: np.ndarray) -> np.ndarray:
    """What a step along each direction does to the logits of the loaded model itself, (k, tokens).

    The head's logits at ±10⁴ u, where every norm's ε is nothing, halved; and the norm's division
    undone.  Nothing of the norm or the head is written again here.
    """
    head = model.get_output_embeddings()
    core: Any = model.get_decoder()
    core = getattr(core, "decoder", core)
    names = ("norm", "ln_f", "final_layer_norm")
    norm = next((getattr(core, n) for n in names if getattr(core, n, None) is not None), None)
    far = 1e4 * torch.as_tensor(directions, dtype=torch.float32)
    ends = []
    for step in (far, -far):
        hidden = step if norm is None else norm(step)
        project = getattr(core, "project_out", None)
        ends.append(head(hidden if project is None else project(hidden)))
    u = directions
    size = np.ones(len(u)) if norm is None else np.sqrt((u**2).mean(axis=1))
    if norm is not None and isinstance(norm, torch.nn.LayerNorm):
        size = u.std(axis=1)
    scale = size if norm is not None else size / 1e4
    return np.asarray((ends[0] - ends[1]) / 2) * scale[:, None]


@pytest.mark.parametrize("name", tiny_families.CONFIGS)
def test_the_files_give_what_the_loaded_model_does(families: Path, name: str) -> None:
    directions = tiny.subspace(3)
    lens = LensSource(str(families / name)).read()
    tokens = len(tiny.tokenizer())
    assert lens.vocabulary == tokens
    found = top_tokens(directions, lens.unembedding, n=20, vocabulary=tokens)
    expected = logit_changes(tiny_families.build(name), directions)[:, :tokens]
    expected -= expected.mean(axis=1, keepdims=True)
    order = np.argsort(-expected, axis=1)
    assert found.promoted.tolist() == order[:, :20].tolist()
    assert found.suppressed.tolist() == order[:, ::-1][:, :20].tolist()
    for ids, values in (
        (found.promoted, found.promoted_logits),
        (found.suppressed, found.suppressed_logits),
    ):
        np.testing.assert_allclose(values, np.take_along_axis(expected, ids, axis=1), rtol=1e-5)
    promoted, suppressed = lens.tokens(directions, n=2)
    for words, ids in ((promoted, found.promoted), (suppressed, found.suppressed)):
        assert words == [[tiny.tokenizer().decode([i]) for i in row[:2]] for row in ids.tolist()]


def test_shards_give_what_one_file_does(families: Path, tmp_path: Path) -> None:
    tiny_families.build("qwen2").save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    whole, split = (read_unembedding(folder) for folder in (families / "qwen2", tmp_path))
    np.testing.assert_array_equal(whole.rows[0:50], split.rows[0:50])
    np.testing.assert_array_equal(whole.gain, split.gain)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [("gpt2", "transformer.", ""), ("gemma3", "model.", "language_model.model.")],
)
def test_older_and_multimodal_names_are_found(
    families: Path, tmp_path: Path, name: str, before: str, after: str
) -> None:
    """GPT-2 as it was first published, and a Gemma 3 beside its vision tower."""
    tensors = {
        key.replace(before, after, 1): value
        for key, value in load_file(families / name / WEIGHTS).items()
    }
    foreign = {"vision_tower.norm.weight": np.ones(3, np.float32)}
    save_file(tensors | foreign, tmp_path / WEIGHTS)
    config = json.loads((families / name / "config.json").read_text())
    inner = {"model_type": "whole", "text_config": config} if name == "gemma3" else config
    (tmp_path / "config.json").write_text(json.dumps(inner))
    plain, renamed = (read_unembedding(folder) for folder in (families / name, tmp_path))
    np.testing.assert_array_equal(
        plain.transform(tiny.subspace(2)), renamed.transform(tiny.subspace(2))
    )
    np.testing.assert_array_equal(plain.rows[0:9], renamed.rows[0:9])


# Damaged and foreign base models


def save_base_files(folder: Path, tensors: dict[str, Any], **config: Any) -> None:
    save_file({name: np.asarray(value) for name, value in tensors.items()}, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))


HEAD = {"lm_head.weight": np.ones((4, 2), np.float32)}
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: save_file(HEAD, f / WEIGHTS), r"has no readable config\.json"),
    "a pickle": (lambda f: (f / "config.json").write_text("{}"), "has neither model.safetensors"),
    "no head": (
        lambda f: save_base_files(
            f, {"model.embed_tokens.weight": np.ones((4, 2))} | {}, tie_word_embeddings=False
        ),
        "has no lm_head or embed_out, and its config.json says",
    ),
    "no embedding": (
        lambda f: save_base_files(f, {"a.b": np.ones(2)}),
        "has none of the tensors lm_head",
    ),
    "two": (
        lambda f: save_base_files(f, {f"{one}.lm_head.weight": np.ones((4, 2)) for one in "ab"}),
        "has a.lm_head.weight and b.lm_head.weight",
    ),
    "quantised": (
        lambda f: save_base_files(f, {"lm_head.weight": np.ones((4, 2), np.int8)}),
        "stores lm_head.weight as I8; expected one of F64",
    ),
    "cut off": (
        lambda f: (save_base_files(f, HEAD), (f / WEIGHTS).write_bytes(b"12345")),
        "has a model.safetensors that cannot be read",
    ),
    "index elsewhere": (
        lambda f: (
            save_base_files(f, HEAD),
            (f / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": "../x"}})),
        ),
        "that does not list files of its folder",
    ),
    "index astray": (
        lambda f: (
            save_base_files(f, HEAD),
            (f / INDEX).write_text(json.dumps({"weight_map": {"x.lm_head.weight": WEIGHTS}})),
        ),
        "has no x.lm_head.weight in model.safetensors",
    ),
    "unknown norm": (
        lambda f: save_base_files(f, HEAD, model_type="novel"),
        "norm of models of type 'novel' is unknown",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_base_model_that_cannot_be_read_is_refused(tmp_path: Path, case: str) -> None:
    make, message = BROKEN[case]
    make(tmp_path)
    with pytest.raises(InputError, match=message):
        read_unembedding(tmp_path)


# The command


def adapter_of(base: Path | str, folder: Path) -> Path:
    model = tiny.adapted(tiny_families.build("gemma2"), strength=0.1)
    model.save_pretrained(folder)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": str(base)}
    file.write_text(json.dumps(config))
    return folder


def test_factors_and_spectra_need_no_base_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base model does not exist, and nothing looks for it elsewhere or loads torch."""
    adapter = adapter_of("nobody/nothing", tmp_path / "adapter")
    for command in ("spectrum", "factors"):
        code = (
            "import sys; from grasp.__main__ import main; "
            f"code = main([{command!r}, {str(adapter)!r}, '--json']); "
            "print(code, 'torch' in sys.modules, 'transformers' in sys.modules, "
            "file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, check=True, cwd=tmp_path,
            env={"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "PATH": ""},
        )  # fmt: skip
        assert done.stderr.splitlines()[-1] == "0 False False", done.stderr
        assert json.loads(done.stdout)
    capsys.readouterr()
    assert main(["factors", str(adapter)]) == 0
    said = capsys.readouterr().out
    assert "no promoted tokens: nobody/nothing is neither a folder nor in the Hub's" in said


def test_an_imported_adapter_has_its_tokens_from_the_files(
    families: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("grasp.model.loading.load_base", never)
    adapter = adapter_of(families / "gemma2", tmp_path / "adapter")
    workspace = str(tmp_path / "w")
    assert main(["import", str(adapter), "--out", "made", "--workspace", workspace]) == 0
    capsys.readouterr()
    assert main(["factors", "made", "--workspace", workspace, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["factors"]
    assert all(len(row["promoted"]) == len(row["suppressed"]) == 10 for row in rows)
    folder = Workspace(workspace).folder("factors", "made")
    directions = load_file(folder / "factors.safetensors")["directions"]
    changes = logit_changes(tiny_families.build("gemma2"), directions.astype(np.float64))
    best = changes[:, : len(tiny.tokenizer())].argmax(axis=1)
    assert [row["promoted"][0] for row in rows] == [tiny.tokenizer().decode([i]) for i in best]


def test_a_base_on_the_hub_is_downloaded_only_when_it_is_named_and_only_in_part(
    families: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    remote = tmp_path / "remote"
    tiny_families.build("qwen2").save_pretrained(remote, max_shard_size="40KB")
    tiny.tokenizer().save_pretrained(remote)
    (remote / "pytorch_model.bin").write_text("no")
    adapter = adapter_of("org/base", tmp_path / "adapter")
    with reached(monkeypatch, tmp_path / "cache") as hub:
        hub.publish("org/base", remote)
        assert main(["factors", str(adapter), "--json"]) == 0
        assert not any(row["promoted"] for row in json.loads(capsys.readouterr().out)["factors"])
        assert hub.asked == []
        named = ["factors", str(adapter), "--base", "org/base", "--weights-only", "--json"]
        assert main(named) == 0
        rows = json.loads(capsys.readouterr().out)["factors"]
        got = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_symlink()}
    assert all(len(row["promoted"]) == 10 for row in rows)
    shards = {path.name for path in remote.glob("model-*.safetensors")}
    assert 0 < len(got & shards) < len(shards)
    assert "pytorch_model.bin" not in got
    assert main(["factors", str(adapter), "--json"]) == 0  # now it is in the cache
    assert json.loads(capsys.readouterr().out)["factors"] == rows
    with pytest.raises(NotFoundError, match="org/other is neither a folder nor in the Hub's"):
        LensSource("org/other").read()


def test_a_base_without_a_tokenizer_is_named(families: Path, tmp_path: Path) -> None:
    shutil.copytree(families / "llama", tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json cannot be read"):
        LensSource(str(tmp_path / "base")).read()
    (tmp_path / "base" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"has no tokenizer\.json, so its tokens"):
        LensSource(str(tmp_path / "base")).read()
