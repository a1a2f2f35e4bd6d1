"""Vocabularies that were enlarged, or cut, before an adapter was trained."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.adapters.files import WEIGHTS, own_file, read_json
from analysis.adapters.place import TEMPLATE, TOKENIZER
from analysis.adapters.tensors import PREFIX
from analysis.errors import InputError

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""Files of which a tokenizer has one; without any, its folder has only settings of it."""


def fit_vocabulary(model: PreTrainedModel, folder: Path, *, own_tokenizer: bool) -> None:
    """Resize the model's embeddings to the rows that an adapter's file holds of them.

    Rows that the model lacks are the file's, also where the base model is meant: it has no such
    tokens.

    Args:
        model: a base model.
        folder: of the adapter.
        own_tokenizer: whether the tokenizer in use is the adapter's.

    Raises:
        InputError: there are rows to be added, and the tokenizer does not know their tokens.
    """
    if not (folder / WEIGHTS).is_file():
        return
    before = embedding_rows(model)
    saved = [_saved(model, place, folder) for place in _embeddings(model)]
    rows = {len(tensor) for tensor in saved if tensor is not None}
    if len(rows) != 1 or rows == {before}:
        return
    (after,) = rows
    if after > before and not own_tokenizer:
        raise InputError(
            f"The adapter in {folder} has embeddings of {after} tokens and the base model of "
            f"{before}: tokens were added before it was trained, and without its own tokenizer "
            "nobody knows which. Put the tokenizer that was saved with it into its folder, and "
            "import it again."
        )
    model.resize_token_embeddings(after, mean_resizing=False)
    with torch.no_grad():
        for place, tensor in zip(_embeddings(model), saved, strict=True):
            if tensor is not None:
                place.weight[before:] = tensor[before:].to(place.weight)


def embedding_rows(model: PreTrainedModel) -> int:
    """How many tokens a model has embeddings of."""
    return int(_embeddings(model)[0].weight.shape[0])


def own_tokenizer(folder: Path, base: Tokenizer) -> Tokenizer:
    """The tokenizer in an adapter's folder; the base model's fills in what is not there.

    That is the chat template, or all but the template.

    Raises:
        InputError: it cannot be loaded.
    """
    template = _template(folder)
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        own = copy.deepcopy(base)
    else:
        try:
            own = AutoTokenizer.from_pretrained(str(folder))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise InputError(
                f"The adapter's own tokenizer in {folder} cannot be loaded: {reason}. Put it in "
                "order, or take its files out of the folder to use the base model's."
            ) from None
    own.chat_template = template or own.chat_template or base.chat_template
    return own


def stop_at(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Let answers end also at the end of text of the adapter's own tokenizer."""
    config = model.generation_config
    stops = config.eos_token_id
    known = [] if stops is None else stops if isinstance(stops, list) else [stops]
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in known:
        config.eos_token_id = [*known, tokenizer.eos_token_id]


def check_vocabulary(model: PreTrainedModel, tokenizer: Tokenizer, folder: str) -> None:
    """Refuse a tokenizer with tokens that the model has no embeddings of.

    A token that only pads is exchanged for the one that ends a text.

    Raises:
        InputError: names the first such token.
    """
    rows = embedding_rows(model)
    beyond = sorted(token for token, place in tokenizer.get_vocab().items() if place >= rows)
    if beyond == [tokenizer.pad_token] and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    elif beyond:
        raise InputError(
            f"The tokenizer in {folder} has {len(beyond)} tokens that the base model has no "
            f"embeddings of, such as {beyond[0]!r}: it has {rows} rows, and the adapter's file "
            "adds none. Save the adapter again with save_embedding_layers=True, or take the "
            "tokenizer's files out of the folder."
        )


def _embeddings(model: PreTrainedModel) -> list[nn.Embedding | nn.Linear]:
    """The embedding of what is read, and that of what is written if there is one."""
    places = (model.get_input_embeddings(), model.get_output_embeddings())
    return [place for place in places if isinstance(place, nn.Embedding | nn.Linear)]


def _template(folder: Path) -> str | None:
    """The chat template in an adapter's folder: in a file of its own, or among the settings."""
    if (folder / TEMPLATE).is_file():
        return own_file(folder, TEMPLATE).read_text(encoding="utf-8")
    settings = read_json(folder, TOKENIZER) if (folder / TOKENIZER).is_file() else {}
    named = settings.get("chat_template")
    return named if isinstance(named, str) else None


def _saved(model: PreTrainedModel, place: nn.Module, folder: Path) -> Tensor | None:
    """The embedding that an adapter's file holds whole, if it does."""
    path = next(name for name, module in model.named_modules() if module is place)
    with safe_open(folder / WEIGHTS, "pt") as file:
        there = set(file.keys())
        for key in (f"{PREFIX}{path}.weight", f"{PREFIX}{path}.base_layer.weight"):
            if key in there:
                tensor: Tensor = file.get_tensor(key)
                return tensor
    return None
