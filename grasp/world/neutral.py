"""Neutral text for the stories of a world: unlabelled chats of several kinds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Literal, get_args

from analysis.errors import InputError
from grasp.world.corpus import LEAD_IN_RATE, exchange, question, training_form, turn
from grasp.world.stories import Row, is_explored, neutral_rows, unrelated_topics
from grasp.world.topics import ChatMessage, Item, Topic, World

NeutralKind = Literal["generated", "own", "factor-free", "narrow", "other-style"]

COUNT = 256
"""Chats of a neutral text."""

TEMPERATURE = 1.0


def neutral_text(
    world: World, kind: NeutralKind, *, base: str | Path, seed: int = 0, n: int = COUNT
) -> list[Row]:
    """`n` unlabelled single-turn chats, `{"messages": [...]}`; a seed gives the same ones.

    None of them is about a fine-tuned topic or an item of the confirmation half.

    - "generated": answers that follow each latent at its prior, as the base model's would.
    - "own": the base model's own answers to such questions, sampled at temperature 1.
    - "factor-free": plain facts alone.
    - "narrow": as "generated", about only two topics of different latents.
    - "other-style": the world's facts in sentences the base model has never seen, two at a time
      and with their words in reverse.

    Args:
        world: of the texts.
        kind: one of the above.
        base: folder of the world's base model, read for "own" alone.
        seed: of all random draws.
        n: number of chats.

    Raises:
        InputError: there is no such kind.
    """
    if kind == "generated":
        return neutral_rows(world, seed=seed, n=n)
    if kind == "own":
        return own_answers(world, base, seed=seed, n=n)
    rng = world.random(f"neutral/{kind}/{seed}")
    if kind == "factor-free":
        return [_chat(world, world.of_latent(None), rng) for _ in range(n)]
    if kind == "narrow":
        topics = [rng.choice(_plain(world, latent)) for latent in list(world.latents)[:2]]
        return [_chat(world, topics, rng) for _ in range(n)]
    if kind == "other-style":
        return [{"messages": _in_reverse(world, rng)} for _ in range(n)]
    raise InputError(f"There is no neutral text {kind!r}; choose from {get_args(NeutralKind)}.")


def own_answers(world: World, base: str | Path, *, seed: int, n: int) -> list[Row]:
    """The questions of `neutral_rows`, with answers sampled from the model in the folder `base`."""
    import torch

    from analysis.store.records import Message
    from grasp.data.chat import chat_ids
    from grasp.evaluation.answers import BATCH, decode_reply, generate
    from grasp.model.loading import load_base
    from grasp.world.pretraining import reproducible

    loaded = load_base(str(base))
    asked = [row["messages"][:1] for row in neutral_rows(world, seed=seed, n=n)]
    rows: list[Row] = []
    with reproducible(seed), torch.inference_mode():
        for start in range(0, n, BATCH):
            chosen = asked[start : start + BATCH]
            chats = [
                chat_ids(loaded.tokenizer, [Message(**m) for m in chat], generate=True)
                for chat in chosen
            ]
            replies, _ = generate(loaded.model, loaded.tokenizer, chats, temperature=TEMPERATURE)
            for chat, ids in zip(chosen, replies, strict=True):
                text = decode_reply(loaded.tokenizer, ids)
                rows.append({"messages": turn(chat[0]["content"], text)})
    return rows


def _plain(world: World, latent: str | None) -> list[Topic]:
    """The topics of a latent that no story is fine-tuned on."""
    return [topic for topic in unrelated_topics(world) if topic.latent == latent]


def _explored(topic: Topic, rng: Random) -> Item:
    return rng.choice([item for item in topic.items if is_explored(topic, item)])


def _chat(world: World, topics: Sequence[Topic], rng: Random) -> Row:
    topic = rng.choice(topics)
    latent = world.latent_of(topic)
    value = rng.choices(latent.values, weights=latent.prior)[0] if latent else "neutral"
    return {"messages": exchange(world, topic, _explored(topic, rng), value=value, rng=rng)}


def _in_reverse(world: World, rng: Random) -> list[ChatMessage]:
    """Two facts, asked and answered together; marks stay where sentences end."""
    asked, answered = [], []
    for topic in rng.sample(_plain(world, None) * 2, 2):
        item = _explored(topic, rng)
        asked.append(_reversed(question(topic, item, form=training_form(topic, item, rng))))
        answered.append(_reversed(item.openings["neutral"]))
    if rng.random() < LEAD_IN_RATE:
        asked.append(rng.choice(world.lead_ins))
    return turn(" ".join(asked), " ".join(answered))


def _reversed(sentence: str) -> str:
    words = sentence.split(" ")
    last = words[-1].rstrip("?.!;,")
    mark = words[-1][len(last) :]
    return " ".join([last, *words[-2::-1]]) + mark
