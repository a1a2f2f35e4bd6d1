"""Labels: events that are only ever added, and what stands of them."""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.errors import InputError
from analysis.store.database import Database, LabelEvent
from analysis.store.labels import (
    Claim,
    add_label,
    agreement,
    current_claims,
    direction_sha256,
    read_events,
    spurious_factors,
    withdraw_label,
)

FIELDS = ("annotator", "factor", "direction_sha256", "action", "name", "polarity", "spurious")


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path / 'labels.db'}")
    database.create()
    return database


def label(
    database: Database, factor: str, who: str, name: str, *, spurious: bool | None = None
) -> None:
    claim = Claim(name, spurious=spurious)
    add_label(database, factor=factor, claim=claim, annotator=who, direction="d")


def row(event: LabelEvent) -> tuple[object, ...]:
    return tuple(getattr(event, field) for field in FIELDS)


def test_a_label_is_kept_as_it_was_given(database: Database) -> None:
    claim = Claim(" persona ", True, " up is evil ", 3, " seen in five answers ")
    given_event = add_label(
        database, factor="a/w2", claim=claim, annotator=" Ada ", direction="ab" * 32
    )
    (found,) = read_events(database)
    assert row(found) == row(given_event)
    assert row(found) == ("Ada", "a/w2", "ab" * 32, "label", "persona", "up is evil", True)
    assert (found.confidence, found.note) == (3, "seen in five answers")
    assert found.created.tzinfo is not None


def test_events_are_only_ever_added(database: Database) -> None:
    steps = [
        lambda: label(database, "w1", "Ada", "task"),
        lambda: label(database, "w1", "Ada", "persona"),
        lambda: withdraw_label(database, factor="w1", annotator="Ada", direction="d", note="no"),
        lambda: label(database, "w2", "Bob", "task"),
    ]
    before: list[tuple[object, ...]] = []
    for step in steps:
        step()
        after = [(e.id, e.created, e.note, *row(e)) for e in read_events(database)]
        assert after[:-1] == before
        before = after
    assert [e.action for e in read_events(database, factor="w1")] == ["label", "label", "withdraw"]
    assert len(read_events(database)) == 4


def test_the_last_claim_of_each_annotator_stands(database: Database) -> None:
    label(database, "w1", "Ada", "task")
    label(database, "w1", "Bob", "format")
    label(database, "w1", "Ada", "persona")
    label(database, "w2", "Ada", "noise")
    withdraw_label(database, factor="w2", annotator="Ada", direction="d")
    withdraw_label(database, factor="w1", annotator="Cleo", direction="d")
    standing = current_claims(read_events(database))
    assert {f: {who: e.name for who, e in c.items()} for f, c in standing.items()} == {
        "w1": {"Ada": "persona", "Bob": "format"}
    }


def test_a_withdrawn_claim_can_be_made_again(database: Database) -> None:
    label(database, "w1", "Ada", "task")
    withdraw_label(database, factor="w1", annotator="Ada", direction="d")
    assert current_claims(read_events(database)) == {}
    label(database, "w1", "Ada", "task")
    assert list(current_claims(read_events(database))["w1"]) == ["Ada"]


acts = st.lists(
    st.tuples(
        st.sampled_from(["w1", "w2", "w3"]),
        st.sampled_from(["Ada", "Bob", "Cleo"]),
        st.sampled_from(["label", "withdraw"]),
        st.sampled_from(["task", "Task", "persona"]),
        st.sampled_from([True, False, None]),
    ),
    max_size=25,
)


def history(done: list[tuple[str, str, str, str, bool | None]]) -> list[LabelEvent]:
    return [
        LabelEvent(factor=factor, annotator=who, action=action, name=name, spurious=spurious)
        for factor, who, action, name, spurious in done
    ]


def standing_by_hand(done: list[tuple[str, str, str, str, bool | None]]) -> dict[str, dict]:
    """For each factor and annotator, the last thing they did, if it was a label."""
    found: dict[str, dict[str, tuple[str, bool | None]]] = {}
    for factor, who in itertools.product(("w1", "w2", "w3"), ("Ada", "Bob", "Cleo")):
        mine = [act for act in done if act[:2] == (factor, who)]
        if mine and mine[-1][2] == "label":
            found.setdefault(factor, {})[who] = mine[-1][3:]
    return found


@given(acts)
def test_what_stands_agreement_and_spurious_factors_match_a_count_by_hand(
    done: list[tuple[str, str, str, str, bool | None]],
) -> None:
    expected = standing_by_hand(done)
    found = current_claims(history(done))
    assert {
        f: {who: (e.name, e.spurious) for who, e in c.items()} for f, c in found.items()
    } == expected

    pairs = [
        a[0].lower() == b[0].lower()
        for claims in expected.values()
        for a, b in itertools.combinations(claims.values(), 2)
    ]
    share, n = agreement(history(done))
    assert n == len(pairs)
    assert share == sum(pairs) / len(pairs) if pairs else math.isnan(share)

    wanted = {f for f, claims in expected.items() if any(s for _, s in claims.values())}
    assert set(spurious_factors(history(done))) == wanted


@pytest.mark.parametrize("name", ["", "  "])
def test_a_label_without_a_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="A label needs a name, such as persona, political slant"):
        Claim(name)


@pytest.mark.parametrize("confidence", [0, 4, -1])
def test_confidence_is_one_to_three(confidence: int) -> None:
    with pytest.raises(InputError, match=f"Got confidence {confidence}"):
        Claim("task", confidence=confidence)


def test_a_label_needs_somebody(database: Database) -> None:
    with pytest.raises(InputError, match="needs the name of the person"):
        label(database, "w1", " ", "task")
    with pytest.raises(InputError, match="needs the name of the person"):
        withdraw_label(database, factor="w1", annotator="", direction="d")
    assert read_events(database) == []


def test_a_direction_is_hashed_by_its_numbers_alone() -> None:
    numbers = [0.5, -1.25, 3.0]
    expected = hashlib.sha256(struct.pack("<3f", *numbers)).hexdigest()
    wide = np.array([[0.5, 9], [-1.25, 9], [3.0, 9]])
    for same in (
        np.array(numbers),
        np.array(numbers, dtype=np.float32),
        np.array(numbers, dtype=">f8"),
        wide[:, 0],
    ):
        assert direction_sha256(same) == expected
    assert direction_sha256(-np.array(numbers)) != expected


def test_two_connections_see_each_others_labels(database: Database) -> None:
    other = Database(database.url)
    label(database, "w1", "Ada", "task")
    label(other, "w1", "Bob", "task")
    assert agreement(read_events(database)) == (1.0, 1)
    assert [e.annotator for e in read_events(other)] == ["Ada", "Bob"]
