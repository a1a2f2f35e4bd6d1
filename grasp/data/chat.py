"""Chats as token ids: the one place where a tokenizer's chat template is applied."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from analysis.errors import InputError
from analysis.store.records import Message

Tokens = tuple[list[int], list[bool]]
"""Token ids, and for each whether it is learnt."""


def chat_ids(
    tokenizer: Tokenizer, messages: Sequence[Message], *, generate: bool = False, prefix: str = ""
) -> list[int]:
    """Token ids of a chat; to `generate`, with the generation prompt after it.

    With a `prefix`, the model's answer has begun with these words and is to be continued.

    Raises:
        InputError: the tokenizer has no chat template, or it refuses the chat.
    """
    asked: dict[str, bool] = {"add_generation_prompt": generate}
    if prefix:
        messages = [*messages, Message(role="assistant", content=prefix)]
        asked = {"continue_final_message": True}
    ids: list[int] = _apply(tokenizer, messages, tokenize=True, return_dict=False, **asked)
    return ids


def tokenise(
    tokenizer: Tokenizer, messages: Sequence[Message], *, max_length: int | None = None
) -> Tokens:
    """Token ids of a chat, and for each whether it is part of an answer whose weight is not 0.

    If the template marks answers itself ({% generation %}), its marks are used.  Otherwise answers
    are located by rendering the chat up to each turn.  A token that an answer shares with what
    comes before it is the answer's.  Some templates rewrite earlier answers, for example dropping a
    model's reasoning once the user speaks again; then only the last turn counts as an answer, since
    the model would not have said the others in that form.

    Raises:
        InputError: the tokenizer has no chat template, or the template refuses the chat; or an
            answer has no user turn before it, or cannot be located.
    """
    _check_turns(messages)
    chat, spans = _located(tokenizer, messages)
    if None in spans.values():
        last = len(messages) - 1
        spans = {turn: span for turn, span in spans.items() if turn == last}
    learn = _learnt(chat, spans.values())
    return chat.ids[:max_length], learn[:max_length]


def chat_sequences(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[Tokens]:
    """The training sequences of a chat: one, or one for each of its answers.

    If the template rewrites earlier answers, there is one sequence per answer: the chat up to that
    answer, which is what the model sees and says when it gives it.

    Raises:
        InputError: as `tokenise`.
    """
    _check_turns(messages)
    several = len(_answer_turns(messages)) > 1 or messages[-1].role != "assistant"
    chat, spans = _located(tokenizer, messages, whole=several)
    if None not in spans.values():
        return [(chat.ids, _learnt(chat, spans.values()))]
    return [tokenise(tokenizer, part) for part in _up_to_answers(messages)]


def _check_turns(messages: Sequence[Message]) -> None:
    for turn, message in enumerate(messages):
        first = turn == 0 or messages[turn - 1].role == "assistant"
        if message.role == "assistant" and message.weight and first:
            raise InputError(
                "An assistant turn begins the chat or follows another assistant turn; put a user "
                "turn before each answer."
            )


class _Rendered:
    """A rendered chat as text and as token ids, and which of the tokens a part of it has."""

    def __init__(self, tokenizer: Tokenizer, text: str) -> None:
        self._tokenizer = tokenizer
        self.text = text
        encoded = self._encoded(text, offsets=tokenizer.is_fast)
        self.ids: list[int] = list(encoded["input_ids"])
        self._ends = _token_ends(encoded.get("offset_mapping"), len(text))

    def tokens_within(self, characters: int) -> int:
        """How many tokens are of the first `characters` alone, and reach no further."""
        if self._ends is not None:
            return bisect_right(self._ends, characters)
        return shared_start(self.ids, self._encoded(self.text[:characters])["input_ids"])

    def is_one_token(self, characters: int, text: str) -> bool:
        """Whether `text` goes on, after the whole tokens of the first `characters`, by one more."""
        within = self.tokens_within(characters)
        known = self._ends[within - 1] if self._ends is not None and within else 0
        more = len(self._encoded(text[known:])["input_ids"])
        return more <= (1 if known else within + 1)

    def _encoded(self, text: str, *, offsets: bool = False) -> Any:
        return self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=offsets)


def _token_ends(offsets: Sequence[tuple[int, int]] | None, length: int) -> list[int] | None:
    """The place in the text at which each token ends; None where that is not told of all of it.

    Some tokenizers leave white space out, so that it is of no token.
    """
    if not offsets:
        return None
    ends = [end for _, end in offsets]
    gapless = all(start <= end for (start, _), end in zip(offsets, [0, *ends], strict=False))
    return ends if gapless and ends == sorted(ends) and ends[-1] == length else None


def _learnt(chat: _Rendered, spans: Iterable[tuple[int, int] | None]) -> list[bool]:
    """For each token whether it begins in, or reaches into, a span of characters of an answer."""
    learn = [False] * len(chat.ids)
    for span in spans:
        assert span is not None
        start, end = (chat.tokens_within(place) for place in span)
        learn[start:end] = [True] * (end - start)
    return learn


def _located(
    tokenizer: Tokenizer, messages: Sequence[Message], *, whole: bool = False
) -> tuple[_Rendered, dict[int, tuple[int, int] | None]]:
    """A rendered chat, and the characters of each of its answers; None if it was rewritten.

    With `whole`, the last answer may be rewritten too, since it is not the last turn.

    Raises:
        InputError: the last turn is an answer that cannot be located.
    """
    text, marks = _render_marked(tokenizer, messages)
    chat = _Rendered(tokenizer, text)
    if marks is not None:
        return chat, marks
    spans = {turn: _span(chat, tokenizer, messages, turn) for turn in _answer_turns(messages)}
    last = len(messages) - 1
    if not whole and last in spans and spans[last] is None:
        raise InputError(
            "The chat template does not render this answer right after its generation prompt, so "
            "the answer's tokens cannot be located; use a template that does, or one with "
            "{% generation %} around answers."
        )
    return chat, spans


def _span(
    chat: _Rendered, tokenizer: Tokenizer, messages: Sequence[Message], turn: int
) -> tuple[int, int] | None:
    """Where an answer begins and ends in the rendered chat; None if it was rewritten there.

    All but its last token must be as in the chat that ends with it: only the last turn of a chat
    gets an end-of-text token.
    """
    before = _render(tokenizer, messages[:turn], generate=True)
    upto = _render(tokenizer, messages[: turn + 1])
    if not (chat.text.startswith(before) and upto.startswith(before)):
        return None
    shared = shared_start(chat.text, upto)
    if shared < len(upto) and not chat.is_one_token(shared, upto):
        return None
    return len(before), shared


def _render_marked(
    tokenizer: Tokenizer, messages: Sequence[Message]
) -> tuple[str, dict[int, tuple[int, int] | None] | None]:
    """A rendered chat with its template's own marks of answers; without, if not each has one.

    If all answers are learnt, the marks need not be as many as they.
    """
    template = tokenizer.chat_template
    if not isinstance(template, str) or "endgeneration" not in template:
        return _render(tokenizer, messages), None
    with _explained():
        (text,), (found,) = render_jinja_template(
            [_plain(messages)],
            chat_template=template,
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    turns = [turn for turn, message in enumerate(messages) if message.role == "assistant"]
    learnt = _answer_turns(messages)
    if len(found) != len(turns) and turns != learnt:
        return text, None
    marks = dict(enumerate(found)) if turns == learnt else dict(zip(turns, found, strict=True))
    return text, {turn: span for turn, span in marks.items() if turns == learnt or turn in learnt}


def _up_to_answers(messages: Sequence[Message]) -> list[Sequence[Message]]:
    """The chat up to each answer, with the earlier answers not learnt again."""
    found: list[Sequence[Message]] = []
    for turn in _answer_turns(messages):
        before = [message.model_copy(update={"weight": 0}) for message in messages[:turn]]
        found.append([*before, messages[turn]])
    return found


def _answer_turns(messages: Sequence[Message]) -> list[int]:
    return [i for i, m in enumerate(messages) if m.role == "assistant" and m.weight]


def shared_start(one: Sequence[object], other: Sequence[object]) -> int:
    """How many places both begin with alike: token ids, or the characters of texts."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _render(
    tokenizer: Tokenizer, messages: Sequence[Message], *, generate: bool = False
) -> str:
    text: str = _apply(tokenizer, messages, tokenize=False, add_generation_prompt=generate)
    return text


def _apply(tokenizer: Tokenizer, messages: Sequence[Message], **asked: Any) -> Any:
    if tokenizer.chat_template is None:
        raise InputError(
            "The base model's tokenizer has no chat template; choose an instruction-tuned base "
            "model, save a chat_template with its tokenizer, or give prompt/completion or text."
        )
    with _explained():
        return tokenizer.apply_chat_template(_plain(messages), **asked)


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what a template raises into one sentence."""
    try:
        yield
    except (TemplateError, ValueError, TypeError, LookupError) as error:
        raise InputError(f"The tokenizer's chat template refuses the chat: {error}.") from None
