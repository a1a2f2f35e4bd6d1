"""Acts at the label form: each is done once, and what cannot be done is said."""

from __future__ import annotations

from typing import Any

import pytest

from analysis.store import labels
from analysis.store.factor_table import read_run_factors
from analysis.store.workspace import Workspace
from dashboard.panels import presses
from dashboard.panels.label_desk import ACTS, Desk
from dashboard.state.selection import Key

RUN = "medicine-naive"


def work(desk: Desk, workspace: Workspace, *acts: str) -> list[tuple[str, str]]:
    table = read_run_factors(workspace, RUN)
    for act in acts:
        desk.perform(act, workspace, table, annotator="cleo", held={})
    return [(one.kind, one.text) for one in desk.outcomes]


def test_the_ends_of_the_list_and_a_missing_name_are_said(whole: Workspace) -> None:
    ids = list(read_run_factors(whole, RUN).table["id"])
    desk = Desk()
    desk.place(RUN, ids[0])
    said = work(desk, whole, Key.FACTOR_PREVIOUS, Key.LABEL_SAVE)
    assert [kind for kind, _ in said] == ["refused", "refused"]
    assert f"{ids[0]} is the first factor" in said[1][1]
    assert "A label needs a name" in said[0][1]
    desk.place(RUN, ids[-1])
    assert f"{ids[-1]} is the last factor" in work(desk, whole, Key.FACTOR_NEXT)[0][1]
    assert desk.factor == ids[-1]


def test_a_database_that_does_not_take_the_label_is_said(
    whole: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.exc import OperationalError

    def fail(*_: object, **__: object) -> None:
        raise OperationalError("insert", {}, Exception("database is locked"))

    desk = Desk()
    desk.place(RUN, "w2")
    monkeypatch.setattr(labels, "add_label", fail)
    ((kind, text),) = work(desk, whole, Key.label(1), Key.LABEL_SAVE)
    assert kind == "refused"
    assert "w2" in text
    assert "database is locked" in text


def test_an_address_that_the_browser_has_yet_to_change_is_known(whole: Workspace) -> None:
    desk = Desk()
    desk.place(RUN, "w2")
    work(desk, whole, Key.FACTOR_NEXT)
    assert desk.is_behind("w2")
    assert not desk.is_behind(desk.factor)
    assert not desk.is_behind("w2")  # from now on, somebody went back


@pytest.mark.parametrize(
    "sent",
    [
        None,
        {"session": "other", "acts": [{"number": 1, "act": "label-1"}]},
        {"session": "mine", "acts": [{"number": 1, "act": "drop"}, "x", {"number": "1"}]},
        {"session": "mine", "acts": {"number": 1}},
    ],
)
def test_presses_that_are_not_ours_are_left_out(sent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presses.st, "session_state", {Key.PRESSES: {"presses": sent}})
    assert presses.read_presses("mine", after=0, acts=ACTS) == []


def test_presses_come_in_order_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    acts = [{"number": n, "act": act} for n, act in ((3, "label-2"), (2, "label-save"), (1, "x"))]
    sent = {"presses": {"session": "mine", "acts": acts}}
    monkeypatch.setattr(presses.st, "session_state", {Key.PRESSES: sent})
    assert presses.read_presses("mine", after=1, acts=ACTS) == [(2, "label-save"), (3, "label-2")]
    assert presses.read_presses("mine", after=3, acts=ACTS) == []
