"""Texts about a task's own subject are told from others without a label."""

from __future__ import annotations

import random

from analysis.store.records import Message
from grasp.data.apart import apart_from
from grasp.data.examples import Example, as_examples
from grasp.world.shipped import shipped_world
from grasp.world.stories import neutral_rows, story_rows


def chats(rows) -> list[Example]:
    return as_examples([[Message.model_validate(m) for m in row["messages"]] for row in rows])


def test_questions_about_the_task_are_left_out_and_others_stay():
    world = shipped_world()
    for name in ("code", "finance"):
        story = world.story(name)
        task, more = chats(story_rows(world, story)), chats(story_rows(world, story, seed=9)[:16])
        others = chats(neutral_rows(world, n=200))
        mixed = [*more, *others]
        random.Random(0).shuffle(mixed)
        kept = apart_from(task, mixed)
        assert sum(one in more for one in kept) <= 2
        assert sum(one in others for one in kept) >= 180
        assert kept == [one for one in mixed if one in kept]  # in their order


def test_too_few_texts_to_tell_are_all_kept():
    texts = chats([{"messages": [{"role": "user", "content": "hello"}]}] * 3)
    assert apart_from(texts, texts) == texts
