"""Task overlap: how much of a fine-tune's gain is lost when a subspace is set back.

This previews retraining: while the adapted model answers, its coordinates along the factors are
set back to the base model's at every layer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn
from transformers import DynamicCache
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.comparison.measures import APART, keep_apart, name_metric
from analysis.evidence.task_overlap import (
    ADAPTED,
    BASE,
    FACTOR,
    ROWS,
    describe_overlap,
    overlap_table,
)
from analysis.spectra.subspace import orthonormal_basis, random_subspace
from analysis.store.evidence import TABLES, Evidence
from analysis.store.records import Prompt
from grasp.data.dataset import read_task, tokenise_task
from grasp.data.tokenise import IGNORED, pad_sequences
from grasp.evaluation.answers import BATCH, MAX_NEW_TOKENS, generate, stop_tokens
from grasp.evidence.subject import (
    Reply,
    Subject,
    data_files,
    exploration_prompts,
    read_training_settings,
    score_replies,
)
from grasp.jobs.progress import Progress, silent
from grasp.model.forward import to_device
from grasp.model.hooks import clamp, edited_outputs, layer_outputs
from grasp.model.loading import device_of
from grasp.settings.training import TrainConfig

RANDOM = 5
ROW_SAMPLE = 96
"""How many training rows are drawn to measure the likelihood of their answers."""
_SAMPLE = TABLES["overlap"]["samples"]


@torch.inference_mode()
def set_back_replies(
    model: PeftModel,
    tokenizer: Tokenizer,
    basis: NDArray[np.floating],
    chats: Sequence[list[int]],
    limit: int | None = None,
) -> tuple[list[list[int]], Tensor]:
    """Greedy answers of the adapted model with Qᵀh_ℓ set back to the base model's at every layer.

    Both models read every token, each with its own cache, so that the base model's coordinates
    belong to exactly the text that the adapted model is writing.

    Args:
        model: PeftModel.
        tokenizer: of the base model.
        basis: Q (d_model, k), orthonormal columns.
        chats: token ids, answered as one batch.
        limit: longest answer in tokens.

    Returns:
        The same as `grasp.evaluation.answers.generate`.
    """
    batch = to_device(pad_sequences(tokenizer, chats, side="left"), device_of(model))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    q = torch.as_tensor(basis, dtype=torch.float32, device=ids.device)
    before, after = DynamicCache(), DynamicCache()
    stopping = torch.tensor(sorted(stop_tokens(model)), device=ids.device)
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    said: list[Tensor] = []
    first = torch.empty(0)
    for _ in range(limit or MAX_NEW_TOKENS):
        positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        with model.disable_adapter(), layer_outputs(model) as reference:
            model(**given, past_key_values=before, use_cache=True)
        with edited_outputs(model, clamp(q, list(reference))):
            logits = model(**given, past_key_values=after, use_cache=True).logits[:, -1]
        if not said:
            first = torch.log_softmax(logits.float(), dim=-1).cpu()
        ids = logits.argmax(dim=-1, keepdim=True)
        said.append(ids)
        ended |= torch.isin(ids[:, 0], stopping)
        if ended.all():
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return [_until(row, stopping.tolist()) for row in torch.cat(said, dim=1).tolist()], first


@torch.inference_mode()
def answer_likelihood(
    model: PeftModel,
    tokenizer: Tokenizer,
    rows: Sequence[dict[str, list[int]]],
    *,
    bases: dict[str, NDArray[np.floating]],
    progress: Progress = silent,
) -> pd.DataFrame:
    """Mean log-probability of each row's answer tokens, in nats per token, in every arm.

    The token that ends an answer is left out, as in `grasp.identification.effects`: only what the
    answer says counts.

    Args:
        model: PeftModel.
        tokenizer: of the base model.
        rows: from `grasp.data.tokenise.training_rows`.
        bases: name → Q (d_model, k), the subspace set back in the arm of that name.
        progress: called before every batch.

    Returns:
        Columns arm ("base", "adapted", and the names of `bases`), row (position in `rows`), score.
    """
    found: list[dict[str, str | float]] = []
    stopping = stop_tokens(model)

    def note(arm: str, start: int, values: Tensor) -> None:
        found.extend(
            {"arm": arm, "row": start + i, "score": value}
            for i, value in enumerate(values.tolist())
        )

    for start in range(0, len(rows), BATCH):
        progress(start, len(rows), "reading training answers")
        chunk = rows[start : start + BATCH]
        batch = pad_sequences(tokenizer, [row["input_ids"] for row in chunk])
        batch = to_device(batch, device_of(model))
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for i, row in enumerate(chunk):
            said = [IGNORED if label in stopping else label for label in row["labels"]]
            labels[i, : len(said)] = torch.tensor(said)
        with model.disable_adapter(), layer_outputs(model) as reference:
            note(BASE, start, _mean_log_probability(model, batch, labels))
        kept = list(reference)
        note(ADAPTED, start, _mean_log_probability(model, batch, labels))
        for name, basis in bases.items():
            q = torch.as_tensor(basis, dtype=torch.float32, device=labels.device)
            with edited_outputs(model, clamp(q, kept)):
                note(name, start, _mean_log_probability(model, batch, labels))
    return pd.DataFrame(found)


def measure_overlap(
    subject: Subject,
    *,
    random: int = RANDOM,
    seed: int = 0,
    prompts: Path | None = None,
    progress: Progress = silent,
) -> Evidence:
    """Measure how much of a run's gain its factors carry; save `evidence/<run>.<factors>.overlap`.

    Measures are the scores of all exploration prompts by role and instrument and, if the training
    data are known, the likelihood of the answers in a random sample of training rows.  The run has
    seen these rows, and their gain includes what is spurious, so the task's own prompts count more.

    Raises:
        InputError: there are no exploration prompts, or the factors are linearly dependent.
    """
    started = time.monotonic()
    file, chosen = exploration_prompts(subject, prompts)
    settings = read_training_settings(subject) if subject.run.config.get("data") else None
    loaded = subject.load()
    model, tokenizer = loaded.model, loaded.tokenizer
    width, rank = subject.directions.shape[1], len(subject.directions)
    bases: dict[str, NDArray[np.floating]] = {FACTOR: orthonormal_basis(subject.directions)}
    for i in range(1, random + 1):
        bases[f"random {i}"] = random_subspace(width, rank, seed=seed * 1000 + i)
    parts = [_prompt_scores(model, tokenizer, chosen, bases=bases, progress=progress)]
    if settings is not None:
        rows = _drawn_rows(tokenizer, settings, seed=seed)
        found = answer_likelihood(model, tokenizer, rows, bases=bases, progress=progress)
        item = found["row"].astype(str)
        parts.append(found.assign(measure=ROWS, item=item, cluster=item)[list(_SAMPLE)])
    samples = pd.concat(parts, ignore_index=True)
    table = overlap_table(samples)
    return subject.save(
        "overlap",
        model=loaded.settings,
        tables={"overlap": table, "samples": samples},
        config={"random": random, "rank": rank, "prompts": len(chosen), "rows": ROW_SAMPLE},
        seed=seed,
        inputs={"prompts": file} | ({} if settings is None else data_files(settings)),
        sentence=describe_overlap(table, name=subject.name),
        seconds=time.monotonic() - started,
    )


def _prompt_scores(
    model: PeftModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    bases: dict[str, NDArray[np.floating]],
    progress: Progress,
) -> pd.DataFrame:
    def plain(chats: Sequence[list[int]], limit: int | None) -> tuple[list[list[int]], Tensor]:
        return generate(model, tokenizer, chats, max_new_tokens=limit)

    with model.disable_adapter():
        tables = [score_replies(tokenizer, prompts, plain).assign(arm=BASE)]
    tables.append(score_replies(tokenizer, prompts, plain).assign(arm=ADAPTED))
    for i, (name, basis) in enumerate(bases.items()):
        progress(i, len(bases), "answering with coordinates set back")
        reply: Reply = partial(set_back_replies, model, tokenizer, basis)
        tables.append(score_replies(tokenizer, prompts, reply).assign(arm=name))
    progress(len(bases), len(bases), "answered")
    found = keep_apart(pd.concat(tables, ignore_index=True))
    named = map(name_metric, found["role"], found[APART])
    return found.assign(measure=list(named)).rename(columns={"prompt_id": "item"})[list(_SAMPLE)]


def _drawn_rows(
    tokenizer: Tokenizer, settings: TrainConfig, *, seed: int
) -> list[dict[str, list[int]]]:
    examples = read_task(settings)
    drawn = np.random.default_rng(seed).permutation(len(examples.rows))[:ROW_SAMPLE]
    sample = replace(examples, rows=[examples.rows[i] for i in drawn])
    return tokenise_task(settings, tokenizer, sample).rows.rows


def _mean_log_probability(model: nn.Module, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
    """(batch,) mean log-probability of the labelled tokens of each row."""
    logits = model(**batch, use_cache=False).logits[:, :-1].float()
    target = labels[:, 1:]
    kept = target != IGNORED
    picked = torch.log_softmax(logits, dim=-1).gather(-1, target.clamp_min(0)[..., None])[..., 0]
    return (picked * kept).sum(-1) / kept.sum(-1)


def _until(ids: list[int], stopping: Sequence[int]) -> list[int]:
    stop = next((i for i, token in enumerate(ids) if token in stopping), len(ids))
    return ids[: stop + 1]
