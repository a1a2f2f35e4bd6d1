"""Labels: what people claim about factors, kept as events that are never changed or deleted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from analysis.errors import InputError
from analysis.store.database import Database, LabelEvent

NAMES = ("persona", "political slant", "task", "format", "style", "noise", "unclear")
"""Suggested names; any other short name is allowed."""


@dataclass(frozen=True)
class Claim:
    """One person's claim: what the factor is, whether it is spurious, and which end is which.

    `spurious` is None if the person is unsure; `confidence` is 1 (low) to 3 (high).
    """

    name: str
    spurious: bool | None = None
    polarity: str = ""
    confidence: int | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise InputError(f"A label needs a name, such as {', '.join(NAMES[:4])}.")
        if self.confidence is not None and self.confidence not in (1, 2, 3):
            raise InputError(f"Got confidence {self.confidence}; expected 1, 2 or 3.")


def direction_sha256(direction: NDArray[np.floating]) -> str:
    """SHA-256 of a factor's direction (d_model,), which ties a label to the exact direction."""
    return hashlib.sha256(np.ascontiguousarray(direction, dtype="<f4").tobytes()).hexdigest()


def add_label(
    database: Database, *, factor: str, claim: Claim, annotator: str, direction: str
) -> LabelEvent:
    """Add one claim about `factor`; `direction` is its SHA-256."""
    entry = label_event(factor=factor, claim=claim, annotator=annotator, direction=direction)
    add_events(database, [entry])
    return entry


def withdraw_label(
    database: Database, *, factor: str, annotator: str, direction: str, note: str = ""
) -> LabelEvent:
    """Withdraw the annotator's claim about `factor`; both events stay in the history."""
    entry = withdrawal_event(factor=factor, annotator=annotator, direction=direction, note=note)
    add_events(database, [entry])
    return entry


def label_event(*, factor: str, claim: Claim, annotator: str, direction: str) -> LabelEvent:
    """One claim about `factor`, not saved yet.

    Raises:
        InputError: the annotator is not named, or a text is too long.
    """
    return _fitting(
        LabelEvent(
            annotator=_annotator(annotator),
            factor=factor,
            direction_sha256=direction,
            action="label",
            name=claim.name.strip(),
            spurious=claim.spurious,
            polarity=claim.polarity.strip(),
            confidence=claim.confidence,
            note=claim.note.strip(),
        )
    )


def withdrawal_event(
    *, factor: str, annotator: str, direction: str, note: str = ""
) -> LabelEvent:
    """The withdrawal of the annotator's claim, not saved yet; raises as `label_event`."""
    return _fitting(
        LabelEvent(
            annotator=_annotator(annotator),
            factor=factor,
            direction_sha256=direction,
            action="withdraw",
            note=note.strip(),
        )
    )


def add_events(database: Database, entries: Sequence[LabelEvent]) -> None:
    """Add events to the history: all or, if anything goes wrong, none.

    Raises:
        DatabaseUnavailable: the database did not take them.
    """
    for entry in entries:
        entry.workspace = database.workspace
    with database.session() as session:
        session.add_all(entries)


def read_events(database: Database, *, factor: str | None = None) -> list[LabelEvent]:
    """All events, oldest first, of one factor or of all."""
    query = select(LabelEvent).where(LabelEvent.workspace == database.workspace)
    query = query.order_by(LabelEvent.id)
    if factor is not None:
        query = query.where(LabelEvent.factor == factor)
    with database.session() as session:
        return list(session.scalars(query))


def current_claims(history: Sequence[LabelEvent]) -> dict[str, dict[str, LabelEvent]]:
    """Factor → annotator → the claim in force, from a history sorted oldest first."""
    standing: dict[str, dict[str, LabelEvent]] = {}
    for entry in history:
        claims = standing.setdefault(entry.factor, {})
        claims.pop(entry.annotator, None)
        if entry.action == "label":
            claims[entry.annotator] = entry
    return {factor: claims for factor, claims in standing.items() if claims}


def agreement(history: Sequence[LabelEvent]) -> tuple[float, int]:
    """Share of annotator pairs that gave a factor the same name, and the number of pairs.

    The share is NaN without pairs.
    """
    same: list[bool] = []
    for claims in current_claims(history).values():
        names = [claim.name.casefold() for claim in claims.values()]
        same += [a == b for i, a in enumerate(names) for b in names[i + 1 :]]
    return (sum(same) / len(same) if same else float("nan")), len(same)


def spurious_factors(history: Sequence[LabelEvent]) -> list[str]:
    """Factors that at least one claim in force calls spurious."""
    return [
        factor
        for factor, claims in current_claims(history).items()
        if any(claim.spurious for claim in claims.values())
    ]


def _annotator(name: str) -> str:
    if not name.strip():
        raise InputError("The annotator is empty; a label needs the name of the person giving it.")
    return name.strip()


def _fitting(entry: LabelEvent) -> LabelEvent:
    """The event, if its texts fit: SQLite would take longer ones, and PostgreSQL refuse them."""
    for column in LabelEvent.__table__.columns:
        longest, value = getattr(column.type, "length", None), getattr(entry, column.name)
        if longest and value and len(value) > longest:
            raise InputError(
                f"The {column.name} of a label has {len(value)} characters; expected at most "
                f"{longest}."
            )
    return entry
