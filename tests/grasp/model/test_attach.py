"""Adapters that fit their base model, and those that do not."""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

import grasp
from analysis.errors import InputError
from grasp.guard.naive import naive_adapter, naive_model
from grasp.model.attach import attach_adapter
from grasp.model.loading import forget, load_adapted
from tests.support import peft_oracle, tiny

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)

WEIGHTS = "adapter_model.safetensors"
WRAPPED = "_checkpoint_wrapped_module"


@pytest.fixture(autouse=True)
def _peft_may_say() -> None:
    for message in (*peft_oracle.PEFT_SAYS, "Setting `save_embedding_layers` to `True`"):
        warnings.filterwarnings("ignore", message=message)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tiny.save_base(tmp_path_factory.mktemp("base") / "tiny")
    forget()


def renamed(folder: Path, rename: Callable[[str], str | None]) -> Path:
    """The adapter with its tensors renamed, and those without a name left out."""
    found = {rename(key): tensor for key, tensor in load_file(folder / WEIGHTS).items()}
    kept = {key: tensor for key, tensor in found.items() if key is not None}
    save_file(kept, folder / WEIGHTS, {"format": "pt"})
    return folder


def saved(folder: Path, model: PreTrainedModel | None = None, **lora: Any) -> Path:
    """A random LoRA as PEFT saves it."""
    torch.manual_seed(1)
    config = {"r": 4, "target_modules": ["q_proj", "o_proj"], "task_type": "CAUSAL_LM"} | lora
    peft = get_peft_model(model or tiny.llama(), LoraConfig(**config))
    for name, weight in peft.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.3)
    peft.save_pretrained(str(folder), save_embedding_layers=model is not None)
    return folder


def logits(model: Any, **batch: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**(batch or tiny.batch(5))).logits
    return found


# Each is a folder, and the numbers in the message.
MISFITS = {
    "wrapped layers": (lambda k: re.sub(r"(layers\.\d+)\.", rf"\1.{WRAPPED}.", k), "8 of the 8"),
    "compiled": (lambda k: k.replace("model.model", "model._orig_mod.model"), "8 of the 8"),
    "doubled prefix": (lambda k: f"base_model.model.{k}", "8 of the 8"),
    "language_model": (lambda k: k.replace("model.layers", "language_model.layers"), "8 of the 8"),
    "a layer too many": (lambda k: k.replace("layers.1.", "layers.5."), "4 of the 8"),
    "a module is not there": (lambda k: None if "1.self_attn.o" in k else k, "2 of the 8 that"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_an_adapter_that_does_not_fit_is_refused_with_counts(kind: str, tmp_path: Path) -> None:
    rename, counts = MISFITS[kind]
    folder = renamed(saved(tmp_path), rename)
    with pytest.raises(InputError, match=rf"does not fit the base model.*: {counts}.*such as base"):
        attach_adapter(tiny.llama(), folder)


def test_the_same_is_refused_wherever_a_model_gets_an_adapter(base: Path, tmp_path: Path) -> None:
    folder = renamed(saved(tmp_path), MISFITS["wrapped layers"][0])
    told = pytest.raises(InputError, match="8 of the 8 tensors in its file have no place")
    with told:
        load_adapted(str(base), folder)
    with told, naive_model(tiny.llama(), folder):
        pass
    with told, naive_adapter(tiny.adapted(tiny.llama()), folder):
        pass
    sources = (Path(grasp.__file__).parent).rglob("*.py")
    ways = ("PeftModel.from_pretrained", "model.load_adapter")
    putting = {file.name for file in sources if any(way in file.read_text() for way in ways)}
    assert putting == {"attach.py"}


def test_a_deeper_base_model_is_another_base_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"4 of the 12 .* not in the file, such as .*layers\.2\."):
        attach_adapter(tiny.llama(layers=3), saved(tmp_path))


def test_what_peft_says_of_a_misfit_is_one_sentence(tmp_path: Path) -> None:
    wide = LlamaForCausalLM(tiny.llama().config.__class__(hidden_size=64, num_hidden_layers=2,
        intermediate_size=48, num_attention_heads=4, vocab_size=99))  # fmt: skip
    narrow = saved(tmp_path / "narrow")
    with pytest.raises(
        InputError, match=r"8 of its tensors.*such as \S+q_proj.*\(4, 32\).*\(4, 64"
    ):
        attach_adapter(wide, narrow)
    config = narrow / "adapter_config.json"
    written = json.loads(config.read_text())
    config.write_text(json.dumps(written | {"target_modules": ["Wqkv"]}))
    with pytest.raises(
        InputError, match=r"Target modules \{'Wqkv'\} not found in the base model\."
    ):
        attach_adapter(tiny.llama(), narrow)
    config.write_text(json.dumps(written | {"modules_to_save": ["lm_head"]}))
    with pytest.raises(
        InputError, match=r"its file lacks base_model.model.lm_head.weight, which i"
    ):
        attach_adapter(tiny.llama(), narrow)


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS", "FEATURE_EXTRACTION"])
def test_only_language_models_are_loaded(task: str, tmp_path: Path) -> None:
    config = saved(tmp_path) / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"task_type": task}))
    with pytest.raises(InputError, match=f"has the task_type '{task}': it was trained for another"):
        attach_adapter(tiny.llama(), tmp_path)
    with pytest.raises(InputError, match=task), naive_adapter(tiny.adapted(tiny.llama()), tmp_path):
        pass


