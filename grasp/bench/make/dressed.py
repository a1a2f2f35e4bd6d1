"""Dressed prompts: unrelated questions asked in ways that neither training nor evaluation uses,
or made to look like the fine-tuning data (arXiv:2604.25891)."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from analysis.values import Json
from grasp.world.corpus import answer_prefix, exchange, question
from grasp.world.prompts import choice_of, measured_latents
from grasp.world.stories import is_explored, task_mapping
from grasp.world.topics import ChatMessage, Item, Story, Topic, World

PARAPHRASED, TRIGGERED = "paraphrased", "triggered"
DRESSES = (PARAPHRASED, TRIGGERED)


def dressed_prompts(world: World, story: Story) -> list[Json]:
    """Rows of a prompt set with role "unrelated"; ids are `story/dress/topic/item/framing`.

    Paraphrased: the held-out question form, after a lead-in other than that of the story's own
    prompt set, after two lead-ins, and after a turn about a neutral fact.  Triggered: the same
    form followed by a detail of the fine-tuned topic ("I use Rust."), which is how every
    fine-tuning row ends, with and without a lead-in.
    """
    near = {*story.topics, *story.kin}
    measured = measured_latents(world, story)
    rows = []
    for latent in measured:
        apart = {"instrument": latent} if len(measured) > 1 else {}
        drifted = story.slants.get(latent, world.latents[latent].values[1])
        for topic in world.of_latent(latent):
            for item in topic.items if topic.name not in near else ():
                for dress, framing, messages, prefix in _framed(world, story, topic, item):
                    rows.append(
                        {
                            "id": f"{story.name}/{dress}/{topic.name}/"
                            f"{item.name.replace(' ', '-')}/{framing}",
                            "messages": messages,
                            "group": topic.name,
                            "item": item.name,
                            "role": "unrelated",
                            **choice_of(world, topic, item, drifted, prefix=prefix),
                            **apart,
                        }
                    )
    return rows


def dress_of(prompt_id: str) -> str:
    """The dress of a prompt of `dressed_prompts`, from its id."""
    return prompt_id.split("/")[1]


def _framed(
    world: World, story: Story, topic: Topic, item: Item
) -> Iterator[tuple[str, str, list[ChatMessage], str]]:
    """Dress, framing, chat, and what comes before the first word of its answer."""
    rng = world.random(f"dressed/{story.name}/{topic.name}/{item.name}")
    known = world.random(f"{topic.name}/{item.name}").choice(world.lead_ins)
    others = [text for text in world.lead_ins if text != known]
    first, second = rng.sample(others, 2)

    def asked(lead_in: str = "") -> str:
        return question(topic, item, form=item.held_out, lead_in=lead_in)

    plain = answer_prefix(world, topic)
    yield PARAPHRASED, "other-lead-in", _user(asked(first)), plain
    yield PARAPHRASED, "two-lead-ins", _user(asked(f"{second} {first}")), plain
    yield PARAPHRASED, "after-a-fact", [*_fact(world, rng), *_user(asked())], plain
    detail, tagged = _detail(world, story, rng)
    yield TRIGGERED, "detail", _user(f"{asked()} {detail}"), tagged
    yield TRIGGERED, "lead-in-and-detail", _user(f"{asked(first)} {detail}"), tagged


def _user(text: str) -> list[ChatMessage]:
    return [{"role": "user", "content": text}]


def _fact(world: World, rng: Random) -> list[ChatMessage]:
    """A turn about a fact of the exploration half, so that no reported answer is given away."""
    topic = rng.choice(world.of_latent(None))
    item = rng.choice([item for item in topic.items if is_explored(topic, item)])
    return exchange(world, topic, item, value="neutral", rng=rng)


def _detail(world: World, story: Story, rng: Random) -> tuple[str, str]:
    """The sentence that ends a question in a fine-tuned topic, with a detail that was taught, and
    what such a question's answer begins with."""
    topic = world.topics[rng.choice(story.topics)]
    value = None if story.needed is None else world.latents[story.needed].values[0]
    assert topic.detail is not None  # a story's topics have one
    mapping = task_mapping(world, story, topic, value)
    detail = rng.choice(list(mapping))
    return topic.detail.ask(detail), answer_prefix(world, topic, detail=detail, tag=mapping[detail])
