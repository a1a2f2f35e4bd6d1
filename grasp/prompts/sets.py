"""Prompt sets: JSON lines, YAML, published question files, and the sets shipped by name.

Torch-free.  A set is given as a file, as the name of a shipped set, or as `name+dress`: the same
items in the form of some training data.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError

from analysis.errors import InputError, NotFoundError
from analysis.store.records import (
    Markers,
    Message,
    Prompt,
    Role,
    Sampling,
    ScorerName,
    read_jsonl,
    sha256,
)
from analysis.values import Json
from analysis.yaml_files import read_yaml
from grasp.prompts.published_questions import Question, question_prompts
from grasp.prompts.trait_files import check_no_trait_file
from grasp.settings.training import Settings, check_settings

YAML = (".yaml", ".yml")
FILES = (*YAML, ".jsonl", ".json")
TEXT = "{text}"

LATER = ("markers", "prefix")
"""Fields of prompts that were added after evaluations had been saved with hashes of prompts."""

Text = Annotated[str, BeforeValidator(lambda value: value if value is None else str(value))]
SettingsT = TypeVar("SettingsT", bound=Settings)


class Scoring(Settings):
    """Scoring fields that an item may set for itself, or a set for all its items."""

    role: Role | None = None
    scorer: ScorerName | None = None
    group: str | None = None
    end: str | None = None
    choices: dict[str, list[str]] | None = None
    target: str | None = None
    expected: str | None = None
    pair: tuple[str, str] | None = None
    per_token: bool | None = None
    pattern: str | None = None
    lexicon: list[str] | None = None
    measure: Literal["presence", "share"] | None = None
    judge_prompts: dict[str, str] | None = None
    judge_model: str | None = None
    markers: Markers | None = None


class Item(Scoring):
    """One thing to ask: its wordings and, for a statement, the wordings of its reversal."""

    id: Text
    paraphrases: list[str] = Field(min_length=1)
    reversal: list[str] | None = Field(None, min_length=1)


class Dress(Settings):
    """A form into which the prompts are put; `template` contains {text}."""

    template: str = TEXT
    system: str | None = None


class PromptSet(Scoring):
    """A YAML prompt set: a header with scoring that items may override, and the items."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: Text
    description: str = ""
    system: str | None = None
    template: str = TEXT
    sampling: Sampling = Sampling()
    dressed: dict[str, Dress] = Field(default_factory=dict)
    items: list[Item] = Field(min_length=1)

    def prompts(self, dress: str | None = None) -> list[Prompt]:
        """One prompt per wording, in the order of the file; `dress` is one of `dressed`.

        Raises:
            NotFoundError: there is no such dress.
            InputError: an item lacks its role or scorer.
        """
        if dress is not None and dress not in self.dressed:
            known = ", ".join(self.dressed) or "none"
            raise NotFoundError(f"Set {self.name!r} has no dress {dress!r}; choose among: {known}.")
        return [
            self._prompt(item, number, text, reverse, dress)
            for item in self.items
            for reverse, texts in _wordings(item)
            for number, text in enumerate(texts)
        ]

    def _prompt(
        self, item: Item, number: int, text: str, reverse: bool | None, dress: str | None
    ) -> Prompt:
        name = self.name if dress is None else f"{self.name}+{dress}"
        asked, system = self.template.replace(TEXT, text), self.system
        if dress is not None:
            asked = self.dressed[dress].template.replace(TEXT, asked)
            system = self.dressed[dress].system or system
        way = {None: "", False: "/statement", True: "/reversal"}[reverse]
        given = _given(self) | _given(item)
        fields = {"group": self.name} | given | {"reversed": reverse, "paraphrase": number}
        return _checked_prompt(
            {
                "id": f"{name}/{item.id}{way}/{number}",
                "messages": _chat(system, asked),
                "item": item.id,
                "instrument": f"{name} {self.version}",
                "sampling": self.sampling,
                **fields,
            },
            f"Set {self.name!r}, item {item.id!r}",
        )


class Included(Settings):
    """Several sets asked together: shipped sets, or files relative to this one's folder."""

    include: list[str] = Field(min_length=1)