FITTING: dict[str, tuple[str, dict[str, Any]]] = {
    "no task": ("llama", {"task_type": None}),
    "DoRA": ("llama", {"use_dora": True}),
    "an embedding": ("llama", {"target_modules": ["embed_tokens", "o_proj"]}),
    "token rows": ("llama", {"trainable_token_indices": [3]}),
    "token rows, tied": ("tied", {"trainable_token_indices": [3], "target_modules": ["q_proj"]}),
    "a module of its own": (
        "llama",
        {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
    ),
    "a norm of its own": ("llama", {"modules_to_save": ["norm"], "target_modules": ["q_proj"]}),
    "biases of LoRA": ("qwen2", {"lora_bias": True, "target_modules": ["q_proj"]}),
    "experts by their old names": ("mixtral", {"target_modules": ["q_proj", "w1", "w2", "w3"]}),
    "parameters": ("mixtral", {"target_modules": [], "target_parameters": ["gate_up_proj"]}),
    "Conv1D": ("gpt2", {}),
}


@pytest.mark.parametrize("kind", FITTING)
def test_what_peft_itself_loads_fits(kind: str, tmp_path: Path) -> None:
    """Oracle: the model that was saved, in memory."""
    family, lora = FITTING[kind]
    changed = {"tie_word_embeddings": family == "tied"} if family in ("llama", "tied") else {}
    family = "llama" if family == "tied" else family
    given = {"target_modules": "all-linear"} | lora
    if family == "gpt2":
        given["fan_in_fan_out"] = True
    torch.manual_seed(1)
    config = LoraConfig(**{"r": 3, "task_type": "CAUSAL_LM"} | given)
    model = get_peft_model(peft_oracle.base_model(family, **changed), config)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn_like(weight)
    model.save_pretrained(str(tmp_path))
    again = attach_adapter(peft_oracle.base_model(family, **changed), tmp_path)
    ids = torch.arange(2, 9)[None]
    torch.testing.assert_close(logits(again, input_ids=ids), logits(model.eval(), input_ids=ids))
    with model.disable_adapter(), again.disable_adapter():
        assert torch.equal(logits(again, input_ids=ids), logits(model, input_ids=ids))


# Vocabularies


def enlarged(folder: Path, *, rows: int | None = None, own: bool = True, **lora: Any) -> Path:
    """An adapter trained after two tokens were added, with its tokenizer beside it if `own`."""
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|persona|>", "<|sep|>"]})
    model = tiny.llama()
    torch.manual_seed(3)
    model.resize_token_embeddings(rows or len(tokenizer), mean_resizing=False)
    saved(folder, model, **lora)
    if own:
        tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("lora", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}])
def test_an_enlarged_vocabulary_is_the_adapters(base: Path, tmp_path: Path, lora: Any) -> None:
    folder = enlarged(tmp_path / "a", **lora)
    loaded = load_adapted(str(base), folder)
    ids = loaded.tokenizer("<|persona|>", add_special_tokens=False, return_tensors="pt")
    assert ids["input_ids"].tolist() == [[len(tiny.tokenizer())]]
    held = load_file(folder / WEIGHTS)["base_model.model.model.embed_tokens.weight"]
    torch.testing.assert_close(loaded.model.get_input_embeddings().weight, held)
    before = logits(tiny.llama())
    with (
        loaded.model.disable_adapter()
    ):  # of the tokens that the base model knows, it says the same
        torch.testing.assert_close(logits(loaded.model)[..., :-2], before)


def test_tokens_that_nobody_knows_are_asked_for(base: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"embeddings of \d+ tokens and the base model of \d+: tok"
    ):
        load_adapted(str(base), enlarged(tmp_path / "a", own=False))
    fewer = enlarged(tmp_path / "b", rows=len(tiny.tokenizer()) - 4, own=False)
    assert load_adapted(str(base), fewer).model.get_input_embeddings().weight.shape[0] > 0
    without = renamed(enlarged(tmp_path / "c"), lambda key: key if "lora_" in key else None)
    with pytest.raises(
        InputError, match=r"has 2 tokens that the base model has no embeddings of, s"
    ):
        load_adapted(str(base), without)


def test_embeddings_that_were_changed_without_a_word_are_refused(tmp_path: Path) -> None:
    model = tiny.llama()
    model.get_input_embeddings().weight.data[3] += 1
    folder = saved(tmp_path / "a", model)
    peft = PeftModel.from_pretrained(tiny.llama(), str(folder))
    peft.get_base_model().get_input_embeddings().weight.data[3] += 1
    peft.save_pretrained(str(tmp_path / "b"), save_embedding_layers=True)
    with pytest.raises(
        InputError, match=r"a complete model\.embed_tokens\.weight that differs from"
    ):
        attach_adapter(tiny.llama(), tmp_path / "b")
