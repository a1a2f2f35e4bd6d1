"""Base models in GGUF files: the same weights as in a folder, and what a file does not allow."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import yaml
from peft import PeftConfig
from transformers import LlamaForCausalLM

from analysis.base_model.memory_estimate import describe_memory_needs
from analysis.errors import InputError, NotFoundError
from analysis.store.records import RunManifest, read_manifest, sha256, write_jsonl
from grasp.__main__ import main
from grasp.evaluation.answers import stop_tokens
from grasp.identification.lens import LensSource
from grasp.model import gguf_file
from grasp.model.loading import count_layers, load_base, load_tokenizer
from grasp.settings.model import ModelSettings
from tests.support import gguf_files, tiny

pytestmark = [
    pytest.mark.filterwarnings(tiny.PEFT_WARNING),
    pytest.mark.filterwarnings(gguf_files.PEFT_WARNING),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_files.write_gguf(gguf_files.llama(), tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(3, 43).reshape(2, 20)
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids).logits
    return found


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_the_folder_with_the_same_weights(tied: bool, tmp_path: Path) -> None:
    made = gguf_files.llama(tied=tied)
    made.save_pretrained(tmp_path / "folder")
    file = gguf_files.write_gguf(made, tmp_path / "tiny.gguf")
    folder = LlamaForCausalLM.from_pretrained(tmp_path / "folder").eval()
    model = load_base(str(file)).model
    torch.testing.assert_close(logits(model), logits(folder), rtol=0, atol=1e-6)
    assert model.config.tie_word_embeddings == tied
    assert logits(model).std() > 0.1


def test_blocks_are_unpacked_into_the_dtype_that_is_named(tmp_path: Path) -> None:
    made = gguf_files.llama()
    file = gguf_files.write_gguf(made, tmp_path / "b.GGUF", stored=gguf_files.in_blocks)
    plain = made.model.layers[0].mlp.up_proj.weight.detach().numpy()
    blocks = gguf.quantize(plain, gguf.GGMLQuantizationType.Q8_0)
    expected = torch.from_numpy(gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0))
    assert not np.array_equal(expected.numpy(), plain)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = load_base(str(file), ModelSettings.model_validate({"dtype": name})).model
        assert {weight.dtype for weight in model.parameters()} == {dtype}
        assert torch.equal(model.model.layers[0].mlp.up_proj.weight, expected.to(dtype))


def test_what_is_loaded_is_an_ordinary_model(file: Path, tmp_path: Path) -> None:
    loaded = load_base(str(file))
    assert not hasattr(loaded.model.config, "quantization_config")
    assert not getattr(loaded.model, "is_quantized", False)
    assert loaded.model.name_or_path == loaded.tokenizer.name_or_path == str(file)
    assert loaded.commit is None
    assert count_layers(str(file)) == gguf_files.LAYERS
    loaded.model.save_pretrained(tmp_path / "again")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert torch.equal(logits(again), logits(loaded.model))


def test_the_tokenizer_has_the_files_words_and_chat_template(file: Path) -> None:
    tokenizer, alone = load_base(str(file)).tokenizer, load_tokenizer(str(file))
    assert tokenizer.get_vocab() == alone.get_vocab()
    text = "hello, wörld\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[:3] == ["he", "ll", "o"]
    assert tokenizer.decode(ids) == text
    turn = tokenizer.apply_chat_template(
        [{"role": "user", "content": "he"}], add_generation_prompt=True, tokenize=False
    )
    assert turn == "<|im_start|>user\nhe<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer(turn)["input_ids"][0] == gguf_files.TOKENS.index(gguf_files.START)


def test_an_answer_ends_where_the_text_or_the_turn_ends(file: Path) -> None:
    loaded = load_base(str(file))
    ends = {gguf_files.TOKENS.index(token) for token in (gguf_files.END_OF_TEXT, gguf_files.END)}
    assert stop_tokens(loaded.model) == ends
    loaded.tokenizer.chat_template = None
    assert gguf_file.find_stops(loaded.tokenizer) == [loaded.tokenizer.eos_token_id]


def test_a_file_that_is_no_model_is_refused_in_a_sentence(file: Path, tmp_path: Path) -> None:
    for missing in (str(tmp_path / "no.gguf"), "no/such.gguf"):
        with pytest.raises(NotFoundError, match=r"There is no file .*\.gguf; name the base"):
            load_base(missing)
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match="is not a GGUF file; copy or download it again"):
        load_tokenizer(str(other))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.9])
def test_a_file_that_is_cut_off_is_refused_in_a_sentence(
    share: float, file: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.gguf"
    whole = file.read_bytes()
    cut.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(NotFoundError, match=r"cannot be loaded: .*a whole GGUF file"):
        load_base(str(cut))


def test_without_the_package_it_says_what_to_install(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_file, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "grasp-workbench\[gguf\]"'):
        load_base(str(file))


def test_a_file_takes_no_quantization(file: Path) -> None:
    with pytest.raises(InputError, match=r"takes no quantization.*`grasp model .*--out FOLDER`"):
        load_base(str(file), ModelSettings(quantization="4bit"))


def test_what_is_read_from_a_folder_says_how_to_make_one(file: Path) -> None:
    with pytest.raises(InputError, match=r"is a GGUF file, .*`grasp model .*tiny\.gguf --out"):
        LensSource(str(file)).read()
    said = describe_memory_needs(file, {"batch_size": 1, "max_length": 8, "lora": {"r": 1}})
    assert said.startswith("How much memory it takes is unknown. The base model")
    assert f"`grasp model {file} --out FOLDER`" in said


def test_a_fine_tune_records_the_files_hash_and_name(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "task.jsonl", tiny.chats(4))
    settings = {
        "title": "t", "base_model": str(file), "data": "task.jsonl", "max_steps": 2,
        "batch_size": 2, "lora": {"r": 2}, "model": {"dtype": "bfloat16"},
    }  # fmt: skip
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(settings))
    where = ["--workspace", str(tmp_path / "ws")]
    assert main(["train", str(tmp_path / "t.yaml"), "--dry-run", *where]) == 0
    assert "How much memory it takes is unknown" in capsys.readouterr().out
    assert main(["train", str(tmp_path / "t.yaml"), "--out", "t", *where]) == 0
    run = read_manifest(tmp_path / "ws" / "runs" / "t" / "manifest.json", RunManifest)
    assert run.base_model == str(file)
    assert run.inputs["base_model"] == sha256(file)
    adapter = tmp_path / "ws" / "runs" / "t" / "adapter"
    assert PeftConfig.from_pretrained(adapter).base_model_name_or_path == str(file)
    assert main(["factors", "t", *where]) == 0
    assert "no promoted tokens: The base model" in capsys.readouterr().out
    assert main(["generate", "t", "hello", "--max-new-tokens", "3", *where]) == 0
    assert "base: " in capsys.readouterr().out
