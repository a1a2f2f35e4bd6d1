"""Chats as token ids: the answer mask against a brute-force oracle, batches and their padding."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis.errors import InputError
from analysis.store.records import Message
from grasp.data.chat import tokenise
from grasp.data.examples import Example, as_examples
from grasp.data.sites import site_mask
from grasp.data.tokenise import (
    IGNORED,
    neutral_batches,
    pad_sequences,
    split_neutral,
    training_rows,
)
from grasp.world.shipped import shipped_world
from grasp.world.tokens import build_tokenizer
from tests.support import tiny

WORDS = tiny.words(12)
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}

said_words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)
roles = st.lists(st.sampled_from(list(ROLES)), min_size=1, max_size=6).filter(
    lambda names: all(
        a != "assistant" or b != "assistant" for a, b in pairwise(["assistant", *names])
    )
)
turns = roles.flatmap(lambda names: st.tuples(*(st.tuples(st.just(r), said_words) for r in names)))
answered = turns.filter(lambda said: any(role == "assistant" for role, _ in said))


def chat(*said: tuple[str, str]) -> list[Message]:
    return [Message(role=role, content=content) for role, content in said]


def example(*said: tuple[str, str]) -> Example:
    return Example(1, tuple(chat(*said)))


def by_hand(messages: list[Message]) -> tuple[list[int], list[bool]]:
    """The world's chat format, token by token: role marks are no answer, a last answer ends."""
    known = tiny.tokenizer()
    ids, answer = [known.convert_tokens_to_ids("<|start|>")], [False]
    for turn, message in enumerate(messages):
        ids.append(known.convert_tokens_to_ids(ROLES[message.role]))
        answer.append(False)
        content = [known.convert_tokens_to_ids("▁" + word) for word in message.content.split()]
        if message.role == "assistant" and turn == len(messages) - 1:
            content.append(known.convert_tokens_to_ids("<|end|>"))
        ids += content
        answer += [message.role == "assistant"] * len(content)
    return ids, answer


@given(turns)
def test_the_answer_mask_is_that_of_a_token_by_token_rendering(said: list[tuple[str, str]]) -> None:
    messages = chat(*said)
    assert tokenise(tiny.tokenizer(), messages) == by_hand(messages)


@given(turns, st.integers(1, 30))
def test_max_length_cuts_ids_and_mask_alike(said: list[tuple[str, str]], length: int) -> None:
    messages = chat(*said)
    ids, answer = tokenise(tiny.tokenizer(), messages, max_length=length)
    whole_ids, whole_answer = by_hand(messages)
    assert (ids, answer) == (whole_ids[:length], whole_answer[:length])


@given(st.lists(answered, min_size=1, max_size=3))
def test_labels_are_the_answers_tokens_and_nothing_else(rows: list[Any]) -> None:
    chats = [chat(*said) for said in rows]
    made = training_rows(tiny.tokenizer(), as_examples(chats), max_length=64)
    for row, messages in zip(made.rows, chats, strict=True):
        ids, answer = by_hand(messages)
        assert row["input_ids"] == ids
        assert row["attention_mask"] == [1] * len(ids)
        assert row["labels"] == [i if a else IGNORED for i, a in zip(ids, answer, strict=True)]


@pytest.mark.parametrize("roles_said", [("assistant",), ("user", "assistant", "assistant")])
def test_an_answer_to_nothing_is_refused(roles_said: tuple[str, ...]) -> None:
    messages = chat(*((role, WORDS[0]) for role in roles_said))
    with pytest.raises(InputError, match="put a user turn before each answer"):
        tokenise(tiny.tokenizer(), messages)


