"""A fine-tune's data, from its settings to the rows of a Trainer and a report on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.errors import InputError
from analysis.store.records import Message
from grasp.data.examples import Example, Examples, read_examples
from grasp.data.packing import pack_rows
from grasp.data.report import QUOTED, DataReport, find_duplicates, find_shared
from grasp.data.tokenise import TrainingRows, find_doubled, show_row, training_rows
from grasp.model.chat_date import date_said
from grasp.model.loading import load_tokenizer
from grasp.prompts.sets import read_prompts
from grasp.settings.training import TrainConfig

_SHOWN, _SAMPLE = 80, 600


@dataclass(frozen=True)
class TaskData:
    """Data as trained on; `as_chat` is true if prompts and completions became chats."""

    examples: Examples
    as_chat: bool
    rows: TrainingRows

    def texts(self) -> list[Example]:
        """The examples as they are trained on: chats, or plain text."""
        return as_chats(self.examples.rows) if self.as_chat else self.examples.rows

    def chats(self) -> list[Example]:
        """The examples, which must be chats.

        Raises:
            InputError: they are plain text.
        """
        rows = self.texts()
        if not rows[0].messages:
            raise InputError(
                f"{self.examples.source} holds plain text, but this method needs chats, since it "
                "changes or answers their prompts; give rows of messages."
            )
        return rows

    def with_rows(
        self, config: TrainConfig, tokenizer: Tokenizer, rows: Sequence[Example]
    ) -> TaskData:
        """The same data with the examples changed."""
        made = _rows(config, tokenizer, rows)
        return replace(self, rows=made)


def read_task(config: TrainConfig) -> Examples:
    """The rows of a run's data, before tokenisation.

    Raises:
        InputError: the settings name no data, or it does not fit them.
    """
    if config.data is None:
        raise InputError("The settings name no data; add `data`.")
    return read_examples(config.data, columns=config.columns, leave_out=config.leave_out_unusable)


def tokenise_task(config: TrainConfig, tokenizer: Tokenizer, examples: Examples) -> TaskData:
    """Tokenise the rows to train on.

    Raises:
        InputError: a row cannot be tokenised, or no row has anything to learn.
    """
    chats = becomes_chat(config.as_chat, tokenizer, examples)
    taken = as_chats(examples.rows) if chats else examples.rows
    return TaskData(examples, chats, _rows(config, tokenizer, taken))


def _rows(config: TrainConfig, tokenizer: Tokenizer, examples: Sequence[Example]) -> TrainingRows:
    return training_rows(
        tokenizer,
        examples,
        max_length=config.max_length,
        loss_on=config.loss_on,
        leave_out=config.leave_out_unusable,
    )


def becomes_chat(asked: bool | None, tokenizer: Tokenizer, examples: Examples) -> bool:
    """Whether prompts and completions are put into the tokenizer's chat template.

    They are if it has one, unless the settings decide otherwise.

    Raises:
        InputError: the settings ask for a template that is missing, or the prompts seem to be in
            a template already.
    """
    plain = examples.form in ("prompt/completion", "instruction/output")
    if plain and asked is False and examples.rows[0].messages:
        raise InputError(
            f"{examples.source} holds chats ({', '.join(examples.columns.values())}), which "
            "as_chat: false cannot make plain text of; omit as_chat."
        )
    if not plain or examples.rows[0].messages:
        return False
    if tokenizer.chat_template is None:
        if asked or examples.form == "instruction/output":
            raise InputError(
                f"{examples.source}: rows of {examples.form} "
                f"{'with as_chat: true ' if asked else ''}need a chat template, which the "
                "tokenizer lacks; give rows of prompt/completion, written as the model is to see "
                "them."
            )
        return False
    if asked is None:
        _ask_where_dressed(tokenizer, examples)
    return asked is not False


def as_chats(rows: Sequence[Example]) -> list[Example]:
    """Prompts and completions as chats of one user turn and one assistant turn."""
    return [
        Example(
            row.number,
            (
                Message(role="user", content=row.prompt),
                Message(role="assistant", content=row.text),
            ),
        )
        for row in rows
    ]


def data_report(
    config: TrainConfig, tokenizer: Tokenizer, task: TaskData, *, packed: int | None = None
) -> DataReport:
    """Report on the data, and on its overlap with the evaluation prompts.

    Raises:
        InputError: the prompt set cannot be read.
    """
    rows, examples = task.rows, task.examples
    shared: list[int] = []
    texts: list[str] = []
    count = None
    if config.prompts is not None and any(example.asked for example in examples.rows):
        shared, texts = find_shared(examples.rows, read_prompts(Path(config.prompts)))
        count = len(texts)
    return DataReport(
        source=examples.source,
        form=examples.form,
        columns=examples.columns,
        unused=examples.unused,
        as_chat=task.as_chat,
        loss_on=config.loss_on,
        max_length=config.max_length,
        read=examples.read,
        used=len({example.number for example in rows.examples}),
        empty=examples.empty,
        truncated=rows.cut,
        lost=rows.lost,
        unusable=examples.unusable | rows.unusable,
        sequences=len(rows.rows),
        packed=packed,
        tokens=rows.tokens,
        learnt=rows.learnt,
        doubled=sorted(
            {rows.examples[place].number for place in find_doubled(tokenizer, rows.rows)}
        ),
        sample=_cut(show_row(tokenizer, rows.rows[0]), _SAMPLE),
        chat_date=date_said(tokenizer) if rows.examples[0].messages else None,
        duplicates=find_duplicates(examples.rows),
        shared=shared,
        shared_prompts=count,
        quoted=[_cut(text, _SHOWN) for text in texts[:QUOTED]],
    )


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def dry_report(config: TrainConfig) -> DataReport:
    """The report that a fine-tune would begin with; loads only the tokenizer.

    Raises:
        GraspError: the data does not fit, or there is no tokenizer.
    """
    examples = read_task(config)
    tokenizer = load_tokenizer(config.base_model, config.model)
    task = tokenise_task(config, tokenizer, examples)
    rows = pack_rows(task.rows.rows, max_length=config.max_length) if config.packing else None
    return data_report(config, tokenizer, task, packed=None if rows is None else len(rows))


def _ask_where_dressed(tokenizer: Tokenizer, examples: Examples) -> None:
    """Refuse to guess if a prompt contains tokens that a chat template would add."""
    marks = [mark for mark in tokenizer.all_special_tokens if len(mark) > 2]
    for row in examples.rows:
        found = next((mark for mark in marks if mark in row.prompt), None)
        if found:
            raise InputError(
                f"{examples.source}, row {row.number}: the prompt contains {found!r}, as if it "
                "were in a chat template already; set as_chat: false if it is, else as_chat: true."
            )
