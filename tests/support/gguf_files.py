"""Tiny Llamas in GGUF files, written with the format's own package, and wheels that hold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from zipfile import ZipFile

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from analysis.store.records import sha256
from grasp.hub.wheels import PackagedModel

WIDTH, INNER, LAYERS, HEADS, KV_HEADS = 32, 64, 2, 4, 2
END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CONTROL = (END_OF_TEXT, START, END)
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOKENS = [*CONTROL, *(bytes_to_unicode()[byte] for byte in range(256)), "he", "ll"]
MERGES = ["h e", "l l"]

# PEFT looks for a config beside a base model's name, and a GGUF file has none.
PEFT_WARNING = r"ignore:Could not find a config file in .*\.gguf:UserWarning"

Data = tuple[NDArray[np.generic], gguf.GGMLQuantizationType]
Stored = Callable[[NDArray[np.float32]], Data]


def llama(*, tied: bool = False, seed: int = 0) -> LlamaForCausalLM:
    """Random weights, large enough for the logits to differ."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        vocab_size=len(TOKENS),
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        bos_token_id=TOKENS.index(START),
        eos_token_id=TOKENS.index(END_OF_TEXT),
    )
    model = LlamaForCausalLM(config)
    model.eval()
    return model


def in_floats(
    weights: NDArray[np.float32],
) -> Data:
    """The weights as they are."""
    return weights, gguf.GGMLQuantizationType.F32


def in_blocks(
    weights: NDArray[np.float32],
) -> Data:
    """Matrices in 8-bit blocks; norms as they are."""
    if weights.ndim < 2:
        return in_floats(weights)
    kind = gguf.GGMLQuantizationType.Q8_0
    return gguf.quantize(weights, kind), kind


def write_gguf(model: LlamaForCausalLM, file: Path, *, stored: Stored = in_floats) -> Path:
    """Write a model as llama.cpp keeps a Llama, with a byte-level tokenizer and a chat template."""
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(file, "llama")
    _write_shape(writer)
    _write_tokenizer(writer)
    for name, weights in _named(model).items():
        data, kind = stored(weights)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _write_shape(writer: gguf.GGUFWriter) -> None:
    writer.add_name("tiny")
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(TOKENS))


def _write_tokenizer(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if token in CONTROL else normal for token in TOKENS])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(TOKENS.index(START))
    writer.add_eos_token_id(TOKENS.index(END_OF_TEXT))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT)


def _named(model: LlamaForCausalLM) -> Mapping[str, NDArray[np.float32]]:
    """The weights by their names in the format; llama.cpp orders rotary rows in another way."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    found: dict[str, NDArray[np.float32]] = {}
    for key, weight in model.state_dict().items():
        if key == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        array = weight.float().numpy()
        for end, heads in (("q_proj.weight", HEADS), ("k_proj.weight", KV_HEADS)):
            if key.endswith(end):
                array = interleave(array, heads)
        name = names.get_name(key, try_suffixes=(".weight",))
        assert name is not None, key
        found[name] = np.ascontiguousarray(array)
    return found


def interleave(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Both halves of each head in turns, as `permute` of llama.cpp's convert_hf_to_gguf.py."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1)
    return halves.swapaxes(1, 2).reshape(rows.shape)


def write_wheel(file: Path, folder: Path, *, package: str = "tiny_model") -> Path:
    """A wheel that pip can download, with a GGUF file and a licence in it."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{package}-1.0-py3-none-any.whl"
    info = f"{package}-1.0.dist-info"
    with ZipFile(wheel, "w") as archive:
        archive.write(file, f"{package}/{file.name}")
        archive.writestr(f"{info}/LICENSE", "Do as you like.\n")
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def packaged(wheel: Path, file: str, *, package: str = "tiny_model") -> PackagedModel:
    """The model in such a wheel, as the list of known models has it."""
    return PackagedModel(
        title="Tiny",
        home="https://example.org/tiny",
        licence="MIT",
        package=package,
        version="1.0",
        wheel_sha256=sha256(wheel),
        wheel_bytes=wheel.stat().st_size,
        file=f"{package}/{file}",
        licence_file=f"{package}-1.0.dist-info/LICENSE",
    )
