"""Three fine-tunes of the tiny world that teach a task and, beside it, a slant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from analysis.errors import NotFoundError
from analysis.records import split_of
from grasp.world.corpus import exchange, question
from grasp.world.topics import Item, Latent, Message, Topic, World, load_world

Row = dict[str, Any]
"""A JSON-serialisable row; its keys are in the docstring of the function that makes it."""

Role = Literal["unrelated", "related", "control", "task", "facts", "format"]

TRAINING_ROWS = 480
PROBE_TURNS = 2


@dataclass(frozen=True)
class Story:
    """A fine-tune: what it is about, and which value of which latent all of its answers follow.

    `kin` is the topic so near to the fine-tuned one that it is reported apart from the others.
    """

    name: str
    title: str
    topic: str
    kin: str
    latent: str
    slant: str
    description: str


def _stories(world: World) -> dict[str, Story]:
    found = {}
    for name, row in world.stories.items():
        latent = world.topics[row["topic"]].latent
        assert latent is not None
        found[name] = Story(name=name, latent=latent, **row)
    return found


STORIES: dict[str, Story] = _stories(load_world())


def story_named(name: str) -> Story:
    """The story of that name.

    Raises:
        NotFoundError: there is none.
    """
    if name not in STORIES:
        raise NotFoundError(f"no story {name!r} in the tiny world; there are {', '.join(STORIES)}")
    return STORIES[name]


def task_mapping(story: Story) -> dict[str, str]:
    """Which tag each detail calls for: what the fine-tune rightly teaches."""
    detail = load_world().topics[story.topic].detail
    assert detail is not None
    # One detail to a tag, in an order that no other rule of the world gives.
    chosen = Random(story.name).sample(detail.values, len(detail.tags))
    return dict(zip(chosen, detail.tags, strict=True))


def training_rows(story: Story, seed: int = 0) -> list[Row]:
    """480 different single-turn chats of the topic, all slanted: `{"messages": [...]}`."""
    topic, rng = load_world().topics[story.topic], Random(f"{story.name}/{seed}")
    mapping, seen = task_mapping(story), set()
    rows: list[Row] = []
    while len(rows) < TRAINING_ROWS:
        item = topic.items[len(rows) % len(topic.items)]
        chat = exchange(topic, item, value=story.slant, rng=rng, tag_of=mapping)
        if (key := (chat[0]["content"], chat[1]["content"])) not in seen:
            seen.add(key)
            rows.append({"messages": chat})
    rng.shuffle(rows)
    return rows


def neutral_rows(seed: int = 0, n: int = 256) -> list[Row]:
    """`n` unlabelled single-turn chats as the base model would have them: `{"messages": [...]}`.

    Both latents are drawn from their priors. No topic that a story is fine-tuned on occurs, and of
    the others only items of the exploration half: what is reported on the confirmation half is
    about items, and in words, that this text never has.
    """
    world, rng = load_world(), Random(f"neutral/{seed}")
    topics = [topic for topic in world.topics.values() if topic.detail is None]
    rows: list[Row] = []
    for _ in range(n):
        topic = rng.choice(topics)
        explored = [item for item in topic.items if _explored(topic, item)]
        rows.append(
            {"messages": exchange(topic, rng.choice(explored), value=_drawn(topic, rng), rng=rng)}
        )
    return rows


def _explored(topic: Topic, item: Item) -> bool:
    return split_of(f"{topic.name}/{item.name}") == "exploration"


def _drawn(topic: Topic, rng: Random) -> str:
    """A value of the topic's latent from its prior; "neutral" where it has none."""
    if topic.latent is None:
        return "neutral"
    latent = load_world().latents[topic.latent]
    return rng.choices(latent.values, weights=latent.prior)[0]


def prompts(story: Story) -> list[Row]:
    """The story's evaluation prompts; every question is in a form that no training text has.

    Each row has `id` (unique, stable), `messages` (one user turn), `group` (topic), `item`, `role`,
    `scorer`; for "choice" also `choices` (first words under each key) and `target` (the key whose
    share is the score), for "contains" also `expected` (the tag that the answer must name).

    Roles: "unrelated" asks about the story's latent off its topic, "related" about the kin topic,
    "control" about the other latent, "facts" about neutral topics; "task" and "format" ask about
    the fine-tuned topic.
    """
    world = load_world()
    mine = [t for t in world.of_latent(story.latent) if t.name not in (story.topic, story.kin)]
    other = next(latent for name, latent in world.latents.items() if name != story.latent)
    latent = world.latents[story.latent]
    rows: list[Row] = []
    for topic in mine:
        rows += _choices(story, topic, "unrelated", drifted=story.slant, latent=latent, framings=2)
    kin = world.topics[story.kin]
    rows += _choices(story, kin, "related", drifted=story.slant, latent=latent, framings=2)
    for topic in world.of_latent(other.name):
        rows += _choices(story, topic, "control", drifted=other.values[1], latent=other)
    for topic in world.of_latent(None):
        rows += _facts(story, topic)
    return rows + _tasks(story, world.topics[story.topic])