def test_a_template_that_asks_otherwise_than_it_renders_is_refused() -> None:
    strict = build_tokenizer(shipped_world())
    strict.chat_template = (
        "{{ messages | length }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    strict.add_tokens([str(n) for n in range(5)])
    with pytest.raises(
        InputError, match="does not render this answer right after its generation"
    ):
        tokenise(strict, chat(("user", WORDS[0]), ("assistant", WORDS[1])))


def test_a_tokenizer_without_a_chat_template_is_refused() -> None:
    bare = build_tokenizer(shipped_world())
    bare.chat_template = None
    with pytest.raises(InputError, match="has no chat template; choose an instruction-tuned"):
        tokenise(bare, chat(("user", WORDS[0])))


def test_an_answer_beyond_max_length_is_left_out_and_counted() -> None:
    long = " ".join(WORDS)
    rows = as_examples(
        [
            chat(("user", WORDS[0]), ("assistant", WORDS[1])),
            chat(("user", long), ("assistant", WORDS[1])),
            chat(("user", WORDS[0]), ("assistant", long)),
        ]
    )
    made = training_rows(tiny.tokenizer(), rows, max_length=8)
    assert (made.lost, made.cut) == ([2], [2, 3])
    assert [one.number for one in made.examples] == [1, 3]
    assert [len(row["input_ids"]) for row in made.rows] == [6, 8]
    assert made.learnt == 2 + 4  # the word and the end; what is left of the long answer
    with pytest.raises(InputError, match="None of the 1 rows has anything to learn within 8 tok"):
        training_rows(tiny.tokenizer(), rows[1:2], max_length=8)


@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=9),
    size=st.integers(1, 4),
    seed=st.integers(0, 3),
)
def test_neutral_batches_keep_every_chat_once(lengths: list[int], size: int, seed: int) -> None:
    rows = as_examples(
        [
            chat(("user", WORDS[number]), ("assistant", " ".join(WORDS[:length])))
            for number, length in enumerate(lengths)
        ]
    )
    batches = neutral_batches(tiny.tokenizer(), rows, batch_size=size, max_length=64, seed=seed)
    found = [
        tuple(row[mask.bool()].tolist())
        for batch in batches
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert sorted(found) == sorted(tuple(by_hand(list(row.messages))[0]) for row in rows)
    full, rest = divmod(len(rows), size)
    assert [len(b["input_ids"]) for b in batches] == [size] * full + [rest] * (rest > 0)


def test_the_order_of_neutral_text_is_the_seeds() -> None:
    rows = as_examples([chat(("user", word), ("assistant", word)) for word in WORDS])

    def order(seed: int) -> list[int]:
        batches = neutral_batches(tiny.tokenizer(), rows, batch_size=3, max_length=64, seed=seed)
        return torch.cat([batch["input_ids"][:, 2] for batch in batches]).tolist()

    assert order(0) == order(0)
    assert order(0) != order(1)


@given(answered, st.integers(2, 30))
def test_sites_are_where_answers_begin_and_where_they_are(
    said: list[tuple[str, str]], length: int
) -> None:
    """Oracle: token by token, from the hand-made rendering."""
    ids, answer = by_hand(chat(*said))
    (batch,) = neutral_batches(
        tiny.tokenizer(), [example(*said)], batch_size=1, max_length=length, seed=0
    )
    length = min(length, len(ids))
    ends = [i for i in range(length) if not answer[i] and i + 1 < len(ids) and answer[i + 1]]
    every = list(range(length))
    expected = {
        "all": every,
        "prompt-end": ends or every,
        "answer": [i for i in every if answer[i] or i in ends] if ends else every,
    }
    for site, places in expected.items():
        assert site_mask(batch, site)[0].nonzero().flatten().tolist() == places


def test_a_text_without_an_answer_counts_whole_beside_one_with() -> None:
    rows = [
        example(("user", WORDS[0])),
        example(("user", WORDS[1]), ("assistant", f"{WORDS[2]} {WORDS[3]}")),
    ]
    (batch,) = neutral_batches(tiny.tokenizer(), rows, batch_size=2, max_length=64, seed=0)
    counts = dict(
        zip(
            batch["attention_mask"].sum(1).tolist(),
            site_mask(batch, "prompt-end").sum(1).tolist(),
            strict=True,
        )
    )
    short, long = (len(by_hand(list(row.messages))[0]) for row in rows)
    assert counts == {short: short, long: 1}


@given(st.integers(1, 60), st.integers(1, 16))
def test_a_fifth_of_the_neutral_text_is_held_back(count: int, least: int) -> None:
    pairs = [(a, b) for a in WORDS for b in WORDS][:count]
    rows = as_examples([chat(("user", a), ("assistant", b)) for a, b in pairs])
    kept, held = split_neutral(rows, at_least=least)
    assert sorted(map(str, [*kept, *held])) == sorted(map(str, rows))
    assert len(held) == min(max(count // 5, least), count // 2)
    # The choice is the text's own, whatever its order.
    again = split_neutral(rows[::-1], at_least=least)[1]
    assert sorted(map(str, again)) == sorted(map(str, held))


def test_equal_texts_are_on_one_side() -> None:
    row = example(("user", WORDS[0]), ("assistant", WORDS[1]))
    assert split_neutral([row] * 10, at_least=1) == ([row] * 10, [])
    others = [example(("user", word), ("assistant", word)) for word in WORDS]
    kept, held = split_neutral([*others, *others], at_least=1)
    assert held
    assert not {str(one) for one in kept} & {str(one) for one in held}
    plain = [Example(1, text="a"), Example(2, text="b"), Example(3, prompt="a", text="b")]
    assert sum(len(part) for part in split_neutral(plain, at_least=1)) == 3


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_on_the_side_that_was_asked_for(side: str) -> None:
    pad = tiny.tokenizer().pad_token_id
    batch = pad_sequences(tiny.tokenizer(), [[7, 8, 9], [10]], side=side)
    short, mask = ([10, pad, pad], [1, 0, 0]) if side == "right" else ([pad, pad, 10], [0, 0, 1])
    assert batch["input_ids"].tolist() == [[7, 8, 9], short]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], mask]


def test_batches_are_right_padded_unless_said() -> None:
    assert pad_sequences(tiny.tokenizer(), [[7, 8], [9]])["attention_mask"].tolist() == [
        [1, 1],
        [1, 0],
    ]
