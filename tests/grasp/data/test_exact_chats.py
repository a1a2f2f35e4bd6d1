"""What is learnt and what is asked, to the token: merges, trimming, dates, doubled tokens."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from analysis.errors import InputError
from analysis.store.records import Message
from grasp.data import chat
from grasp.data.chat import chat_ids, chat_sequences, tokenise
from grasp.data.dataset import data_report, tokenise_task
from grasp.data.examples import Example, Examples, as_examples
from grasp.data.tokenise import example_tokens, show_row, training_rows
from grasp.model.chat_date import date_said, fix_date
from grasp.model.loading import load_tokenizer
from grasp.model.vocabulary import own_tokenizer
from grasp.settings.model import ModelSettings
from tests.support import tiny

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}"
    "{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
PLAIN += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"


def bytes_of(template: str | None = CHATML, *, bos: bool = False, trimmed: bool = False) -> Any:
    """A tokenizer of bytes that merges a newline, or a space, with what follows it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate(letters)}
    merges = [("Ċ", "Ċ"), ("Ċ", "Ġ"), ("Ġ", "y")]
    vocab |= {a + b: len(vocab) + i for i, (a, b) in enumerate(merges)}
    raw = Tokenizer(models.BPE(vocab, merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", bos_token="<|start|>", pad_token="<|pad|>"
    )
    found.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    if bos:
        begin = ("<|start|>", found.convert_tokens_to_ids("<|start|>"))
        found._tokenizer.post_processor = processors.TemplateProcessing(
            single="<|start|> $A", special_tokens=[begin]
        )
    if trimmed:
        found._tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    found.chat_template = template
    return found


def said(*turns: str) -> list[Message]:
    roles = ("user", "assistant")
    return [Message(role=roles[i % 2], content=text) for i, text in enumerate(turns)]


def learnt(tokenizer: Any, messages: list[Message]) -> list[str]:
    """What is learnt of each sequence of a chat, as text."""
    rows = training_rows(tokenizer, as_examples([messages]), max_length=512).rows
    parts = [show_row(tokenizer, row).split("⟦")[1:] for row in rows]
    return ["|".join(part.partition("⟧")[0] for part in row) for row in parts]


@pytest.mark.parametrize("trimmed", [False, True])
@pytest.mark.parametrize("template", [CHATML, MARKED])
@pytest.mark.parametrize("answer", ["x = 1", "\n    x = 1", "    x = 1", " \n", "é\n\n"])
def test_a_token_shared_with_the_prompts_newline_is_the_answers(
    answer: str, template: str, trimmed: bool
) -> None:
    """It is what the model has to write; all else of the prompt is not learnt."""
    known = bytes_of(template, trimmed=trimmed)
    tail = "<|im_end|>\n" if template is CHATML else "<|im_end|>"
    merged = "\n" if answer[0] in "\n " else ""
    assert learnt(known, said("Hi", answer)) == [merged + answer + tail]
    both = f"{merged}{answer}{tail}"
    assert learnt(known, said("Hi", answer, "And?", answer)) == [f"{both}|{both}"]


def test_a_space_of_the_generation_prompt_merges_with_the_answers_first_letter() -> None:
    known = bytes_of(PLAIN)
    assert learnt(known, said("a", "yes")) == [" yes\n"]
    assert learnt(known, said("a", "no")) == ["no\n"]
    assert chat_ids(known, said("a"), generate=True) == known("user: a\nassistant: ")["input_ids"]


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_trimming_stretches_no_mark_over_another_turn(template: str) -> None:
    """Oracle: the same chat by a tokenizer that trims nothing."""
    messages = said(" Hi", "\n yo \n", " b ", "  c")
    plain, trimmed = (tokenise(bytes_of(template, trimmed=on), messages) for on in (False, True))
    assert plain == trimmed
    assert 0 < sum(plain[1]) < len(plain[1])


def test_a_long_chat_is_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    known, calls = bytes_of(), []
    encode = type(known).__call__

    def counted(self: Any, text: Any, *args: Any, **given: Any) -> Any:
        calls.append(text)
        return encode(self, text, *args, **given)

    monkeypatch.setattr(type(known), "__call__", counted)
    ((ids, learn),) = chat_sequences(known, said(*("some words " * 5 for _ in range(128))))
    assert len(calls) == 1
    assert len(ids) == len(learn) > 128 * 40


# Texts that are in a template already

DRESSED = "<|start|><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "example",
    [
        Example(1, text=f"{DRESSED}Yo<|im_end|>\n"),
        Example(1, prompt=DRESSED, text="Yo<|im_end|>"),
        Example(1, prompt=DRESSED.removeprefix("<|start|>"), text="Yo"),
    ],
)
def test_no_text_begins_or_ends_twice(example: Example) -> None:
    """Oracle: the tokens of the text as a template gives it."""
    known = bytes_of(bos=True)
    ((ids, _),) = example_tokens(known, example)
    whole = f"{DRESSED}Yo<|im_end|>" + ("\n" if example.text.endswith("\n") else "")
    assert ids == known(whole, add_special_tokens=False)["input_ids"]


