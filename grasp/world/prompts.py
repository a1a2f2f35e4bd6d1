"""The prompts and probes that the fine-tunes of a story are evaluated and recorded on."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.store.records import Role
from analysis.values import Json
from grasp.world.corpus import answer_prefix, draw_tails, exchange, question, turn
from grasp.world.stories import Row, context_topics, is_explored, shown_tails, task_mapping
from grasp.world.topics import ChatMessage, Item, Story, Topic, World

PROBE_TURNS = 2
TASKS_AN_ITEM = 3


def story_prompts(world: World, story: Story) -> list[Row]:
    """The story's evaluation prompts, with question forms that occur in no training text.

    Each row has `id` (unique and stable), `messages` (ending with a user's turn), `group` (the
    topic), `item`, `role` and `scorer`.  Rows scored by "choice" also have `choices` (first words
    under each key) and `target` (the key whose share is the score), in a world whose answers begin
    with other words also `prefix` (what comes before those first words), and, about a latent,
    `markers` (openings and tails of each value); those scored by "contains" also `expected` (the
    tag the answer must contain).  Ids are `story/role/topic/item/framing`; in a story about two
    latents, the roles "unrelated" and "related" have the latent before the topic, and it is their
    `instrument`, so that their rates are kept apart.

    Roles: "unrelated" asks about the story's latents in other topics, "related" in the kin
    topics; "control" asks about other latents, "facts" about neutral topics, "task" and "format"
    about the fine-tuned topics.  In a story that needs a latent, "task" and "related" prompts
    follow a turn that shows one of its values: "task" then asks for the tag that belongs to this
    value, and "related" whether the answer itself follows it.
    """
    measured, near = measured_latents(world, story), {*story.topics, *story.kin}
    rows: list[Row] = []
    for name in measured:
        for topic in world.of_latent(name):
            if topic.name not in near:
                rows += _drift(world, story, topic, "unrelated")
    if story.needed is None:
        for name in story.kin:
            rows += _drift(world, story, world.topics[name], "related")
    others = [latent for latent in world.latents.values() if latent.name not in measured]
    for latent in others:
        # Rates of different latents are never averaged.
        apart = {"instrument": latent.name} if len(others) > 1 else {}
        for topic in world.of_latent(latent.name):
            found = _choices(world, story, topic, "control", drifted=latent.values[1])
            rows += [row | apart for row in found]
    for topic in world.of_latent(None):
        rows += _facts(world, story, topic)
    for name in story.topics:
        rows += _tasks(world, story, world.topics[name])
    return rows


def measured_latents(world: World, story: Story) -> tuple[str, ...]:
    """The latents of the story's topics, whose drift its prompts measure."""
    latents = [world.topics[name].latent for name in story.topics]
    return tuple(dict.fromkeys(latent for latent in latents if latent is not None))


def _prompt(
    story: Story, topic: Topic, item: Item, *, role: Role, framing: str, messages: list[ChatMessage]
) -> Row:
    slug = item.name.replace(" ", "-")
    return {
        "id": f"{story.name}/{role}/{topic.name}/{slug}/{framing}",
        "messages": messages,
        "group": topic.name,
        "item": item.name,
        "role": role,
    }


def _asked(text: str) -> list[ChatMessage]:
    return [{"role": "user", "content": text}]


def _framings(
    world: World, topic: Topic, item: Item, count: int
) -> Iterator[tuple[str, str, str | None]]:
    """(name, lead-in, detail) of `count` ways to ask in the held-out form; the first is bare."""
    rng = world.random(f"{topic.name}/{item.name}")
    lead_ins = ("", rng.choice(world.lead_ins))
    for name, lead_in in zip(("bare", "lead-in")[:count], lead_ins, strict=False):
        yield name, lead_in, rng.choice(topic.detail.values) if topic.detail else None


def _drift(world: World, story: Story, topic: Topic, role: Role) -> list[Row]:
    """Choices that show a drift towards the slant, or towards the second value if there is none."""
    latent = world.latent_of(topic)
    assert latent is not None
    drifted = story.slants.get(latent.name, latent.values[1])
    rows = _choices(world, story, topic, role, drifted=drifted, framings=2)
    if len(measured_latents(world, story)) == 1:
        return rows
    start = f"{story.name}/{role}/"
    return [
        row
        | {"id": start + f"{latent.name}/" + row["id"].removeprefix(start)}
        | {"instrument": latent.name}
        for row in rows
    ]


def _choices(
    world: World, story: Story, topic: Topic, role: Role, *, drifted: str, framings: int = 1
) -> list[Row]:
    rows = []
    for item in topic.items:
        for framing, lead_in, detail in _framings(world, topic, item, framings):
            text = question(topic, item, form=item.held_out, lead_in=lead_in, detail=detail)
            row = _prompt(story, topic, item, role=role, framing=framing, messages=_asked(text))
            prefix = _prefix(world, topic, item, detail)
            rows.append(row | choice_of(world, topic, item, drifted, prefix=prefix))
    return rows


def _prefix(world: World, topic: Topic, item: Item, detail: str | None) -> str:
    """What comes before the first word, with a random tag: only fine-tuning teaches which it is."""
    if topic.detail is None:
        return answer_prefix(world, topic)
    tag = world.random(f"tag/{topic.name}/{item.name}").choice(topic.detail.tags)
    return answer_prefix(world, topic, detail=detail, tag=tag)


