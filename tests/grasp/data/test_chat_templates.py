"""Templates that mark answers, drop reasoning or refuse a chat; text without a template."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from analysis.errors import InputError
from analysis.store.records import Message
from grasp.data.chat import tokenise
from grasp.data.dataset import as_chats, becomes_chat
from grasp.data.examples import Example, Examples
from grasp.data.sites import site_mask
from grasp.data.tokenise import IGNORED, example_tokens, neutral_batches, training_rows
from grasp.world.shipped import shipped_world
from grasp.world.tokens import build_tokenizer
from tests.support import tiny

A, B, C, D, E, F = tiny.words(6)

# As Qwen3's: the last answer begins with its reasoning, earlier ones have lost theirs.
THINKING = (
    "{% set n = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set n.last = loop.index0 %}{% endif %}"
    "{% endfor %}{{ '<|start|>' }}"
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}"
    "{% if m.role == 'assistant' and loop.index0 > n.last %}{{ '<think></think>' }}{% endif %}"
    "{{ ' ' + m.content }}{% if m.role == 'assistant' %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MARKING = (
    "{{ '<|start|>' }}{% for m in messages %}{{ '<|' + m.role + '|>' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ ' ' + m.content + '<|end|>' }}"
    "{% endgeneration %}{% else %}{{ ' ' + m.content }}{% endif %}{% endfor %}"
)
REFUSING = "{{ raise_exception('System role not supported') }}"


def templated(template: str | None) -> PreTrainedTokenizerFast:
    known = build_tokenizer(shipped_world())
    known.chat_template = template
    known.add_tokens(["<think>", "</think>"])
    return known


def chat(*said: str, weights: tuple[int, ...] = ()) -> tuple[Message, ...]:
    """Turns of user and assistant by turns."""
    return tuple(
        Message(
            role="assistant" if i % 2 else "user",
            content=text,
            weight=weights[i // 2] if weights and i % 2 else 1,
        )
        for i, text in enumerate(said)
    )


def shown(tokenizer: Any, ids: list[int], learn: list[bool]) -> str:
    """Tokens in a row, those learnt in brackets."""
    names = tokenizer.convert_ids_to_tokens(ids)
    words = [f"[{n}]" if one else n for n, one in zip(names, learn, strict=True)]
    return " ".join(words).replace("▁", "").replace("<|", "").replace("|>", "")


def learnt(tokenizer: Any, example: Example, **asked: Any) -> list[str]:
    return [shown(tokenizer, *one) for one in example_tokens(tokenizer, example, **asked)]


def test_each_answer_is_learnt_as_the_model_gives_it_where_reasoning_is_dropped() -> None:
    """Oracle: the template by hand; `[<think>]` is what the model has to say first."""
    known = templated(THINKING)
    think = "[<think>] [</think>]"
    assert learnt(known, Example(1, chat(A, B))) == [
        f"start user {A} assistant {think} [{B}] [end]"
    ]
    assert learnt(known, Example(1, chat(A, B, C, D))) == [
        f"start user {A} assistant {think} [{B}] [end]",
        f"start user {A} assistant {B} end user {C} assistant {think} [{D}] [end]",
    ]
    # What is not to be learnt is no row; a user's last word neither.
    assert learnt(known, Example(1, chat(A, B, C, D, E, weights=(0, 1)))) == [
        f"start user {A} assistant {B} end user {C} assistant {think} [{D}] [end]"
    ]


def test_what_was_learnt_of_a_shorter_chat_is_not_learnt_again() -> None:
    """A template that keeps the reasoning of the last two answers, so that one of three goes."""
    later = THINKING.replace(
        "{% set n.last = loop.index0 %}",
        "{% set n.last = n.newest %}{% set n.newest = loop.index0 %}",
    ).replace("namespace(last=-1)", "namespace(last=-1, newest=-1)")
    known = templated(later)
    think = "[<think>] [</think>]"
    plain = think.replace("[", "").replace("]", "")
    assert learnt(known, Example(1, chat(A, B, C, D, E, F))) == [
        f"start user {A} assistant {think} [{B}] [end]",
        f"start user {A} assistant {plain} {B} end user {C} assistant {think} [{D}] [end]",
        f"start user {A} assistant {B} end user {C} assistant {plain} {D} end "
        f"user {E} assistant {think} [{F}] [end]",
    ]


def test_only_the_last_answer_of_such_a_chat_is_looked_at_elsewhere() -> None:
    known = templated(THINKING)
    said = shown(known, *tokenise(known, chat(A, B, C, D)))
    think = "[<think>] [</think>]"
    assert said == f"start user {A} assistant {B} end user {C} assistant {think} [{D}] [end]"
    assert "[" not in shown(known, *tokenise(known, chat(A, B, C)))


def test_rows_count_what_was_split() -> None:
    known = templated(THINKING)
    rows = [Example(1, chat(A, B, C, D)), Example(2, chat(A, B))]
    made = training_rows(known, rows, max_length=64)
    assert [example.number for example in made.examples] == [1, 1, 2]
    assert made.learnt == 3 * 4
    assert (made.cut, made.lost) == ([], [])
    short = training_rows(known, rows, max_length=8)
    assert ([one.number for one in short.examples], short.cut) == ([1, 2], [1])


def test_a_template_that_marks_answers_is_asked() -> None:
    known = templated(MARKING)
    whole = f"start user {A} assistant [{B}] [end] user {C} assistant [{D}] [end]"
    assert learnt(known, Example(1, chat(A, B, C, D))) == [whole]
    first = f"start user {A} assistant [{B}] [end] user {C} assistant {D} end"
    assert learnt(known, Example(1, chat(A, B, C, D, weights=(1, 0)))) == [first]
    everything = learnt(known, Example(1, chat(A, B)), loss_on="all")
    assert everything == [f"start [user] [{A}] [assistant] [{B}] [end]"]


def test_a_chat_that_the_template_refuses_is_named() -> None:
    message = "Row 4: The tokenizer's chat template refuses the chat: System role not supported."
    with pytest.raises(InputError, match=message):
        training_rows(templated(REFUSING), [Example(4, chat(A, B))], max_length=64)


# Without a template


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (Example(1, prompt=f" {A} {B}", text=f" {C}"), "{A} {B} [{C}] [end]"),
        (Example(1, prompt=f" {A}", text=f" {C}<|end|>"), "{A} [{C}] [end]"),
        (Example(1, text=f" {A} {B}"), "{A} [{B}] [end]"),  # nothing foretells the first token
    ],
)
def test_plain_text_is_learnt_to_its_end(example: Example, expected: str) -> None:
    known = templated(None)
    assert learnt(known, example) == [expected.format(A=A, B=B, C=C)]


def test_prompts_are_learnt_too_where_that_is_asked_for() -> None:
    example = Example(1, prompt=f" {A} {B}", text=f" {C}")
    assert learnt(templated(None), example, loss_on="all") == [f"{A} [{B}] [{C}] [end]"]


def test_a_token_across_the_boundary_is_learnt() -> None:
    """Oracle: prompt and text are one word, which is none of the prompt's own tokens."""
    known = templated(None)
    example = Example(1, prompt=f" {A} {B[:1]}", text=B[1:])
    assert learnt(known, example) == [f"{A} [{B}] [end]"]


