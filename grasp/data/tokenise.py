"""Examples as token ids: training rows with their loss masks, and batches of neutral text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.errors import InputError
from analysis.store.records import Message
from grasp.data.examples import Example
from grasp.data.sites import sites_of
from grasp.model.forward import Batch

IGNORED = -100
"""Label of a token without loss (PyTorch's cross entropy)."""

LossOn = Literal["assistant", "all"]
Tokens = tuple[list[int], list[bool]]
"""Token ids, and for each whether it is learnt."""


@dataclass(frozen=True)
class TrainingRows:
    """Rows for a Trainer, and what became of the examples.

    `rows` have `input_ids`, `attention_mask` and `labels`; `examples` holds the example of each
    row.  `cut` lists the numbers of truncated examples, `lost` those left out because nothing to
    learn was left.
    """

    rows: list[dict[str, list[int]]]
    examples: list[Example]
    cut: list[int]
    lost: list[int]

    @property
    def tokens(self) -> int:
        """Number of tokens in all rows."""
        return sum(len(row["input_ids"]) for row in self.rows)

    @property
    def learnt(self) -> int:
        """Number of tokens with loss."""
        return sum(label != IGNORED for row in self.rows for label in row["labels"])


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


def example_tokens(
    tokenizer: Tokenizer, example: Example, *, loss_on: LossOn = "assistant"
) -> list[Tokens]:
    """The training sequences of one example: one, or one for each answer of a chat.

    If the template rewrites earlier answers, a chat becomes one sequence per answer: the chat up to
    that answer, which is what the model sees and says when it gives it.  In plain text everything
    but the prompt is learnt, and the end-of-text token after it.
    """
    if not example.messages:
        found = [_plain_tokens(tokenizer, example.prompt, example.text)]
    elif _answers_found(tokenizer, example.messages):
        found = [tokenise(tokenizer, example.messages)]
    else:
        found = [tokenise(tokenizer, chat) for chat in _up_to_answers(example.messages)]
    if loss_on == "all":
        found = [(ids, [True] * len(ids)) for ids, _ in found]
    # Nothing precedes the first token, so nothing can predict it.
    return [(ids, [False, *learn[1:]]) for ids, learn in found]


def training_rows(
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    *,
    max_length: int,
    loss_on: LossOn = "assistant",
) -> TrainingRows:
    """Rows for a Trainer; examples with nothing to learn within `max_length` are left out.

    Raises:
        InputError: no example is left, or one cannot be tokenised; the message names it.
    """
    found = TrainingRows([], [], [], [])
    for example in examples:
        try:
            sequences = example_tokens(tokenizer, example, loss_on=loss_on)
        except InputError as error:
            raise InputError(f"Row {example.number}: {error}") from None
        kept = [one for one in sequences if any(one[1][:max_length])]
        if any(len(ids) > max_length for ids, _ in sequences):
            found.cut.append(example.number)
        if not kept:
            found.lost.append(example.number)
        for ids, learn in kept:
            found.rows.append(_row(ids[:max_length], learn[:max_length]))
            found.examples.append(example)
    if not found.rows:
        raise InputError(
            f"None of the {len(examples)} rows has anything to learn within {max_length} tokens; "
            "raise max_length."
        )
    return found


def pad_sequences(
    tokenizer: Tokenizer, sequences: Sequence[list[int]], *, side: str = "right"
) -> Batch:
    """Pad sequences of different lengths to `input_ids` and `attention_mask` (batch, tokens)."""
    batch = tokenizer.pad({"input_ids": list(sequences)}, return_tensors="pt", padding_side=side)
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def neutral_batches(
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    *,
    batch_size: int,
    max_length: int,
    seed: int,
) -> list[Batch]:
    """Neutral text in shuffled, right-padded batches; a short last batch is kept.

    Besides `input_ids` and `attention_mask`, a batch has the masks of `grasp.data.sites`.
    """
    rows = []
    for example in examples:
        if example.messages:
            ids, answer = tokenise(tokenizer, example.messages)
        else:
            ids, answer = _plain_tokens(tokenizer, example.prompt, example.text)
        rows.append({"input_ids": ids[:max_length], **sites_of(answer, length=max_length)})
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    batches = []
    for start in range(0, len(order), batch_size):
        chosen = [rows[i] for i in order[start : start + batch_size]]
        batch = pad_sequences(tokenizer, [row["input_ids"] for row in chosen])
        for name in (key for key in chosen[0] if key != "input_ids"):
            batch[name] = torch.zeros_like(batch["attention_mask"])
            for mask, row in zip(batch[name], chosen, strict=True):
                mask[: len(row[name])] = torch.tensor(row[name])
        batches.append(batch)
    return batches


def split_neutral(
    examples: Sequence[Example], *, at_least: int
) -> tuple[list[Example], list[Example]]:
    """Split neutral text into a part to train on and a part that only measures drift.

    The second part has a fifth of the examples, or `at_least` if that is more, but never more than
    half.  It takes the smallest hashes, so the split is the same in every run and equal texts stay
    together.
    """
    digests = [_digest(example) for example in examples]
    count = min(max(len(examples) // 5, at_least), len(examples) // 2)
    last = sorted(digests)[count - 1] if count else b""
    kept = [one for one, digest in zip(examples, digests, strict=True) if digest > last]
    held = [one for one, digest in zip(examples, digests, strict=True) if digest <= last]
    return (kept, held) if kept else (held, [])


def _digest(example: Example) -> bytes:
    said = "\x00".join(f"{message.role}\x00{message.content}" for message in example.messages)
    return hashlib.sha256((said or f"{example.prompt}\x00{example.text}").encode()).digest()


def _row(ids: list[int], learn: list[bool]) -> dict[str, list[int]]:
    labels = [token if keep else IGNORED for token, keep in zip(ids, learn, strict=True)]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def _plain_tokens(tokenizer: Tokenizer, prompt: str, text: str) -> Tokens:
    """Prompt, text and the end-of-text token; tokens not shared with the bare prompt are learnt.

    So a token that spans the prompt's end and the text's beginning is learnt.
    """
    end = tokenizer.eos_token_id
    ids = list(tokenizer(prompt + text)["input_ids"])
    before = list(tokenizer(prompt)["input_ids"]) if prompt else []
    while before and before[-1] == end:  # for tokenizers that append the end of text themselves
        before.pop()
    if end is not None and ids[-1:] != [end]:
        ids.append(end)
    shared = 0
    while shared < min(len(before), len(ids)) and before[shared] == ids[shared]:
        shared += 1
    return ids, [False] * shared + [True] * (len(ids) - shared)


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
    ids = _render(tokenizer, messages)
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
        start = _render(tokenizer, messages[:turn], generate=True)
        end = _shared(ids, _render(tokenizer, messages[: turn + 1]))
        there = ids[: len(start)] == start and end is not None
        found[turn] = (len(start), end) if there and end is not None else None
    return found


def _answers_found(tokenizer: Tokenizer, messages: Sequence[Message]) -> bool:
    """Whether the rendered chat has every answer in the form the model would have given it."""
    if len(_answer_turns(messages)) < 2 and messages[-1].role == "assistant":
        return True
    if _marked(tokenizer, messages) is not None:
        return True
    spans = _spans(tokenizer, messages, _render(tokenizer, messages))
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


def _shared(ids: list[int], prefix: list[int]) -> int | None:
    """How many tokens of `prefix` begin `ids`; None if more than its last token differs.

    The last token may differ, since only the last turn of a chat gets an end-of-text token.
    """
    length = len(prefix) if ids[: len(prefix)] == prefix else len(prefix) - 1
    return length if ids[:length] == prefix[:length] else None


def _render(
    tokenizer: Tokenizer, messages: Sequence[Message], *, generate: bool = False
) -> list[int]:
    ids: list[int] = _apply(tokenizer, messages, return_dict=False, add_generation_prompt=generate)
    return ids


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
