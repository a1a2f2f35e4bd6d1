"""The memory of a fine-tune: counted parts against PEFT itself, activations against autograd."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from analysis.base_model.memory_estimate import (
    FineTune,
    Memory,
    describe_memory,
    describe_memory_needs,
    estimate_memory,
    measure_free_memory,
    parse_fine_tune,
)
from analysis.errors import InputError
from grasp.__main__ import main
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)

GiB = 1024.0**3
PLAN = FineTune(batch_size=2, max_length=48, r=4, targets=None, number_bytes=4)


def wide() -> LlamaForCausalLM:
    """Wide enough for what a layer keeps to be mostly numbers of the residual stream's width."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128, intermediate_size=352, num_hidden_layers=3, num_attention_heads=4,
        vocab_size=300,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("base")
    wide().save_pretrained(folder, max_shard_size="300KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.mark.parametrize("targets", [None, ["q_proj", "down_proj"]])
def test_weights_are_counted_as_peft_makes_them(base: Path, targets: list[str] | None) -> None:
    plan = FineTune(2, 48, 4, targets, 4)
    found = estimate_memory(base, plan)
    plain = wide()
    assert found.frozen == 4 * sum(weight.numel() for weight in plain.parameters())
    model: Any = tiny.adapted(plain, targets=targets or "all-linear")
    trained = sum(w.numel() for w in model.parameters() if w.requires_grad)
    assert found.trained == 16 * trained


def saved_bytes(*, checkpointing: bool) -> int:
    """Bytes of the tensors that a forward pass keeps for the backward pass, but for weights."""
    model = tiny.adapted(wide()).train()
    if checkpointing:
        model.get_base_model().activation_checkpointing_enable()
    weights = {w.untyped_storage().data_ptr() for w in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, 300, (2, 48))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=ids, labels=ids, use_cache=False)
    return sum(kept.values())


def test_activations_are_of_the_size_that_autograd_keeps(base: Path) -> None:
    """With checkpointing, one layer's are there again in the backward pass."""
    plain = saved_bytes(checkpointing=False)
    assert 0.5 < estimate_memory(base, PLAN).activations / plain < 2
    there = saved_bytes(checkpointing=True) + plain / 3
    estimate = estimate_memory(base, replace(PLAN, checkpointing=True)).activations
    assert 0.5 < estimate / there < 2
    assert there < 0.7 * plain


def test_quantisation_shrinks_the_linear_layers_alone(base: Path) -> None:
    whole = estimate_memory(base, PLAN).frozen
    four = estimate_memory(base, FineTune(2, 48, 4, None, 2, "4bit")).frozen
    half = estimate_memory(base, FineTune(2, 48, 4, None, 2)).frozen
    assert half == whole / 2
    beside = 2 * 300 * 128 + 7 * 128  # embeddings, norms
    assert four == (whole / 4 - beside) * 0.5 + beside * 2


def test_what_is_needed_is_said_beside_what_is_free() -> None:
    memory = Memory(13 * GiB, 0.5 * GiB, 50 * 1024.0**2)
    assert describe_memory(memory, 80 * GiB, "on the GPU") == (
        "About 13.5 GiB of memory: 13.0 GiB for the base model, 512.0 MiB for the adapter and its "
        "optimiser, and very roughly 50.0 MiB for activations; 80.0 GiB are free on the GPU."
    )
    assert "That is too little: use gradient_ch" in describe_memory(memory, GiB, "on this machine")
    free, place = measure_free_memory()
    assert free > 0
    assert place.startswith("on ")


def test_the_plan_is_read_from_the_settings_of_a_run() -> None:
    config = {
        "batch_size": 2, "max_length": 48, "lora": {"r": 4, "target_modules": "all-linear"},
        "gradient_checkpointing": False, "model": {"dtype": "auto", "quantization": None},
    }  # fmt: skip
    assert parse_fine_tune(config, gpu=False) == PLAN
    assert parse_fine_tune(config, gpu=True).number_bytes == 2
    narrow = config | {"model": {"dtype": "float16", "quantization": "4bit"}}
    assert parse_fine_tune(narrow, gpu=False) == replace(PLAN, number_bytes=2, quantization="4bit")
    with pytest.raises(
        InputError, match="The settings lack 'batch_size', so memory cannot be estimated"
    ):
        parse_fine_tune({"lora": {"r": 2}}, gpu=False)


def test_a_dry_run_and_the_words_say_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tiny.settings(tmp_path)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_none=True)))
    assert main(["train", str(file), "--dry-run", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["memory"]
    assert said.startswith("About ")
    assert "for the adapter and its optimiser" in said
    words = describe_memory_needs(tmp_path / "none", {})
    assert words.startswith("How much memory it takes is unknown. The settings lack")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no readable config\.json"):
        estimate_memory(tmp_path, PLAN)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"has neither model\.safetensors nor"):
        estimate_memory(tmp_path, PLAN)
