"""What a job may ask for: typed records, each the arguments of one `grasp` command.

A job names records by their ids and never a folder to write into, so that what it makes stays in
its workspace.  It has no option that replaces a run, reads a pickle or trusts a model's code.
"""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from analysis.errors import InputError
from analysis.store.retrain_line import number_text

RecordId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Ids = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._,/-]{0,999}$")]
Text = Annotated[str, Field(min_length=1, max_length=4000, pattern=r"^[^\x00]*$")]
Place = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00-][^\x00]*$")]
"""A path on this machine or a Hub id; it never looks like an option."""


class JobRequest(BaseModel):
    """One command; the fields in `places` are its arguments, the others its options, in order.

    `workspace` is what the person saw in the command; a worker runs the job in its own workspace.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    places: ClassVar[tuple[str, ...]] = ("run",)

    command: str

    @property
    def kind(self) -> str:
        """The kind of the job."""
        return self.command

    def argv(self) -> list[str]:
        """The arguments of `grasp`."""
        words = [self.command, *(str(getattr(self, name)) for name in self.places)]
        for name in type(self).model_fields:
            if name not in ("command", *self.places):
                words += _option_words(name, getattr(self, name))
        return words


class ImportRequest(JobRequest):
    """Add an adapter made elsewhere: a folder on this machine, or a Hub id."""

    places: ClassVar[tuple[str, ...]] = ("adapter",)

    command: Literal["import"] = "import"
    adapter: Place
    out: RecordId | None = None
    base: Place | None = None
    name: Place | None = None
    checkpoints: bool = False
    low_rank_part: bool = False
    workspace: Place | None = None


class FactorsRequest(JobRequest):
    """Compute a run's factors."""

    command: Literal["factors"] = "factors"
    run: RecordId
    base: Place | None = None
    prompts: Place | None = None
    weights_only: bool = False
    low_rank_part: bool = False
    workspace: Place | None = None


class RecordRequest(JobRequest):
    """Record a run's activations."""

    command: Literal["record"] = "record"
    run: RecordId
    probes: Place | None = None
    workspace: Place | None = None


class EvaluateRequest(JobRequest):
    """Score a run on a prompt set."""

    command: Literal["evaluate"] = "evaluate"
    run: RecordId
    prompts: Place | None = None
    workspace: Place | None = None


class DoseRequest(JobRequest):
    """Measure what steering along a factor does."""

    places: ClassVar[tuple[str, ...]] = ("run", "factor")

    command: Literal["dose"] = "dose"
    run: RecordId
    factor: Ids
    prompts: Place | None = None
    workspace: Place | None = None


class RowsRequest(JobRequest):
    """Find the rows that drive a factor, or retrain without the top ones."""

    places: ClassVar[tuple[str, ...]] = ("run", "factor")

    command: Literal["rows"] = "rows"
    run: RecordId
    factor: Ids
    prompts: Place | None = None
    validate_: Annotated[int | None, Field(ge=1)] = None
    workspace: Place | None = None

    @property
    def kind(self) -> str:
        """Rows that are left out are a training of their own."""
        return "rows" if self.validate_ is None else "validate"


class OverlapRequest(JobRequest):
    """Measure how much of the task is lost when factors are set back."""

    places: ClassVar[tuple[str, ...]] = ("run", "factor")

    command: Literal["overlap"] = "overlap"
    run: RecordId
    factor: Ids
    prompts: Place | None = None
    workspace: Place | None = None


class TrainRequest(JobRequest):
    """Train a naive fine-tune from a file of settings."""

    places: ClassVar[tuple[str, ...]] = ("config",)

    command: Literal["train"] = "train"
    config: Place
    out: RecordId
    evaluate: bool = False
    workspace: Place | None = None


class RetrainRequest(JobRequest):
    """Fine-tune a run again, protecting factors."""

    command: Literal["retrain"] = "retrain"
    run: RecordId
    factors: Ids | None = None
    method: RecordId = "grasp"
    strength: float | None = None
    tolerance: float | None = None
    inoculation: Text | None = None
    seed: int | None = None
    out: RecordId
    evaluate: bool = False
    workspace: Place | None = None


_Any = (
    ImportRequest
    | FactorsRequest
    | RecordRequest
    | EvaluateRequest
    | DoseRequest
    | RowsRequest
    | OverlapRequest
    | TrainRequest
    | RetrainRequest
)
_SAVED: TypeAdapter[JobRequest] = TypeAdapter(Annotated[_Any, Field(discriminator="command")])
REQUESTS: dict[str, type[JobRequest]] = {
    one.model_fields["command"].default: one for one in typing.get_args(_Any)
}
"""Command → what a job may ask of it."""


def read_request(argv: Sequence[str]) -> JobRequest:
    """The request that a command line makes.

    Raises:
        InputError: no job may ask for it.
    """
    words = list(argv)
    if not words or words[0] not in REQUESTS:
        said = words[0] if words else ""
        raise InputError(f"`grasp {said}` is not a job; jobs are {', '.join(REQUESTS)}.")
    found = vars(_parser(words[0]).parse_args(words[1:]))
    return load_request({"command": words[0], **found})


def load_request(saved: object) -> JobRequest:
    """A request as it was saved.

    Raises:
        InputError: it is not one that this version makes.
    """
    try:
        return _SAVED.validate_python(saved)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "it"
        raise InputError(
            f"No job may ask for this ({where}: {problem['msg']}); start the job again from its "
            "page, or run the command in a terminal."
        ) from None


@cache
def _parser(command: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=f"grasp {command}", add_help=False, allow_abbrev=False)
    kind = REQUESTS[command]
    for name, field in kind.model_fields.items():
        if name in kind.places:
            parser.add_argument(name)
        elif field.annotation is bool:
            parser.add_argument(_option(name), dest=name, action="store_true")
        elif name != "command":
            parser.add_argument(
                _option(name), dest=name, type=_reader(field.annotation), default=field.default
                if not field.is_required()
                else None,
            )
    return parser


def _reader(annotation: Any) -> type:
    """How the text of an option is read: as a number where the field holds one."""
    parts = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else [annotation]
    return next((one for one in (int, float) if one in parts), str)


def _option(name: str) -> str:
    return f"--{name.strip('_').replace('_', '-')}"


def _option_words(name: str, value: object) -> list[str]:
    if value is None or value is False:
        return []
    if value is True:
        return [_option(name)]
    text = number_text(value) if isinstance(value, float) else str(value)
    # argparse would take a value that begins with a dash for an option.
    return [f"{_option(name)}={text}"] if text.startswith("-") else [_option(name), text]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise InputError, as for any other bad input."""
        raise InputError(f"This is not a job: {message}.")
