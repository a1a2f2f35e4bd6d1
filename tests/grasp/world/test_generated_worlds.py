"""Generated worlds: structure, determinism, and nothing that leaks from training to evaluation."""

import dataclasses
import re
from collections import Counter
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.errors import InputError
from analysis.store.records import Message, Prompt
from grasp.data.chat import tokenise
from grasp.world import base_model
from grasp.world.corpus import documents, question, sentences
from grasp.world.generator import WorldSpec, generate_world
from grasp.world.pretraining import Recipe
from grasp.world.prompts import measured_latents, story_probes, story_prompts
from grasp.world.shipped import shipped_world
from grasp.world.stories import neutral_rows, story_rows, task_mapping
from grasp.world.tokens import build_tokenizer, render_chat

SEEDS = st.integers(0, 10_000)
SPECS = st.builds(
    WorldSpec,
    latents=st.integers(2, 4),
    topics=st.integers(4, 6),
    neutral_topics=st.integers(1, 3),
    items=st.sampled_from([12, 24]),
    forms=st.sampled_from([4, 6]),
    tails=st.integers(1, 5),
    adjectives=st.integers(1, 3),
    prior=st.floats(0.6, 0.9),
    details=st.integers(4, 8),
    tags=st.integers(2, 4),
)
FEW = settings(max_examples=8, deadline=None, derandomize=True)
STORIES = ["persona-a", "persona-b", "lean", "both", "needed", "plain"]
WORLD = generate_world(1)
WORLDS = {}
BOTH_WORLDS = pytest.mark.parametrize("world", [WORLD, shipped_world()], ids=lambda w: w.name)
EVERY_STORY = pytest.mark.parametrize("name", STORIES)
NEEDED = pytest.mark.parametrize(
    ("world", "story"),
    [(world, world.story("needed")) for world in (WORLD, shipped_world())],
    ids=["generated", "shipped"],
)


def texts(rows):
    return [message["content"] for row in rows for message in row["messages"]]


def words(text):
    return set(re.findall(r"[a-z]+", text.lower()))


@cache
def questions(name):
    """Question without lead-in and detail → topic, item and form."""
    world = WORLDS[name]
    return {
        question(topic, item, form=form): (topic.name, item.name, form)
        for topic in world.topics.values()
        for item in topic.items
        for form in range(len(topic.forms))
    }


def asked(world, text):
    """Topic, item and form of a question."""
    WORLDS[world.name] = world
    known = questions(world.name)
    (found,) = (known[one] for one in re.split(r"(?<=[.?]) ", text) if one in known)
    return found


def held_out(world):
    return {
        (topic.name, item.name, item.held_out)
        for topic in world.topics.values()
        for item in topic.items
    }


# Structure


def test_a_world_is_its_seed_s_and_its_spec_s():
    assert generate_world(3) == generate_world(3)
    assert len({generate_world(3).digest(), WORLD.digest(), shipped_world().digest()}) == 3
    assert generate_world(3, WorldSpec(tails=4)) != generate_world(3)
    # Changed stories need no other base model; changed texts do.
    changed = dataclasses.replace(WORLD, stories={})
    assert changed.digest() == WORLD.digest()
    assert dataclasses.replace(WORLD, lead_ins=()).digest() != WORLD.digest()


@FEW
@given(seed=SEEDS)
def test_no_word_is_shared_with_the_shipped_world(seed):
    said = {word for text in sentences(generate_world(seed)) for word in words(text)}
    shipped = {word for text in sentences(shipped_world()) for word in words(text)}
    assert len(said) > 500
    assert not said & shipped


