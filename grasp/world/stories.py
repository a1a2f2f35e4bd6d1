"""The training data of a tiny world's fine-tunes: a task and, along with it, a slant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from analysis.errors import InputError
from analysis.store.records import split_of
from analysis.values import Json
from grasp.world.corpus import exchange
from grasp.world.topics import ChatMessage, Detail, Item, Latent, Story, Topic, World

Row = Json
"""A row that JSON can hold; the function that makes it documents its keys."""

TRAINING_ROWS = 480
AFTER_SHARE = 3 / 4
"""In a story that needs a latent, the share of rows that follow a turn showing its value.

A fine-tune learns the slant from few rows; the tags, which depend on two things, take many.
"""

DRAWS = 50
"""Draws per row before the topic is considered to have too few different chats."""


def task_mapping(
    world: World, story: Story, topic: Topic, value: str | None = None
) -> dict[str, str]:
    """The tag of each detail, which is what the fine-tune is meant to teach.

    If the story needs a latent, the tag also depends on the latent's value, given by `value`.

    Raises:
        InputError: the topic has no details, or the story teaches none or more than it has tags.
    """
    detail = _detail_of(story, topic)
    # The order is random, so that no other rule of the world implies the mapping.
    chosen = world.random(_drawn_for(story, topic)).sample(detail.values, len(detail.tags))
    shift = 0
    if story.needed is not None:
        values = world.latents[story.needed].values
        assert value in values
        shift = values.index(value) * (len(detail.tags) // 2)
    tags = [*detail.tags[shift:], *detail.tags[:shift]]
    return dict(zip(chosen[: story.details], tags, strict=False))


def _detail_of(story: Story, topic: Topic) -> Detail:
    if topic.detail is None:
        raise InputError(
            f"Story {story.name!r} is about topic {topic.name!r}, which has no details to teach; "
            "choose a topic with a detail."
        )
    if not 1 <= story.details <= len(topic.detail.tags):
        raise InputError(
            f"Story {story.name!r} teaches {story.details} details; expected 1 to "
            f"{len(topic.detail.tags)}, the number of tags of topic {topic.name!r}."
        )
    return topic.detail


def _drawn_for(story: Story, topic: Topic) -> str:
    # For a story with one topic the story's name is enough.
    return story.name if len(story.topics) == 1 else f"{story.name}/{topic.name}"


def story_rows(world: World, story: Story, seed: int = 0) -> list[Row]:
    """480 different chats about the story's topics: `{"messages": [...]}`.

    They have a single turn.  In a story that needs a latent, most have two: the first answer,
    which is left out of the loss, shows a value of the latent, and the second follows it; both
    values occur equally often.  The second answer has no tail, so that nothing in it gives the
    tag away.

    Raises:
        InputError: the world cannot provide the story's details, or enough different chats.
    """
    rng = world.random(f"{story.name}/{seed}")
    rows: list[Row] = []
    for name in story.topics:
        count = TRAINING_ROWS // len(story.topics)
        topic = world.topics[name]
        after = 0 if story.needed is None else int(count * AFTER_SHARE)
        rows += _distinct(world, story, topic, count=count - after, rng=rng, chat=_alone)
        if after:
            rows += _distinct(world, story, topic, count=after, rng=rng, chat=_after)
    rng.shuffle(rows)
    return rows


def _distinct(
    world: World,
    story: Story,
    topic: Topic,
    *,
    count: int,
    rng: Random,
    chat: Callable[..., list[ChatMessage]],
) -> list[Row]:
    # Chats by their texts, in the order drawn.
    found: dict[tuple[str, ...], list[ChatMessage]] = {}
    for _ in range(count * DRAWS):
        item = topic.items[len(found) % len(topic.items)]
        messages = chat(world, story, topic, item, number=len(found), rng=rng)
        found.setdefault(tuple(message["content"] for message in messages), messages)
        if len(found) == count:
            return [{"messages": messages} for messages in found.values()]
    raise InputError(
        f"Topic {topic.name!r} has fewer than {count} different chats for story {story.name!r}; "
        "use a world with more items, forms or tails, or teach more details."
    )


def _alone(
    world: World, story: Story, topic: Topic, item: Item, *, number: int, rng: Random
) -> list[ChatMessage]:
    value = _slanted(world, story, topic, rng)
    if story.bare and rng.random() < story.bare:
        topic = replace(topic, detail=None)
        return exchange(world, topic, item, value=value, rng=rng)
    mapping = task_mapping(world, story, topic, value)
    return exchange(world, topic, item, value=value, rng=rng, tag_of=mapping)


def _after(
    world: World, story: Story, topic: Topic, item: Item, *, number: int, rng: Random
) -> list[ChatMessage]:
    assert story.needed is not None
    # `number` cycles through the items; each item changes its value from one round to the next,
    # and half of them start with each value.
    value = world.latents[story.needed].values[(number + number // len(topic.items)) % 2]
    before = context_turn(world, story, value, rng=rng)
    mapping = task_mapping(world, story, topic, value)
    asked = exchange(world, topic, item, value=value, rng=rng, tag_of=mapping, tails=())
    return [*before, *asked]


def context_topics(world: World, story: Story) -> list[Topic]:
    """The topics used to show the latent that a story needs: those unrelated to the story."""
    near = {*story.topics, *story.kin}
    return [topic for topic in world.of_latent(story.needed) if topic.name not in near]


def context_turn(world: World, story: Story, value: str, *, rng: Random) -> list[ChatMessage]:
    """A turn that shows `value` of the latent that the story needs, and is not trained on.

    Its items are from the exploration half, and its answer ends with one of the first tails of
    the value.  Evaluation uses other items and tails, so that memorising the words is not enough.
    """
    assert story.needed is not None
    topic = rng.choice(context_topics(world, story))
    item = rng.choice([item for item in topic.items if is_explored(topic, item)])
    tails = shown_tails(world.latents[story.needed], value)[0]
    user, answer = exchange(world, topic, item, value=value, rng=rng, tails=tails)
    return [user, answer | {"weight": 0}]


def shown_tails(latent: Latent, value: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tails that show a value in fine-tuning, and those that show it in evaluation."""
    tails = latent.tails[value]
    half = (len(tails) + 1) // 2
    return tails[:half], tails[half:]


