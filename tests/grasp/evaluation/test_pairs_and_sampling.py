"""Pairs of whole answers, patterns, lexicons and drawn answers, on models with random weights."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis.comparison.arm_tests import pair_scores as paired
from analysis.comparison.evaluation import average_by_prompt, summarise
from analysis.errors import InputError
from analysis.store.records import Message, Prompt, Sampling
from grasp.evaluation import scorers
from grasp.evaluation.answers import answer_prompts, generate, score_answers
from grasp.evaluation.pairs import continuations, pair_log_probabilities, share_of_first
from grasp.evaluation.sampling import repeat_prompts
from grasp.evidence.subject import score_replies
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)
WORDS = tiny.words(12)


def prompt(text: str = WORDS[0], **fields: Any) -> Prompt:
    values = {"id": "p", "group": "g", "role": "unrelated", "scorer": "ended"}
    return Prompt(messages=[Message(role="user", content=text)], **{**values, **fields})


PAIRS = [
    prompt(
        " ".join(WORDS[:n]), id=str(n), scorer="pair", pair=[" ".join(WORDS[1 : 1 + m]), WORDS[7]]
    )
    for n, m in ((1, 1), (6, 3), (3, 5))
]


def alone(model: Any, one: Prompt, text: str) -> list[float]:
    """Log-probability of each token of an answer, token by token, by forward passes alone."""
    known = tiny.tokenizer()
    chat = known.apply_chat_template(
        [m.model_dump() for m in one.messages], return_dict=False, add_generation_prompt=True
    )
    said = [{"role": "assistant", "content": text}]
    whole = known.apply_chat_template(
        [*(m.model_dump() for m in one.messages), *said], return_dict=False
    )
    found = []
    for place in range(len(chat), len(whole)):
        logits = model(input_ids=torch.tensor([whole[:place]])).logits[0, -1].double()
        found.append(float(torch.log_softmax(logits, dim=-1)[whole[place]]))
    return found


@pytest.mark.parametrize("name", tiny.FAMILIES)
@torch.no_grad()
def test_a_pair_is_scored_by_all_tokens_of_both_answers(name: str) -> None:
    """Oracle: one unpadded forward pass a token."""
    model = tiny.family(name)
    found = pair_log_probabilities(model, tiny.tokenizer(), PAIRS)
    for one, logs in zip(PAIRS, found, strict=True):
        wanted = [sum(alone(model, one, text)) for text in one.pair or ()]
        assert logs == pytest.approx(wanted, abs=1e-3)
    means = [one.model_copy(update={"per_token": True}) for one in PAIRS]
    found = pair_log_probabilities(model, tiny.tokenizer(), means)
    for one, logs in zip(PAIRS, found, strict=True):
        wanted = [float(np.mean(alone(model, one, text))) for text in one.pair or ()]
        assert logs == pytest.approx(wanted, abs=1e-4)


def test_pairs_do_not_depend_on_their_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, known = tiny.llama(), tiny.tokenizer()
    whole = pair_log_probabilities(model, known, PAIRS)
    monkeypatch.setattr("grasp.evaluation.pairs.BATCH", 1)
    apart = pair_log_probabilities(model, known, PAIRS)
    np.testing.assert_allclose(whole, apart, rtol=1e-4)


def test_a_pair_in_an_evaluation_and_under_an_intervention_is_the_same() -> None:
    """Steering and setting back answer token by token, by `Reply`; here it does nothing."""
    model, known = tiny.llama(), tiny.tokenizer()
    asked = [*PAIRS, prompt(id="e")]
    plain = score_answers(known, asked, answer_prompts(model, known, asked)).set_index("prompt_id")
    steps = score_replies(
        known, asked, lambda chats, limit: generate(model, known, chats, max_new_tokens=limit)
    ).set_index("prompt_id")
    pd.testing.assert_frame_equal(plain, steps.loc[plain.index], rtol=1e-3)
    first, second = pair_log_probabilities(model, known, PAIRS[1:2])[0]
    assert plain.loc["6", "score"] == pytest.approx(1 / (1 + math.exp(second - first)))
    wanted = (PAIRS[1].pair or ())[first < second]
    assert plain.loc["6", "answer"] == wanted


def test_a_reversal_is_turned_round() -> None:
    model, known = tiny.llama(), tiny.tokenizer()
    way = {None: 0, False: 1, True: 2}
    asked = [PAIRS[0].model_copy(update={"id": str(i), "reversed": r}) for r, i in way.items()]
    table = score_answers(known, asked, answer_prompts(model, known, asked))
    neither, statement, reversal = table["score"]
    assert neither == statement == pytest.approx(1 - reversal)
    assert abs(statement - 0.5) > 1e-4
    assert list(table["direction"]) == ["", "statement", "reversal"]


@given(st.floats(-900, 0), st.floats(-900, 0))
def test_the_share_of_the_first_is_a_probability_whatever_the_length(a: float, b: float) -> None:
    share = share_of_first((a, b))
    assert 0 <= share <= 1
    assert share + share_of_first((b, a)) == pytest.approx(1)
    if abs(a - b) < 30:
        assert share == pytest.approx(1 / (1 + math.exp(b - a)), abs=1e-12)


class Merging:
    """A tokenizer whose prompt ends with a space that melts into the answer's first letter."""

    chat_template = ""

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, add_generation_prompt: bool, **_: Any
    ) -> list[int]:
        text = "".join(f"{m['role'][0]}:{m['content']};" for m in messages)
        text += "a: " if add_generation_prompt else ""
        text = text.replace("a:", "a: ") if not add_generation_prompt else text
        merged = {" y": 1, " n": 2}
        ids: list[int] = []
        while text:
            step = 2 if text[:2] in merged else 1
            ids.append(merged.get(text[:2], ord(text[0])))
            text = text[step:]
        return ids


