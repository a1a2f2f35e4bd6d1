"""Recording: the residual stream of base and adapted model on the same probes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.errors import InputError
from analysis.recording import write_recording
from analysis.records import Probe, RecordingManifest, RunManifest, read_jsonl, sha256
from analysis.workspace import Workspace
from grasp.data import padded, tokenise
from grasp.hooks import layer_outputs
from grasp.models import decoder_layers, device_of, load_adapted
from grasp.progress import Progress, silent

BATCH = 32


@torch.inference_mode()
def residual_stream(
    model: Any,
    tokenizer: Tokenizer,
    sequences: Sequence[list[int]],
    *,
    layers: Sequence[int],
    progress: Progress = silent,
) -> NDArray[np.float16]:
    """h_ℓ of every token of every sequence, one after the other: (layers, tokens, d_model)."""
    parts = []
    for start in range(0, len(sequences), BATCH):
        progress(start, len(sequences), "recording")
        batch = padded(tokenizer, sequences[start : start + BATCH])
        batch = {name: tensor.to(device_of(model)) for name, tensor in batch.items()}
        real = batch["attention_mask"].bool()
        with layer_outputs(model) as outputs:
            model(**batch, use_cache=False)
        parts.append(torch.stack([outputs[i][real] for i in layers]).half().cpu())
    progress(len(sequences), len(sequences), "recording")
    recorded: NDArray[np.float16] = torch.cat(parts, dim=1).numpy()
    return recorded


def record_run(
    workspace: Workspace,
    folder: Path,
    run: RunManifest,
    *,
    probes: Path | None = None,
    layers: Sequence[int] | None = None,
    progress: Progress = silent,
) -> RecordingManifest:
    """Record a run and its base model on the run's probes, into `recordings/<run>`.

    Raises:
        InputError: neither the run nor the caller names probes, or there is no such layer.
    """
    started = time.monotonic()
    named = probes or run.config.get("probes")
    if not named:
        raise InputError(f"Run {run.id!r} names no probes; give them with --probes FILE.")
    path = Path(workspace.resolve(str(named)))
    rows = read_jsonl(path, Probe)
    model, tokenizer = load_adapted(workspace.resolve(run.base_model), folder / "adapter")
    chosen = _layers(layers, len(decoder_layers(model)))
    tokens = [tokenise(tokenizer, row.messages) for row in rows]
    sequences = [ids for ids, _ in tokens]
    adapted = residual_stream(model, tokenizer, sequences, layers=chosen, progress=progress)
    with model.disable_adapter():
        base = residual_stream(model, tokenizer, sequences, layers=chosen, progress=progress)
    manifest = RecordingManifest(
        id=folder.name,
        run=folder.name,
        base_model=run.base_model,
        layers=chosen,
        parents=[f"runs/{folder.name}"],
        inputs={"probes": sha256(path)},
        seconds=time.monotonic() - started,
    )
    with workspace.writing("recordings", folder.name) as target:
        table = _probe_table(tokenizer, rows, tokens)
        write_recording(target, manifest=manifest, probes=table, base=base, adapted=adapted)
    return manifest


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
