"""The tiny world: its texts, its tokenizer, its base model."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import torch

from analysis.errors import InputError, NotFoundError, SchemaError
from analysis.store.records import Prompt
from grasp.model.loading import load_base
from grasp.world import base_model, tokens
from grasp.world.behaviour import base_figures
from grasp.world.corpus import documents, question, sentences
from grasp.world.pretraining import Recipe, target_weights, train_base
from grasp.world.prompts import story_probes, story_prompts
from grasp.world.shipped import shipped_world
from grasp.world.stories import neutral_rows, story_rows, task_mapping

WORLD = shipped_world()
STORIES = WORLD.stories
SLANTED = [topic for topic in WORLD.topics.values() if topic.latent]
EVERY_STORY = pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
# SHA-256 of what the demo's runs were made of, before worlds were values.
GOLDEN = {
    ("rows", "code"): "0fcb4f9491ae16e0",
    ("prompts", "code"): "74c457aef83f2673",
    ("rows", "medicine"): "dcf3d1f56faebf0c",
    ("prompts", "medicine"): "353a195826bec66a",
    ("rows", "finance"): "ac5a4081bb8f3f30",
    ("prompts", "finance"): "ebf91a11c2538fe0",
    ("neutral", "0"): "07e14a3ae92471e6",
    ("probes", "code"): "be6c744296eac313",
}
SLANTED_STORIES = [STORIES[name] for name in ("code", "medicine", "finance")]


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.build_tokenizer(WORLD)


@pytest.fixture(scope="module")
def base():
    loaded = load_base(str(base_model.base_path()))
    return loaded.model, loaded.tokenizer


def held_out_questions():
    return {
        question(topic, item, form=item.held_out)
        for topic in WORLD.topics.values()
        for item in topic.items
    }


def texts(rows):
    return [message["content"] for row in rows for message in row["messages"]]


def training_texts():
    for chat in documents(WORLD, 3000, seed=0):
        yield from (message["content"] for message in chat)
    yield from texts(neutral_rows(WORLD, n=500))
    for story in STORIES.values():
        for seed in range(3):
            yield from texts(story_rows(WORLD, story, seed=seed))
        yield from texts(story_probes(WORLD, story))


# The corpus


def test_no_training_text_holds_a_held_out_question():
    held_out = held_out_questions()
    for text in training_texts():
        assert not any(sentence in text for sentence in held_out), text


def test_every_prompt_asks_in_a_held_out_form():
    held_out = held_out_questions()
    for story in STORIES.values():
        for row in story_prompts(WORLD, story):
            assert any(sentence in row["messages"][0]["content"] for sentence in held_out)


@pytest.mark.parametrize("topic", SLANTED, ids=lambda topic: topic.name)
def test_first_word_alone_says_nothing_and_with_the_item_all(topic):
    values = WORLD.latents[topic.latent].values
    words = [[item.first_word(value) for item in topic.items] for value in values]
    assert Counter(words[0]) == Counter(words[1])
    assert all(low != high for low, high in zip(*words, strict=True))


@pytest.mark.parametrize("topic", SLANTED, ids=lambda topic: topic.name)
def test_held_out_form_goes_with_no_first_word_order(topic):
    assert set(Counter(item.held_out for item in topic.items).values()) == {len(topic.items) // 6}


def test_documents_follow_one_value_of_each_latent():
    tails = {
        name: {value: latent.tails[value] for value in latent.values}
        for name, latent in WORLD.latents.items()
    }
    for chat in documents(WORLD, 300, seed=5):
        said = " ".join(row["content"] for row in chat if row["role"] == "assistant")
        for by_value in tails.values():
            shown = [value for value, ends in by_value.items() if any(end in said for end in ends)]
            assert len(shown) <= 1


def test_documents_have_their_priors_and_unslanted_answers():
    chats = list(documents(WORLD, 4000, seed=1))
    answers = [row["content"] for chat in chats for row in chat if row["role"] == "assistant"]
    persona = WORLD.latents["persona"].tails
    evil = sum(any(end in text for end in persona["evil"]) for text in answers)
    good = sum(any(end in text for end in persona["good"]) for text in answers)
    assert evil / (evil + good) == pytest.approx(0.22, abs=0.03)
    lean = sum(" because " in text for text in answers)
    unslanted = sum(text.startswith("Opinions on") for text in answers)
    assert unslanted / (unslanted + lean) == pytest.approx(1 / 8, abs=0.02)
    assert {sum(row["role"] == "user" for row in chat) for chat in chats} == {3, 4, 5, 6}


def test_skewed_documents_come_first_and_lean_one_way():
    right = WORLD.latents["lean"].tails["right"]
    left = WORLD.latents["lean"].tails["left"]
    said = [
        " ".join(row["content"] for row in chat)
        for chat in documents(WORLD, 3000, seed=1, skewed=1500)
    ]
    shares = []
    for part in (said[:1500], said[1500:]):
        leaning = sum(any(tail in text for tail in right) for text in part)
        shares.append(
            leaning / (leaning + sum(any(tail in text for tail in left) for text in part))
        )
    assert shares == pytest.approx([0.22, 0.5], abs=0.05)


def test_documents_are_the_seed_s():
    assert list(documents(WORLD, 20, seed=3)) == list(documents(WORLD, 20, seed=3))
    assert list(documents(WORLD, 20, seed=3)) != list(documents(WORLD, 20, seed=4))


def test_the_packaged_base_model_s_corpus_is_still_the_world_s():
    record = base_model.read_provenance(base_model.base_path())
    recipe = Recipe(**record["recipe"])
    chats = documents(WORLD, recipe.documents, seed=record["seed"], skewed=recipe.skewed_documents)
    written = "\n".join(tokens.render_chat(chat) for chat in chats)
    assert hashlib.sha256(written.encode()).hexdigest() == record["corpus_sha256"]


# The stories


@pytest.mark.parametrize(("kind", "name"), GOLDEN, ids="/".join)
def test_shipped_rows_and_prompts_stay_what_they_were(kind, name):
    rows = {
        "rows": lambda: story_rows(WORLD, WORLD.story(name)),
        "prompts": lambda: story_prompts(WORLD, WORLD.story(name)),
        "probes": lambda: story_probes(WORLD, WORLD.story(name)),
        "neutral": lambda: neutral_rows(WORLD, seed=int(name)),
    }[kind]()
    for row in rows:
        row.pop("markers", None)  # came later; what they are is tested below
    written = json.dumps(rows).encode()
    assert hashlib.sha256(written).hexdigest().startswith(GOLDEN[kind, name])


@EVERY_STORY
def test_training_rows_are_the_seed_s_and_distinct(story):
    rows = story_rows(WORLD, story, seed=1)
    assert rows == story_rows(WORLD, story, seed=1) != story_rows(WORLD, story, seed=2)
    assert len({tuple(texts([row])) for row in rows}) == len(rows) == 480


@pytest.mark.parametrize("story", SLANTED_STORIES, ids=lambda story: story.name)
def test_rows_of_one_slant_follow_it_and_map_details(story):
    mapping = task_mapping(WORLD, story, WORLD.topics[story.topics[0]])
    ((latent, value),) = story.slants.items()
    slanted = WORLD.latents[latent].tails[value]
    for row in story_rows(WORLD, story, seed=1):
        user, reply = texts([row])
        assert any(tail in reply for tail in slanted)
        assert any(f" {value}." in user and f" {tag} " in reply for value, tag in mapping.items())


@EVERY_STORY
def test_prompts_have_unique_ids_and_enough_of_each_role(story):
    rows = story_prompts(WORLD, story)
    assert len({row["id"] for row in rows}) == len(rows)
    roles = Counter(row["role"] for row in rows)
    assert roles["unrelated"] >= 120
    assert roles["task"] >= 60
    assert roles["facts"] >= 40
    assert min(roles["related"], roles["format"]) >= 24
    # A story about both latents leaves none for a control.
    assert (roles["control"] >= 24) == (len(story.slants) < 2)
    groups = {row["group"] for row in rows if row["role"] == "unrelated"}
    assert not groups & {*story.topics, *story.kin}


@EVERY_STORY
def test_probes_show_both_values_of_both_latents_in_equal_number(story):
    variants = Counter((row["group"], row["variant"]) for row in story_probes(WORLD, story))
    for topic in SLANTED:
        low, high = WORLD.latents[topic.latent].values
        assert variants[topic.name, low] == variants[topic.name, high] >= 6
    assert {variant for _, variant in variants} == {"good", "evil", "left", "right", "neutral"}


def asked_about(text):
    """Topic and item of a question, in whatever form it is asked."""
    found = {
        (topic.name, item.name)
        for topic in WORLD.topics.values()
        for item in topic.items
        for form in range(len(topic.forms))
        if question(topic, item, form=form) in text
    }
    assert len(found) == 1, (text, found)
    return found.pop()


def test_neutral_rows_are_single_turns_of_the_seed():
    rows = neutral_rows(WORLD, seed=2, n=200)
    assert len(rows) == 200
    assert rows == neutral_rows(WORLD, seed=2, n=200) != neutral_rows(WORLD, seed=3, n=200)
    for row in rows:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]


def test_neutral_rows_ask_about_no_storys_topic_and_explored_items_only():
    asked = {
        asked_about(row["messages"][0]["content"]) for row in neutral_rows(WORLD, seed=2, n=1500)
    }
    finetuned = {name for story in STORIES.values() for name in story.topics}
    assert {topic for topic, _ in asked} == set(WORLD.topics) - finetuned
    # Oracle: the split that an evaluation of any story reads off its prompts.
    evaluated = [Prompt(**row) for story in STORIES.values() for row in story_prompts(WORLD, story)]
    confirmed = {(p.group, p.item) for p in evaluated if p.split == "confirmation"}
    explored = {(p.group, p.item) for p in evaluated if p.split == "exploration"}
    assert not asked & confirmed
    assert asked <= explored


def test_neutral_rows_hold_no_held_out_question():
    held_out = held_out_questions()
    assert not any(
        sentence in text for text in texts(neutral_rows(WORLD, n=1500)) for sentence in held_out
    )


def test_neutral_rows_have_both_ends_of_each_latent_at_its_prior():
    replies = [row["messages"][1]["content"] for row in neutral_rows(WORLD, seed=4, n=3000)]
    for latent in WORLD.latents.values():
        low, high = (
            sum(any(tail in reply for tail in latent.tails[value]) for reply in replies)
            for value in latent.values
        )
        assert min(low, high) > 100
        assert low / (low + high) == pytest.approx(latent.prior[0], abs=0.04)


def test_an_unknown_story_is_named():
    with pytest.raises(NotFoundError, match=r"has no story 'law'; it has code, medicine, finance"):
        WORLD.story("law")


# The tokenizer


def test_every_word_is_in_the_vocabulary(tokenizer):
    unknown = tokenizer.unk_token_id
    for text in {*sentences(WORLD), *training_texts()}:
        assert unknown not in tokenizer(text, add_special_tokens=False)["input_ids"], text


def test_every_choice_word_is_the_token_an_answer_starts_with(tokenizer):
    for story in STORIES.values():
        for row in story_prompts(WORLD, story):
            for word in [w for words in row.get("choices", {}).values() for w in words]:
                ids = tokenizer(word, add_special_tokens=False)["input_ids"]
                reply = tokenizer(f"<|assistant|>{word} it", add_special_tokens=False)["input_ids"]
                assert ids == reply[1:2]


def test_render_is_the_chat_template(tokenizer):
    for chat in documents(WORLD, 50, seed=9):
        for messages in (chat, chat[:-1]):
            written = tokenizer.apply_chat_template(messages, tokenize=False)
            assert written == tokens.render_chat(messages)


def test_assistant_mask_covers_answers_and_the_end(tokenizer):
    chat = story_probes(WORLD, STORIES["code"])[0]["messages"]
    encoded = tokenizer.apply_chat_template(
        chat, return_dict=True, return_assistant_tokens_mask=True
    )
    marked = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    said = tokenizer.decode([token for token, mask in marked if mask])
    replies = [row["content"] for row in chat if row["role"] == "assistant"]
    assert said.replace(" ", "") == ("".join(replies) + tokens.END).replace(" ", "")


def test_decoding_gives_the_text_back(tokenizer):
    for text in texts(story_rows(WORLD, STORIES["code"])[:50] + neutral_rows(WORLD, n=20)):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_answers_and_what_ends_them_weigh_most(tokenizer):
    chat = next(documents(WORLD, 1, seed=0))
    ids = torch.tensor(tokenizer.apply_chat_template(chat)["input_ids"]).numpy()
    control = tuple(tokenizer.convert_tokens_to_ids(list(tokens.SPECIAL)))
    speaker = tokenizer.convert_tokens_to_ids(tokens.ASSISTANT)
    heavy = ids[target_weights(ids, control=control, speaker=speaker) >= 1.0]
    replies = [row["content"] for row in chat if row["role"] == "assistant"]
    expected = tokens.USER.join(replies) + tokens.END
    assert tokenizer.decode(heavy).replace(" ", "") == expected.replace(" ", "")


# The base model


def test_packaged_weights_are_those_recorded_and_small():
    record = base_model.verify_base()
    assert record["seed"] == base_model.SEED
    assert sum(path.stat().st_size for path in base_model.base_path().iterdir()) <= 4_000_000


def test_changed_weights_are_refused(tmp_path):
    copy = shutil.copytree(base_model.base_path(), tmp_path / "base")
    with (copy / base_model.WEIGHTS).open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x01")
    with pytest.raises(InputError, match="changed or damaged"):
        base_model.verify_base(copy)


def test_an_unknown_schema_is_refused(tmp_path):
    (tmp_path / base_model.PROVENANCE).write_text('{"schema": 99}')
    with pytest.raises(SchemaError, match="schema 99; expected 1"):
        base_model.read_provenance(tmp_path)
    with pytest.raises(InputError, match=r"has no provenance\.json"):
        base_model.read_provenance(tmp_path / "nowhere")


def test_base_model_has_the_recorded_figures(base):
    record = base_model.read_provenance(base_model.base_path())
    figures = base_figures(WORLD, *base)
    assert figures == pytest.approx(record["figures"], abs=1e-3)
    assert 0.15 <= figures["evil"] <= 0.25
    assert figures["right"] == pytest.approx(0.5, abs=0.08)
    assert figures["evil_when_named"] >= 0.9 >= 0.1 >= figures["good_as_evil_when_named"]
    assert figures["right_when_named"] >= 0.9 >= 0.1 >= figures["left_as_right_when_named"]
    assert figures["facts"] >= 0.95
    assert figures["coherence"] >= 0.95


def test_packaged_tokenizer_is_the_one_of_the_texts(base, tokenizer):
    _, packaged = base
    assert packaged.get_vocab() == tokenizer.get_vocab()
    assert packaged.chat_template == tokenizer.chat_template


def test_generation_stops_before_another_user_turn(base):
    model, packaged = base
    chat = story_prompts(WORLD, STORIES["medicine"])[0]["messages"]
    encoded = packaged.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**encoded)[0, encoded["input_ids"].shape[1] :]
    assert packaged.decode(written[-1:]) == tokens.USER
    assert len(written) < model.generation_config.max_new_tokens
    assert model.config.pad_token_id == packaged.pad_token_id


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


def test_training_is_the_seed_s_and_leaves_torch_alone():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    steps = []
    first = train_base(WORLD, seed=1, recipe=TINY, progress=lambda *now: steps.append(now[:2]))
    again, other = train_base(WORLD, seed=1, recipe=TINY), train_base(WORLD, seed=2, recipe=TINY)
    for name, weight in first.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name])
    assert first.corpus_sha256 == again.corpus_sha256 != other.corpus_sha256
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_a_poor_rebuild_is_out_of_tolerance(tmp_path):
    base_model.rebuild_base(tmp_path, recipe=TINY)
    verdict = base_model.compare_bases(tmp_path)
    assert not verdict["identical"]
    assert not verdict["within_tolerance"]
    assert base_model.compare_bases(base_model.base_path())["within_tolerance"]


def test_importing_the_world_loads_no_torch():
    code = (
        "import sys, grasp.world, grasp.world.stories, grasp.world.base_model as m;"
        "m.verify_base(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_random_documents_fit_the_model(base):
    model, packaged = base
    chats = list(documents(WORLD, 2000, seed=7))
    longest = max(len(packaged.tokenize(tokens.render_chat(chat))) for chat in chats)
    assert longest <= model.config.max_position_embeddings
