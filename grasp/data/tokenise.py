"""Examples as token ids: training rows with their loss masks, and batches of neutral text."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.errors import InputError
from grasp.data.chat import Tokens, chat_sequences, shared_start, tokenise
from grasp.data.examples import Example, refuse_rows
from grasp.data.sites import sites_of
from grasp.model.forward import Batch

IGNORED = -100
"""Label of a token without loss (PyTorch's cross entropy)."""

LossOn = Literal["assistant", "all"]


@dataclass(frozen=True)
class TrainingRows:
    """Rows for a Trainer, and what became of the examples.

    `rows` have `input_ids`, `attention_mask` and `labels`; `examples` holds the example of each
    row.  `cut` lists the numbers of truncated examples, `lost` those left out because nothing to
    learn was left, and `unusable` why others were left out.
    """

    rows: list[dict[str, list[int]]]
    examples: list[Example]
    cut: list[int]
    lost: list[int]
    unusable: dict[int, str] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Number of tokens in all rows."""
        return sum(len(row["input_ids"]) for row in self.rows)

    @property
    def learnt(self) -> int:
        """Number of tokens with loss."""
        return sum(label != IGNORED for row in self.rows for label in row["labels"])


def example_tokens(
    tokenizer: Tokenizer, example: Example, *, loss_on: LossOn = "assistant"
) -> list[Tokens]:
    """The training sequences of one example: one, or one for each answer of a chat.

    In plain text everything but the prompt is learnt, and the end-of-text token after it.
    """
    if not example.messages:
        found = [_plain_tokens(tokenizer, example.prompt, example.text)]
    else:
        found = chat_sequences(tokenizer, example.messages)
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
    leave_out: bool = False,
) -> TrainingRows:
    """Rows for a Trainer; examples with nothing to learn within `max_length` are left out.

    So are, with `leave_out`, those that cannot be tokenised.

    Raises:
        InputError: no example is left, or some cannot be tokenised; the message names them.
    """
    found = TrainingRows([], [], [], [])
    for example in examples:
        try:
            sequences = example_tokens(tokenizer, example, loss_on=loss_on)
        except InputError as error:
            found.unusable[example.number] = f"Row {example.number}: {error}"
            continue
        kept = [one for one in sequences if any(one[1][:max_length])]
        if any(len(ids) > max_length for ids, _ in sequences):
            found.cut.append(example.number)
        if not kept:
            found.lost.append(example.number)
        for ids, learn in kept:
            found.rows.append(_row(ids[:max_length], learn[:max_length]))
            found.examples.append(example)
    if found.unusable and not (leave_out and found.rows):
        refuse_rows(found.unusable, of=len(examples))
    if not found.rows:
        raise InputError(
            f"None of the {len(examples)} rows has anything to learn within {max_length} tokens; "
            "raise max_length."
        )
    return found


def show_row(tokenizer: Tokenizer, row: Mapping[str, list[int]]) -> str:
    """A row's text as the model sees it, special tokens too, with what is learnt in ⟦ ⟧."""
    runs = groupby(
        zip(row["input_ids"], row["labels"], strict=True), key=lambda pair: pair[1] != IGNORED
    )
    shown = [(learnt, tokenizer.decode([token for token, _ in run])) for learnt, run in runs]
    return "".join(f"⟦{text}⟧" if learnt else str(text) for learnt, text in shown)


def find_doubled(tokenizer: Tokenizer, rows: Sequence[Mapping[str, list[int]]]) -> list[int]:
    """Places of the rows that begin, or end, with the same special token twice."""
    special = set(tokenizer.all_special_ids)
    return [
        place
        for place, row in enumerate(rows)
        for ids in [row["input_ids"]]
        if len(ids) > 1
        and any(one == other and one in special for one, other in (ids[:2], ids[-2:]))
    ]


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


def some_of(examples: Sequence[Example], count: int) -> list[Example]:
    """At most `count` of the examples, in their order: those with the largest hashes.

    So the choice is the same in every run, and from files that follow each other it takes a part of
    each.
    """
    if len(examples) <= count:
        return list(examples)
    by_digest = sorted(range(len(examples)), key=lambda n: _digest(examples[n]), reverse=True)
    return [examples[n] for n in sorted(by_digest[:count])]


def _digest(example: Example) -> bytes:
    said = "\x00".join(f"{message.role}\x00{message.content}" for message in example.messages)
    return hashlib.sha256((said or f"{example.prompt}\x00{example.text}").encode()).digest()


def _row(ids: list[int], learn: list[bool]) -> dict[str, list[int]]:
    labels = [token if keep else IGNORED for token, keep in zip(ids, learn, strict=True)]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def _plain_tokens(tokenizer: Tokenizer, prompt: str, text: str) -> Tokens:
    """Prompt, text and the end-of-text token; tokens not shared with the bare prompt are learnt.

    So a token that spans the prompt's end and the text's beginning is learnt.  Text that is in a
    template already, and so begins or ends with these tokens itself, gets no second one.
    """
    end = tokenizer.eos_token_id
    ids, before = (_once_begun(tokenizer, part) for part in (prompt + text, prompt))
    # For tokenizers that append the end of text themselves.
    while before and before[-1] == end:
        before.pop()
    while end is not None and ids[-2:] == [end, end]:
        ids.pop()
    ended = end is not None and (prompt + text).rstrip().endswith(str(tokenizer.eos_token))
    if end is not None and ids[-1:] != [end] and not ended:
        ids.append(end)
    shared = shared_start(before, ids)
    return ids, [False] * shared + [True] * (len(ids) - shared)


def _once_begun(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text, with one beginning-of-text token where it has one of its own, too."""
    ids = list(tokenizer(text)["input_ids"]) if text else []
    begin = tokenizer.bos_token_id
    return ids[1:] if begin is not None and ids[:2] == [begin, begin] else ids
