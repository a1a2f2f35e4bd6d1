"""Loading base models: settings, the command line, the Hub, quantisation, narrow training."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaConfig, LlamaForCausalLM

from analysis.errors import InputError, NotFoundError
from analysis.spectra.subspace import random_subspace
from analysis.store.records import RunManifest, read_manifest, write_jsonl
from analysis.store.workspace import Workspace
from grasp.__main__ import main
from grasp.commands.parser import build_parser
from grasp.guard.context import protect
from grasp.model import loading
from grasp.model.hooks import layer_outputs
from grasp.model.loading import (
    check_together,
    decoder_layers,
    device_of,
    forget,
    load_adapted,
    load_base,
)
from grasp.settings.model import ModelOptions, ModelSettings, model_options, settings_beside
from grasp.settings.protection import Protection
from grasp.settings.training import load_config
from grasp.settings.trust import consent
from grasp.training.train import train
from tests.support import tiny
from tests.support.hub_server import Hub, reached

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    yield
    forget()


def dtypes(model: Any) -> set[torch.dtype]:
    return {weight.dtype for weight in model.parameters()}


# Settings


def test_the_dtype_is_the_one_that_is_named(base: Path) -> None:
    assert dtypes(load_base(str(base)).model) == {torch.float32}
    narrow = load_base(str(base), ModelSettings(dtype="bfloat16"))
    assert narrow.settings == ModelSettings(dtype="bfloat16")
    assert dtypes(narrow.model) == {torch.bfloat16}


def test_options_take_the_place_of_the_runs_settings(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    tiny.adapted(tiny.llama()).save_pretrained(run / "adapter")
    manifest = {"base_model": str(base), "config": {"model": {"dtype": "bfloat16"}}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    settings = settings_beside(run / "adapter", str(base))
    assert settings == ModelSettings(dtype="bfloat16")
    loaded = load_adapted(str(base), run / "adapter")
    assert loaded.model.get_base_model().lm_head.weight.dtype == torch.bfloat16
    assert loaded.settings.non_defaults() == {"dtype": "bfloat16"}
    assert load_adapted(str(base), run / "adapter") is loaded
    args = build_parser().parse_args(["record", "run", "--dtype", "float32"])
    other = load_adapted(str(base), run / "adapter", options=model_options(args))
    assert other.model.get_base_model().lm_head.weight.dtype == torch.float32
    assert other.settings == ModelSettings(dtype="float32")
    assert len(loading._KEPT) == 1
    said_nothing = model_options(build_parser().parse_args(["record", "run"]))
    assert said_nothing == ModelOptions()
    assert load_adapted(str(base), run / "adapter", options=said_nothing).settings == settings


def test_a_revision_is_of_the_runs_own_base_model_only(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    assert settings_beside(tmp_path / "adapter", "org/base") == ModelSettings()
    manifest = {"base_model": "org/base", "config": {"model": {"revision": "v1"}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert settings_beside(tmp_path / "adapter", "org/base").revision == "v1"
    assert settings_beside(tmp_path / "adapter", "org/other").revision is None
    assert settings_beside(tmp_path, "org/base") == ModelSettings()
    manifest["config"] = {"model": {"dtype": "int1"}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="has no valid base model settings"):
        settings_beside(tmp_path / "adapter", "org/base")


def test_settings_that_are_not_known_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="dtype"):
        ModelSettings.model_validate({"dtype": "fp8"})
    file = tmp_path / "c.yaml"
    file.write_text("title: t\nbase_model: b\ndata: d\nmodel: {quantization: 2bit}\n")
    with pytest.raises(InputError, match=r"setting 'model\.quantization': Input should be '4bit'"):
        load_config(file)
    file.write_text("title: t\nbase_model: b\ndata: d\nmodel: {dtype: float16}\n")
    assert load_config(file).model == ModelSettings(dtype="float16")


# The model's own code


def test_code_of_a_models_own_is_run_only_with_consent(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "own"
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "ours", "auto_map": {"AutoConfig": "code.Ours"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(
        "from transformers import PretrainedConfig\n"
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "class Ours(PretrainedConfig):\n    model_type = 'ours'\n"
    )
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    with pytest.raises(InputError, match=r"Python code of its own.*--trust-remote-code"):
        load_base(str(folder))
    assert not (tmp_path / "ran").exists()
    asked = ModelSettings(trust_remote_code=True)  # by a record, a job or a page
    with pytest.raises(InputError, match=r"only you can allow that.*`grasp trust /"):
        load_base(str(folder), asked)
    assert not (tmp_path / "ran").exists()
    # There is no model for it, but its code has run.
    with consent(True), pytest.raises(NotFoundError, match="cannot be loaded"):
        load_base(str(folder), asked)
    assert (tmp_path / "ran").exists()


# The Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with reached(monkeypatch, tmp_path / "cache") as server:
        monkeypatch.setattr(
            "transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "cache")
        )
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # PEFT asks by a client made long before
        yield server


@pytest.mark.filterwarnings("ignore:Could not find a config file in org/base:UserWarning")
def test_a_fine_tune_of_a_hub_model_pins_its_commit_and_goes_on_without_the_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = hub.publish("org/base", tiny.save_base(tmp_path / "old", seed=1), revision="v1")
    hub.publish("org/base", tiny.save_base(tmp_path / "new", seed=2))
    workspace = Workspace.create(tmp_path / "w")
    settings = tiny.settings(
        workspace.root / "data", base_model="org/base", model=ModelSettings(revision="v1"),
        max_steps=1,
    )  # fmt: skip
    out = workspace.folder("runs", "a")
    run = train(workspace, settings, out=out)
    assert run.config["model"]["revision"] == old
    saved = read_manifest(out / "manifest.json", RunManifest)
    assert saved.config["model"]["revision"] == old
    hub.publish("org/base", tmp_path / "new", revision="v1")  # the tag moves
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    loaded = load_adapted("org/base", out / "adapter")
    assert loaded.commit == old
    model = loaded.model
    expected = tiny.llama(seed=1).lm_head.weight
    assert torch.equal(model.get_base_model().lm_head.weight, expected)
    started = time.monotonic()
    with pytest.raises(
        NotFoundError, match="'org/else' cannot be loaded: org/else is neither a folder"
    ):
        load_base("org/else")
    assert time.monotonic() - started < 5


# Devices


def test_a_model_that_is_spread_is_not_moved_and_not_protected(base: Path) -> None:
    model = tiny.adapted(load_base(str(base), ModelSettings(device_map="auto")).model)
    assert device_of(model).type == "cpu"
    check_together(model)
    decoder_layers(model)[1].to("meta")
    protection = Protection(write_constraint=True)
    with (
        pytest.raises(InputError, match="layers are spread over cpu, meta, and subspaces"),
        protect(model, tiny.subspace(1), protection=protection),
    ):
        pass
    model.get_input_embeddings().to("meta")
    assert device_of(model).type == "cpu"


# Quantised


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="it is installed")
def test_quantisation_without_bitsandbytes_says_what_is_missing(base: Path) -> None:
    with pytest.raises(InputError, match="'4bit' needs the package bitsandbytes, which is not"):
        load_base(str(base), ModelSettings(quantization="4bit"))


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_a_quantised_base_is_trained_on_and_the_indirect_constraint_sees_its_weights(
    tmp_path: Path,
) -> None:
    """Of widths that are whole blocks of 64, since others lose much on the CPU."""
    from bitsandbytes.nn import Linear4bit

    from grasp.guard.constraint import frozen_weight
    from grasp.model.loading import ready_to_train

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.2, vocab_size=len(tiny.tokenizer()),
    )  # fmt: skip
    plain = LlamaForCausalLM(config)
    plain.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    quantised = load_base(str(tmp_path), ModelSettings(quantization="4bit")).model
    writer = decoder_layers(quantised)[0].mlp.down_proj
    assert isinstance(writer, Linear4bit)
    whole = plain.model.layers[0].mlp.down_proj.weight.detach().double()
    near = frozen_weight(writer)
    assert 0 < float((near - whole).norm() / whole.norm()) < 0.2
    model = tiny.adapted(ready_to_train(quantised))
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert all(weight.dtype == torch.float32 for weight in trained)
    axes = random_subspace(64, 2, seed=3).T
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    protection = Protection(write_constraint=True, indirect=True)
    batch = tiny.batch(6)
    model.train()
    with protect(model, axes, protection=protection, optimizer=optimizer) as guard:
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        assert guard.leakage() <= 1e-6


# Narrow numbers, checkpointed and accumulated, as on a GPU


def test_bfloat16_with_checkpointing_and_accumulation_trains_a_protected_run(
    tmp_path: Path,
) -> None:
    """The same as on CUDA: bfloat16 base, float32 adapter, autocast; whole run, then used again."""
    workspace = Workspace.create(tmp_path / "w")
    settings = tiny.settings(
        workspace.root / "data", model=ModelSettings(dtype="bfloat16"), gradient_checkpointing=True,
        gradient_accumulation_steps=2, batch_size=2, max_steps=12,
    )  # fmt: skip
    out = workspace.folder("runs", "narrow")
    run = train(workspace, settings, out=out)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows]
    assert len(losses) == 12
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.1
    assert run.config["model"]["dtype"] == "bfloat16"
    model = load_adapted(settings.base_model, out / "adapter").model
    assert model.get_base_model().lm_head.weight.dtype == torch.bfloat16
    batch = tiny.batch(5)
    with torch.no_grad(), layer_outputs(model) as outputs:
        model(**batch)
    assert outputs[0].dtype == torch.bfloat16
    halves = [w for name, w in model.named_parameters() if "lora_B" in name]
    assert max(float(w.abs().max()) for w in halves) > 0


def test_what_is_measured_says_how_the_model_was_loaded(base: Path, tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "w")
    folder = workspace.folder("runs", "a")
    tiny.adapted(tiny.llama(), strength=0.1).save_pretrained(folder / "adapter")
    run = RunManifest(
        id="a", title="a", method="naive", root="a", base_model=str(base), config={}
    )  # fmt: skip
    (folder / "manifest.json").write_text(run.model_dump_json())
    rows = [
        {"id": str(i), "group": "g", "variant": "v", "messages": chat["messages"]}
        for i, chat in enumerate(tiny.chats(2))
    ]
    write_jsonl(tmp_path / "probes.jsonl", rows)
    argv = ["record", str(folder), "--probes", str(tmp_path / "probes.jsonl")]
    for options, expected in (
        ([], {}),
        (["--dtype", "bfloat16"], {"dtype": "bfloat16"}),
    ):
        assert main([*argv, *options]) == 0
        assert workspace.recording("a").model == expected