def test_rows_that_do_so_all_the_same_are_named() -> None:
    known = bytes_of("{{ bos_token }}" + CHATML, bos=True)
    config = tiny.TrainConfig(title="t", base_model="b", data="d")
    rows = [Example(1, tuple(said("Hi", "Yo"))), Example(2, prompt="", text="")]
    rows[1] = Example(2, (Message(role="user", content="Hi"), *said("?", "Yo<|im_end|>")[1:]))
    examples = Examples("d", "messages", rows, 2, [], {"messages": "messages"}, [])
    twice = CHATML.replace("'<|im_end|>\n'", "'<|im_end|>'")
    known.chat_template = twice
    report = data_report(config, known, tokenise_task(config, known, examples))
    assert report.doubled == [2]
    assert "same special token begins or ends 1 row (2) twice" in "\n".join(report.lines())
    assert report.sample == "<|im_start|>user\nHi<|im_end|><|im_start|>assistant\n⟦Yo<|im_end|>⟧"
    assert r"<|im_start|>user\nHi" in "\n".join(report.lines())


# Dates

DATED = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}\n" + CHATML


def test_a_template_says_the_same_date_every_day(tmp_path: Path) -> None:
    bytes_of(DATED).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    found = load_tokenizer(str(tmp_path))
    assert found.decode(chat_ids(found, said("Hi"))).startswith("26 Jul 2024<")
    other = load_tokenizer(str(tmp_path), ModelSettings(chat_date="2025-01-02"))
    assert other.decode(chat_ids(other, said("Hi"))).startswith("02 Jan 2025<")
    assert (date_said(found), date_said(other)) == ("2024-07-26", "2025-01-02")
    today = load_tokenizer(str(tmp_path), ModelSettings(chat_date=None))
    assert f"{date.today():%d %b %Y}" in today.decode(chat_ids(today, said("Hi")))
    plain = bytes_of()
    fix_date(plain, "2024-07-26")
    assert (plain.chat_template, date_said(plain)) == (CHATML, None)
    with pytest.raises(ValueError, match="chat_date"):
        ModelSettings(chat_date="2024-13-01")


# The tokenizer beside an adapter


def test_what_lies_beside_an_adapter_takes_the_place_of_the_bases(tmp_path: Path) -> None:
    base = bytes_of(CHATML)
    (tmp_path / "chat_template.jinja").write_text(PLAIN)
    assert own_tokenizer(tmp_path, base).chat_template == PLAIN
    assert base.chat_template == CHATML
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": MARKED}))
    assert own_tokenizer(tmp_path, base).chat_template == MARKED
    bytes_of(None).save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    whole = own_tokenizer(tmp_path, base)
    assert whole.chat_template == CHATML  # the base's, since it has none itself
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"The adapter's own tokenizer in .* cannot be loaded: "):
        own_tokenizer(tmp_path, base)


def test_any_template_that_fails_is_one_sentence() -> None:
    for template in ("{{ messages[9].content }}", "{{ messages + 1 }}", "{% if %}"):
        with pytest.raises(InputError, match="template refuses the chat"):
            chat_ids(bytes_of(template), said("Hi"))
    named: Any = bytes_of()
    named.chat_template = {"rag": CHATML}
    with pytest.raises(InputError, match="template refuses the chat"):
        chat.chat_ids(named, said("Hi"))
