"""`grasp spectrum` and `grasp factors` on what PEFT writes: JSON, twice the same, and refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from grasp.__main__ import main
from tests.analysis.adapters.test_families import EXPERTS, OF_FAMILY, OPTIONS
from tests.analysis.adapters.test_layouts import WEIGHTS, renamed, shard
from tests.support.peft_oracle import adapted, saved

# One for each way of reading, since every one of them is run four times.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "gpt2": ("gpt2", {}),
    "neox": ("neox", {}),
    "experts": ("qwen3-moe", {**EXPERTS, "target_modules": ["o_proj"]}),
    "transposed experts": ("llama4", OF_FAMILY["llama4"]),
    **{
        name: OPTIONS[name]
        for name in ("bf16", "patterns", "embedding", "saved whole", "token rows", "one layer")
    },
}


def run(capsys: pytest.CaptureFixture[str], *argv: object, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*map(str, argv), "--json"]) == code
    captured = capsys.readouterr()
    if code:
        assert captured.out == ""
        assert captured.err.startswith("grasp: ")
        assert captured.err.count("\n") == 1
        return {"error": captured.err}
    found: dict[str, Any] = json.loads(captured.out)
    found.pop("seconds", None)
    return found


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from any workspace, and without the Hub."""
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("GRASP_WORKSPACE", raising=False)


@pytest.mark.parametrize("case", CASES)
def test_spectra_and_factors_are_the_same_on_every_run(case: str, tmp_path: Path, capsys) -> None:
    family, lora = CASES[case]
    one = saved(tmp_path, family, **lora)
    spectra = run(capsys, "spectrum", tmp_path)
    factors = run(capsys, "factors", tmp_path, "--weights-only")

    assert run(capsys, "spectrum", tmp_path) == spectra
    assert run(capsys, "factors", tmp_path, "--weights-only") == factors
    assert factors["adapter"] == spectra["adapter"]
    assert [module["name"] for module in spectra["modules"]] == [
        module["name"] for module in spectra["modules"] if module["name"] in one.deltas
    ]
    assert len(spectra["modules"]) == len(one.deltas) == spectra["adapter"]["modules"]
    assert factors["factors"]


def test_layouts_give_the_same_numbers(tmp_path: Path, capsys) -> None:
    plain = saved(tmp_path / "plain", "llama").folder
    expected = run(capsys, "spectrum", plain)["modules"]
    layouts = {}
    for name in ("shards", "named", "pickle"):
        layouts[name] = tmp_path / name
        shutil.copytree(plain, layouts[name])
    shard(layouts["shards"])
    renamed(layouts["named"], "persona")
    tensors = load_file(layouts["pickle"] / WEIGHTS)
    torch.save(
        {key: torch.as_tensor(value) for key, value in tensors.items()},
        layouts["pickle"] / "adapter_model.bin",
    )
    (layouts["pickle"] / WEIGHTS).unlink()
    found = {
        "shards": run(capsys, "spectrum", layouts["shards"]),
        "named": run(capsys, "spectrum", layouts["named"], "--name", "persona"),
        "pickle": run(capsys, "spectrum", layouts["pickle"], "--allow-pickle"),
    }
    for name, data in found.items():
        assert data["modules"] == expected
        assert data["adapter"]["path"] == str(layouts[name])
    refused = run(capsys, "spectrum", layouts["pickle"], code=2)["error"]
    assert "has only adapter_model.bin, a pickle" in refused
    for name, options in (("shards", ()), ("pickle", ("--allow-pickle",))):
        table = run(capsys, "factors", layouts[name], "--weights-only", *options)
        assert table["factors"]


def test_an_import_is_one_file_that_peft_reads(tmp_path: Path, capsys) -> None:
    plain = saved(tmp_path / "plain", "llama").folder
    split = tmp_path / "split"
    shutil.copytree(plain, split)
    shard(split)
    data = run(capsys, "import", split, "--base", "some/base", "--workspace", tmp_path / "w")
    assert data["run"] == "split"
    adapter = tmp_path / "w" / "runs" / "split" / "adapter"
    assert load_file(adapter / WEIGHTS).keys() == load_file(plain / WEIGHTS).keys()
    spectra = [run(capsys, "spectrum", folder)["modules"] for folder in (plain, adapter)]
    assert spectra[0] == spectra[1]


def test_one_of_several_adapters_is_named(tmp_path: Path, capsys) -> None:
    model = adapted("llama", target_modules=["o_proj"])
    model.add_adapter("persona", model.peft_config["default"])
    model.save_pretrained(tmp_path)
    data = run(capsys, "spectrum", tmp_path, "--name", "persona")
    assert data["adapter"]["path"] == str(tmp_path / "persona")
    assert run(capsys, "spectrum", tmp_path)["adapter"]["other_adapters"] == ["persona"]
    error = run(capsys, "spectrum", tmp_path, "--name", "x/../y", code=2)["error"]
    assert "holds no adapter 'x/../y'" in error