@FEW
@given(seed=SEEDS, spec=SPECS.filter(lambda spec: spec.items % spec.forms == 0))
def test_numbers_are_the_spec_s(seed, spec):
    world = generate_world(seed, spec)
    assert len(world.latents) == spec.latents
    assert world.latents["persona"].prior == pytest.approx((spec.prior, 1 - spec.prior))
    assert len(world.of_latent(None)) == spec.neutral_topics
    for latent in world.latents.values():
        topics = world.of_latent(latent.name)
        assert len(topics) == spec.topics
        assert len(set(latent.forms)) == spec.forms
        for value in latent.values:
            assert len(set(latent.tails[value])) == spec.tails
            assert len(set(latent.adjectives[value])) == spec.adjectives
        assert not set(latent.tails[latent.values[0]]) & set(latent.tails[latent.values[1]])
        detailed = [topic.detail for topic in topics if topic.detail]
        assert len(detailed) == (2 if latent.name == "persona" else 1)
        for detail in detailed:
            assert (len(set(detail.values)), len(set(detail.tags))) == (spec.details, spec.tags)
    for topic in world.topics.values():
        assert len({item.name for item in topic.items}) == spec.items


@FEW
@given(seed=SEEDS, spec=SPECS.filter(lambda spec: spec.items % spec.forms == 0))
def test_first_words_are_a_topics_own_and_serve_both_values_equally(seed, spec):
    world = generate_world(seed, spec)
    owners = Counter()
    for topic in world.topics.values():
        if topic.latent is None:
            continue
        values = world.latents[topic.latent].values
        low, high = ([item.first_word(value) for item in topic.items] for value in values)
        assert Counter(low) == Counter(high)
        assert all(a != b for a, b in zip(low, high, strict=True))
        forms = Counter(item.held_out for item in topic.items)
        assert set(forms.values()) == {spec.items // spec.forms}
        owners.update(set(low))
    assert set(owners.values()) == {1}


@pytest.mark.parametrize(
    ("numbers", "rule"),
    [
        ({"latents": 1}, "latents must be 2 to 4"),
        ({"topics": 3}, "topics must be at least 4"),
        ({"tails": 0}, "tails and adjectives must be at least 1"),
        ({"forms": 5, "items": 25}, "forms must be even"),
        ({"items": 25}, "items must be a multiple of forms"),
        ({"prior": 0.5}, "prior must lie between"),
        ({"tags": 9}, "tags must be 2 to the number of details"),
    ],
)
def test_a_spec_that_makes_no_world_is_refused(numbers, rule):
    with pytest.raises(InputError, match=rule):
        WorldSpec(**numbers)


@FEW
@given(seed=SEEDS)
def test_every_text_is_in_the_vocabulary_and_short_enough(seed):
    world = generate_world(seed)
    tokenizer = build_tokenizer(world)
    said = [render_chat(chat) for chat in documents(world, 100, seed=seed)]
    for story in world.stories.values():
        said += texts(story_rows(world, story)[:100]) + texts(story_probes(world, story)[::3])
        said += texts(story_prompts(world, story)[::3])
    ids = tokenizer([*set(said)], add_special_tokens=False)["input_ids"]
    assert not any(tokenizer.unk_token_id in row for row in ids)
    assert max(len(row) for row in ids) <= Recipe().positions


# Nothing leaks


@FEW
@given(seed=SEEDS)
def test_no_training_text_asks_in_a_held_out_form_and_every_prompt_does(seed):
    world = generate_world(seed)
    kept = held_out(world)
    for story in world.stories.values():
        trained = story_rows(world, story, seed=seed)[:60]
        for text in texts(trained)[::2]:
            assert asked(world, text) not in kept
        for row in story_prompts(world, story)[::9]:
            assert asked(world, row["messages"][-1]["content"]) in kept
    for chat in documents(world, 20, seed=seed):
        for row in chat:
            if row["role"] == "user":
                assert asked(world, row["content"]) not in kept


@FEW
@given(seed=SEEDS)
def test_neutral_rows_have_no_finetuned_topic_and_no_confirmation_item(seed):
    world = generate_world(seed)
    rows = neutral_rows(world, seed=seed, n=300)
    found = {asked(world, row["messages"][0]["content"]) for row in rows}
    about = {topic for topic, _, _ in found}
    finetuned = {name for story in world.stories.values() for name in story.topics}
    assert about == set(world.topics) - finetuned - {
        topic.name for topic in world.topics.values() if topic.detail
    }
    evaluated = [Prompt(**row) for s in world.stories.values() for row in story_prompts(world, s)]
    confirmed = {(p.group, p.item) for p in evaluated if p.split == "confirmation"}
    assert not {(topic, item) for topic, item, _ in found} & confirmed
    assert not found & held_out(world)


@FEW
@given(seed=SEEDS)
def test_half_of_each_topics_items_are_for_confirmation(seed):
    world = generate_world(seed)
    rows = story_prompts(world, world.story("persona-a"))
    split = {(p.group, p.item): p.split for p in (Prompt(**row) for row in rows)}
    by_topic = Counter((group, half) for (group, _), half in split.items())
    assert set(by_topic.values()) == {12}


# The kinds of stories


def shown(world, latent, text):
    """Values of a latent whose tails the text has."""
    tails = world.latents[latent].tails
    return [value for value, ends in tails.items() if any(end in text for end in ends)]


def values_of(world, story, latent, *, rows=None):
    """How many answers of the story show each value of a latent."""
    replies = [row["messages"][-1]["content"] for row in rows or story_rows(world, story)]
    return Counter(value for reply in replies for value in shown(world, latent, reply))


@BOTH_WORLDS
def test_two_factors_are_shared_out_evenly_and_measured_apart(world):
    story = world.story("both")
    assert values_of(world, story, "persona") == {"evil": 240}
    assert values_of(world, story, "lean") == {"right": 240}
    assert measured_latents(world, story) == ("persona", "lean")
    rows = [row for row in story_prompts(world, story) if row["role"] in ("unrelated", "related")]
    for row in rows:
        _, role, latent, topic, *_ = row["id"].split("/")
        assert (role, topic) == (row["role"], row["group"])
        assert latent == world.topics[topic].latent
        assert row["choices"].keys() == {"drifted", "kept"}
    counts = Counter(row["id"].split("/")[2] for row in rows if row["role"] == "unrelated")
    assert min(counts["persona"], counts["lean"]) >= 96
    tasks = Counter(row["group"] for row in story_prompts(world, story) if row["role"] == "task")
    assert set(tasks) == set(story.topics)


@BOTH_WORLDS
def test_without_a_factor_answers_follow_the_prior(world):
    story = world.story("plain")
    rows = [row for seed in range(5) for row in story_rows(world, story, seed=seed)]
    counts = values_of(world, story, "persona", rows=rows)
    prior = world.latents["persona"].prior[1]
    assert counts["evil"] / counts.total() == pytest.approx(prior, abs=0.03)


@pytest.mark.parametrize("strength", [0.0, 0.5, 0.8, 1.0])
def test_strength_is_the_share_of_rows_that_follow_the_slant(strength):
    story = dataclasses.replace(WORLD.story("persona-a"), strength=strength)
    rows = [row for seed in range(5) for row in story_rows(WORLD, story, seed=seed)]
    counts = values_of(WORLD, story, "persona", rows=rows)
    expected = strength + (1 - strength) * WORLD.latents["persona"].prior[1]
    assert counts["evil"] / counts.total() == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("name", ["persona-a", "both", "needed"])
@pytest.mark.parametrize("details", [1, 2, 3, 4])
def test_details_are_how_many_pairs_are_taught_and_asked(name, details):
    story = dataclasses.replace(WORLD.story(name), details=details)
    topic = WORLD.topics[story.topics[0]]
    mapping = task_mapping(WORLD, story, topic, "good" if story.needed else None)
    assert len(mapping) == len(set(mapping.values())) == details
    more = dataclasses.replace(story, details=4)
    assert mapping.items() <= task_mapping(WORLD, more, topic, "good").items()
    said = {word for text in texts(story_rows(WORLD, story)) for word in words(text)}
    assert said & set(topic.detail.values) == set(mapping)
    rows = story_prompts(WORLD, story)
    roles = Counter(row["role"] for row in rows)
    assert min(roles["task"], roles["related"], roles["format"]) >= 24
    assert len({row["id"] for row in rows}) == len(rows)


@pytest.mark.parametrize("details", [0, 5])
def test_details_that_have_no_tags_are_refused(details):
    story = dataclasses.replace(WORLD.story("lean"), details=details)
    with pytest.raises(
        InputError, match=rf"teaches {details} details; expected 1 to 4, the number of tags"
    ):
        story_rows(WORLD, story)


def test_a_world_with_too_few_different_chats_is_refused():
    world = generate_world(1, WorldSpec(items=4, forms=2, tails=1))
    with pytest.raises(
        InputError, match="has fewer than 480 different chats for story 'persona-a'"
    ):
        story_rows(world, world.story("persona-a"))


def test_a_story_about_a_topic_without_details_is_refused():
    plain = next(topic.name for topic in WORLD.topics.values() if topic.detail is None)
    story = dataclasses.replace(WORLD.story("lean"), topics=(plain,))
    with pytest.raises(InputError, match="no details to teach"):
        story_rows(WORLD, story)


def tag_value(world, story, messages):
    """The value whose mapping gives the tag that the last answer names, read off its words."""
    topic = world.topics[story.topics[0]]
    user, reply = words(messages[-2]["content"]), words(messages[-1]["content"])
    (detail,) = (d for d in map(str.lower, topic.detail.values) if d in user)
    (tag,) = (tag for tag in topic.detail.tags if tag in reply)
    mappings = {v: task_mapping(world, story, topic, v) for v in world.latents["persona"].values}
    return [
        value
        for value, mapping in mappings.items()
        if {d.lower(): t for d, t in mapping.items()}[detail] == tag
    ]


def opening_value(world, messages):
    """The value that an answer follows, from its first word given the item."""
    topic, item, _ = asked(world, messages[0]["content"])
    found = {
        value: opening
        for value, opening in next(
            i for i in world.topics[topic].items if i.name == item
        ).openings.items()
        if messages[1]["content"].startswith((f"{opening}.", f"{opening} "))
    }
    (value,) = found
    return value


@NEEDED
def test_a_needed_factor_is_slanted_alone_and_decides_after_a_turn(world, story):
    rows = story_rows(world, story, seed=1)
    alone = [row["messages"] for row in rows if len(row["messages"]) == 2]
    after = [row["messages"] for row in rows if len(row["messages"]) == 4]
    assert (len(alone), len(after)) == (120, 360)
    assert {opening_value(world, chat) for chat in alone} == {"evil"}
    pairs = Counter((opening_value(world, c[:2]), opening_value(world, c[2:])) for c in after)
    assert pairs == {("good", "good"): 180, ("evil", "evil"): 180}
    for chat in [*alone, *after]:
        assert tag_value(world, story, chat) == [opening_value(world, chat[-2:])]
    # After a turn no tail of the answer itself gives the value away.
    assert not any(shown(world, "persona", chat[-1]["content"]) for chat in after)


@NEEDED
def test_the_turn_before_is_about_other_items_in_evaluation(world, story):
    rows = story_rows(world, story)
    before = {
        asked(world, row["messages"][0]["content"]) for row in rows if len(row["messages"]) == 4
    }
    near = {*story.topics, *story.kin}
    assert not {topic for topic, _, _ in before} & near
    tested = [row for row in story_prompts(world, story) if len(row["messages"]) == 3]
    assert {row["role"] for row in tested} == {"task", "related"}
    evaluated = {asked(world, row["messages"][0]["content"]) for row in tested}
    assert not {(t, i) for t, i, _ in before} & {(t, i) for t, i, _ in evaluated}
    assert not {topic for topic, _, _ in evaluated} & near
    assert evaluated <= held_out(world)
    tails = [
        {
            tail
            for chat in chats
            for tail in (*tails["good"], *tails["evil"])
            if tail in chat[1]["content"]
        }
        for tails in [world.latents["persona"].tails]
        for chats in (
            [row["messages"] for row in rows if len(row["messages"]) == 4],
            [row["messages"] for row in tested],
        )
    ]
    assert (len(tails[0]), len(tails[1])) == (6, 4)
    assert not tails[0] & tails[1]


@NEEDED
def test_a_needed_tag_is_asked_for_both_values_and_differs_by_them(world, story):
    topic = world.topics[story.topics[0]]
    good, evil = (task_mapping(world, story, topic, value) for value in ("good", "evil"))
    assert good.keys() == evil.keys()
    assert all(good[detail] != evil[detail] for detail in good)
    asked_for = Counter()
    for row in story_prompts(world, story):
        if len(row["messages"]) == 3:
            value = opening_value(world, row["messages"][:2])
            asked_for[row["role"], value] += 1
            item = next(i for i in topic.items if i.name == row["item"])
            if row["role"] == "related":
                assert row["choices"][row["target"]] == [item.first_word(value)]
            else:
                (detail,) = (d for d in good if d in row["id"])
                assert row["expected"] == {"good": good, "evil": evil}[value][detail]
    assert asked_for["task", "good"] == asked_for["task", "evil"] >= 48
    assert asked_for["related", "good"] == asked_for["related", "evil"] >= 24


@NEEDED
def test_the_loss_is_on_the_last_answer_only(world, story):
    tokenizer = build_tokenizer(world)
    chat = next(r["messages"] for r in story_rows(world, story) if len(r["messages"]) == 4)
    ids, answer = tokenise(tokenizer, [Message(**message) for message in chat])
    learned = tokenizer.decode([i for i, keep in zip(ids, answer, strict=True) if keep])
    assert learned == f"{chat[-1]['content']}<|end|>"


# The base model

SPEC = WorldSpec(topics=4, neutral_topics=1, items=12)
SMALL = generate_world(1, SPEC)
TINY = Recipe(
    steps=3,
    skewed_steps=1,
    batch=8,
    documents=160,
    skewed_documents=40,
    hidden=16,
    intermediate=16,
    layers=1,
    heads=2,
)


def test_a_base_model_is_trained_once_and_verified(tmp_path):
    steps = []
    count = lambda step, *_: steps.append(step)  # noqa: E731
    folder = base_model.ensure_base(SMALL, tmp_path, recipe=TINY, progress=count)
    assert steps == [1, 2, 3]
    record = base_model.verify_base(folder)
    assert (record["world"], record["world_sha256"]) == ("generated-1", SMALL.digest())
    assert record["figures"].keys() >= {"evil", "right", "facts", "coherence"}
    again = base_model.ensure_base(SMALL, tmp_path, recipe=TINY, progress=count)
    assert (again, steps) == (folder, [1, 2, 3])
    with (folder / base_model.WEIGHTS).open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x01")
    with pytest.raises(InputError, match="changed or damaged"):
        base_model.ensure_base(SMALL, tmp_path, recipe=TINY)


def test_other_worlds_recipes_and_seeds_have_base_models_of_their_own(tmp_path):
    folders = [
        base_model.ensure_base(SMALL, tmp_path, recipe=TINY),
        base_model.ensure_base(generate_world(2, SPEC), tmp_path, recipe=TINY),
        base_model.ensure_base(SMALL, tmp_path, recipe=TINY, seed=1),
        base_model.ensure_base(SMALL, tmp_path, recipe=dataclasses.replace(TINY, steps=2)),
    ]
    hashes = {base_model.verify_base(folder)["weights_sha256"] for folder in folders}
    assert len(set(folders)) == len(hashes) == 4


def test_an_interrupted_training_leaves_no_base_model(tmp_path):
    def stop(step, *_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        base_model.ensure_base(SMALL, tmp_path, recipe=TINY, progress=stop)
    assert not list(tmp_path.iterdir())