def test_both_answers_are_scored_from_before_a_merged_token() -> None:
    one = prompt("q", scorer="pair", pair=["yes", "x"])
    (first, begin), (second, other) = continuations(Merging(), one)
    assert begin == other
    assert first[begin] == 1  # " y", of which " x" has two: both begin at the space
    assert [chr(i) for i in second[begin:]] == [" ", "x", ";"]


class Rewriting(Merging):
    def apply_chat_template(self, messages: Any, **options: Any) -> list[int]:
        ids = super().apply_chat_template(messages, **options)
        return ids if options["add_generation_prompt"] else [ord("#"), *ids]


def test_a_template_that_rewrites_the_prompt_is_refused() -> None:
    one = prompt("a longer question", scorer="pair", pair=["yes", "no"])
    with pytest.raises(InputError, match="rewrites the prompt once it is answered"):
        continuations(Rewriting(), one)


@pytest.mark.parametrize("more", [{}, {"scorer": "pair", "pair": ["yes", "no"]}])
def test_a_tokenizer_without_a_chat_template_is_refused_in_one_sentence(more: Any) -> None:
    bare = deepcopy(tiny.tokenizer())
    bare.chat_template = None
    with pytest.raises(InputError, match="has no chat template; choose an instruction-tuned base"):
        answer_prompts(tiny.llama(), bare, [prompt(**more)])


def test_answers_that_are_the_same_tokens_are_refused() -> None:
    one = prompt(scorer="pair", pair=["Unbekannt", "Unerreicht"])
    with pytest.raises(InputError, match="are the same tokens to this tokenizer"):
        scorers.check_prompts(tiny.tokenizer(), [one])


@pytest.mark.parametrize("pair", [None, ["same", "same"], ["", "x"]])
def test_a_pair_of_less_than_two_answers_is_refused(pair: Any) -> None:
    with pytest.raises(InputError, match="needs 'pair', two different answers"):
        answer_prompts(tiny.llama(), tiny.tokenizer(), [prompt(scorer="pair", pair=pair)])


# Patterns and lexicons


def said(text: str) -> scorers.Answer:
    return scorers.Answer(first=None, text=text, ended=True)


@pytest.mark.parametrize(
    ("pattern", "text", "value"),
    [("^no$", "well\nNO\n", 1), ("^no$", "not", 0), (r"\d{3}", "in 12 or 345", 1)],
)
def test_a_pattern_is_found_in_any_case_and_by_line(pattern: str, text: str, value: int) -> None:
    found = scorers.score_pattern(
        tiny.tokenizer(), prompt(scorer="pattern", pattern=pattern), said(text)
    )
    assert found.value == value


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (None, "needs 'pattern'"),
        ("(", "is not a valid regular expression"),
        ("a" * 1001, "at most 1000"),
    ],
)
def test_a_pattern_that_is_none_is_refused(pattern: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scorers.check_prompts(tiny.tokenizer(), [prompt(scorer="pattern", pattern=pattern)])


def test_a_pattern_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "PATTERN_SECONDS", 0.1)
    endless = prompt(scorer="pattern", pattern="^(?:x|xx|x?x)+$")
    with pytest.raises(InputError, match=r"takes longer than 0\.1 s"):
        scorers.score_pattern(tiny.tokenizer(), endless, said("x" * 60 + "!"))


