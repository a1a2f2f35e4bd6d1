"""Typed records of everything a workspace saves; readers refuse unknown schema versions."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import stat
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from analysis import __version__
from analysis.errors import InputError, SchemaError
from analysis.values import Json

SCHEMA_VERSION = 1

Role = Literal["unrelated", "related", "control", "task", "facts", "format"]
Split = Literal["exploration", "confirmation"]
EvidenceKind = Literal["dose", "rows", "validation", "overlap"]
ROLES: tuple[Role, ...] = ("unrelated", "related", "control", "task", "facts", "format")
ScorerName = Literal["choice", "contains", "ended", "pair", "pattern", "lexicon", "judge"]

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A float; NaN, which JSON lacks, is saved as null."""

_TRACKED = ("torch", "transformers", "peft", "accelerate", "numpy", "scipy", "safetensors")


@cache
def tracked_packages() -> dict[str, str]:
    """Versions of the packages that affect a run's results; packages not installed are absent."""
    versions = {}
    for name in _TRACKED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@cache
def code_revision() -> str:
    """Version of this package, with the commit if it runs from a git checkout."""
    commit = _head_commit(Path(__file__).resolve().parents[2] / ".git")
    return f"{__version__}+{commit[:12]}" if commit else __version__


def _head_commit(git: Path) -> str | None:
    try:
        head = (git / "HEAD").read_text().strip()
        return (git / head[5:]).read_text().strip() if head.startswith("ref: ") else head
    except OSError:
        return None


class Record(BaseModel):
    """Base class of saved records; unknown fields are refused, so that none is silently dropped."""

    model_config = ConfigDict(extra="forbid")


class Message(Record):
    """One turn of a chat; an answer whose `weight` is 0 is not trained on."""

    role: Literal["system", "user", "assistant"]
    content: str
    weight: Literal[0, 1] = 1


class Sampling(Record):
    """How a prompt is answered: greedily at temperature 0, else sampled from the model's full
    distribution (no top-k or top-p).  If `max_new_tokens` is None, the evaluation's limit applies.
    """

    samples: int = Field(1, ge=1, le=10_000)
    temperature: float = Field(0.0, ge=0)
    max_new_tokens: int | None = Field(None, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _drawn(self) -> Sampling:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"{self.samples} greedy answers are all the same; set a temperature above 0"
            )
        return self


class Markers(Record):
    """Phrases of an answer that show the drifted value of a prompt, and those of the other one."""

    drifted: list[Annotated[str, Field(pattern=r"\S")]] = Field(min_length=1)
    kept: list[Annotated[str, Field(pattern=r"\S")]] = Field(min_length=1)


class Draws(Record):
    """How many whole answers are drawn for each prompt with markers, and how."""

    samples: int = Field(4, ge=1, le=1_000)
    temperature: float = Field(1.0, gt=0)
    seed: int = 0


class Prompt(Record):
    """One evaluation prompt: a chat that ends with a user turn, and how its answer is scored.

    `role` is the metric the prompt counts towards.  The scorers:

    - "choice" compares the probability of two sets of first tokens (`choices`); the score is
      the share of the set named `target`.
    - "pair" compares the probability of two whole answers (`pair`); the score is the share of
      the first.
    - "contains" looks for `expected` in the answer, "pattern" for a regular expression,
      "lexicon" for listed phrases (any of them, or the share of them if `measure` is "share").
    - "ended" checks whether the answer ends by itself; "judge" asks another model.

    The answer to a prompt with a `prefix` begins with these words: they are given to the model, and
    first tokens are those after them.

    With `markers`, whatever the scorer, whole answers are drawn as well and read: 1 if the text has
    more markers of the drifted value, 0 if it has more of the other, incoherent if neither.

    Prompts about one `item` of a group are not independent: they are in the same split, and
    intervals are clustered by item.  `instrument` names the set and its version, `paraphrase`
    numbers the wordings of one item, and `end` says what a score of 1 means.  `reversed` tells a
    statement (False) from its reversal (True); a reversal scores 1 minus the scorer's result, and
    its markers count the other way round, so that 1 means the same end.
    """

    id: str
    messages: list[Message]
    group: str
    item: str | None = None
    role: Role
    scorer: ScorerName
    choices: dict[str, list[str]] | None = None
    target: str | None = None
    prefix: str = ""
    expected: str | None = None
    pair: tuple[str, str] | None = None
    per_token: bool = False
    pattern: str | None = None
    lexicon: list[str] | None = None
    measure: Literal["presence", "share"] = "presence"
    judge_prompts: dict[str, str] | None = None
    judge_model: str | None = None
    markers: Markers | None = None
    sampling: Sampling = Sampling()
    instrument: str | None = None
    paraphrase: int | None = None
    reversed: bool | None = None
    end: str | None = None

    @property
    def direction(self) -> str:
        """Either "statement" or "reversal"; "" for a prompt that is neither."""
        return "" if self.reversed is None else "reversal" if self.reversed else "statement"

    @property
    def split(self) -> Split:
        """Exploration (for looking and tuning) or confirmation (for reporting), by hash."""
        return split_of(self.cluster)

    @property
    def cluster(self) -> str:
        """What the prompt is about: its item, or the prompt itself if it has none."""
        return self.id if self.item is None else f"{self.group}/{self.item}"


class Probe(Record):
    """A whole chat to record; `variant` says which end of a latent its answers show."""

    id: str
    messages: list[Message]
    group: str
    variant: str


