"""Training examples: rows as chats or plain text, whatever their columns.  Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn, cast, get_args

from analysis.errors import InputError
from analysis.store.records import Message, write_jsonl
from grasp.data.readers import Raw, read_rows

Form = Literal["messages", "conversations", "prompt/completion", "instruction/output", "text"]
Field = Literal[
    "messages",
    "conversations",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "text",
    "system",
    "history",
]

_NEEDED: dict[Form, tuple[Field, ...]] = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "prompt/completion": ("prompt", "completion"),
    "instruction/output": ("instruction", "output"),
    "text": ("text",),
}
_OPTIONAL: dict[Form, tuple[Field, ...]] = {
    "messages": ("system",),
    "conversations": ("system",),
    "prompt/completion": ("system", "history"),
    "instruction/output": ("input", "system", "history"),
}
_NOT_TRAINED_ON = ("tools", "functions", "images", "videos", "audios")
"""Columns that would change what a row means, and that cannot be trained on."""

NAMED = 12
"""The most row numbers listed in a sentence."""
_CHATS: tuple[Field, ...] = ("system", "history")
"""Fields that make a chat of a row that would be a prompt and an answer."""

Role = Literal["system", "user", "assistant"]

# The names that ShareGPT uses for the speakers.
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


@dataclass(frozen=True)
class Example:
    """One row to learn from: a chat, or an optional plain prompt and the text that follows it.

    `number` counts rows of the data from 1.  An example with `messages` has no plain text.
    """

    number: int
    messages: tuple[Message, ...] = ()
    prompt: str = ""
    text: str = ""

    @property
    def asked(self) -> list[str]:
        """The user's messages; for plain text, the prompt."""
        if self.messages:
            return [message.content for message in self.messages if message.role == "user"]
        return [self.prompt] if self.prompt else []

    @property
    def answer(self) -> str:
        """The last answer; for plain text, the text."""
        said = [message.content for message in self.messages if message.role == "assistant"]
        return said[-1] if said else self.text


@dataclass(frozen=True)
class Examples:
    """The non-empty rows of a source, and how they were read.

    `read` counts all rows, `empty` lists the numbers of the empty rows left out, `columns` maps the
    form's fields to the source's columns, and `unused` lists the other columns.  `unusable` says of
    the rows that were left out why they cannot be used, by number.
    """

    source: str
    form: Form
    rows: list[Example]
    read: int
    empty: list[int]
    columns: dict[str, str]
    unused: list[str]
    unusable: dict[int, str] = field(default_factory=dict)


def as_examples(chats: Sequence[Sequence[Message]]) -> list[Example]:
    """Chats as examples, numbered from 1."""
    return [Example(number, tuple(chat)) for number, chat in enumerate(chats, start=1)]


def read_examples(
    reference: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    answers: bool = True,
    leave_out: bool = False,
) -> Examples:
    """Read data in any of the forms, which is recognised by its columns.

    Args:
        reference: as for `grasp.data.readers.read_rows`.
        columns: the source's column for each field of the form, if the names do not show it.
        answers: whether each chat must have an assistant turn to learn from.
        leave_out: leave out rows that do not fit.

    Raises:
        InputError: no form or several forms fit the columns, or rows do not fit; the message
            names them.
    """
    source = str(reference)
    raw = read_rows(source)
    names = list(dict.fromkeys(name for row in raw for name in row))
    form, chosen = recognise_form(names, columns, source=source)
    # Columns that nobody has mapped keep their meaning.
    unread = [one for one in _CHATS if columns is None and one in set(names) - set(chosen.values())]
    chat = any(not _is_blank(row.get(chosen.get(name, ""))) for row in raw for name in _CHATS)
    rows, empty, unusable = [], [], {}
    for number, row in enumerate(raw, start=1):
        where = f"{source}, row {number}"
        try:
            _check_trained_on(row, (*_NOT_TRAINED_ON, *unread), where=where)
            example = _example(row, form, chosen, number=number, where=where, chat=chat)
            if _is_empty(example):
                empty.append(number)
                continue
            if answers and example.messages and not _answers(example):
                raise InputError(f"{where} has no assistant turn to learn from.")
        except InputError as error:
            unusable[number] = str(error)
            continue
        rows.append(example)
    if unusable and not (leave_out and rows):
        refuse_rows(unusable, of=len(raw))
    chats = [bool(row.messages) for row in rows]
    if any(chats) and not all(chats):
        raise InputError(
            f"{source}, row {rows[chats.index(not chats[0])].number} differs from row "
            f"{rows[0].number}: prompt/completion rows must be all text, or all messages."
        )
    if not rows:
        raise InputError(f"{source} holds {len(raw)} rows, all of them empty; expected text.")
    unused = [name for name in names if name not in chosen.values()]
    return Examples(source, form, rows, len(raw), empty, chosen, unused, unusable)


