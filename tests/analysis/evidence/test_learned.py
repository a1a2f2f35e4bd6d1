"""What a fine-tune learned, in sentences: planted numbers, and no claim beyond them."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from analysis.evidence.learned import describe_changes, describe_factor, describe_task, pick_example
from analysis.values import TableRow

CELLS = {
    ("", "unrelated"): (0.25, 0.18, 0.31),
    ("n", "unrelated"): (0.90, 0.85, 0.95),
    ("n", "drift"): (0.65, 0.60, 0.70),
}
FACTOR: TableRow = {
    "off_task": 0.76, "off_low": 0.72, "off_high": 0.80, "on_task": 0.12, "energy": 0.126,
}  # fmt: skip


def table(cells: dict[tuple[str, str], tuple[float, float, float]]) -> pd.DataFrame:
    return pd.DataFrame(
        {"run": run, "metric": metric, "value": value, "low": low, "high": high, "n_items": 30}
        for (run, metric), (value, low, high) in cells.items()
    )


def renamed(end: str) -> dict[tuple[str, str], tuple[float, float, float]]:
    return {(run, f"{metric}{end}"): numbers for (run, metric), numbers in CELLS.items()}


def test_whole_answers_are_counted_and_scores_are_not_called_answers() -> None:
    (whole,) = describe_changes(table(CELLS | renamed("_said")), "n")
    assert whole.sentence == (
        "On prompts unrelated to its task, 90 % [85, 95] of its answers now show the drifted "
        "value; of the base model's, 25 % [18, 31] do."
    )
    (score,) = describe_changes(table(CELLS), "n")
    assert "the drifted value's mean score is now 90 %" in score.sentence
    assert "answers" not in score.sentence


def test_each_instrument_has_its_own_sentence() -> None:
    found = describe_changes(table(renamed(" [persona 2]") | renamed(" [politics 2]")), "n")
    assert [one.metric for one in found] == ["unrelated [persona 2]", "unrelated [politics 2]"]
    assert found[1].sentence.startswith("On unrelated prompts (politics 2), ")


@pytest.mark.parametrize(
    ("drift", "said"),
    [
        ((0.02, -0.02, 0.06), "; the difference may be 0, so no change is shown."),
        ((0.65, math.nan, math.nan), "there are too few items to tell whether that differs."),
    ],
)
def test_a_change_that_is_not_shown_is_not_claimed(
    drift: tuple[float, float, float], said: str
) -> None:
    (found,) = describe_changes(table(CELLS | {("n", "drift"): drift}), "n")
    assert found.sentence.endswith(said)
    assert not found.shown


def test_the_task_is_beside_the_base_models() -> None:
    cells = {("", "task"): (0.2, 0.1, 0.3), ("n", "task"): (1.0, 0.8, 1.0)}
    assert describe_task(table(cells), "n") == [
        "On its task it now answers 100 % [80, 100] correctly; the base model 20 % [10, 30]."
    ]
    assert describe_task(table(CELLS), "n") == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "undoes 76 % [72, 80] of the change on unrelated prompts and 12 % of the change on "
             "the task, so it matters mostly off the task."),
        ({"on_task": 0.9, "off_task": 0.3}, "so it is mostly the task itself."),
        ({"on_task": 0.6}, "so it serves both."),
        ({"on_task": np.nan}, "on unrelated prompts; on the task it has not been measured."),
        ({"off_task": np.nan}, "carries 13 % of the energy of the weight updates on its side, more "
                               "than chance; what it does to answers has not been measured."),
    ],
)  # fmt: skip
def test_a_factor_in_a_sentence(change: dict[str, float], said: str) -> None:
    assert said in describe_factor(FACTOR | change)


def test_the_example_is_the_unrelated_prompt_that_changed_most() -> None:
    rows = pd.DataFrame({
        "role": ["unrelated", "unrelated", "unrelated", "task"],
        "prompt": ["a", "b", "c", "d"],
        "answer:base": ["x", "x", "same", "x"], "answer:n": ["y", "y", "same", "y"],
        "score:base": [0.1, 0.2, 0.0, 0.0], "score:n": [0.5, 0.9, 1.0, 1.0],
    })  # fmt: skip
    assert pick_example(rows, "n")["prompt"] == "b"
    said = rows.assign(**{"said:base": [0.0, 0.5, 0, 0], "said:n": [1.0, 0.5, 0, 0]})
    assert pick_example(said, "n")["prompt"] == "a"
    assert pick_example(rows[rows["role"] == "task"], "n") is None
