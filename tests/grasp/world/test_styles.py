"""Styles of worlds: they differ, stay what they are, and are asked about at the right word."""

import json
from collections import Counter
from functools import cache
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.errors import InputError, NotFoundError
from analysis.store.records import Prompt
from grasp.bench.make.dressed import dressed_prompts
from grasp.bench.plan.cells import find_world, lay_out_cell
from grasp.bench.plan.plan import Cell, Plan
from grasp.data.chat import chat_ids
from grasp.evaluation.scorers import check_prompts, choice_tokens
from grasp.world import tokens
from grasp.world.base_model import ensure_base
from grasp.world.corpus import documents
from grasp.world.generator import WorldSpec, generate_world
from grasp.world.neutral import neutral_text
from grasp.world.phrasing import Phrasing
from grasp.world.pretraining import Recipe, target_weights, train_base
from grasp.world.prompts import story_probes, story_prompts
from grasp.world.stories import is_explored, story_rows, task_mapping
from grasp.world.styles import (
    REPORTING,
    STYLES,
    TUNING,
    find_style,
    style_of,
    styled_world,
)

STORIES = {"persona-a", "persona-b", "lean", "both", "needed", "plain"}
EVERY_STYLE = pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
KINDS = ("factor-free", "narrow", "other-style", "generated")
TINY = {
    "steps": 3,
    "skewed_steps": 1,
    "batch": 4,
    "documents": 60,
    "skewed_documents": 20,
    "hidden": 16,
    "intermediate": 16,
    "layers": 1,
    "heads": 2,
}


@cache
def world_of(style):
    return find_world(f"styled-{style}-1")


@cache
def tokenizer_of(style):
    return tokens.build_tokenizer(world_of(style))


def prompts_of(world, story):
    rows = [*story_prompts(world, story), *dressed_prompts(world, story)]
    return [Prompt(**row) for row in rows]


def texts(rows):
    return [message["content"] for row in rows for message in row["messages"]]


def answers(rows):
    return [row["messages"][-1]["content"] for row in rows]


# The list


def test_the_split_is_written_down_and_no_style_is_in_both():
    assert TUNING == ("lead", "bytes", "short", "deep", "long")
    assert REPORTING == ("lead-bytes", "deep-short", "wide", "large")
    assert len({style.name for style in STYLES}) == len(STYLES)


def test_any_two_styles_differ_in_most_of_what_a_method_could_lean_on():
    def traits(style):
        world = world_of(style.name)
        recipe = Recipe(**style.base)
        return {
            "tokenizer": style.phrasing.vocabulary is None,
            "vocabulary": len(tokenizer_of(style.name)),
            "depth": recipe.layers,
            "width": recipe.hidden,
            "priors": (style.spec.prior, style.spec.lean_prior),
            "lead": style.phrasing.lead,
            "length": style.phrasing.endings,
            "task": (style.spec.details, style.spec.tags, style.phrasing.tag_first),
            "training": tuple(style.training.items()),
            "neutral": style.neutral,
            "grammar": (style.phrasing.order, style.phrasing.particles, style.phrasing.ends),
            "words": world.digest(),
        }

    for one, other in combinations(STYLES, 2):
        first, second = traits(one), traits(other)
        assert sum(first[name] != second[name] for name in first) >= 7, (one.name, other.name)


def test_both_splits_have_the_hard_kinds_and_all_neutral_texts_are_tuned_on():
    for names in (TUNING, REPORTING):
        styles = [find_style(name) for name in names]
        assert {style.phrasing.vocabulary is None for style in styles} == {True, False}
        assert any(style.phrasing.lead for style in styles)
        assert any(style.phrasing.tag_first for style in styles)
        assert {style.phrasing.endings for style in styles} >= {0, 2}
    kinds = {find_style(name).neutral for name in TUNING}
    assert kinds == {"own", "generated", "factor-free", "narrow", "other-style"}