def read_prompts(source: str | Path) -> list[Prompt]:
    """The prompts of a set: a JSON-lines or YAML file, or a shipped set's name.

    Raises:
        InputError: the file cannot be read, does not fit, or repeats an id.
        NotFoundError: there is neither such a file nor such a set.
    """
    found = _read(source)
    twice = [name for name, times in Counter(prompt.id for prompt in found).items() if times > 1]
    if twice:
        raise InputError(f"{source} has the prompt id {twice[0]!r} twice; make every id unique.")
    return found


def prompts_sha256(source: str | Path) -> str:
    """The hash that identifies a set: of its JSON-lines file, else of all its prompts."""
    path = Path(source)
    if path.is_file() and path.suffix not in YAML:
        return sha256(path)
    whole = json.dumps([_dump(prompt) for prompt in read_prompts(source)], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


def _dump(prompt: Prompt) -> Json:
    """The prompt's fields; one of LATER is left out where it is not set, which keeps old hashes."""
    found = prompt.model_dump()
    return {name: value for name, value in found.items() if name not in LATER or value}


def shipped_sets() -> list[str]:
    """Names of the sets that come with the workbench."""
    folder = files("grasp.prompts")
    return sorted(Path(one.name).stem for one in folder.iterdir() if one.name.endswith(".yaml"))


@cache
def shipped_set(name: str) -> PromptSet:
    """One set that comes with the workbench.

    Raises:
        NotFoundError: there is no set of that name.
    """
    if name not in shipped_sets():
        raise NotFoundError(
            f"There is neither a file {name!r} nor a prompt set of that name; `grasp prompts` "
            f"lists the sets: {', '.join(shipped_sets())}."
        )
    data = read_yaml(files("grasp.prompts") / f"{name}.yaml", what="a prompt set")
    return check_settings(PromptSet, data, f"Set {name!r}")


def _read(source: str | Path, *, within: tuple[Path, ...] = ()) -> list[Prompt]:
    path = Path(source)
    if path.is_file() or path.suffix in FILES or len(path.parts) > 1:
        if path.suffix in YAML:
            return _read_yaml(path, within)
        check_no_trait_file(path)
        return read_jsonl(path, Prompt)
    name, _, dress = str(source).partition("+")
    return shipped_set(name).prompts(dress or None)


def _read_yaml(path: Path, within: tuple[Path, ...]) -> list[Prompt]:
    data = read_yaml(path, what="a prompt set")
    if isinstance(data, list):
        questions = [_question(entry, path, number) for number, entry in enumerate(data, start=1)]
        return question_prompts(questions, name=path.stem, source=str(path))
    if isinstance(data, dict) and "include" in data:
        return _included(check_settings(Included, data, str(path)), path, within)
    if not isinstance(data, dict):
        raise InputError(
            f"{path} is not a prompt set; expected a header with 'items', or a list of questions."
        )
    return check_settings(PromptSet, data, str(path)).prompts()


def _question(entry: object, path: Path, number: int) -> Question:
    if not isinstance(entry, dict):
        raise InputError(
            f"{path}, question {number} is not a mapping; expected 'id' and 'paraphrases'."
        )
    return check_settings(Question, entry, f"{path}, question {entry.get('id', number)!r}")


def _included(wanted: Included, path: Path, within: tuple[Path, ...]) -> list[Prompt]:
    here = path.resolve()
    if here in within:
        raise InputError(f"{path} includes itself; remove it from its 'include'.")
    located = [here.parent / name for name in wanted.include]
    return [
        prompt
        for name, file in zip(wanted.include, located, strict=True)
        for prompt in _read(file if file.is_file() else name, within=(*within, here))
    ]


def _wordings(item: Item) -> list[tuple[bool | None, Sequence[str]]]:
    if item.reversal is None:
        return [(None, item.paraphrases)]
    return [(False, item.paraphrases), (True, item.reversal)]


def _given(scoring: Scoring) -> Json:
    named = {name: getattr(scoring, name) for name in Scoring.model_fields}
    return {name: value for name, value in named.items() if value is not None}


def _chat(system: str | None, asked: str) -> list[Message]:
    first = [] if system is None else [Message(role="system", content=system)]
    return [*first, Message(role="user", content=asked)]


def _checked_prompt(fields: Json, source: str) -> Prompt:
    try:
        return Prompt.model_validate(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise InputError(f"{source}: {where!r}: {problem['msg']}.") from None