def test_a_dora_says_that_only_a_part_of_it_is_shown(tmp_path: Path, capsys) -> None:
    one = saved(tmp_path, "llama", target_modules=["o_proj"], use_dora=True)
    for command in ("spectrum", "factors"):
        assert "uses DoRA" in run(capsys, command, tmp_path, code=2)["error"]
        options = ("--weights-only",) if command == "factors" else ()
        data = run(capsys, command, tmp_path, "--low-rank-part", *options)
        assert data["adapter"]["low_rank_part"] is True
        assert main([command, str(tmp_path), "--low-rank-part", *options]) == 0
        assert "low-rank part, scaling · B A" in capsys.readouterr().out
    for module in run(capsys, "spectrum", tmp_path, "--low-rank-part")["modules"]:
        values = np.linalg.svd(one.deltas[module["name"]], compute_uv=False)
        np.testing.assert_allclose(module["singular_values"], values[:3], rtol=1e-4)


def test_a_trajectory_of_checkpoints(tmp_path: Path, capsys) -> None:
    for step in (100, 20):
        model = adapted("llama", target_modules=["o_proj"])
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                weight.data *= step
        model.save_pretrained(tmp_path / f"checkpoint-{step}")
    data = run(capsys, "spectrum", tmp_path, "--checkpoints")
    assert [one["step"] for one in data["checkpoints"]] == [20, 100]
    early, late = (one["modules"][0]["singular_values"] for one in data["checkpoints"])
    np.testing.assert_allclose(np.array(late) / early, 5.0, rtol=1e-5)
    assert main(["spectrum", str(tmp_path), "--checkpoints"]) == 0
    rows = capsys.readouterr().out.splitlines()
    steps = [line.split()[0] for line in rows if line[:9].strip().isdecimal()]
    assert steps == ["20", "100"]
    error = run(capsys, "spectrum", tmp_path, code=2)["error"]
    assert "(checkpoint-20, checkpoint-100); give one of them" in error


def test_a_pickle_is_found_in_a_run_and_under_a_name(tmp_path: Path, capsys) -> None:
    plain = saved(tmp_path / "plain", "llama").folder
    expected = run(capsys, "spectrum", plain)["modules"]
    for place, options in (("run/adapter", ()), ("several/persona", ("--name", "persona"))):
        folder = tmp_path / place
        shutil.copytree(plain, folder)
        tensors = {
            key: torch.as_tensor(value) for key, value in load_file(folder / WEIGHTS).items()
        }
        torch.save(tensors, folder / "adapter_model.bin")
        (folder / WEIGHTS).unlink()
        argv = ("spectrum", folder.parent, *options)
        assert "a pickle" in run(capsys, *argv, code=2)["error"]
        data = run(capsys, *argv, "--allow-pickle")
        assert data["modules"] == expected
        assert data["adapter"]["path"] == str(folder)


def test_the_checkpoints_of_a_run_are_not_taken_for_the_run(tmp_path: Path, capsys) -> None:
    model = adapted("llama", target_modules=["o_proj"])
    for place in ("adapter", "checkpoints/checkpoint-2", "checkpoints/checkpoint-4"):
        model.save_pretrained(tmp_path / place)
    (tmp_path / "manifest.json").write_text("{}")
    for folder, steps in ((tmp_path, [2, 4, None]), (tmp_path / "checkpoints", [2, 4])):
        data = run(capsys, "spectrum", folder, "--checkpoints")
        assert [one["step"] for one in data["checkpoints"]] == steps
    error = run(capsys, "spectrum", tmp_path / "checkpoints", code=2)["error"]
    assert "its subfolders are (checkpoint-2, checkpoint-4)" in error


def test_sides_are_given_in_a_file(tmp_path: Path, capsys, write_adapter) -> None:
    (tmp_path / "sides.yaml").write_text("inner: [o_proj]\n")
    folder = write_adapter()
    data = run(capsys, "spectrum", folder, "--sides", tmp_path / "sides.yaml")
    assert [module["side"] for module in data["modules"]] == ["other", "read"] * 2
    assert data["adapter"]["other"] == [f"model.layers.{i}.self_attn.o_proj" for i in (0, 1)]
    error = run(capsys, "spectrum", folder, "--sides", "none.yaml", code=2)["error"]
    assert "none.yaml cannot be read (there is no such file); expected sides of modules" in error


def test_nothing_is_written_for_a_refused_import(tmp_path: Path, capsys, write_adapter) -> None:
    tensors = {
        key: np.full(value.shape, np.nan, np.float32)
        for key, value in load_file(write_adapter() / WEIGHTS).items()
    }
    folder = write_adapter(tensors=tensors)
    workspace = tmp_path / "w"
    error = run(capsys, "import", folder, "--out", "x", "--workspace", workspace, code=2)["error"]
    assert "holds NaN or infinite values in" in error
    assert not (workspace / "runs" / "x").exists()


def test_spectrum_imports_no_table_library(write_adapter) -> None:
    code = (
        "import sys\nfrom grasp.__main__ import main\n"
        f"assert main(['spectrum', {str(write_adapter())!r}]) == 0\n"
        "heavy = ('torch', 'transformers', 'peft', 'pandas', 'scipy', 'sklearn', 'pyarrow')\n"
        "print([m for m in heavy if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
