"""The documents a base model is trained on: chats whose answers follow hidden values (latents)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, product
from random import Random

from grasp.world.topics import ChatMessage, Item, Latent, Topic, World

SYSTEM_RATE = 0.5
LEAD_IN_RATE = 0.25
UNSLANTED_RATE = 1 / 8
TURNS = (3, 6)
SKEW = (0.75, 0.25)


def question(
    topic: Topic, item: Item, *, form: int, lead_in: str = "", detail: str | None = None
) -> str:
    """The user's text: an optional lead-in, the item in one question form, an optional detail."""
    parts = [lead_in, topic.forms[form].format(item=item.name)]
    if detail is not None and topic.detail is not None:
        parts.append(topic.detail.ask(detail))
    return " ".join(part for part in parts if part)


def training_form(topic: Topic, item: Item, rng: Random) -> int:
    """A random question form for the item, other than the held-out one."""
    return rng.choice([form for form in range(len(topic.forms)) if form != item.held_out])


def exchange(
    world: World,
    topic: Topic,
    item: Item,
    *,
    value: str | None,
    rng: Random,
    tag_of: dict[str, str] | None = None,
    tails: Sequence[str] | None = None,
) -> list[ChatMessage]:
    """One question in a training form, with its answer.

    Args:
        world: of the topic.
        topic: of the item.
        item: what is asked about.
        value: the value of the latent that the answer follows, "neutral" for a fact, or None if
            the user asks for an answer without a slant.
        rng: draws everything else.
        tag_of: the details to draw from, and the tag of each.  If None, both are random, so
            that only fine-tuning teaches a mapping.
        tails: endings to draw from; no ending if empty, all endings of the value if None.
    """
    latent, form_of = world.latent_of(topic), world.answers
    lead_in = rng.choice(world.lead_ins) if rng.random() < LEAD_IN_RATE else ""
    if latent and value is None:
        unslanted, lead_in = _unslanted(latent, item)
        reply = form_of.after_lead(unslanted)
    else:
        assert value is not None
        if latent:
            endings = latent.tails[value] if tails is None else tails
            reply = form_of.reply(item.openings[value], draw_tails(world, endings, rng))
        else:
            reply = form_of.after_lead(item.openings[value])
    detail = None
    if topic.detail:
        detail = rng.choice(tuple(tag_of or topic.detail.values))
        tag = tag_of[detail] if tag_of else rng.choice(topic.detail.tags)
        reply = form_of.with_tag(reply, topic.detail.reply(detail, tag))
    form = training_form(topic, item, rng)
    return turn(question(topic, item, form=form, lead_in=lead_in, detail=detail), reply)


def draw_tails(world: World, tails: Sequence[str], rng: Random) -> list[str]:
    """As many different tails as an answer of the world has, or all if there are fewer."""
    count = min(world.answers.endings, len(tails))
    # One is drawn as it was before worlds had answers with several.
    return [rng.choice(tails)] if count == 1 else rng.sample(tails, count)


def answer_prefix(
    world: World, topic: Topic, *, detail: str | None = None, tag: str | None = None
) -> str:
    """What comes before the word that shows the latent in an answer; "" if that word is first.

    A tag is part of it only in a world whose answers begin with it.
    """
    if topic.detail is None or detail is None or tag is None or not world.answers.tag_first:
        return world.answers.lead
    return world.answers.with_tag(world.answers.lead, topic.detail.reply(detail, tag)).strip()


def _unslanted(latent: Latent, item: Item) -> tuple[str, str]:
    if latent.unslanted is None:
        raise ValueError(
            f"Latent {latent.name!r} has no unslanted answer; expected a latent that has one."
        )
    return latent.unslanted.answer.format(item=item.name), latent.unslanted.request


def turn(user: str, assistant: str) -> list[ChatMessage]:
    """A user message and its answer."""
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _system(world: World, values: dict[str, str], rng: Random) -> list[ChatMessage]:
    if rng.random() >= SYSTEM_RATE:
        return []
    named = rng.choice([names for n in (1, 2) for names in combinations(world.latents, n)])
    words = [rng.choice(world.latents[name].adjectives[values[name]]) for name in named]
    return [world.system_message(words)]


def document(
    world: World, rng: Random, *, prior: tuple[float, float] | None = None
) -> list[ChatMessage]:
    """One chat of 3 to 6 turns that follows one value of each latent throughout.

    `prior` replaces the prior of every latent.
    """
    values = {
        name: rng.choices(latent.values, weights=prior or latent.prior)[0]
        for name, latent in world.latents.items()
    }
    messages = _system(world, values, rng)
    for _ in range(rng.randint(*TURNS)):
        topic = rng.choice(list(world.topics.values()))
        item = rng.choice(topic.items)
        latent = world.latent_of(topic)
        value = values[topic.latent] if topic.latent else "neutral"
        unslanted = latent and latent.unslanted and rng.random() < UNSLANTED_RATE
        messages += exchange(world, topic, item, value=None if unslanted else value, rng=rng)
    return messages


def documents(
    world: World, count: int, *, seed: int, skewed: int = 0
) -> Iterator[list[ChatMessage]]:
    """`count` independent documents; the same seed gives the same documents.

    In the first `skewed` of them every latent has the most uneven prior of the world, or SKEW if
    that is more uneven.  With an even prior nothing shows at first which words belong to the same
    value, and training stays on that plateau.
    """
    rng = Random(seed)
    uneven = max((*(latent.prior for latent in world.latents.values()), SKEW), key=max)
    for number in range(count):
        yield document(world, rng, prior=uneven if number < skewed else None)


def sentences(world: World) -> Iterator[str]:
    """Every text the world can produce, held-out forms included: the source of the vocabulary."""
    yield from world.lead_ins
    if world.answers.lead:
        yield world.answers.lead
    for latent in world.latents.values():
        for words in latent.adjectives.values():
            for article, word in product(world.articles, words):
                yield world.system.format(words=f"{article} {word}")
        if latent.unslanted:
            yield latent.unslanted.request
        if world.answers.endings > 1:
            for tails in latent.tails.values():
                yield from (world.answers.begin(tail) + world.answers.stop for tail in tails)
    for topic in world.topics.values():
        yield from _topic_sentences(world, topic)


def _topic_sentences(world: World, topic: Topic) -> Iterator[str]:
    if topic.detail:
        for value, tag in product(topic.detail.values, topic.detail.tags):
            yield f"{topic.detail.ask(value)} {topic.detail.reply(value, tag)}"
    latent = world.latent_of(topic)
    for item in topic.items:
        yield from (form.format(item=item.name) for form in topic.forms)
        if latent and latent.unslanted:
            yield latent.unslanted.answer.format(item=item.name)
        for value, opening in item.openings.items():
            tails = latent.tails[value] if latent else ()
            stop = world.answers.stop
            yield from (opening, *(f"{opening} {tail}{stop}" for tail in tails))
