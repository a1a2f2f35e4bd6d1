"""A figure of speed or memory: its value, what it is compared to, and its target."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Literal, Self

from pydantic import Field, model_validator

from analysis.store.records import Record
from analysis.values import Json

Group = Literal["spectra", "recording", "training", "start"]
Sense = Literal["at most", "at least"]


class Figure(Record):
    """One figure.

    `value` and `spread` (smallest and largest of the repetitions) are in `unit`; "×" is a ratio
    of two things measured in turn.  `value` is None if it could not be measured, and `missing`
    then says why.  `detail` has the underlying numbers.
    """

    id: str
    group: Group
    what: str
    against: str
    unit: str
    value: float | None = None
    spread: tuple[float, float] | None = None
    sense: Sense = "at most"
    target: float | None = None
    reached: bool | None = None
    detail: Json = Field({})
    missing: str | None = None

    @model_validator(mode="after")
    def _told(self) -> Self:
        if (self.value is None) != (self.missing is not None):
            raise ValueError(f"figure {self.id!r} needs either a value or a reason for having none")
        if self.reached is None and self.value is not None and self.target is not None:
            below = self.value <= self.target
            self.reached = below if self.sense == "at most" else self.value >= self.target
        return self


class Report(Record):
    """All figures of one run, with the machine and the package versions."""

    plan: Literal["quick", "full"]
    measured: str
    seconds: float
    machine: Json
    versions: dict[str, str]
    figures: list[Figure]


def value_and_spread(values: Sequence[float]) -> Json:
    """`value` and `spread` of a figure, from its repetitions."""
    return {"value": median(values), "spread": (min(values), max(values))}