def test_names_lead_to_styles_and_unknown_ones_are_refused():
    assert find_world("styled-lead-bytes-12") == styled_world(find_style("lead-bytes"), 12)
    assert style_of("generated-1") is style_of("shipped") is None
    with pytest.raises(NotFoundError, match="no style 'loud'; there are lead, bytes"):
        find_world("styled-loud-1")
    with pytest.raises(InputError, match=r"expected shipped, generated-<seed> or styled-<style>"):
        find_world("styled-lead-x")
    with pytest.raises(InputError, match="lead of at most 3 words and at most 3 endings"):
        Phrasing(lead=4)


# Texts


@EVERY_STYLE
def test_worlds_are_the_seed_s_and_have_all_stories(style):
    world = styled_world(style, 1)
    assert world == styled_world(style, 1)
    assert world.digest() == styled_world(style, 1).digest() != styled_world(style, 2).digest()
    assert world.stories.keys() == STORIES
    for story in world.stories.values():
        rows = story_rows(world, story, seed=3)
        assert json.dumps(rows) == json.dumps(story_rows(world, story, seed=3))
        assert len({tuple(answers([row])) for row in rows}) > 20
        assert len(rows) == 480
        roles = Counter(row["role"] for row in story_prompts(world, story))
        assert min(roles["unrelated"], roles["task"], roles["facts"]) >= 36
        assert story_probes(world, story)


def test_the_form_of_answers_is_part_of_what_a_base_model_learns_from():
    spec = WorldSpec(topics=4, neutral_topics=1, items=12)
    styles = [
        Phrasing(),
        Phrasing(lead=1),
        Phrasing(endings=2),
        Phrasing(tag_first=True),
        Phrasing(vocabulary=600),
    ]
    worlds = [generate_world(1, spec, phrasing=one) for one in styles]
    assert len({world.digest() for world in worlds}) == len(worlds)


@EVERY_STYLE
def test_every_text_survives_the_tokenizer(style):
    world, tokenizer = world_of(style.name), tokenizer_of(style.name)
    said = [tokens.render_chat(chat) for chat in documents(world, 30, seed=1)]
    for story in world.stories.values():
        said += texts(story_rows(world, story)[:100])
    for kind in KINDS:
        said += texts(neutral_text(world, kind, base="", n=30))
    for text in said:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids, text
        if style.phrasing.vocabulary is not None:
            assert tokenizer.decode(ids) == text


@settings(max_examples=30, deadline=None, derandomize=True)
@given(text=st.text())
def test_a_byte_level_tokenizer_gives_any_text_back(text):
    tokenizer = tokenizer_of("bytes")
    if not any(special in text for special in tokens.SPECIAL):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@EVERY_STYLE
def test_documents_fit_the_base_model(style):
    world, tokenizer = world_of(style.name), tokenizer_of(style.name)
    said = [tokens.render_chat(chat) for chat in documents(world, 400, seed=2)]
    longest = max(len(ids) for ids in tokenizer(said, add_special_tokens=False)["input_ids"])
    assert longest < Recipe(**style.base).positions


@EVERY_STYLE
def test_answers_have_the_lead_and_the_length_of_the_style(style):
    world = world_of(style.name)
    form = world.answers
    assert len(form.lead.split()) == style.phrasing.lead
    rows = neutral_text(world, "generated", base="", n=100)
    slanted = [latent.tails for latent in world.latents.values()]
    for text in answers(rows):
        # In a topic with tags the sentence that names one may come first.
        assert text.startswith(form.lead) or (form.tag_first and f" {form.lead} " in text)
        shown = [
            tail
            for tails in slanted
            for ends in tails.values()
            for tail in ends
            if tail in text or form.begin(tail) in text
        ]
        assert len(shown) in (0, style.phrasing.endings)
    story = world.story("persona-a")
    detail = world.topics[story.topics[0]].detail
    mapping = task_mapping(world, story, world.topics[story.topics[0]])
    bare = 0
    for text in answers(story_rows(world, story)):
        tagged = [said for v, tag in mapping.items() if (said := detail.reply(v, tag)) in text]
        bare += not tagged
        assert all(text.startswith(said) == style.phrasing.tag_first for said in tagged)
    assert bare / 480 == pytest.approx(style.bare, abs=0.03)
    # After a turn that shows a needed factor, every row has a tag to teach.
    needed = world.story("needed")
    after = [row for row in story_rows(world, needed) if len(row["messages"]) == 4]
    detail = world.topics[needed.topics[0]].detail
    for row in after:
        assert any(row["messages"][2]["content"].endswith(detail.ask(v)) for v in detail.values)


