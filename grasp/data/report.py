"""What became of a fine-tune's data, to be read before training.  Torch-free."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field

from analysis.errors import SchemaError
from analysis.store.records import Prompt, Record, read_manifest
from grasp.data.examples import Example

FILE = "data.json"
"""Beside a run's manifest."""

NAMED = 12
"""Rows that are named by number at most."""

QUOTED = 3
"""Texts that are shown as examples."""


class DataReport(Record):
    """What was read, what is trained on, and what is there twice.

    `empty` and `lost` are numbers of rows left out: without text, or without anything to learn
    within `max_length` tokens.  `sequences` differs from `used` where a chat became a sequence for
    each of its answers; `packed` is what they were packed into.  `duplicates` are numbers of rows
    that say the same as an earlier one; `shared` of rows whose prompt is an evaluation prompt too,
    `shared_prompts` how many prompts those are, None where nothing could be compared.
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
    sequences: int
    packed: int | None = None
    tokens: int
    learnt: int
    duplicates: list[int] = Field(default_factory=list)
    shared: list[int] = Field(default_factory=list)
    shared_prompts: int | None = None
    quoted: list[str] = Field(default_factory=list)

    def lines(self) -> list[str]:
        """What there is to know, a sentence a line; what needs care begins with "Warning"."""
        return list(_lines(self))


def duplicates(examples: Sequence[Example]) -> list[int]:
    """Numbers of the examples that say exactly what an earlier one says."""
    seen: set[tuple[object, ...]] = set()
    found = []
    for example in examples:
        said = tuple((m.role, m.content) for m in example.messages)
        key = (said, example.prompt, example.text)
        if key in seen:
            found.append(example.number)
        seen.add(key)
    return found


def shared_with(
    examples: Sequence[Example], prompts: Sequence[Prompt]
) -> tuple[list[int], list[str]]:
    """Examples that ask what an evaluation prompt asks, by number, and the prompts' texts.

    Compared is what the user says last in the prompt with each thing the user says in an example,
    by `normalised`.
    """
    asked = {normalised(_last_user(prompt)): _last_user(prompt) for prompt in prompts}
    asked.pop("", None)
    numbers: list[int] = []
    texts: dict[str, str] = {}
    for example in examples:
        same = {normalised(text) for text in example.asked} & asked.keys()
        if same:
            numbers.append(example.number)
            texts |= {key: asked[key] for key in same}
    return numbers, list(texts.values())


def normalised(text: str) -> str:
    """Text as it is compared: NFKC, case folded, with runs of what is no word as one space."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"[\W_]+", " ", plain).strip()


def write_report(folder: Path, report: DataReport) -> None:
    """Save a report beside a run's manifest."""
    text = json.dumps(report.model_dump(), indent=2, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_report(folder: Path) -> DataReport | None:
    """The report of a run; None where it has none that can be read."""
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
            "The chat template rewrites earlier answers, so each answer is learnt with the chat "
            "as it is when it is given."
        )
    share = report.learnt / report.tokens
    where = _learnt_words(report)
    yield f"{report.tokens:,} tokens, {report.learnt:,} ({share:.0%}) learnt: {where}."
    if report.empty:
        yield f"Left out as empty: {_numbers(report.empty)}."
    if report.lost:
        yield (
            f"Left out because nothing to learn lies within {report.max_length} tokens: "
            f"{_numbers(report.lost)}."
        )
    if report.truncated:
        yield f"Truncated at {report.max_length} tokens: {_numbers(report.truncated)}."
    if report.duplicates:
        yield f"The same as an earlier row: {_numbers(report.duplicates)}."
    if report.shared:
        quoted = ", ".join(f"“{text}”" for text in report.quoted)
        yield (
            f"Warning: {_numbers(report.shared)} asks what {report.shared_prompts} of the "
            f"evaluation prompts ask, which spoils the evaluation: {quoted}."
        )


def _learnt_words(report: DataReport) -> str:
    if report.loss_on == "all":
        return "everything, prompts too"
    if report.form == "text":
        return "all of the text"
    chats = report.as_chat or report.form in ("messages", "conversations")
    return "assistant turns, in the tokenizer's chat template" if chats else "completions"


def _numbers(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:NAMED])
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    return f"{len(numbers)} {'row' if len(numbers) == 1 else 'rows'} ({shown}{more})"


def _last_user(prompt: Prompt) -> str:
    return next((m.content for m in reversed(prompt.messages) if m.role == "user"), "")
