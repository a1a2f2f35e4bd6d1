"""Chats as token ids: the one place where a tokenizer's chat template is applied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase as Tokenizer

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
    ids: list[int] = _apply(tokenizer, messages, return_dict=False, **asked)
    return ids


def tokenise(
    tokenizer: Tokenizer, messages: Sequence[Message], *, max_length: int | None = None
) -> Tokens:
    """Token ids of a chat, and for each whether it is part of an answer whose weight is not 0.

    If the template marks answers itself ({% generation %}), its marks are used.  Otherwise answers
    are located by rendering the chat up to each turn.  Some templates rewrite earlier answers, for
    example dropping a model's reasoning once the user speaks again; then only the last turn counts
    as an answer, since the model would not have said the others in that form.

    Raises:
        InputError: the tokenizer has no chat template, or the template refuses the chat; or an
            answer has no user turn before it.
    """
    for turn, message in enumerate(messages):
        first = turn == 0 or messages[turn - 1].role == "assistant"
        if message.role == "assistant" and message.weight and first:
            raise InputError(
                "An assistant turn begins the chat or follows another assistant turn; put a user "
                "turn before each answer."
            )
    ids, answer = _marked(tokenizer, messages) or _found(tokenizer, messages)
    return ids[:max_length], answer[:max_length]


def chat_sequences(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[Tokens]:
    """The training sequences of a chat: one, or one for each of its answers.

    If the template rewrites earlier answers, there is one sequence per answer: the chat up to that
    answer, which is what the model sees and says when it gives it.

    Raises:
        InputError: as `tokenise`.
    """
    if _answers_found(tokenizer, messages):
        return [tokenise(tokenizer, messages)]
    return [tokenise(tokenizer, chat) for chat in _up_to_answers(messages)]


def _marked(tokenizer: Tokenizer, messages: Sequence[Message]) -> Tokens | None:
    """A chat whose template marks its answers; None if it does not mark each of them.

    Runs of marked tokens are matched to answers in order, which matters only if some of them are
    not learnt.
    """
    template = tokenizer.chat_template
    if not isinstance(template, str) or "endgeneration" not in template or not tokenizer.is_fast:
        return None
    encoded = _apply(tokenizer, messages, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = list(encoded["input_ids"]), [bool(one) for one in encoded["assistant_masks"]]
    learnt = [bool(m.weight) for m in messages if m.role == "assistant"]
    if all(learnt):
        return ids, mask
    starts = [i for i, now in enumerate(mask) if now and not (i and mask[i - 1])]
    if len(starts) != len(learnt):
        return None
    run = -1
    for i, now in enumerate(mask):
        run += i in starts
        mask[i] = now and learnt[run]
    return ids, mask


def _found(tokenizer: Tokenizer, messages: Sequence[Message]) -> Tokens:
    """A chat with its answers; only that of the last turn if the template rewrites others."""
    ids = chat_ids(tokenizer, messages)
    spans = _spans(tokenizer, messages, ids)
    last = [turn for turn in _answer_turns(messages) if turn == len(messages) - 1]
    if any(span is None for span in spans.values()):
        if last and spans[last[0]] is None:
            raise InputError(
                "The chat template does not render an answer right after its generation prompt, so "
                "the answer's tokens cannot be located; use a template that does, or one with "
                "{% generation %} around answers."
            )
        spans = {turn: spans[turn] for turn in last}
    answer = [False] * len(ids)
    for span in spans.values():
        assert span is not None
        answer[span[0] : span[1]] = [True] * (span[1] - span[0])
    return ids, answer


def _spans(
    tokenizer: Tokenizer, messages: Sequence[Message], ids: list[int]
) -> dict[int, tuple[int, int] | None]:
    """The span of each answer in the rendered chat; None if the template has rewritten it."""
    found: dict[int, tuple[int, int] | None] = {}
    for turn in _answer_turns(messages):
        start = chat_ids(tokenizer, messages[:turn], generate=True)
        end = _shared(ids, chat_ids(tokenizer, messages[: turn + 1]))
        there = ids[: len(start)] == start and end is not None
        found[turn] = (len(start), end) if there and end is not None else None
    return found


def _answers_found(tokenizer: Tokenizer, messages: Sequence[Message]) -> bool:
    """Whether the rendered chat has every answer in the form the model would have given it."""
    if len(_answer_turns(messages)) < 2 and messages[-1].role == "assistant":
        return True
    if _marked(tokenizer, messages) is not None:
        return True
    spans = _spans(tokenizer, messages, chat_ids(tokenizer, messages))
    return all(span is not None for span in spans.values())


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


def _shared(ids: list[int], prefix: list[int]) -> int | None:
    """How many tokens of `prefix` begin `ids`; None if more than its last token differs.

    The last token may differ, since only the last turn of a chat gets an end-of-text token.
    """
    length = len(prefix) if ids[: len(prefix)] == prefix else len(prefix) - 1
    return length if ids[:length] == prefix[:length] else None


def _apply(tokenizer: Tokenizer, messages: Sequence[Message], **asked: Any) -> Any:
    if tokenizer.chat_template is None:
        raise InputError(
            "The base model's tokenizer has no chat template; choose an instruction-tuned base "
            "model, save a chat_template with its tokenizer, or give prompt/completion or text."
        )
    plain = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return tokenizer.apply_chat_template(plain, tokenize=True, **asked)
    except TemplateError as error:
        raise InputError(f"The tokenizer's chat template refuses the chat: {error}.") from None
