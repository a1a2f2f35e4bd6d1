"""Record the residual streams of base and adapted model on the same probes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.errors import InputError
from analysis.store.layout import adapter_of
from analysis.store.recording import Model, activation_file, write_tables
from analysis.store.records import (
    Message,
    Probe,
    RecordingManifest,
    RunManifest,
    read_jsonl,
    sha256,
)
from analysis.store.workspace import Workspace
from grasp.data.chat import tokenise
from grasp.data.tokenise import pad_sequences
from grasp.jobs.progress import Progress, silent
from grasp.model.forward import body, to_device
from grasp.model.hooks import each_output
from grasp.model.loading import decoder_layers, device_of, load_adapted
from grasp.model.parts import width_of
from grasp.prompts.sets import FILES, prompts_sha256, read_prompts
from grasp.settings.model import NO_OPTIONS, ModelOptions

BATCH = 32

Put = Callable[[Model, int, int, NDArray[np.float16]], None]
"""Takes the model's name, the place of the layer among those recorded, the row of the first
token, and activations (tokens, d_model)."""


@torch.inference_mode()
def record_streams(
    model: PeftModel,
    tokenizer: Tokenizer,
    sequences: Sequence[list[int]],
    put: Put,
    *,
    layers: Sequence[int],
    progress: Progress = silent,
) -> None:
    """Pass the activations of every token, in both models and at every layer, to `put`.

    Tokens are numbered consecutively over the sequences.  Sequences of similar length share a
    batch, which saves padding, and each layer's output is passed on at once, so that memory stays
    that of a plain forward pass.
    """
    rows = np.cumsum([0, *(len(sequence) for sequence in sequences)])
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    for start in range(0, len(order), BATCH):
        progress(start, len(order), "recording")
        chosen = order[start : start + BATCH]
        batch = pad_sequences(tokenizer, [sequences[i] for i in chosen])
        batch = to_device(batch, device_of(model))
        spans = [(int(rows[i]), len(sequences[i])) for i in chosen]
        with _passed_on(model, layers, partial(put, "adapted"), spans):
            body(model)(**batch, use_cache=False)
        with model.disable_adapter(), _passed_on(model, layers, partial(put, "base"), spans):
            body(model)(**batch, use_cache=False)
    progress(len(order), len(order), "recording")


@contextmanager
def _passed_on(
    model: PeftModel,
    layers: Sequence[int],
    put: Callable[[int, int, NDArray[np.float16]], None],
    spans: Sequence[tuple[int, int]],
) -> Iterator[None]:
    """Pass each chosen layer's output to `put`; `spans` are first rows and lengths of sequences."""
    chosen = {layer: place for place, layer in enumerate(layers)}

    def take(layer: int, hidden: Tensor) -> None:
        if layer in chosen:
            halved = hidden.half().cpu().numpy()
            for values, (row, length) in zip(halved, spans, strict=True):
                put(chosen[layer], row, values[:length])

    with each_output(model, take):
        yield


def record_run(
    workspace: Workspace,
    folder: Path,
    run: RunManifest,
    *,
    probes: Path | None = None,
    layers: Sequence[int] | None = None,
    options: ModelOptions = NO_OPTIONS,
    progress: Progress = silent,
) -> RecordingManifest:
    """Record a run and its base model on the run's probes; save `recordings/<run>`.

    `probes` is a file of chats, or the name of a shipped set of pairs, as `read_probes` has it.

    Raises:
        InputError: neither the run nor the caller gives probes, or there is no such layer.
    """
    started = time.monotonic()
    named = probes or run.config.get("probes")
    if not named:
        raise InputError(f"Run {run.id!r} has no probes; give them with --probes FILE.")
    source = workspace.resolve(str(named))
    rows = read_probes(source)
    reference = workspace.resolve(run.base_model)
    loaded = load_adapted(reference, adapter_of(folder), options=options)
    model, tokenizer = loaded.model, loaded.tokenizer
    chosen = _layers(layers, len(decoder_layers(model)))
    tokens = [tokenise(tokenizer, row.messages) for row in rows]
    sequences = [ids for ids, _ in tokens]
    shape = (len(chosen), sum(map(len, sequences)), width_of(model))
    with workspace.writing("recordings", folder.name) as target:
        with activation_file(target, shape=shape) as file:
            record_streams(model, tokenizer, sequences, file.put, layers=chosen, progress=progress)
        manifest = RecordingManifest(
            id=folder.name,
            run=folder.name,
            base_model=run.base_model,
            model=loaded.settings.non_defaults(),
            layers=chosen,
            parents=[f"runs/{folder.name}"],
            inputs={"probes": _probes_sha256(source)},
            seconds=time.monotonic() - started,
        )
        write_tables(target, manifest=manifest, probes=_probe_table(tokenizer, rows, tokens))
    return manifest


def read_probes(source: str | Path) -> list[Probe]:
    """The probes in a file, or the two answers to every prompt of a shipped set of pairs.

    Raises:
        InputError: the file cannot be read, or a prompt has no pair of answers.
        NotFoundError: there is neither such a file nor such a set.
    """
    if Path(source).suffix in FILES or Path(source).is_file():
        return read_jsonl(Path(source), Probe)
    rows = []
    for prompt in read_prompts(source):
        if prompt.pair is None:
            raise InputError(
                f"Prompt {prompt.id!r} of {source} has no pair of answers to record; choose a set "
                "of pairs, such as persona-pairs, or give a file of chats."
            )
        end = prompt.end or "drifted"
        ends = (f"not {end}", end) if prompt.reversed else (end, f"not {end}")
        for variant, answer in zip(ends, prompt.pair, strict=True):
            said = Message(role="assistant", content=answer)
            rows.append(
                Probe(
                    id=f"{prompt.id}/{variant}",
                    group=prompt.group,
                    variant=variant,
                    messages=[*prompt.messages, said],
                )
            )
    return rows


def _probes_sha256(source: str) -> str:
    return sha256(Path(source)) if Path(source).is_file() else prompts_sha256(source)


def _layers(asked: Sequence[int] | None, there_are: int) -> list[int]:
    if asked is None:
        return list(range(there_are))
    wrong = [layer for layer in asked if not 0 <= layer < there_are]
    if wrong:
        raise InputError(f"There is no layer {wrong[0]}; the model has layers 0–{there_are - 1}.")
    return sorted(set(asked))


def _probe_table(
    tokenizer: Tokenizer, rows: Sequence[Probe], tokens: Sequence[tuple[list[int], list[bool]]]
) -> pd.DataFrame:
    lengths = [len(ids) for ids, _ in tokens]
    return pd.DataFrame(
        {
            "id": [row.id for row in rows],
            "group": [row.group for row in rows],
            "variant": [row.variant for row in rows],
            "tokens": [[tokenizer.decode([token]) for token in ids] for ids, _ in tokens],
            "answer": [answer for _, answer in tokens],
            "offset": np.concatenate([[0], np.cumsum(lengths)[:-1]]),
        }
    )