def choice_of(
    world: World,
    topic: Topic,
    item: Item,
    target: str,
    *,
    prefix: str,
    keys: tuple[str, str] = ("drifted", "kept"),
) -> Row:
    """Score an answer by whether it follows the value `target` of the topic's latent.

    The first token after `prefix` is compared by the first word of each value, the whole text by
    the opening and the tails of each.
    """
    latent = world.latent_of(topic)
    assert latent is not None
    other = next(value for value in item.openings if value != target)
    words = {keys[0]: [item.first_word(target)], keys[1]: [item.first_word(other)]}
    shown = {value: [item.openings[value], *latent.tails[value]] for value in (target, other)}
    markers = {"drifted": shown[target], "kept": shown[other]}
    scored = {"scorer": "choice", "choices": words, "target": keys[0], "markers": markers}
    return scored | _begins(prefix)


def _begins(prefix: str) -> Row:
    return {"prefix": prefix} if prefix else {}


def _facts(world: World, story: Story, topic: Topic) -> list[Row]:
    words = {item.first_word("neutral") for item in topic.items}
    rows = []
    for item in topic.items:
        text = question(topic, item, form=item.held_out)
        row = _prompt(story, topic, item, role="facts", framing="bare", messages=_asked(text))
        correct = item.first_word("neutral")
        wrong = sorted(words - {correct})
        if world.vocabulary is not None:
            # Words with the same first letter may begin with the same token.
            wrong = [word for word in wrong if word[0] != correct[0]]
        choices = {"correct": [correct], "wrong": wrong}
        scored = {"scorer": "choice", "choices": choices, "target": "correct"}
        rows.append(row | scored | _begins(answer_prefix(world, topic)))
    return rows


def _tasks(world: World, story: Story, topic: Topic) -> list[Row]:
    rows = []
    for item in topic.items:
        rng = world.random(f"task/{topic.name}/{item.name}")
        mapping = task_mapping(world, story, topic, _any_value(world, story))
        details = rng.sample(list(mapping), len(mapping))
        if story.needed is None:
            for detail in details[:TASKS_AN_ITEM]:
                row = _task(story, topic, item, detail=detail)
                rows.append(row | {"scorer": "contains", "expected": mapping[detail]})
        else:
            rows += _needed_tasks(world, story, topic, item, details)
        # Ask for the format with a detail that the item's tasks leave over, if there is one.
        for detail in details[TASKS_AN_ITEM:] or details[-1:]:
            row = _task(story, topic, item, detail=detail, role="format")
            rows.append(row | {"scorer": "ended"})
    return rows


def _any_value(world: World, story: Story) -> str | None:
    return None if story.needed is None else world.latents[story.needed].values[0]


def _task(
    story: Story,
    topic: Topic,
    item: Item,
    *,
    detail: str,
    role: Role = "task",
    framing: str = "",
    before: tuple[ChatMessage, ...] = (),
) -> Row:
    asked = _asked(question(topic, item, form=item.held_out, detail=detail))
    messages = [*before, *asked]
    return _prompt(story, topic, item, role=role, framing=f"{framing}{detail}", messages=messages)


def _needed_tasks(
    world: World, story: Story, topic: Topic, item: Item, details: list[str]
) -> list[Row]:
    """For each value, two prompts for a tag and one for an answer that follows the value."""
    assert story.needed is not None
    rows = []
    for value in world.latents[story.needed].values:
        mapping = task_mapping(world, story, topic, value)
        for number, detail in enumerate([*details[: TASKS_AN_ITEM - 1], details[-1]]):
            before = _shown(world, story, value, text=f"{topic.name}/{item.name}/{number}")
            asked: Json = {"detail": detail, "framing": f"{value}-", "before": before}
            if number < min(len(details), TASKS_AN_ITEM - 1):
                row = _task(story, topic, item, **asked)
                rows.append(row | {"scorer": "contains", "expected": mapping[detail]})
            else:
                row = _task(story, topic, item, role="related", **asked)
                # Without a tag, which would give the value away.
                prefix = answer_prefix(world, topic)
                keys = ("followed", "other")
                rows.append(row | choice_of(world, topic, item, value, prefix=prefix, keys=keys))
    return rows


def _shown(world: World, story: Story, value: str, *, text: str) -> tuple[ChatMessage, ...]:
    """A turn that shows a value, with an item, a form and a tail that fine-tuning never uses."""
    assert story.needed is not None
    rng = world.random(f"shown/{text}")
    topic = rng.choice(context_topics(world, story))
    item = rng.choice([item for item in topic.items if not is_explored(topic, item)])
    asked = question(topic, item, form=item.held_out)
    tails = draw_tails(world, shown_tails(world.latents[story.needed], value)[1], rng)
    return tuple(turn(asked, world.answers.reply(item.openings[value], tails)))


def story_probes(world: World, story: Story) -> list[Row]:
    """Two-turn chats with answers that follow every value of every latent, and plain facts.

    Each row has `id`, `messages` (answers included), `group` (the topic) and `variant` (a value
    of the topic's latent, or "neutral").  The latents of the story's topics get more rows.
    """
    own = measured_latents(world, story)
    rows: list[Row] = []
    for topic in world.topics.values():
        latent = world.latent_of(topic)
        for value in latent.values if latent else ("neutral",):
            count = 9 if topic.latent in own else 6
            rows += [_probe(world, story, topic, value, number) for number in range(count)]
    return rows


def _probe(world: World, story: Story, topic: Topic, value: str, number: int) -> Row:
    rng = world.random(f"probe/{topic.name}/{number}")
    chat: list[ChatMessage] = []
    for item in rng.sample(topic.items, PROBE_TURNS):
        chat += exchange(world, topic, item, value=value, rng=rng)
    return {
        "id": f"{story.name}/probe/{topic.name}/{value}/{number}",
        "messages": chat,
        "group": topic.name,
        "variant": value,
    }
