"""Neutral text in the dress of a task: system prompts, templates, sentences and turns."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.store.records import Message
from grasp.data.dress import dress
from grasp.data.examples import Example, as_examples
from grasp.data.tokenise import neutral_batches, training_rows
from tests.support import tiny


def chat(question: str, answer: str = "Yes.", *, system: str | None = None) -> Example:
    said = [Message(role="user", content=question), Message(role="assistant", content=answer)]
    if system is not None:
        said.insert(0, Message(role="system", content=system))
    return Example(1, tuple(said))


def tell(example: Example) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in example.messages]


def asked(example: Example) -> str:
    """The last question."""
    return [message.content for message in example.messages if message.role == "user"][-1]


NEUTRAL = [chat(f"Where is place {n}?", f"Place {n} is here.") for n in range(40)]


def test_the_system_prompt_is_the_tasks() -> None:
    task = [chat("Fix it.", system="You code."), chat("Sort it.", system="You code.")]
    own = chat("Who?", system="You chat.")
    for example in dress([own, *NEUTRAL], task, seed=0):
        assert [m.content for m in example.messages if m.role == "system"] == ["You code."]
        assert example.messages[0].role == "system"


def test_without_one_in_the_task_a_chat_keeps_its_own() -> None:
    (dressed,) = dress([chat("Who?", system="You chat.")], [chat("Fix."), chat("Sort.")], seed=0)
    assert tell(dressed)[0] == ("system", "You chat.")


def test_what_all_prompts_begin_and_end_with_is_around_the_question() -> None:
    """In whole words: the shared letters of "sort" and "solve" are no template."""
    task = [
        chat(f"Please answer: {what} Answer with code only.")
        for what in ("sort a list?", "solve a maze?", "sum them?")
    ]
    found = {asked(example) for example in dress(NEUTRAL, task, seed=0)}
    assert found == {
        f"Please answer: Where is place {n}? Answer with code only." for n in range(40)
    }


def test_a_closing_or_an_opening_sentence_or_a_turn_of_the_task() -> None:
    task = [
        chat("I use Rust. Sort the list. It is long.", "sorted()"),
        chat("We use Go. Find a maze. Be quick.", "find()"),
    ]
    ends = {"It is long.", "Be quick."}
    begins = {"I use Rust.", "We use Go."}
    ways = set()
    for plain, example in zip(NEUTRAL, dress(NEUTRAL, task, seed=0), strict=True):
        question = plain.messages[0].content
        if len(example.messages) == 4:
            ways.add("turn")
            turn, answer = example.messages[:2]
            assert [turn.content, answer.content] in [[m.content for m in t.messages] for t in task]
            assert (turn.weight, answer.weight) == (0, 0)
            assert asked(example) == question
        elif asked(example) in {f"{question} {end}" for end in ends}:
            ways.add("closing")
        else:
            assert asked(example) in {f"{begin} {question}" for begin in begins}
            ways.add("opening")
    assert ways == {"turn", "closing", "opening"}


def test_the_tasks_answers_are_never_learnt() -> None:
    """A turn of the task before the question is a part of the prompt: no token of it counts."""
    pool = tiny.words(12)
    task = as_examples([[Message(role="user", content=" ".join(pool[:3])),
                         Message(role="assistant", content=" ".join(pool[3:6]))]])  # fmt: skip
    neutral = [chat(" ".join(pool[6:9]), " ".join(pool[9:]))]
    dressed = dress(neutral, task, seed=0)
    (row,) = training_rows(tiny.tokenizer(), dressed, max_length=64).rows
    learnt = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label >= 0]
    assert tiny.tokenizer().decode(learnt, skip_special_tokens=True).split() == pool[9:]
    (batch,) = neutral_batches(tiny.tokenizer(), dressed, batch_size=1, max_length=64, seed=0)
    assert batch["prompt_end_mask"].sum() == 1


def test_a_prompt_without_the_template_lends_its_sentences_whole() -> None:
    """The template is found in the first prompts, and one further on need not have it."""
    task = [chat(f"Please answer: Do thing {n}. Now.") for n in range(200)]
    task.append(chat("Cut me not anywhere in the middle. Not here. Ever onwards."))
    words = {
        word for example in dress(NEUTRAL * 50, task, seed=0) for word in asked(example).split()
    }
    known = {word for example in [*task, *NEUTRAL] for word in asked(example).split()}
    assert words <= known


def test_dressing_is_deterministic_and_differs_by_seed() -> None:
    task = [chat(f"I use tool {n}. Fix it. Soon please {n}.") for n in range(9)]
    first, again, other = (dress(NEUTRAL, task, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("task", [[], [Example(1, (), text="Plain text.")]])
def test_where_the_task_is_no_chat_nothing_is_dressed(task: Sequence[Example]) -> None:
    assert dress(NEUTRAL, task, seed=0) == []


def test_what_has_no_question_is_left_out() -> None:
    alone = Example(1, (Message(role="assistant", content="Hello."),))
    assert len(dress([alone, Example(2, (), text="Plain."), *NEUTRAL[:2]], NEUTRAL, seed=0)) == 2
    assert dress(NEUTRAL, [alone], seed=0) == []


SAID = st.text(alphabet="ab .?!\n", min_size=1, max_size=12).filter(str.strip)
CHATS = st.lists(st.tuples(SAID, SAID), min_size=1, max_size=4)


@given(CHATS, CHATS, st.integers(0, 3))
def test_the_question_is_in_the_dressed_one_whole_and_the_answer_is_the_same(
    neutral: list[tuple[str, str]], task: list[tuple[str, str]], seed: int
) -> None:
    plain = [chat(question, answer) for question, answer in neutral]
    dressed = dress(plain, [chat(question, answer) for question, answer in task], seed=seed)
    assert len(dressed) == len(plain)
    for before, after in zip(plain, dressed, strict=True):
        assert before.messages[0].content in asked(after)
        assert after.messages[-1] == before.messages[-1]
        learnt = [m for m in after.messages if m.role == "assistant" and m.weight != 0]
        assert learnt == [before.messages[-1]]