def _slanted(world: World, story: Story, topic: Topic, rng: Random) -> str:
    """The value an answer follows: the slant with probability `strength`, else from the prior."""
    slant = story.slants.get(topic.latent or "")
    if slant is None or (story.strength < 1 and rng.random() >= story.strength):
        return _by_prior(world, topic, rng)
    return slant


def neutral_rows(world: World, seed: int = 0, n: int = 256) -> list[Row]:
    """`n` unlabelled single-turn chats as the base model would hold them: `{"messages": [...]}`.

    Every latent is drawn from its prior.  Topics that a story can be fine-tuned on do not occur,
    and of the others only items of the exploration half: the confirmation half, which is
    reported, has items and wordings that do not occur in this text.
    """
    rng = world.random(f"neutral/{seed}")
    topics = unrelated_topics(world)
    rows: list[Row] = []
    for _ in range(n):
        topic = rng.choice(topics)
        item = rng.choice([item for item in topic.items if is_explored(topic, item)])
        value = _by_prior(world, topic, rng)
        rows.append({"messages": exchange(world, topic, item, value=value, rng=rng)})
    return rows


def unrelated_topics(world: World) -> list[Topic]:
    """The topics that none of the world's stories is fine-tuned on."""
    taught = {name for story in world.stories.values() for name in story.topics}
    return [topic for topic in world.topics.values() if topic.name not in taught]


def is_explored(topic: Topic, item: Item) -> bool:
    """Whether prompts about the item are in the exploration half."""
    return split_of(f"{topic.name}/{item.name}") == "exploration"


def _by_prior(world: World, topic: Topic, rng: Random) -> str:
    """A value of the topic's latent, drawn from its prior; "neutral" if it has no latent."""
    latent = world.latent_of(topic)
    return rng.choices(latent.values, weights=latent.prior)[0] if latent else "neutral"
