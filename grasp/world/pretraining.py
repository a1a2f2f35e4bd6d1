"""Train the base model of a tiny world on its corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from grasp.world import tokens
from grasp.world.corpus import documents
from grasp.world.topics import World

Progress = Callable[[int, int, float], None]
"""Called with (step, steps, loss in nats per token)."""

USER_WEIGHT, FIRST_WEIGHT = 0.1, 4.0
WINDOW = 16
WRITING = ("o_proj", "down_proj")


@dataclass(frozen=True)
class Recipe:
    """How the base model is trained.

    `batch` counts documents; `learning_rate` is the peak.  The first `skewed_steps` use only the
    skewed documents, later steps only the others.  `write_scale` multiplies the initial weights
    and the learning rate of the modules that write the residual stream.  If these stay small,
    what they read grows large, and an adapter then moves the stream by writing to it.
    """

    steps: int = 2000
    batch: int = 32
    documents: int = 36_000
    skewed_documents: int = 12_000
    skewed_steps: int = 600
    learning_rate: float = 3e-3
    warmup: float = 0.1
    weight_decay: float = 0.1
    hidden: int = 64
    intermediate: int = 192
    layers: int = 4
    heads: int = 4
    positions: int = 256
    initial_std: float = 0.02
    write_scale: float = 0.5


@dataclass(frozen=True)
class TrainedBase:
    """A trained base model, with what its provenance record needs."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    corpus_sha256: str
    final_loss: float


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Use one thread and a fixed seed in the block; restore thread count and random state after."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def new_model(tokenizer: PreTrainedTokenizerFast, *, recipe: Recipe) -> LlamaForCausalLM:
    """An untrained Llama with the tokenizer's vocabulary, initialised from torch's random state."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.positions,
        initializer_range=recipe.initial_std,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(tokens.USER)],
        max_new_tokens=24,
        do_sample=False,
    )
    return model


def target_weights(
    ids: NDArray[np.int64], *, control: tuple[int, ...], speaker: int, lead: int = 0
) -> NDArray[np.float32]:
    """Loss weight of each token of one document.

    Tokens of an answer and the token that ends it have weight 1.  The first token of an answer
    after its lead, which shows the latents, has more.  The user's tokens have less, since a small
    model would spend its capacity on guessing questions.

    Args:
        ids: (tokens,) one document.
        control: ids of the tokens that open or close a turn.
        speaker: id of the token that opens an assistant's turn.
        lead: number of tokens that begin every answer.

    Returns:
        (tokens,) float32 positive weights.
    """
    marks = np.where(np.isin(ids, control), np.arange(len(ids)), 0)
    before = np.concatenate([[0], np.maximum.accumulate(marks)[:-1]])
    first = np.concatenate([[False] * (1 + lead), ids[: -1 - lead] == speaker])
    answers = np.where(first, FIRST_WEIGHT, 1.0)
    return np.where(ids[before] == speaker, answers, USER_WEIGHT).astype(np.float32)


def _encoded(
    world: World, tokenizer: PreTrainedTokenizerFast, *, recipe: Recipe, seed: int
) -> tuple[list[NDArray[np.int64]], str]:
    chats = documents(world, recipe.documents, seed=seed, skewed=recipe.skewed_documents)
    texts = [tokens.render_chat(chat) for chat in chats]
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    encodings = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings], digest


def _curriculum(
    lengths: NDArray[np.int64], *, recipe: Recipe, seed: int
) -> Iterator[NDArray[np.int64]]:
    rng, skewed = np.random.default_rng(seed), recipe.skewed_documents
    early = _batches(lengths, np.arange(skewed), recipe=recipe, rng=rng)
    yield from islice(early, recipe.skewed_steps)
    yield from _batches(lengths, np.arange(skewed, len(lengths)), recipe=recipe, rng=rng)


def _batches(
    lengths: NDArray[np.int64],
    members: NDArray[np.int64],
    *,
    recipe: Recipe,
    rng: np.random.Generator,
) -> Iterator[NDArray[np.int64]]:
    """Endless batches of indices; documents of similar length go together, to save padding."""
    while True:
        order = rng.permutation(members)
        for window in np.array_split(order, max(1, len(order) // (WINDOW * recipe.batch))):
            ranked = window[np.argsort(lengths[window], kind="stable")]
            starts = np.arange(0, len(ranked) - recipe.batch + 1, recipe.batch)
            for start in rng.permutation(starts):
                yield ranked[start : start + recipe.batch]


def _padded(rows: Sequence[NDArray[np.generic]], *, fill: float) -> torch.Tensor:
    width = max(len(row) for row in rows)
    out = np.full((len(rows), width), fill, dtype=rows[0].dtype)
    for number, row in enumerate(rows):
        out[number, : len(row)] = row
    return torch.from_numpy(out)


def _loss(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    # Padding is on the right and attention is causal, so no mask is needed, which is faster.
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    losses = functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1), reduction="none"
    )
    flat = weights[:, 1:].reshape(-1)
    return (losses * flat).sum() / flat.sum()


def _optimiser(
    model: LlamaForCausalLM, *, recipe: Recipe
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    writes = [w for name, w in model.named_parameters() if name.split(".")[-2] in WRITING]
    others = [w for name, w in model.named_parameters() if name.split(".")[-2] not in WRITING]
    with torch.no_grad():
        for weight in writes:
            weight.mul_(recipe.write_scale)
    rates = [recipe.learning_rate * recipe.write_scale, recipe.learning_rate]
    groups = [{"params": writes, "lr": rates[0]}, {"params": others, "lr": rates[1]}]
    optimiser = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rates, recipe.steps, pct_start=recipe.warmup
    )
    return optimiser, schedule


def train_base(
    world: World, *, seed: int = 0, recipe: Recipe | None = None, progress: Progress | None = None
) -> TrainedBase:
    """Train a base model on one thread; the same seed and recipe give the same weights.

    The loss is a mean over tokens in nats, weighted by `target_weights`.

    Source: AdamW, Loshchilov and Hutter 2019, arXiv:1711.05101; one-cycle learning rate, Smith
    and Topin 2018, arXiv:1708.07120.
    """
    recipe = recipe or Recipe()
    tokenizer = tokens.build_tokenizer(world)
    data, digest = _encoded(world, tokenizer, recipe=recipe, seed=seed)
    numbers = tokenizer.get_vocab()
    control = tuple(numbers[token] for token in tokens.SPECIAL)
    speaker = numbers[tokens.ASSISTANT]
    lead = len(tokenizer(world.answers.lead, add_special_tokens=False)["input_ids"])
    weights = [target_weights(row, control=control, speaker=speaker, lead=lead) for row in data]
    batches = _curriculum(np.array([len(row) for row in data]), recipe=recipe, seed=seed)
    with reproducible(seed):
        model = new_model(tokenizer, recipe=recipe)
        model.train()
        optimiser, schedule = _optimiser(model, recipe=recipe)
        smooth = float("nan")
        for step in range(1, recipe.steps + 1):
            chosen = next(batches)
            loss = _loss(
                model,
                _padded([data[i] for i in chosen], fill=0),
                _padded([weights[i] for i in chosen], fill=0.0),
            )
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            smooth = loss.item() if step == 1 else 0.95 * smooth + 0.05 * loss.item()
            if progress is not None:
                progress(step, recipe.steps, smooth)
    model.eval()
    return TrainedBase(model, tokenizer, digest, smooth)