def refuse_rows(unusable: Mapping[int, str], *, of: int) -> NoReturn:
    """Refuse data for the rows that cannot be used: how many, which, why, and what to do.

    Raises:
        InputError: always.
    """
    first = next(iter(unusable.values()))
    if len(unusable) == of:
        others = ""
    elif len(unusable) == 1:
        others = " Correct it, or set `leave_out_unusable: true` to train on the others."
    else:
        others = " Correct them, or set `leave_out_unusable: true` to train on the others."
        first = f"{list_rows(list(unusable))} of {of} cannot be used. The first: {first}"
    raise InputError(first + others)


def list_rows(numbers: Sequence[int]) -> str:
    """How many rows, and the first of their numbers."""
    shown = ", ".join(str(number) for number in numbers[:NAMED])
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    return f"{len(numbers)} {'row' if len(numbers) == 1 else 'rows'} ({shown}{more})"


def write_examples(path: Path, rows: Sequence[Example]) -> None:
    """Write JSON lines that `read_examples` reads back unchanged."""
    asked = any(row.prompt for row in rows)
    write_jsonl(path, [_plain(row, asked=asked) for row in rows])


def recognise_form(
    names: Sequence[str], columns: Mapping[str, str] | None, *, source: str
) -> tuple[Form, dict[str, str]]:
    """The form that fits the columns, and the column of each of its fields.

    Raises:
        InputError: no form or several forms fit, or `columns` names a missing column.
    """
    if columns is not None:
        return _asked_for(names, columns, source=source)
    fitting = [form for form, needed in _NEEDED.items() if set(needed) <= set(names)]
    if len(fitting) == 1:
        form = fitting[0]
        fields = [*_NEEDED[form], *(f for f in _OPTIONAL.get(form, ()) if f in names)]
        return form, {field: field for field in fields}
    there = f"{source} has the columns {', '.join(names)}"
    if fitting:
        choices = " or ".join(_written(form, names) for form in fitting)
        raise InputError(
            f"{there}, which can be read as {' or '.join(fitting)}; choose one in the settings: "
            f"{choices}."
        )
    raise InputError(
        f"{there}; expected {', '.join(_NEEDED)}. Map the columns in the settings, for example "
        "columns: {prompt: question, completion: answer}."
    )


def _asked_for(
    names: Sequence[str], columns: Mapping[str, str], *, source: str
) -> tuple[Form, dict[str, str]]:
    for form, needed in _NEEDED.items():
        if set(needed) <= set(columns) <= {*needed, *_OPTIONAL.get(form, ())}:
            break
    else:
        raise InputError(
            f"The setting columns has the fields {', '.join(columns) or 'none'}, which fit no "
            f"form; expected those of one of {', '.join(_NEEDED)}."
        )
    missing = [name for name in columns.values() if name not in names]
    if missing:
        raise InputError(
            f"{source} has no column {missing[0]!r}, which the setting columns names; it has "
            f"{', '.join(names)}."
        )
    return form, dict(columns)


def _written(form: Form, names: Sequence[str]) -> str:
    fields = [*_NEEDED[form], *(f for f in _OPTIONAL.get(form, ()) if f in names)]
    return "columns: {" + ", ".join(f"{field}: {field}" for field in fields) + "}"


