"""What a person does at the label form, act by act: no page is needed, and none interrupts it.

If something is pressed while a page is being drawn, Streamlit draws it again at once, and ends the
first run at whichever line next asks it for something, be it in the middle of a callback.  So acts
change only what is here and the database, one at a time, and are counted as they go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal
from uuid import uuid4

from sqlalchemy.exc import SQLAlchemyError

from analysis.errors import GraspError
from analysis.store import labels
from analysis.store.database import LabelEvent
from analysis.store.factor_table import FactorTable
from analysis.store.labels import Claim
from analysis.store.workspace import Workspace
from dashboard.queue import runs
from dashboard.state.selection import Key

OFFERED = labels.NAMES[:6]
SPURIOUS: dict[str, bool | None] = {"yes": True, "no": False, "unsure": None}
SUGGESTED = {"persona": "yes", "political slant": "yes", "task": "no", "format": "no"}
CHOICES = {Key.label(position): name for position, name in enumerate(OFFERED, start=1)}
STEPS = {Key.FACTOR_PREVIOUS: -1, Key.FACTOR_NEXT: 1}
ACTS = (*CHOICES, *STEPS, Key.LABEL_SAVE, Key.LABEL_WITHDRAW)
KEYS = {str(position): act for position, act in enumerate(CHOICES, start=1)} | {
    "p": Key.FACTOR_PREVIOUS,
    "n": Key.FACTOR_NEXT,
    "s": Key.LABEL_SAVE,
}
FIELDS = (
    Key.LABEL_NAME, Key.LABEL_SPURIOUS, Key.LABEL_POLARITY, Key.LABEL_CONFIDENCE, Key.LABEL_NOTE,
)  # fmt: skip
_KEPT = 5


@dataclass
class Draft:
    """What the form was filled with, for whom, and how often it was filled anew.

    A click can reach the server before the browser has drawn the answer to the one before it, and
    then brings the old contents of every field along. So fields that are filled anew get new keys:
    what an old field held can neither be saved for another factor nor undo a choice just made.
    """

    factor: str
    annotator: str
    turn: int
    choice: int = 0
    name: str = ""
    spurious: str | None = None
    polarity: str = ""
    confidence: int | None = None
    note: str = ""

    def key(self, field: str) -> str:
        """The widget key of a field, one of FIELDS."""
        chosen = f".{self.choice}" if field in (Key.LABEL_NAME, Key.LABEL_SPURIOUS) else ""
        return f"{field}-{self.turn}{chosen}"

    def filled(self, field: str) -> Any:
        """What the field was filled with."""
        return getattr(self, field.removeprefix("label-"))

    def value(self, field: str, held: Mapping[str, Any]) -> Any:
        """What the field holds; what it was filled with, if the browser has not drawn it yet.

        Args:
            field: one of FIELDS.
            held: widget key → value, of the fields that have been drawn.
        """
        return held.get(self.key(field), self.filled(field))


@dataclass(frozen=True)
class Outcome:
    """What became of an act, in words."""

    kind: Literal["saved", "refused"]
    text: str


@dataclass
class Desk:
    """One person's session at the form: the factor in hand, its draft, and what was done."""

    session: str = field(default_factory=lambda: uuid4().hex)
    handled: int = 0
    run: str = ""
    factor: str = ""
    outcomes: list[Outcome] = field(default_factory=list)
    draft: Draft | None = None
    turns: int = 0
    turn: Lock = field(default_factory=Lock)
    _left: set[str] = field(default_factory=set)

    def place(self, run: str, factor: str) -> None:
        """Take up the factor that the page shows."""
        if run != self.run:
            self.outcomes, self._left = [], set()
        self.run, self.factor = run, factor

    def is_behind(self, factor: str | None) -> bool:
        """Whether an address names a factor that was left by a step the browser has yet to show."""
        if factor != self.factor and factor in self._left:
            return True
        self._left.clear()
        return False

    def fill(self, workspace: Workspace, annotator: str) -> Draft:
        """The form's contents, read anew when another factor or person is selected."""
        name = runs.factor_name(self.run, self.factor)
        if self.draft and (self.draft.factor, self.draft.annotator) == (name, annotator):
            return self.draft
        self.turns += 1
        draft = Draft(name, annotator, self.turns)
        if claim := find_standing(workspace, name, annotator):
            words = {value: word for word, value in SPURIOUS.items()}
            draft.name, draft.spurious = claim.name, words[claim.spurious]
            draft.polarity, draft.note = claim.polarity, claim.note
            draft.confidence = claim.confidence
        self.draft = draft
        return draft

    def perform(
        self,
        act: str,
        workspace: Workspace,
        table: FactorTable,
        *,
        annotator: str,
        held: Mapping[str, Any],
    ) -> None:
        """Do one of ACTS to the factor in hand; what could not be done becomes an outcome."""
        try:
            if act in STEPS:
                self._step(table, STEPS[act])
                return
            draft = self.fill(workspace, annotator)
            if act in CHOICES:
                name = CHOICES[act]
                spurious = SUGGESTED.get(name, draft.value(Key.LABEL_SPURIOUS, held))
                draft.name, draft.spurious, draft.choice = name, spurious, draft.choice + 1
                return
            direction = table.sha256(self.factor)
            if act == Key.LABEL_SAVE:
                self._say("saved", _save(workspace, draft, direction, held))
            else:
                labels.withdraw_label(
                    workspace.database,
                    factor=draft.factor,
                    annotator=annotator,
                    direction=direction,
                )
                self._say("saved", f"Withdrawn: your label of {draft.factor}.")
            self.draft = None
        except (GraspError, SQLAlchemyError) as error:
            self._say("refused", f"Not saved for {self.factor}: {error}")

    def _step(self, table: FactorTable, step: int) -> None:
        ids = list(table.table["id"])
        position = table.position(self.factor) + step
        if not 0 <= position < len(ids):
            which = "first" if step < 0 else "last"
            self._say("refused", f"{self.factor} is the {which} factor of the list.")
            return
        self._left.add(self.factor)
        self.factor = ids[position]

    def _say(self, kind: Literal["saved", "refused"], text: str) -> None:
        self.outcomes = [Outcome(kind, text), *self.outcomes][:_KEPT]


def find_standing(workspace: Workspace, name: str, annotator: str) -> LabelEvent | None:
    """A person's label of a factor, named in full."""
    history = labels.read_events(workspace.database, factor=name)
    return labels.current_claims(history).get(name, {}).get(annotator)


def _save(workspace: Workspace, draft: Draft, direction: str, held: Mapping[str, Any]) -> str:
    claim = Claim(
        name=draft.value(Key.LABEL_NAME, held) or "",
        spurious=SPURIOUS[draft.value(Key.LABEL_SPURIOUS, held) or "unsure"],
        polarity=draft.value(Key.LABEL_POLARITY, held) or "",
        confidence=draft.value(Key.LABEL_CONFIDENCE, held),
        note=draft.value(Key.LABEL_NOTE, held) or "",
    )
    labels.add_label(
        workspace.database,
        factor=draft.factor,
        claim=claim,
        annotator=draft.annotator,
        direction=direction,
    )
    spurious = {True: ", spurious", False: ", not spurious", None: ""}[claim.spurious]
    return f"Saved: {draft.factor} is labelled {claim.name}{spurious}."
