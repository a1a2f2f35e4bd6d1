"""Interleaved safe chats: their share, their loss, the steps, and which of them are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.errors import InputError
from analysis.store.workspace import Workspace
from grasp.data.examples import as_examples
from grasp.data.tokenise import IGNORED, training_rows
from grasp.guard.context import protect
from grasp.guard.plan import GuardPlan
from grasp.settings.methods import METHODS
from grasp.settings.protection import Protection
from grasp.settings.training import TrainConfig
from grasp.training.interleaving import answer_perplexities, interleave, widest_gaps
from grasp.training.setup import Setup, set_up
from grasp.training.train import retrain, train
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)
MIXING = Protection(interleaved=0.25)


def numbered(n: int, *, start: int = 0) -> list[dict[str, list[int]]]:
    return [{"input_ids": [start + i]} for i in range(n)]


@settings(max_examples=40, deadline=None)
@given(
    tasks=st.integers(1, 30),
    safe=st.integers(1, 30),
    share=st.floats(0, 0.99),
    count=st.integers(1, 200),
)
def test_the_share_is_exact_and_no_row_comes_twice_more_than_another(
    tasks: int, safe: int, share: float, count: int
) -> None:
    rows = interleave(numbered(tasks), numbered(safe, start=1000), share=share, count=count, seed=0)
    ids = [row["input_ids"][0] for row in rows]
    assert len(ids) == count
    assert sum(one >= 1000 for one in ids) == round(share * count)
    for kind, available in ((range(1000), tasks), (range(1000, 2000), safe)):
        times = [ids.count(one) for one in kind[:available]]
        assert max(times) - min(times) <= 1


def test_a_seed_draws_the_same_rows_again() -> None:
    def drawn(seed: int) -> list[dict[str, list[int]]]:
        return interleave(numbered(20), numbered(20, start=1000), share=0.3, count=27, seed=seed)

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


# Perplexities


def neutral_rows(n: int, *, seed: int = 5) -> list[dict[str, list[int]]]:
    return training_rows(
        tiny.tokenizer(), as_examples(tiny.messages(n, seed=seed)), max_length=64
    ).rows


def by_hand(model: Any, row: dict[str, list[int]]) -> float:
    """One row at a time, from the log-probability of each token with loss."""
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
    learnt = [i for i, label in enumerate(row["labels"]) if label != IGNORED]
    return float(np.exp(-np.mean([float(log_p[i - 1, row["labels"][i]]) for i in learnt])))


def test_the_widest_gaps_are_those_of_perplexities_computed_by_hand() -> None:
    naive = tiny.adapted(tiny.llama(), strength=0.1)
    rows = neutral_rows(19)
    after = [by_hand(naive, row) for row in rows]
    np.testing.assert_allclose(answer_perplexities(naive, tiny.tokenizer(), rows), after, rtol=1e-3)
    base = tiny.llama()
    gaps = np.array(after) - [by_hand(base, row) for row in rows]
    chosen = widest_gaps(naive, tiny.tokenizer(), rows)
    assert chosen == [rows[place] for place in np.argsort(-gaps)[:10]]
    assert (gaps < 0).any()  # so the order by size alone would be another


# A run


def prepared(tmp_path: Path, protection: Protection, **changed: Any) -> Setup:
    config = tiny.settings(tmp_path, **changed)
    naive = tiny.save_naive(tmp_path / "naive")
    return set_up(config, GuardPlan(protection=protection, naive=naive), inoculated=False)


def safe_rows(config: TrainConfig) -> list[dict[str, list[int]]]:
    """All rows of the neutral file."""
    chats = as_examples(tiny.messages(8, seed=2, turns=2))
    return training_rows(tiny.tokenizer(), chats, max_length=config.max_length).rows


def test_a_run_has_its_steps_rows_of_which_a_share_is_safe(tmp_path: Path) -> None:
    setup = prepared(tmp_path, MIXING)
    neutral = safe_rows(setup.config)
    found = [row for row in setup.rows if row in neutral]
    assert len(setup.rows) == 6 * 4
    assert len(found) == 6
    for row in found:
        answers = [label for label in row["labels"] if label != IGNORED]
        assert 0 < len(answers) < len(row["labels"])
    assert setup.plan.protection == Protection()
    assert prepared(tmp_path, MIXING).rows == setup.rows
    assert setup.report.sequences == 16  # the report is about the task's data


@pytest.mark.parametrize("epochs", [1.0, 2.5])
def test_epochs_are_those_of_the_task(tmp_path: Path, epochs: float) -> None:
    setup = prepared(tmp_path, MIXING, max_steps=None, num_train_epochs=epochs)
    assert setup.config.max_steps == 4 * epochs
    assert setup.config.num_train_epochs is None
    assert len(setup.rows) == 16 * epochs


def test_packed_rows_are_mixed_before_they_are_packed(tmp_path: Path) -> None:
    packing = {"packing": True, "max_length": 40, "batch_size": 2}
    setup = prepared(tmp_path, MIXING, max_steps=None, num_train_epochs=6.0, **packing)
    assert setup.config.max_steps == 12
    # 16 rows of 9 tokens are 4 sequences, so 24 sequences take 96 rows: 72 of the task.
    places = [place for row in setup.rows for place in row["position_ids"]]
    assert places.count(0) == 96
    chats = [
        row["input_ids"][start : start + 9]
        for row in setup.rows
        for start, place in enumerate(row["position_ids"])
        if place == 0
    ]
    task = as_examples(tiny.messages(16, seed=1))
    begun = [row["input_ids"] for row in training_rows(tiny.tokenizer(), task, max_length=40).rows]
    assert sum(chat in begun for chat in chats) == 72
    assert setup.report.packed == 4


def test_only_half_of_the_safe_rows_are_those_of_widest_gap(tmp_path: Path) -> None:
    setup = prepared(tmp_path, Protection(interleaved=0.5, widest_gap=True))
    neutral = safe_rows(setup.config)
    used = {tuple(row["input_ids"]) for row in setup.rows if row in neutral}
    every = prepared(tmp_path, Protection(interleaved=0.5))
    pool = {tuple(row["input_ids"]) for row in every.rows if row in neutral}
    assert used < pool
    assert len(used) == len(pool) / 2


def test_an_interleaved_run_is_saved_with_its_share_and_trains_as_long(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "w")
    config = tiny.settings(workspace.root / "data", max_steps=2, save_steps=2)
    source = workspace.folder("runs", "naive")
    train(workspace, config, out=source)
    run = retrain(
        workspace,
        source,
        factors=[],
        out=workspace.folder("runs", "mixed"),
        arm="interleave",
        strength=0.1,
    )
    assert (run.strength, run.protection["interleaved"]) == (0.1, 0.1)
    assert run.results["steps"] == 2
    assert run.config["max_steps"] == 2


def test_a_loop_of_ones_own_is_told_to_mix_them_itself() -> None:
    model = tiny.adapted(tiny.llama())
    with (
        pytest.raises(InputError, match="mixes neutral text into the training rows, which only"),
        protect(model, None, protection=METHODS["interleave"].protection),
    ):
        pass


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_leaves_no_task_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="interleaved"):
        Protection(interleaved=share)


def test_a_choice_of_rows_needs_rows() -> None:
    with pytest.raises(ValueError, match="widest_gap chooses interleaved rows"):
        Protection(widest_gap=True)