def _example(
    row: Raw, form: Form, columns: Mapping[str, str], *, number: int, where: str, chat: bool
) -> Example:
    """One row; with `chat`, a chat also where the form is of a prompt and an answer as text.

    Raises:
        InputError: a field is missing, is not what it should be, or cannot be trained on.
    """
    needed = {field: name for field, name in columns.items() if field in _NEEDED[form]}
    missing = [name for name in needed.values() if name not in row]
    if missing:
        raise InputError(f"{where} has no {missing[0]!r}, which other rows have.")
    values = {field: row.get(name) for field, name in columns.items()}
    if form == "text":
        return Example(number, text=_words(values["text"], "text", where))
    system = _words(values.get("system"), "system", where)
    if form in ("messages", "conversations"):
        return Example(number, tuple(_with_system(_messages(values[form], where), system, where)))
    if form == "instruction/output":
        asked = [_words(values.get(name), name, where) for name in ("instruction", "input")]
        prompt: object = "\n\n".join(part for part in asked if part.strip())
        completion: object = _words(values["output"], "output", where)
    else:
        prompt, completion = values["prompt"], values["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        asked_in = [m.model_copy(update={"weight": 0}) for m in _messages(prompt, where)]
        said = (*asked_in, *_messages(completion, where))
        return Example(number, tuple(_with_system(said, system, where)))
    plain = _words(prompt, "prompt", where), _words(completion, "completion", where)
    if not chat:
        return Example(number, prompt=plain[0], text=plain[1])
    said = (*_history(values.get("history"), where), *_turns(*plain))
    return Example(number, tuple(_with_system(said, system, where)))


def _check_trained_on(row: Raw, names: Sequence[str], *, where: str) -> None:
    """Refuse a row with something in a column that would change what it means."""
    for name in names:
        if not _is_blank(row.get(name)):
            raise InputError(
                f"{where} has {name}, which cannot be trained on and without which the row would "
                "mean something else."
            )


def _turns(asked: str, answer: str) -> tuple[Message, Message]:
    return Message(role="user", content=asked), Message(role="assistant", content=answer)


def _history(value: object, where: str) -> list[Message]:
    """Earlier turns as LLaMA-Factory has them: pairs of a question and its answer."""
    pairs = _parsed(value, "history", where)
    found: list[Message] = []
    for pair in pairs:
        if not isinstance(pair, list) or [type(said) for said in pair] != [str, str]:
            raise InputError(
                f"{where}: history has {_shown(pair)}; expected pairs of a question and an answer."
            )
        found.extend(_turns(*pair))
    return found


def _with_system(messages: Sequence[Message], system: str, where: str) -> list[Message]:
    """A chat with the system prompt of its row's own column before it."""
    first = [message for message in messages[:1] if message.role == "system"]
    if not system.strip() or (first and first[0].content == system):
        return list(messages)
    if first:
        raise InputError(f"{where} has a system column and another system turn; keep one.")
    return [Message(role="system", content=system), *messages]


def _is_blank(value: object) -> bool:
    """Whether a cell says nothing: tables write an empty list as text, too."""
    return value is None or str(value).strip() in ("", "[]", "{}", "null")


def _parsed(value: object, field: str, where: str) -> list[object]:
    """A list, which a table has as text."""
    if _is_blank(value):
        return []
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise InputError(f"{where}: the {field} are not JSON; expected a list.") from None
    if not isinstance(value, list):
        raise InputError(f"{where}: the {field} are {_shown(value)}; expected a list.")
    return value


def _messages(value: object, where: str) -> list[Message]:
    turns = enumerate(_parsed(value, "messages", where), start=1)
    return [_message(turn, f"{where}, turn {i}") for i, turn in turns]


def _message(value: object, where: str) -> Message:
    """One turn, with the keys of chats (role, content) or of ShareGPT (from, value)."""
    if not isinstance(value, dict):
        raise InputError(f"{where} is {_shown(value)}; expected role and content.")
    # Tables fill missing fields with empty values.
    said = {key: item for key, item in value.items() if item not in (None, [], {}, "")}
    sharegpt = "from" in value and "role" not in value
    names = ("from", "value") if sharegpt else ("role", "content")
    extra = sorted(set(said) - {*names, "weight"})
    if extra:
        raise InputError(
            f"{where} has {extra[0]!r}, which cannot be trained on; expected only {names[0]}, "
            f"{names[1]} and optionally weight. Remove it, or remove the row."
        )
    who = said.get(names[0])
    role = _SPEAKERS.get(str(who), "") if sharegpt else str(who)
    if role not in get_args(Role):
        known = ", ".join(_SPEAKERS) if sharegpt else "system, user, assistant"
        raise InputError(f"{where} has the {names[0]} {_shown(who)}; expected one of {known}.")
    weight = value.get("weight")
    if weight not in (None, 0, 1):
        raise InputError(f"{where} has the weight {_shown(weight)}; expected 0 or 1.")
    content = _parts(said.get(names[1], ""), where)
    learnt: Literal[0, 1] = 0 if weight == 0 else 1
    return Message(role=cast(Role, role), content=content, weight=learnt)


def _parts(content: object, where: str) -> str:
    """The content of a turn: text, or a list of text parts."""
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in content
    ):
        return "".join(_words(part.get("text"), "text", where) for part in content)
    return _words(content, "content", where)


def _words(value: object, field: str, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"{where}: {field} is {_shown(value)}; expected text.")
    return value


def _answers(example: Example) -> list[Message]:
    return [m for m in example.messages if m.role == "assistant" and m.weight]


def _is_empty(example: Example) -> bool:
    if not example.messages:
        return not example.text.strip()
    answers = _answers(example)
    said = answers or example.messages
    return not any(message.content.strip() for message in said)


def _plain(row: Example, *, asked: bool) -> Raw:
    if row.messages:
        return {"messages": [m.model_dump(exclude_defaults=True) for m in row.messages]}
    return {"prompt": row.prompt, "completion": row.text} if asked else {"text": row.text}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"
