"""Answers of a model to prompts, with what its run does at inference, and their scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.spectra.subspace import orthonormal
from analysis.store.records import Message, Prompt, RunManifest
from grasp.data.tokenise import pad_sequences
from grasp.evaluation.pairs import Pair, pair_log_probabilities
from grasp.evaluation.sampling import alike, seeded
from grasp.evaluation.scorers import Answer, scored
from grasp.jobs.progress import Progress, silent
from grasp.model.hooks import ablate, displace, edited_outputs
from grasp.model.loading import decoder_layers, device_of
from grasp.model.parts import WithLogits, base_of, generator_of

BATCH = 64
MAX_NEW_TOKENS = 64

LAYER = "layer."
"""Prefix of arrays in a run's `subspace.safetensors` that are of one decoder layer alone."""


@torch.inference_mode()
def answers(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    progress: Progress = silent,
) -> list[Answer]:
    """An answer a prompt, greedy or drawn once as its sampling says, in the prompts' order.

    A prompt is as often among them as it is to be answered (`grasp.evaluation.sampling.repeated`).
    What is drawn depends on the seed and, as batches share random numbers, on the prompts beside
    it.
    """
    found: dict[int, Answer] = {}
    for places in alike(prompts):
        for start in range(0, len(places), BATCH):
            progress(len(found), len(prompts), "answering")
            chosen = places[start : start + BATCH]
            asked = [prompts[place] for place in chosen]
            with seeded(model, asked[0].sampling.seed, start):
                answered = _answer_batch(model, tokenizer, asked)
            found |= dict(zip(chosen, answered, strict=True))
    progress(len(prompts), len(prompts), "answering")
    return [found[place] for place in range(len(prompts))]


@torch.inference_mode()
def generate(
    model: nn.Module,
    tokenizer: Tokenizer,
    chats: Sequence[list[int]],
    *,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
) -> tuple[list[list[int]], Tensor]:
    """Answers to tokenised chats, as one batch: greedy at temperature 0, else drawn.

    What is drawn comes from torch's own random numbers, without top-k or top-p.

    Returns:
        replies: token ids of each answer, up to and with the token that stopped it.
        first: (batch, vocabulary) log-probabilities at the first answer token.
    """
    batch = pad_sequences(tokenizer, chats, side="left")
    batch = {name: tensor.to(device_of(model)) for name, tensor in batch.items()}
    drawn = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    with _first_logits(model) as logits:
        sequences = generator_of(model).generate(
            **batch,
            max_new_tokens=max_new_tokens or MAX_NEW_TOKENS,
            do_sample=bool(temperature),
            pad_token_id=tokenizer.pad_token_id,
            **drawn,
        )
    stopping = stop_tokens(model)
    new = sequences[:, batch["input_ids"].shape[1] :].tolist()
    first = torch.log_softmax(logits[0], dim=-1).cpu()
    return [_until_stop(ids, stopping) for ids in new], first


@contextmanager
def _first_logits(model: nn.Module) -> Iterator[list[Tensor]]:
    """Logits (batch, vocabulary) at the last place of the first forward pass inside.

    `generate` would keep those of every step, which for long answers are larger than the model.
    """
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, output: WithLogits) -> None:
        if not kept:
            kept.append(output.logits[:, -1].float().clone())

    handle = base_of(model).register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def stop_tokens(model: nn.Module) -> set[int]:
    """Tokens that end an answer; those of the model's generation settings, which may be none."""
    stops = base_of(model).generation_config.eos_token_id
    return set(stops if isinstance(stops, list) else [stops]) - {None}


def score(tokenizer: Tokenizer, prompts: Sequence[Prompt], found: Sequence[Answer]) -> pd.DataFrame:
    """One row an answer, with the columns of `evaluation.COLUMNS`, MORE_COLUMNS."""
    rows = []
    times: Counter[str] = Counter()
    for prompt, answer in zip(prompts, found, strict=True):
        result = scored(tokenizer, prompt, answer)
        rows.append(
            {
                "prompt_id": prompt.id,
                "cluster": prompt.cluster,
                "role": prompt.role,
                "group": prompt.group,
                "split": prompt.split,
                "scorer": prompt.scorer,
                "score": result.value,
                "coherence": result.coherence,
                "prompt": prompt.messages[-1].content,
                "expected": prompt.expected or "",
                "answer": answer.text,
                "sample": times[prompt.id],
                "instrument": prompt.instrument or "",
                "direction": prompt.direction,
                "paraphrase": prompt.paraphrase or 0,
                "end": prompt.end or "",
            }
        )
        times[prompt.id] += 1
    return pd.DataFrame(rows)


def chat_ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Token ids of a chat that ends where the assistant is to answer."""
    found = tokenizer.apply_chat_template(
        [message.model_dump() for message in messages],
        tokenize=True,
        return_dict=False,
        add_generation_prompt=True,
    )
    return cast(list[int], found)  # the library has one annotation for all it may return


def _until_stop(ids: list[int], stopping: set[int]) -> list[int]:
    stop = next((i for i, token in enumerate(ids) if token in stopping), len(ids))
    return ids[: stop + 1]


def _answer_batch(
    model: nn.Module, tokenizer: Tokenizer, prompts: Sequence[Prompt]
) -> list[Answer]:
    if prompts[0].scorer == "pair":
        return as_pairs(prompts, pair_log_probabilities(model, tokenizer, prompts))
    chats = [chat_ids(tokenizer, prompt.messages) for prompt in prompts]
    how = prompts[0].sampling
    limit, temperature = how.max_new_tokens, how.temperature
    found = generate(model, tokenizer, chats, max_new_tokens=limit, temperature=temperature)
    return as_answers(tokenizer, *found)


def as_pairs(prompts: Sequence[Prompt], found: Sequence[Pair]) -> list[Answer]:
    """Log-probabilities of pairs as scorers take them; the text is the likelier answer."""
    return [
        Answer(first=None, text=(prompt.pair or ("", ""))[pair[1] > pair[0]], ended=True, pair=pair)
        for prompt, pair in zip(prompts, found, strict=True)
    ]


def as_answers(tokenizer: Tokenizer, replies: Sequence[list[int]], first: Tensor) -> list[Answer]:
    """What `generate` gave, as scorers take it."""
    return [
        Answer(
            first=first[row],
            text=str(tokenizer.decode(ids, skip_special_tokens=True)).strip(),
            ended=bool(ids) and ids[-1] == tokenizer.eos_token_id,
        )
        for row, ids in enumerate(replies)
    ]


def intervention(model: nn.Module, folder: Path, run: RunManifest) -> AbstractContextManager[None]:
    """What the run also does at inference time, at its own strength: ablate, or steer against."""
    if run.intervention is None:
        return nullcontext()
    saved = load_file(folder / "subspace.safetensors")
    strength = 1.0 if run.strength is None else run.strength
    if run.intervention == "steer":
        vectors = torch.as_tensor(saved["steering"], device=device_of(model))
        return edited_outputs(model, displace(vectors, by=-strength))
    shared, layers = saved["directions"], len(decoder_layers(model))
    rows = [saved.get(f"{LAYER}{layer}", shared).astype(np.float64) for layer in range(layers)]
    bases = [torch.as_tensor(orthonormal(r), device=device_of(model)) for r in rows]
    return edited_outputs(model, ablate(bases, share=strength))
