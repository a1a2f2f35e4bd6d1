"""Sites: which tokens of a batch count, by what the tokeniser says of each of them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from grasp.data.chat import tokenise
from grasp.data.examples import Example, as_examples
from grasp.data.sites import predicting
from grasp.data.tokenise import neutral_batches
from tests.support import tiny

SITES = ("prompt-end", "answer-start", "answer", "all")


@pytest.mark.parametrize("turns", [1, 3])
def test_the_tokens_that_predict_an_answer_are_those_before_its_tokens(turns: int) -> None:
    """Oracle: the tokeniser's own mask of answers, moved by one."""
    chats = tiny.messages(3, seed=4, turns=turns)
    batches = neutral_batches(
        tiny.tokenizer(), as_examples(chats), batch_size=3, max_length=64, seed=0
    )
    expected = {
        tuple(ids): answer for ids, answer in (tokenise(tiny.tokenizer(), c) for c in chats)
    }
    (batch,) = batches
    for row, real in enumerate(batch["attention_mask"].bool()):
        answer = expected[tuple(batch["input_ids"][row][real].tolist())]
        assert 0 < sum(answer) < len(answer)
        found = predicting(batch, "answer")[row][real].tolist()
        assert found == [*answer[1:], False]
        assert not predicting(batch, "answer")[row][~real].any()


def test_a_site_takes_its_own_of_them() -> None:
    chats = as_examples(tiny.messages(2, seed=4, turns=2))
    (batch,) = neutral_batches(tiny.tokenizer(), chats, batch_size=2, max_length=64, seed=0)
    masks = [predicting(batch, site) for site in SITES]
    counts = [int(mask.sum()) for mask in masks]
    assert counts[0] == 4  # of two answers in each of two chats
    assert counts[0] < counts[1] <= counts[2] == counts[3]
    for fewer, more in itertools.pairwise(masks):
        assert not (fewer & ~more).any()


@pytest.mark.parametrize("site", SITES)
def test_in_text_without_answers_every_token_but_the_last_predicts_one(site: Any) -> None:
    """As plain text, or as a batch without masks."""
    text = " ".join(tiny.words(6))
    rows = [Example(number, (), text=said) for number, said in enumerate((text, text[:20]))]
    (batch,) = neutral_batches(tiny.tokenizer(), rows, batch_size=2, max_length=64, seed=0)
    assert batch["prompt_end_mask"].sum() == batch["attention_mask"].sum()
    plain = {name: batch[name] for name in ("input_ids", "attention_mask")}
    lengths = batch["attention_mask"].sum(dim=1)
    for given in (batch, plain):
        found = predicting(given, site)
        assert found.sum(dim=1).tolist() == (lengths - 1).tolist()
        assert not found[torch.arange(2), lengths - 1].any()
