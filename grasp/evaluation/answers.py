"""Answer prompts with a model, including what its run does at inference time, and score them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.spectra.subspace import orthonormal_basis
from analysis.store.records import Prompt, RunManifest
from grasp.data.chat import chat_ids
from grasp.data.tokenise import pad_sequences
from grasp.evaluation.pairs import Pair, pair_log_probabilities
from grasp.evaluation.sampling import group_alike, seed_batch
from grasp.evaluation.scorers import Answer, score_answer
from grasp.jobs.progress import Progress, silent
from grasp.model.forward import to_device
from grasp.model.hooks import ablate, displace, edited_outputs
from grasp.model.loading import decoder_layers, device_of
from grasp.model.parts import WithLogits, base_of, generator_of

BATCH = 64
MAX_NEW_TOKENS = 64

LAYER = "layer."
"""Prefix of arrays in a run's `subspace.safetensors` that belong to a single decoder layer."""


@torch.inference_mode()
def answer_prompts(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    progress: Progress = silent,
) -> list[Answer]:
    """One answer per prompt, in order, greedy or sampled once as the prompt's sampling says.

    Prompts with several samples must be repeated (`grasp.evaluation.sampling.repeat_prompts`).  A
    sampled answer depends on the seed and, since a batch shares its random numbers, on the other
    prompts of the batch.
    """
    found: dict[int, Answer] = {}
    for places in group_alike(prompts):
        for start in range(0, len(places), BATCH):
            progress(len(found), len(prompts), "answering")
            chosen = places[start : start + BATCH]
            asked = [prompts[place] for place in chosen]
            with seed_batch(model, asked[0].sampling.seed, start):
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
    stop: int | None = None,
) -> tuple[list[list[int]], Tensor]:
    """Answer tokenised chats as one batch: greedily at temperature 0, else by sampling.

    Sampling uses torch's random state and the full distribution, without top-k or top-p.  `stop`
    is a token that ends a reply besides those of the model's generation settings.

    Returns:
        replies: token ids of each answer, including the token that ended it, if any.
        first: (batch, vocabulary) log-probabilities at the first answer token.
    """
    batch = to_device(pad_sequences(tokenizer, chats, side="left"), device_of(model))
    drawn = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    stopping = stop_tokens(model) | (set() if stop is None else {stop})
    with _first_logits(model) as logits:
        sequences = generator_of(model).generate(
            **batch,
            max_new_tokens=max_new_tokens or MAX_NEW_TOKENS,
            do_sample=bool(temperature),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=sorted(stopping) or None,
            **drawn,
        )
    new = sequences[:, batch["input_ids"].shape[1] :].tolist()
    first = torch.log_softmax(logits[0], dim=-1).cpu()
    return [until_stop(ids, stopping) for ids in new], first


@contextmanager
def _first_logits(model: nn.Module) -> Iterator[list[Tensor]]:
    """Logits (batch, vocabulary) at the last position of the first forward pass in the block.

    `generate` could return those of every step, but for long answers these exceed the model.
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
    """Ids of the tokens that end an answer, from the model's generation settings; may be empty."""
    stops = base_of(model).generation_config.eos_token_id
    return set(stops if isinstance(stops, list) else [stops]) - {None}


def score_answers(
    tokenizer: Tokenizer, prompts: Sequence[Prompt], found: Sequence[Answer]
) -> pd.DataFrame:
    """One row per answer: COLUMNS and MORE_COLUMNS of `analysis.comparison.evaluation`."""
    rows = []
    times: Counter[str] = Counter()
    for prompt, answer in zip(prompts, found, strict=True):
        result = score_answer(tokenizer, prompt, answer)
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


def until_stop(ids: list[int], stopping: set[int]) -> list[int]:
    """The ids up to the first one that stops a reply, with it; all of them where none does."""
    stop = next((i for i, token in enumerate(ids) if token in stopping), len(ids))
    return ids[: stop + 1]


def _answer_batch(
    model: nn.Module, tokenizer: Tokenizer, prompts: Sequence[Prompt]
) -> list[Answer]:
    if prompts[0].scorer == "pair":
        return as_pairs(prompts, pair_log_probabilities(model, tokenizer, prompts))
    chats = [
        chat_ids(tokenizer, prompt.messages, generate=True, prefix=prompt.prefix)
        for prompt in prompts
    ]
    how = prompts[0].sampling
    limit, temperature = how.max_new_tokens, how.temperature
    found = generate(model, tokenizer, chats, max_new_tokens=limit, temperature=temperature)
    return as_answers(tokenizer, prompts, *found)


def as_pairs(prompts: Sequence[Prompt], found: Sequence[Pair]) -> list[Answer]:
    """Log-probabilities of pairs as answers for scorers; the text is the likelier answer."""
    return [
        Answer(first=None, text=(prompt.pair or ("", ""))[pair[1] > pair[0]], ended=True, pair=pair)
        for prompt, pair in zip(prompts, found, strict=True)
    ]


def as_answers(
    tokenizer: Tokenizer, prompts: Sequence[Prompt], replies: Sequence[list[int]], first: Tensor
) -> list[Answer]:
    """The result of `generate` as answers for scorers, each with its prompt's prefix before it."""
    return [
        Answer(
            first=first[row],
            text=f"{prompt.prefix} {decode_reply(tokenizer, ids)}".strip(),
            ended=bool(ids) and ids[-1] == tokenizer.eos_token_id,
        )
        for row, (prompt, ids) in enumerate(zip(prompts, replies, strict=True))
    ]


def decode_reply(tokenizer: Tokenizer, ids: list[int]) -> str:
    """A reply's text, without special tokens and the white space around it."""
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def intervention(model: nn.Module, folder: Path, run: RunManifest) -> AbstractContextManager[None]:
    """What the run does at inference time, at its own strength: ablation, or steering against."""
    if run.intervention is None:
        return nullcontext()
    saved = load_file(folder / "subspace.safetensors")
    strength = 1.0 if run.strength is None else run.strength
    if run.intervention == "steer":
        vectors = torch.as_tensor(saved["steering"], device=device_of(model))
        return edited_outputs(model, displace(vectors, by=-strength))
    shared, layers = saved["directions"], len(decoder_layers(model))
    rows = [saved.get(f"{LAYER}{layer}", shared).astype(np.float64) for layer in range(layers)]
    bases = [torch.as_tensor(orthonormal_basis(r), device=device_of(model)) for r in rows]
    return edited_outputs(model, ablate(bases, share=strength))