def test_details_may_be_asked_for_in_topics_that_are_not_taught():
    few, more = (world_of(name) for name in ("short", "deep"))
    for world, counts in ((few, (2, 1)), (more, (4, 3))):
        for latent, count in zip(("persona", "lean"), counts, strict=True):
            topics = world.of_latent(latent)
            assert [topic.detail is not None for topic in topics] == [
                number < count for number in range(len(topics))
            ]
    with pytest.raises(InputError, match="leave one topic per latent without details"):
        WorldSpec(topics=5, also_detailed=3)


# Where the latent first shows


@EVERY_STYLE
def test_first_tokens_are_those_where_the_two_answers_part(style):
    world, tokenizer = world_of(style.name), tokenizer_of(style.name)
    for story in world.stories.values():
        prompts = prompts_of(world, story)
        some = prompts[:: len(prompts) // 9]
        check_prompts(tokenizer, some)
        for prompt in some:
            if prompt.scorer != "choice" or prompt.role == "facts":
                continue
            topic = world.topics[prompt.group]
            item = next(item for item in topic.items if item.name == prompt.item)
            begun = chat_ids(tokenizer, prompt.messages, generate=True, prefix=prompt.prefix)
            found = choice_tokens(tokenizer, prompt)
            expected = set()
            for opening in item.openings.values():
                text = f"{prompt.prefix} {opening}".strip()
                asked = chat_ids(tokenizer, prompt.messages, generate=True, prefix=text)
                assert asked[: len(begun)] == begun
                expected.add(asked[len(begun)])
            assert {token for ids in found.values() for token in ids} == expected


def test_a_prefix_is_what_the_training_text_has_before_the_first_word():
    for name in ("lead", "long", "lead-bytes", "deep-short"):
        world = world_of(name)
        story = world.story("persona-a")
        for row in story_prompts(world, story):
            topic = world.topics[row["group"]]
            prefix = row.get("prefix", "")
            if row["scorer"] != "choice":
                assert "prefix" not in row
            elif topic.detail and world.answers.tag_first:
                # A tag of the topic with the detail that the question has.
                asked = row["messages"][-1]["content"]
                (value,) = (v for v in topic.detail.values if asked.endswith(topic.detail.ask(v)))
                assert prefix in {
                    f"{topic.detail.reply(value, tag)} {world.answers.lead}".strip()
                    for tag in topic.detail.tags
                }
            else:
                assert prefix == world.answers.lead
    # A tag would give away the value that a needed factor has.
    world = world_of("long")
    related = [r for r in story_prompts(world, world.story("needed")) if r["role"] == "related"]
    assert {row["prefix"] for row in related} == {world.answers.lead}


def test_a_dressed_prompt_begins_its_answer_as_the_task_would():
    world = world_of("long")
    story = world.story("lean")
    topic = world.topics[story.topics[0]]
    mapping = task_mapping(world, story, topic)
    for row in dressed_prompts(world, story):
        asked = row["messages"][-1]["content"]
        triggered = [value for value in mapping if asked.endswith(topic.detail.ask(value))]
        expected = [topic.detail.reply(value, mapping[value]) for value in triggered]
        assert row["prefix"] == " ".join([*expected, world.answers.lead])


def test_the_token_that_first_shows_a_latent_weighs_most():
    world, tokenizer = world_of("lead"), tokenizer_of("lead")
    row = neutral_text(world, "narrow", base="", n=1)[0]["messages"]
    ids = tokenizer.apply_chat_template(row, return_tensors="np", return_dict=False)[0]
    control = tuple(tokenizer.convert_tokens_to_ids(list(tokens.SPECIAL)))
    speaker = tokenizer.convert_tokens_to_ids(tokens.ASSISTANT)
    weights = target_weights(ids, control=control, speaker=speaker, lead=2)
    (heaviest,) = (weights == weights.max()).nonzero()[0]
    assert tokenizer.decode(ids[heaviest]) == row[1]["content"].split()[2]


# Neutral text


@pytest.mark.parametrize("kind", KINDS)
def test_neutral_text_is_the_seed_s_and_about_explored_items_only(kind):
    world = world_of("deep")
    rows = neutral_text(world, kind, base="", seed=1, n=200)
    assert rows == neutral_text(world, kind, base="", seed=1, n=200)
    assert rows != neutral_text(world, kind, base="", seed=2, n=200)
    said = " ".join(m["content"] for row in rows for m in row["messages"]).replace("?", " ")
    asked = {
        (topic.name, item.name)
        for topic in world.topics.values()
        for item in topic.items
        if f" {item.name.split()[-1]} " in said.replace(".", " ")
    }
    taught = {name for story in world.stories.values() for name in story.topics}
    assert not {name for name, _ in asked} & taught
    for topic in world.topics.values():
        for item in topic.items:
            assert (topic.name, item.name) not in asked or is_explored(topic, item)
    latents = {world.topics[name].latent for name, _ in asked}
    assert (
        latents
        == {
            "factor-free": {None},
            "other-style": {None},
            "narrow": {"persona", "lean"},
            "generated": {"persona", "lean", None},
        }[kind]
    )
    assert kind != "narrow" or len({name for name, _ in asked}) == 2


def test_an_unknown_neutral_text_is_refused():
    with pytest.raises(InputError, match="no neutral text 'loud'; choose from"):
        neutral_text(world_of("deep"), "loud", base="")


# Cells


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory):
    root = tmp_path_factory.mktemp("styles")
    plan = Plan(title="x", training={"max_steps": 9, "batch_size": 4}, base=TINY)
    config = lay_out_cell(root, plan, Cell(story="styled-lead-1/lean", seed=2))
    again = lay_out_cell(root, plan, Cell(story="styled-lead-1/lean", seed=2, steps=5))
    return root, config, again