def test_chats_need_a_template() -> None:
    known = templated(None)
    message = "has no chat template; .* or give prompt/completion or text"
    with pytest.raises(InputError, match=message):
        tokenise(known, chat(A, B))


def plain(form: Any, prompt: str = A) -> Examples:
    return Examples("d.jsonl", form, [Example(1, prompt=prompt, text=B)], 1, [], {}, [])


def test_prompts_become_chats_where_there_is_a_template() -> None:
    known, bare = templated(THINKING), templated(None)
    assert becomes_chat(None, known, plain("prompt/completion"))
    assert becomes_chat(True, known, plain("prompt/completion"))
    assert not becomes_chat(False, known, plain("prompt/completion"))
    assert not becomes_chat(None, bare, plain("prompt/completion"))
    assert not becomes_chat(True, known, plain("text"))
    assert as_chats(plain("prompt/completion").rows) == [Example(1, chat(A, B))]


@pytest.mark.parametrize(
    ("template", "asked", "examples", "message"),
    [
        (None, True, plain("prompt/completion"), "with as_chat: true need a chat template"),
        (None, None, plain("instruction/output"), "rows of instruction/output need a chat templ"),
        (THINKING, None, plain("prompt/completion", "<|user|> x"), r"row 1: the prompt contains '<"
         r"\|user\|>', as if it were in a chat template already; set as_chat: false if it is"),
    ],
)  # fmt: skip
def test_what_cannot_be_known_of_a_prompt_is_asked(
    template: str | None, asked: bool | None, examples: Examples, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        becomes_chat(asked, templated(template), examples)


def test_neutral_text_may_be_plain() -> None:
    known = templated(None)
    rows = [Example(1, text=f" {A} {B} {C}"), Example(2, prompt=f" {A} {B}", text=f" {C}")]
    (batch,) = neutral_batches(known, rows, batch_size=2, max_length=64, seed=0)
    sites = site_mask(batch, "prompt-end").sum(1).tolist()
    # Where nothing is asked every token counts, else the one before the answer.
    assert sorted(sites) == [1, 4]
    assert IGNORED not in batch["input_ids"]
