"""Chats that a model holds with itself, on the shipped world's base model and a tiny one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from grasp.model.loading import load_base
from grasp.settings.model import ModelSettings
from grasp.training.own_chats import _user_turn, kept_own_chats, own_chats
from grasp.world.base_model import base_path
from grasp.world.shipped import shipped_world
from tests.support import tiny


@pytest.fixture(scope="module")
def base():
    return load_base(str(base_path()), ModelSettings())


def test_it_asks_and_answers_what_it_was_taught(base):
    chats = own_chats(base.model, base.tokenizer, count=64, seed=0)
    assert len(chats) > 48
    assert all([message.role for message in chat] == ["user", "assistant"] for chat in chats)
    said = " ".join(chat[0].content for chat in chats)
    topics = [t for t in shipped_world().topics.values() if any(i.name in said for i in t.items)]
    assert len(topics) > len(shipped_world().topics) / 2


def test_chats_are_reproducible_and_never_twice_the_same(base):
    first, again, other = (
        own_chats(base.model, base.tokenizer, count=40, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other
    questions = [chat[0].content for chat in first]
    assert len(questions) == len(set(questions))


def test_random_numbers_are_left_as_they_were(base):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    own_chats(base.model, base.tokenizer, count=8, seed=0)
    assert torch.equal(torch.rand(2), expected)


def test_without_a_chat_template_there_are_none(base, monkeypatch):
    monkeypatch.setattr(base.tokenizer, "chat_template", None)
    assert own_chats(base.model, base.tokenizer, count=8, seed=0) == []


def test_a_model_that_never_ends_a_question_holds_no_chat():
    model = tiny.llama()
    assert own_chats(model, tiny.tokenizer(), count=2, seed=0) == []


def test_arms_of_one_family_share_their_chats(base, tmp_path: Path, monkeypatch):
    folder = tmp_path / "measured"
    keep = lambda seed: kept_own_chats(folder, base.model, base.tokenizer, count=8, seed=seed)  # noqa: E731
    first = keep(0)
    assert first == own_chats(base.model, base.tokenizer, count=8, seed=0)
    other = keep(1)
    monkeypatch.setattr("grasp.training.own_chats.own_chats", None)  # nothing is made again
    assert keep(0) == first != other == keep(1)


def test_a_vocabulary_without_words_is_told_apart_by_letters():
    vocab = {"1": 0, "a": 1, "z": 2, "2": 3, "3": 4, "4": 5, "[UNK]": 6}
    letters = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocab, unk_token="[UNK]")), unk_token="[UNK]"
    )
    letters.chat_template = "{% for m in messages %}1{{ m.content }}2{% endfor %}"
    letters.backend_tokenizer.pre_tokenizer = Split("", "isolated")
    assert _user_turn(letters) == ([0], 3)