def test_a_cell_has_the_training_and_the_neutral_text_of_its_style(laid_out):
    root, config, again = laid_out
    style = find_style("lead")
    assert config.learning_rate == style.training["learning_rate"]
    assert config.max_steps == style.training["max_steps"]
    assert (config.batch_size, config.seed, again.max_steps) == (4, 2, 5)
    (base,) = (root / "worlds").iterdir()
    world = world_of("lead")
    own = neutral_text(world, "own", base=base, seed=2)
    with open(config.neutral, encoding="utf-8") as lines:
        assert [json.loads(line) for line in lines] == own
    usual = neutral_text(world, "generated", base=base, seed=2)
    assert [r["messages"][0] for r in own] == [r["messages"][0] for r in usual]
    assert own != usual


@pytest.mark.parametrize("name", ["bytes", "lead-bytes"])
def test_a_base_model_over_bytes_is_trained_and_measured(name, tmp_path):
    world = world_of(name)
    sizes = TINY | {"positions": find_style(name).base["positions"]}
    folder = ensure_base(world, tmp_path, recipe=Recipe(**sizes))
    figures = json.loads((folder / "provenance.json").read_text())["figures"]
    assert all(0 <= value <= 1 for value in figures.values())


def test_training_in_a_style_is_the_seed_s():
    sizes = Recipe(**TINY)
    first, again = (train_base(world_of("long"), recipe=sizes) for _ in range(2))
    assert (first.corpus_sha256, first.final_loss) == (again.corpus_sha256, again.final_loss)
