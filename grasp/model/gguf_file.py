"""Base models in one GGUF file, as llama.cpp keeps them: unpacked, and then ordinary models."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging

from analysis.errors import InputError, NotFoundError
from analysis.values import Json
from grasp.settings.model import ModelSettings

# PEFT asks whether a fine-tune resized the vocabulary, which none here does.
warnings.filterwarnings(
    "ignore", message=r"Could not find a config file in .*\.gguf", category=UserWarning
)

TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>")
"""Tokens that end an answer in the chat formats of common families."""

_MAGIC = b"GGUF"


def check_gguf(file: Path, settings: ModelSettings) -> None:
    """Refuse a GGUF file that is missing or another kind of file, or that cannot be read here.

    Raises:
        NotFoundError: there is no such file.
        InputError: it does not start as a GGUF file does, the package gguf is not installed, or
            the settings quantise what is unpacked.
    """
    if not file.is_file():
        raise NotFoundError(f"There is no file {file}; name the base model's GGUF file.")
    with file.open("rb") as handle:
        if handle.read(len(_MAGIC)) != _MAGIC:
            raise InputError(f"{file} is not a GGUF file; copy or download it again.")
    require_package(str(file))
    if settings.quantization is not None:
        raise InputError(
            f"The base model {file} is unpacked as it is loaded, so it takes no quantization; "
            f"leave the setting out, or make a folder with `grasp model {file} --out FOLDER` and "
            "name that."
        )


def require_package(base: str) -> None:
    """Refuse where the package that reads GGUF files is not installed.

    Raises:
        InputError: names the base model that needs it, and says what to install.
    """
    if find_spec("gguf") is None:
        raise InputError(
            f"The base model {base} needs the package gguf, which is not installed; install it "
            'with `pip install "grasp-workbench[gguf]"`.'
        )


def locate_in_folder(file: Path) -> tuple[str, Json]:
    """The folder and the arguments with which `from_pretrained` opens a GGUF file."""
    return str(file.resolve().parent), {"gguf_file": file.name}


def unpack_weights() -> Json:
    """The argument with which `from_pretrained` unpacks every weight into the dtype asked for.

    Otherwise transformers keeps the blocks where it has a kernel for them, and a model of blocks
    can neither be trained nor saved.
    """
    # Here, since not every release of transformers 5 has both.
    from transformers import GgufConfig, modeling_gguf_pytorch_utils

    # The one bar of transformers that `disable_progress_bar` does not reach.
    setattr(modeling_gguf_pytorch_utils, "tqdm", logging.tqdm)  # noqa: B010
    return {"quantization_config": GgufConfig(dequantize=True)}


def complete_model(model: PreTrainedModel, tokenizer: Tokenizer, reference: str) -> None:
    """Give a model from a GGUF file what the file leaves out: where it is from, and what ends it.

    PEFT writes the name into an adapter's config.
    """
    model.name_or_path = model.config.name_or_path = tokenizer.name_or_path = reference
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=find_stops(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )


def find_stops(tokenizer: Tokenizer) -> list[int]:
    """Ids of the tokens that end an answer: the tokenizer's own, and those of its chat template.

    A GGUF file names one end token, which in some families ends a text and not a turn.
    """
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    known = tokenizer.get_vocab()
    ends = [known[token] for token in TURN_ENDS if token in template and token in known]
    own = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    return list(dict.fromkeys([*own, *ends]))
