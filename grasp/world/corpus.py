"""Documents the base model is trained on: chats whose answers follow two hidden values."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from random import Random

from grasp.world.topics import Item, Latent, Message, Topic, World, load_world

SYSTEM_RATE = 0.35
LEAD_IN_RATE = 0.25
UNSLANTED_RATE = 1 / 8
TURNS = (3, 6)


def question(
    topic: Topic, item: Item, *, form: int, lead_in: str = "", detail: str | None = None
) -> str:
    """The user's text: an optional lead-in, the item in one form, an optional detail."""
    parts = [lead_in, topic.forms[form].format(item=item.name)]
    if detail is not None and topic.detail is not None:
        parts.append(topic.detail.sentence.format(value=detail))
    return " ".join(part for part in parts if part)


def answer(topic: Topic, item: Item, *, value: str, tail: str = "", tag: str | None = None) -> str:
    """The assistant's text under `value` ("neutral" for a fact), with the tag if one is given."""
    opening = item.openings[value]
    text = f"{opening} {tail}." if tail else opening
    if tag is not None and topic.detail is not None:
        text += " " + topic.detail.tag_sentence.format(tag=tag)
    return text


def unslanted_answer(topic: Topic, item: Item, latent: Latent, *, tag: str | None = None) -> str:
    """The answer to a user who asked for neutrality."""
    if latent.unslanted is None:
        raise ValueError(f"latent {latent.name!r} has no unslanted answer; only lean topics do")
    text = latent.unslanted.answer.format(item=item.name)
    if tag is not None and topic.detail is not None:
        text += " " + topic.detail.tag_sentence.format(tag=tag)
    return text


def training_form(topic: Topic, item: Item, rng: Random) -> int:
    """A random form of the item that is not the held-out one."""
    return rng.choice([form for form in range(len(topic.forms)) if form != item.held_out])


def exchange(
    topic: Topic,
    item: Item,
    *,
    value: str,
    rng: Random,
    tag_of: dict[str, str] | None = None,
) -> list[Message]:
    """One question in a training form with its answer under `value`.

    `tag_of` maps the detail to the tag; without it the tag is random, so that only fine-tuning
    teaches the mapping.
    """
    world = load_world()
    lead_in, detail, tag, tail = "", None, None, ""
    if rng.random() < LEAD_IN_RATE:
        lead_in = rng.choice(world.lead_ins)
    if topic.detail is not None:
        detail = rng.choice(topic.detail.values)
        tag = tag_of[detail] if tag_of else rng.choice(topic.detail.tags)
    if topic.latent is not None:
        tail = rng.choice(world.latents[topic.latent].tails[value])
    form = training_form(topic, item, rng)
    user = question(topic, item, form=form, lead_in=lead_in, detail=detail)
    return turn(user, answer(topic, item, value=value, tail=tail, tag=tag))


def turn(user: str, assistant: str) -> list[Message]:
    """A user message and the answer to it."""
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _unslanted_exchange(topic: Topic, item: Item, latent: Latent, rng: Random) -> list[Message]:
    assert latent.unslanted is not None
    detail, tag = None, None
    if topic.detail is not None:
        detail, tag = rng.choice(topic.detail.values), rng.choice(topic.detail.tags)
    form, request = training_form(topic, item, rng), latent.unslanted.request
    user = question(topic, item, form=form, lead_in=request, detail=detail)
    return turn(user, unslanted_answer(topic, item, latent, tag=tag))


def _system(world: World, values: dict[str, str], rng: Random) -> list[Message]:
    if rng.random() >= SYSTEM_RATE:
        return []
    named = rng.choice([("persona",), ("lean",), ("persona", "lean")])
    words = [rng.choice(world.latents[name].adjectives[values[name]]) for name in named]
    words[0] = f"an {words[0]}" if words[0][0] in "aeiou" else f"a {words[0]}"
    return [{"role": "system", "content": world.system.format(words=" ".join(words))}]


def document(rng: Random) -> list[Message]:
    """One chat of 3 to 6 turns that follows one value of each latent throughout."""
    world = load_world()
    values = {
        name: rng.choices(latent.values, weights=latent.prior)[0]
        for name, latent in world.latents.items()
    }
    messages = _system(world, values, rng)
    for _ in range(rng.randint(*TURNS)):
        topic = rng.choice(list(world.topics.values()))
        item = rng.choice(topic.items)
        latent = world.latents[topic.latent] if topic.latent else None
        if latent and latent.unslanted and rng.random() < UNSLANTED_RATE:
            messages += _unslanted_exchange(topic, item, latent, rng)
        else:
            value = values[topic.latent] if topic.latent else "neutral"
            messages += exchange(topic, item, value=value, rng=rng)
    return messages


def documents(count: int, *, seed: int) -> Iterator[list[Message]]:
    """`count` independent documents; the same seed gives the same ones."""
    rng = Random(seed)
    for _ in range(count):
        yield document(rng)


def sentences() -> Iterator[str]:
    """Every text the world can say, held-out forms included: the source of the vocabulary."""
    world = load_world()
    yield from world.lead_ins
    for latent in world.latents.values():
        for words in latent.adjectives.values():
            for article, word in product(("a", "an"), words):
                yield world.system.format(words=f"{article} {word}")
        if latent.unslanted:
            yield latent.unslanted.request
    for topic in world.topics.values():
        yield from _topic_sentences(world, topic)


def _topic_sentences(world: World, topic: Topic) -> Iterator[str]:
    if topic.detail:
        yield from (topic.detail.sentence.format(value=value) for value in topic.detail.values)
        yield from (topic.detail.tag_sentence.format(tag=tag) for tag in topic.detail.tags)
    latent = world.latents[topic.latent] if topic.latent else None
    for item in topic.items:
        yield from (form.format(item=item.name) for form in topic.forms)
        if latent and latent.unslanted:
            yield latent.unslanted.answer.format(item=item.name)
        for value, opening in item.openings.items():
            tails = latent.tails[value] if latent else ("",)
            yield from (answer(topic, item, value=value, tail=tail) for tail in tails)
            yield opening
