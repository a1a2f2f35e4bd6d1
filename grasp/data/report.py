"""A report on a fine-tune's data, to be read before training.  Torch-free."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field

from analysis.errors import SchemaError
from analysis.store.records import Prompt, Record, read_manifest
from grasp.data.examples import Example, list_rows

FILE = "data.json"
"""Name of the report, next to a run's manifest."""

QUOTED = 3
"""The most texts shown as examples."""


class DataReport(Record):
    """What was read, what is trained on, and what occurs twice.

    `empty` and `lost` list the numbers of rows left out: without text, or without anything to learn
    within `max_length` tokens.  `unusable` says of those left out for another reason why, by
    number.  `sequences` differs from `used` if chats became one sequence per answer; `packed` is
    the number of sequences after packing.  `doubled` lists rows that begin or end with the same
    special token twice, and `sample` is the beginning of the first row as the model sees it.
    `chat_date` is what the chat template says for today's date.  `duplicates` lists rows identical
    to an earlier one.  `shared` lists rows that ask an evaluation prompt, and `shared_prompts`
    counts those prompts; None if nothing could be compared.
    """

    schema_version: int = 1
    source: str
    form: str
    columns: dict[str, str]
    unused: list[str] = Field(default_factory=list)
    as_chat: bool
    loss_on: str
    max_length: int
    read: int
    used: int
    empty: list[int] = Field(default_factory=list)
    truncated: list[int] = Field(default_factory=list)
    lost: list[int] = Field(default_factory=list)
    unusable: dict[int, str] = Field(default_factory=dict)
    sequences: int
    packed: int | None = None
    tokens: int
    learnt: int
    doubled: list[int] = Field(default_factory=list)
    sample: str = ""
    chat_date: str | None = None
    duplicates: list[int] = Field(default_factory=list)
    shared: list[int] = Field(default_factory=list)
    shared_prompts: int | None = None
    quoted: list[str] = Field(default_factory=list)

    def lines(self) -> list[str]:
        """The report, one sentence per line; problems begin with "Warning"."""
        return list(_lines(self))


def find_duplicates(examples: Sequence[Example]) -> list[int]:
    """Numbers of the examples that are identical to an earlier one."""
    seen: set[tuple[object, ...]] = set()
    found = []
    for example in examples:
        said = tuple((m.role, m.content) for m in example.messages)
        key = (said, example.prompt, example.text)
        if key in seen:
            found.append(example.number)
        seen.add(key)
    return found


def find_shared(
    examples: Sequence[Example], prompts: Sequence[Prompt]
) -> tuple[list[int], list[str]]:
    """Numbers of the examples that ask what an evaluation prompt asks, and those prompts' texts.

    The last user message of each prompt is compared with every user message of an example, after
    `normalise`.
    """
    asked = {normalise(_last_user(prompt)): _last_user(prompt) for prompt in prompts}
    asked.pop("", None)
    numbers: list[int] = []
    texts: dict[str, str] = {}
    for example in examples:
        same = {normalise(text) for text in example.asked} & asked.keys()
        if same:
            numbers.append(example.number)
            texts |= {key: asked[key] for key in same}
    return numbers, list(texts.values())


def normalise(text: str) -> str:
    """Text for comparison: NFKC, case folded, runs of non-word characters as one space."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"[\W_]+", " ", plain).strip()


def write_report(folder: Path, report: DataReport) -> None:
    """Save a report next to a run's manifest."""
    text = json.dumps(report.model_dump(), indent=2, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_report(folder: Path) -> DataReport | None:
    """The report of a run; None if it has none, or it cannot be read."""
    try:
        return read_manifest(folder / FILE, DataReport)
    except SchemaError:
        return None


def _lines(report: DataReport) -> Iterator[str]:
    taken = [
        name if field == name else f"{name} as {field}" for field, name in report.columns.items()
    ]
    unused = f"; not used: {', '.join(report.unused)}" if report.unused else ""
    yield f"Data: {report.source}, rows of {report.form} ({', '.join(taken)}{unused})."
    split = "" if report.sequences == report.used else f" as {report.sequences} sequences"
    packed = "" if report.packed is None else f", packed into {report.packed}"
    yield f"{report.read} rows read, {report.used} trained on{split}{packed}."
    if report.sequences != report.used:
        yield (
            "The chat template rewrites earlier answers, so each answer is a sequence of its own, "
            "with the chat as it was when the answer was given."
        )
    share = report.learnt / report.tokens
    where = _learnt_words(report)
    yield f"{report.tokens:,} tokens, {report.learnt:,} ({share:.0%}) learnt: {where}."
    if report.sample:
        yield "The first row as the model sees it, with what is learnt in ⟦ ⟧:"
        yield report.sample.replace("\n", "\\n")
    if report.chat_date is not None:
        yield (
            f"The chat template says today's date; it says {report.chat_date} in training and "
            "evaluation alike (`chat_date` under `model` in the settings)."
        )
    if report.doubled:
        yield f"Warning: the same special token begins or ends {list_rows(report.doubled)} twice."
    if report.empty:
        yield f"Left out as empty: {list_rows(report.empty)}."
    if report.unusable:
        first = next(iter(report.unusable.values()))
        yield f"Left out as unusable: {list_rows(list(report.unusable))}. The first: {first}"
    if report.lost:
        yield (
            f"Left out, with nothing to learn in the first {report.max_length} tokens: "
            f"{list_rows(report.lost)}."
        )
    if report.truncated:
        yield f"Truncated at {report.max_length} tokens: {list_rows(report.truncated)}."
    if report.duplicates:
        yield f"Identical to an earlier row: {list_rows(report.duplicates)}."
    if report.shared:
        quoted = ", ".join(f"“{text}”" for text in report.quoted)
        occur = "occurs" if report.shared_prompts == 1 else "occur"
        yield (
            f"Warning: {report.shared_prompts} of the evaluation prompts also {occur} in "
            f"{list_rows(report.shared)} of the data, which spoils the evaluation: {quoted}."
        )


def _learnt_words(report: DataReport) -> str:
    if report.loss_on == "all":
        return "everything, including prompts"
    if report.form == "text":
        return "all of the text"
    chats = report.as_chat or report.form in ("messages", "conversations")
    return "assistant turns, in the tokenizer's chat template" if chats else "completions"


def _last_user(prompt: Prompt) -> str:
    return next((m.content for m in reversed(prompt.messages) if m.role == "user"), "")
