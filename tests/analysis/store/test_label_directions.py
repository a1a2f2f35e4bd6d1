"""Labels follow the direction they are about, whatever it is called after factors are made anew."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from analysis.store.factor_table import FactorTable, read_run_factors
from analysis.store.label_directions import (
    KEPT,
    find_stale,
    follow_directions,
    label_revisions,
    replace_factors,
)
from analysis.store.labels import Claim, add_label, current_claims, read_events, withdraw_label
from analysis.store.workspace import Workspace

RUN = "code-naive"


def names(workspace: Workspace, table: FactorTable) -> dict[str, dict[str, str]]:
    claims = current_claims(follow_directions(read_events(workspace.database), table))
    return {factor: {who: one.name for who, one in c.items()} for factor, c in claims.items()}


def remake(workspace: Workspace, swap: tuple[str, str], *, turn: float) -> FactorTable:
    """Factors made again: two directions change places, and the second is turned a little."""
    table = read_run_factors(workspace, RUN)
    directions = table.directions.copy()
    one, other = (table.position(name) for name in swap)
    directions[[one, other]] = directions[[other, one]]
    moved = directions[one].astype(np.float64)
    aside = np.random.default_rng(0).standard_normal(len(moved))
    aside -= aside @ moved * moved
    moved = np.cos(turn) * moved + np.sin(turn) * aside / np.linalg.norm(aside)
    directions[one] = -moved  # the sign of a factor is arbitrary
    made = dataclasses.replace(table, directions=directions)
    replace_factors(workspace, made)
    return read_run_factors(workspace, RUN)


def test_a_label_follows_its_direction_and_not_its_name(whole: Workspace) -> None:
    before = read_run_factors(whole, RUN)
    assert names(whole, before) == {
        f"{RUN}/w1": {"ana": "format", "ben": "task"},
        f"{RUN}/w2": {"ana": "persona", "ben": "persona"},
    }
    after = remake(whole, ("w2", "w1"), turn=0.2)
    # What is w1 now is the direction that was w2; what is w2 now is near the one that was w1.
    assert names(whole, after) == {f"{RUN}/w1": {"ana": "persona", "ben": "persona"}}
    stale = find_stale(whole, read_events(whole.database), after)
    assert [(one.claim.annotator, one.claim.name, one.nearest) for one in stale] == [
        ("ana", "format", "w2"),
        ("ben", "task", "w2"),
    ]
    assert stale[0].cosine == pytest.approx(np.cos(0.2), abs=1e-5)


def test_a_stale_label_can_be_withdrawn_and_a_new_one_does_not_replace_it(
    whole: Workspace,
) -> None:
    old = read_run_factors(whole, RUN).sha256("w1")
    after = remake(whole, ("w2", "w1"), turn=0.2)
    say = {"factor": f"{RUN}/w2", "annotator": "ana"}
    add_label(whole.database, claim=Claim("noise"), direction=after.sha256("w2"), **say)
    history = read_events(whole.database)
    assert names(whole, after)[f"{RUN}/w2"] == {"ana": "noise"}
    assert len(find_stale(whole, history, after)) == 2
    withdraw_label(whole.database, direction=old, factor=f"{RUN}/w1", annotator="ana")
    (left,) = find_stale(whole, read_events(whole.database), after)
    assert left.claim.annotator == "ben"


@pytest.mark.parametrize("content", [None, b"", b"not an array"])
def test_a_direction_that_is_not_kept_has_no_nearest(
    content: bytes | None, whole: Workspace
) -> None:
    after = remake(whole, ("w2", "w1"), turn=0.2)
    for file in Path(whole.root / KEPT).iterdir():
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
    stale = find_stale(whole, read_events(whole.database), after)
    assert {one.nearest for one in stale} == {None}
    assert np.isnan(stale[0].cosine)


def test_factors_that_cannot_be_read_are_replaced(whole: Workspace) -> None:
    table = read_run_factors(whole, RUN)
    (whole.folder("factors", RUN) / "manifest.json").write_text("{")
    replace_factors(whole, table)
    assert read_run_factors(whole, RUN).sha256("w2") == table.sha256("w2")


def test_the_revisions_of_labels_are_those_in_force_about_the_direction(whole: Workspace) -> None:
    table = read_run_factors(whole, RUN)
    wanted = [f"{RUN}/w2", f"{RUN}/r1"]
    rows = [table.direction("w2"), table.direction("r1")]
    hashes, revisions = label_revisions(whole, wanted, rows)
    assert hashes == {f"{RUN}/{one}": table.sha256(one) for one in ("w2", "r1")}
    by_id = {one.id: one for one in read_events(whole.database)}
    assert list(revisions) == [f"{RUN}/w2"]
    assert [(by_id[one].annotator, by_id[one].name) for one in revisions[f"{RUN}/w2"]] == [
        ("ana", "persona"),
        ("ben", "persona"),
    ]
