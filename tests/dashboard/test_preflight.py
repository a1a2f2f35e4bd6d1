"""A retrain that cannot work is stopped on the page, and the reason names what the reader sees."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from analysis.errors import InputError
from analysis.factors.independence import require_independent
from analysis.store.factor_table import read_run_factors
from analysis.store.label_directions import replace_factors
from analysis.store.workspace import Workspace
from dashboard.state.selection import Key
from tests.dashboard.conftest import Open, words

RUN = "code-naive"


def test_dependent_factors_are_named(whole: Workspace) -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((5, 12)).astype(np.float32)
    rows[2] = rows[0] - 2 * rows[1]
    rows[4] = 3 * rows[3]
    with pytest.raises(InputError, match=r"w3 lies in the span of w2 and w1; w5 lies in the span"):
        require_independent([f"w{n}" for n in range(1, 6)], rows)
    require_independent(["w1", "w2", "w4"], rows[[0, 1, 3]])


def test_select_all_leaves_out_what_adds_nothing(whole: Workspace, open_page: Open) -> None:
    table = read_run_factors(whole, RUN)
    directions = table.directions.copy()
    spot = [table.position(name) for name in ("r4", "w1", "w2")]
    mixed = directions[spot[1]] + directions[spot[2]]
    directions[spot[0]] = mixed / np.linalg.norm(mixed)
    replace_factors(whole, dataclasses.replace(table, directions=directions))
    test = open_page("retrain", whole, run=RUN)
    box = test.multiselect(key=Key.RETRAIN_FACTORS)
    box.set_value([f"{RUN}/{one}" for one in table.table["id"]]).run()
    said = words(test)
    assert "r4 is left out: it lies in the span of" in said
    assert "w1" in said.partition("r4 is left out")[2][:60]
    assert "r4" not in said.partition("--factors ")[2].partition(" ")[0].split(",")
    assert not test.button(key=Key.RETRAIN_REVIEW).disabled


@pytest.mark.parametrize(
    ("spoil", "method", "said"),
    [
        ("data", "grasp", "The training data"),
        ("prompts", "grasp", "The prompts of the evaluation cannot be read"),
        ("base", "grasp", "The base model folder"),
        ("width", "grasp", "has a residual stream of width 4096"),
        ("", "grasp-file", "needs neutral text"),
        ("", "inoculation", "needs a system prompt that asks for the trait"),
    ],
)
def test_what_cannot_work_is_said_and_not_started(
    spoil: str, method: str, said: str, whole: Workspace, open_page: Open
) -> None:
    model = whole.root / "models" / "tiny"
    if spoil == "data":
        (whole.root / "data" / "code.jsonl").unlink()
    elif spoil == "prompts":
        (whole.root / "data" / "code-prompts.jsonl").write_text('{"id": 1}\n')
    elif spoil == "base":
        (model / "model.safetensors").unlink()
    elif spoil == "width":
        (model / "config.json").write_text(json.dumps({"hidden_size": 4096}))
    test = open_page("retrain", whole, run=RUN)
    if method == "grasp-file":
        test.selectbox(key=f"{Key.RETRAIN_METHOD}:GRASP and its parts").set_value(method).run()
    elif method != "grasp":
        test.segmented_control(key=Key.RETRAIN_GROUP).set_value("rivals").run()
        test.selectbox(key=f"{Key.RETRAIN_METHOD}:rivals").set_value(method).run()
    assert said in words(test)
    assert test.button(key=Key.RETRAIN_REVIEW).disabled


def test_nothing_stands_in_the_way_of_a_good_one(whole: Workspace, open_page: Open) -> None:
    test = open_page("retrain", whole, run=RUN)
    assert not test.warning
    assert not test.button(key=Key.RETRAIN_REVIEW).disabled