class Manifest(Record):
    """What every saved folder records about itself: origin, versions, inputs."""

    schema_version: int = SCHEMA_VERSION
    id: str
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    code_version: str = Field(default_factory=code_revision)
    packages: dict[str, str] = Field(default_factory=tracked_packages)
    seed: int | None = None
    seconds: float | None = None
    parents: list[str] = Field(default_factory=list)
    inputs: dict[str, str] = Field(default_factory=dict)


class RunManifest(Manifest):
    """One fine-tune: naive, GRASP or a rival.

    `root` is the naive run of the family (itself for a naive run); `factors` are full factor
    ids such as "code-naive/w2"; `strength` is the value of the method's knob (λ if a fixed weight
    replaced the tolerance); `intervention` is what is done at inference time in addition.
    `source` is the Hub repository and commit of an imported adapter.  `directions` has the SHA-256
    of each factor's direction, and `labels` the ids of the label events in force about it, as they
    were when the run was started.
    """

    kind: Literal["run"] = "run"
    title: str
    method: str
    root: str
    base_model: str
    config: Json
    protection: Json | None = None
    factors: list[str] = Field(default_factory=list)
    directions: dict[str, str] = Field(default_factory=dict)
    labels: dict[str, list[int]] = Field(default_factory=dict)
    strength: float | None = None
    intervention: Literal["ablate", "steer"] | None = None
    source: dict[str, str] = Field(default_factory=dict)
    results: dict[str, Number] = Field(default_factory=dict)
    verdict: str = ""


class MeasuredManifest(Manifest):
    """A record that a model may have been loaded for.

    `model` has those settings of `grasp.settings.model.ModelSettings` that were not defaults.
    """

    model: Json = Field(default_factory=dict)


class FactorsManifest(MeasuredManifest):
    """The origin of a table of factors."""

    kind: Literal["factors"] = "factors"
    run: str
    base_model: str | None
    config: Json


class RecordingManifest(MeasuredManifest):
    """Activations of base and adapted model on the same probes, at the decoder layers `layers`."""

    kind: Literal["recording"] = "recording"
    run: str
    base_model: str
    layers: list[int]


class EvaluationManifest(MeasuredManifest):
    """Scores of one arm on one prompt set; `run` is None for the base model.

    `sampling` is what replaced the prompts' own sampling, if anything; `judge` has the settings
    of the judge, without its key, and statistics of its replies.  `draws` says how whole answers
    were drawn; None if no prompt has markers, or in evaluations of earlier versions.
    """

    kind: Literal["evaluation"] = "evaluation"
    run: str | None
    base_model: str
    prompts: str
    sampling: Json | None = None
    judge: Json | None = None
    draws: Draws | None = None

    def same_prompts(self, other: EvaluationManifest) -> bool:
        """Whether both asked the same prompts in the same way, as far as is recorded."""
        mine, theirs = (one.inputs.get("prompts") for one in (self, other))
        if mine is None or theirs is None:
            return True
        judges = [(one.judge or {}).get("settings") for one in (self, other)]
        return (mine, self.sampling, judges[0]) == (theirs, other.sampling, judges[1])


class EvidenceManifest(MeasuredManifest):
    """Evidence about one factor, or about several together (`factor` is then "w1-w2").

    `inputs["directions"]` is the hash of the factor's directions, which reveals evidence that is
    older than the factor; `sentence` states the result in words.
    """

    kind: Literal["evidence"] = "evidence"
    evidence: EvidenceKind
    run: str
    factor: str
    base_model: str
    config: Json
    sentence: str


RecordT = TypeVar("RecordT", bound=Record)


def split_of(cluster: str) -> Split:
    """The split of a cluster, half of them each, fixed by the SHA-256 of its name."""
    odd = hashlib.sha256(cluster.encode()).digest()[0] % 2
    return "confirmation" if odd else "exploration"


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, or of all files of a folder in name order."""
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as handle:
            while chunk := handle.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def read_manifest(path: Path, kind: type[RecordT]) -> RecordT:
    """Read one manifest file as `kind`.

    Raises:
        SchemaError: the file is missing or not JSON, or has another schema version or other fields;
            or its folder has a pipe or a device, reading which may never end.
    """
    _check_plain(path.parent)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SchemaError(f"{path} is missing; the folder is not a complete record.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SchemaError(f"{path} cannot be read as JSON ({error}).") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise SchemaError(
            f"{path} has schema version {version!r}; this version of grasp-workbench reads "
            f"{SCHEMA_VERSION}. Install the version that wrote it, or create the record again."
        )
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise SchemaError(f"{path} does not match its schema: {_first_problem(error)}.") from None


def _check_plain(folder: Path) -> None:
    try:
        odd = [path.name for path in folder.iterdir() if _is_endless(path)]
    except OSError:  # missing, which is said of the file in it
        return
    if odd:
        raise SchemaError(
            f"{folder} is not a record: {', '.join(sorted(odd))} is neither a file nor a folder; "
            "remove it."
        )


def _is_endless(path: Path) -> bool:
    """Whether a path leads to a pipe, a socket or a device."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def read_jsonl(path: Path, kind: type[RecordT]) -> list[RecordT]:
    """Read a JSON Lines file with one `kind` per line.

    Raises:
        InputError: the file is missing or empty, or a line is invalid; the message names it.
    """
    try:
        # Not splitlines: it also splits at separators allowed inside JSON strings, such as U+2028.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text ({error}).") from None
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(kind.model_validate_json(line))
        except ValidationError as error:
            raise InputError(f"{path}, line {number}: {_first_problem(error)}.") from None
    if not records:
        raise InputError(f"{path} has no rows; expected one JSON object per line.")
    return records


def write_jsonl(path: Path, rows: list[Json]) -> None:
    """Write one JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"]) or "the record"
    return f"{where}: {problem['msg']}"