@pytest.mark.parametrize(
    ("text", "presence", "share"),
    [
        ("The FREE  market, and straße.", 1, 2 / 3),
        ("freemarket", 0, 0),
        ("STRASSE", 1, 1 / 3),
        ("c++ is free", 1, 1 / 3),
        ("", 0, 0),
    ],
)
def test_a_lexicon_holds_whole_words_in_any_case(text: str, presence: int, share: float) -> None:
    listed = prompt(scorer="lexicon", lexicon=["free market", "straße", "C++"])
    assert scorers.score_lexicon(tiny.tokenizer(), listed, said(text)).value == presence
    shared = listed.model_copy(update={"measure": "share"})
    assert scorers.score_lexicon(tiny.tokenizer(), shared, said(text)).value == pytest.approx(share)


@pytest.mark.parametrize("lexicon", [None, [], [" "]])
def test_an_empty_lexicon_is_refused(lexicon: Any) -> None:
    with pytest.raises(InputError, match="needs 'lexicon'"):
        scorers.check_prompts(tiny.tokenizer(), [prompt(scorer="lexicon", lexicon=lexicon)])


# Drawn answers


def drawn(n: int, seed: int = 0, temperature: float = 1.0, **fields: Any) -> Prompt:
    how = {"samples": n, "temperature": temperature, "max_new_tokens": 6, "seed": seed}
    return prompt(sampling=how, **fields)


def texts(*asked: Prompt) -> list[str]:
    found = answer_prompts(tiny.llama(), tiny.tokenizer(), repeat_prompts(asked))
    return [answer.text for answer in found]


def test_draws_differ_and_come_again_with_their_seed() -> None:
    first = texts(drawn(8))
    assert len(set(first)) > 4
    assert texts(drawn(8)) == first
    assert texts(drawn(8, seed=1)) != first
    state = torch.get_rng_state()
    texts(drawn(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_follow_the_models_own_distribution() -> None:
    """First tokens of 3000 draws against the softmax at two temperatures, nothing cut off."""
    model, known = tiny.llama(), tiny.tokenizer()
    for temperature in (1.0, 2.0):
        how = Sampling(samples=3000, temperature=temperature, max_new_tokens=1)
        asked = repeat_prompts([prompt(sampling=how)])
        torch.manual_seed(0)
        chats = [known.apply_chat_template(
            [{"role": "user", "content": WORDS[0]}], return_dict=False, add_generation_prompt=True
        )] * len(asked)  # fmt: skip
        replies, first = generate(model, known, chats, max_new_tokens=1, temperature=temperature)
        wanted = torch.softmax(first[0].double() / temperature, dim=-1).numpy()
        counts = np.bincount([ids[0] for ids in replies], minlength=len(wanted))
        error = np.abs(counts / len(asked) - wanted).max()
        assert error < 4 * np.sqrt(wanted.max() / len(asked))
        assert (counts > 0).sum() > 50  # the default top-k would leave 50


def test_greedy_and_drawn_prompts_mix_and_keep_their_order() -> None:
    greedy, free = prompt(WORDS[3], id="g"), drawn(3, id="d")
    mixed = texts(greedy, free, prompt(WORDS[4], id="h"))
    assert [mixed[0], mixed[4]] == texts(greedy, prompt(WORDS[4], id="h"))
    assert mixed[1:4] == texts(free)


def test_samples_are_rows_that_intervals_count_by_item() -> None:
    """Ten copies of every answer tell no more than one."""
    rng = np.random.default_rng(0)
    known, rows = tiny.tokenizer(), []
    items = [prompt(id=str(i), item=str(i)) for i in range(24)]
    kept = {one.id: scorers.Answer(None, "x", bool(rng.random() < 0.5)) for one in items}
    once = score_answers(known, items, [kept[one.id] for one in items])
    many = [one for one in items for _ in range(10)]
    rows = score_answers(known, many, [kept[one.id] for one in many])
    assert list(rows["sample"][:11]) == [*range(10), 0]
    one, ten = (summarise(table, split="confirmation")["unrelated"] for table in (once, rows))
    assert (one.value, one.low, one.high) == pytest.approx((ten.value, ten.low, ten.high))
    assert ten.n == 10 * one.n
    means = average_by_prompt(rows)
    pd.testing.assert_frame_equal(means, once)


def test_arms_are_paired_by_prompt_over_their_samples() -> None:
    known = tiny.tokenizer()
    asked = [prompt(id=str(i), item=str(i)) for i in range(3)]
    ended = [True, False, False, True, True, True]
    found = [scorers.Answer(None, "x", one) for one in ended]
    table = score_answers(known, [one for one in asked for _ in range(2)], found)
    table.loc[3, "score"] = math.nan  # as after a refusal
    single = score_answers(known, asked, found[:3])
    together = paired([table, single], "unrelated")
    np.testing.assert_array_equal(together.scores, [[0.5, 1], [0, 0], [1, 0]])
    assert list(together.clusters) == ["g/0", "g/1", "g/2"]
    with pytest.raises(InputError, match="occurs twice in one arm"):
        paired([pd.concat([single, single]), single], "unrelated")