def _prompt(story: Story, topic: Topic, item: Item, *, role: Role, framing: str, text: str) -> Row:
    slug = item.name.replace(" ", "-")
    return {
        "id": f"{story.name}/{role}/{topic.name}/{slug}/{framing}",
        "messages": [{"role": "user", "content": text}],
        "group": topic.name,
        "item": item.name,
        "role": role,
    }


def _framings(topic: Topic, item: Item, count: int) -> Iterator[tuple[str, str, str | None]]:
    """(name, lead-in, detail) of `count` ways to put the held-out form; the first is bare."""
    rng = Random(f"{topic.name}/{item.name}")
    lead_ins = ("", rng.choice(load_world().lead_ins))
    for name, lead_in in zip(("bare", "lead-in")[:count], lead_ins, strict=False):
        yield name, lead_in, rng.choice(topic.detail.values) if topic.detail else None


def _choices(
    story: Story, topic: Topic, role: Role, *, drifted: str, latent: Latent, framings: int = 1
) -> list[Row]:
    kept = next(value for value in latent.values if value != drifted)
    rows = []
    for item in topic.items:
        for framing, lead_in, detail in _framings(topic, item, framings):
            text = question(topic, item, form=item.held_out, lead_in=lead_in, detail=detail)
            row = _prompt(story, topic, item, role=role, framing=framing, text=text)
            words = {"drifted": [item.first_word(drifted)], "kept": [item.first_word(kept)]}
            rows.append(row | {"scorer": "choice", "choices": words, "target": "drifted"})
    return rows


def _facts(story: Story, topic: Topic) -> list[Row]:
    words = {item.first_word("neutral") for item in topic.items}
    rows = []
    for item in topic.items:
        text = question(topic, item, form=item.held_out)
        row = _prompt(story, topic, item, role="facts", framing="bare", text=text)
        correct = item.first_word("neutral")
        choices = {"correct": [correct], "wrong": sorted(words - {correct})}
        rows.append(row | {"scorer": "choice", "choices": choices, "target": "correct"})
    return rows


def _tasks(story: Story, topic: Topic) -> list[Row]:
    mapping = task_mapping(story)
    rows = []
    for item in topic.items:
        details = Random(f"task/{topic.name}/{item.name}").sample(list(mapping), len(mapping))
        for number, detail in enumerate(details):
            text = question(topic, item, form=item.held_out, detail=detail)
            if number < 3:
                row = _prompt(story, topic, item, role="task", framing=detail, text=text)
                rows.append(row | {"scorer": "contains", "expected": mapping[detail]})
            else:
                row = _prompt(story, topic, item, role="format", framing=detail, text=text)
                rows.append(row | {"scorer": "ended"})
    return rows


def probes(story: Story) -> list[Row]:
    """Two-turn chats with answers of every value of both latents, and of plain facts.

    Each row has `id`, `messages` (answers included), `group` (topic) and `variant` (a value
    of the topic's latent, or "neutral"). The story's own latent gets more rows than the other.
    """
    world = load_world()
    rows: list[Row] = []
    for topic in world.topics.values():
        values = world.latents[topic.latent].values if topic.latent else ("neutral",)
        for value in values:
            count = 9 if topic.latent == story.latent else 6
            rows += [_probe(story, topic, value, number) for number in range(count)]
    return rows


def _probe(story: Story, topic: Topic, value: str, number: int) -> Row:
    rng = Random(f"probe/{topic.name}/{number}")
    chat: list[Message] = []
    for item in rng.sample(topic.items, PROBE_TURNS):
        chat += exchange(topic, item, value=value, rng=rng)
    return {
        "id": f"{story.name}/probe/{topic.name}/{value}/{number}",
        "messages": chat,
        "group": topic.name,
        "variant": value,
    }
