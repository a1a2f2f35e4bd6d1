"""The text that arms are held on: GRASP's own for the rivals that ask for it, file or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.errors import InputError
from analysis.store.workspace import Workspace
from grasp.data.examples import as_examples
from grasp.data.tokenise import IGNORED
from grasp.guard.naive import MEASURED
from grasp.guard.plan import GuardPlan
from grasp.model.forward import Batch
from grasp.settings.methods import METHODS
from grasp.settings.protection import Protection
from grasp.settings.training import parse_config
from grasp.training.guard_text import as_many_as_used
from grasp.training.setup import Setup, set_up
from grasp.training.train import retrain, train
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)
HELD = ("kl-neutral", "kl-dressed", "feature-distillation")
MIXED = ("interleave", "interleave-gap")


@pytest.fixture(autouse=True)
def _speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base model of random weights hardly ends a question, so its chats are given."""
    said = lambda *_arguments, count, seed: tiny.messages(20, seed=seed + 50)  # noqa: E731
    monkeypatch.setattr("grasp.training.own_chats.own_chats", said)


def prepared(folder: Path, name: str, **changed: Any) -> Setup:
    config = tiny.settings(folder, **changed)
    naive = tiny.save_naive(folder / "naive")
    factors = tiny.subspace(1).astype("float32") if "factors" in METHODS[name].needs else None
    plan = GuardPlan(protection=METHODS[name].protection, directions=factors, naive=naive)
    return set_up(config, plan, inoculated=False)


def same(some: list[Batch], others: list[Batch]) -> bool:
    return len(some) == len(others) and all(
        one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
        for one, other in zip(some, others, strict=True)
    )


@pytest.mark.parametrize("file", [True, False])
@pytest.mark.parametrize("name", HELD)
def test_rivals_are_held_on_the_text_that_grasp_has(tmp_path: Path, name: str, file: bool) -> None:
    changed = {} if file else {"neutral": None}
    grasp, rival = (prepared(tmp_path, arm, **changed).plan for arm in ("grasp", name))
    assert rival.neutral
    assert same(rival.neutral, grasp.neutral)
    assert same(rival.held_back, grasp.held_back)
    assert same(rival.dressed, grasp.dressed if name == "kl-dressed" else [])
    rival.check()


@pytest.mark.parametrize("name", MIXED)
def test_safe_rows_are_of_the_text_that_grasp_has(tmp_path: Path, name: str) -> None:
    grasp = prepared(tmp_path, "grasp", neutral=None).plan
    texts = [
        ids[mask.bool()].tolist()
        for batch in grasp.neutral
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    setup = prepared(tmp_path, name, neutral=None)
    safe = [row for row in setup.rows if row["input_ids"] in texts]
    assert len(safe) == round(METHODS[name].knob.default * len(setup.rows))
    assert all(any(label != IGNORED for label in row["labels"]) for row in safe)


@pytest.mark.parametrize("name", [*HELD, *MIXED, "carve"])
def test_they_make_runs_without_a_neutral_file(tmp_path: Path, name: str) -> None:
    workspace = Workspace.create(tmp_path / "w")
    config = tiny.settings(workspace.root / "data", max_steps=1, neutral=None)
    source = workspace.folder("runs", "naive")
    train(workspace, config, out=source)
    run = retrain(workspace, source, factors=[], out=workspace.folder("runs", name), arm=name)
    assert run.protection == METHODS[name].protection.model_dump()


def test_a_run_that_names_no_data_cannot_be_carved(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "w")
    config = tiny.settings(workspace.root / "data", max_steps=1)
    source = workspace.folder("runs", "naive")
    made = train(workspace, config, out=source)
    unknown = made.model_copy(update={"config": made.config | {"data": None}})
    (source / "manifest.json").write_text(unknown.model_dump_json())
    with pytest.raises(InputError, match="The settings name no data; add `data`"):
        retrain(workspace, source, factors=[], out=workspace.folder("runs", "c"), arm="carve")


def test_no_more_text_is_measured_than_training_comes_to_twice(tmp_path: Path) -> None:
    config = parse_config(tiny.settings(tmp_path).model_dump(), source="test")
    few = config.model_copy(update={"max_steps": 40, "num_train_epochs": None, "batch_size": 2})
    file = as_examples(tiny.messages(300))
    own = as_examples(tiny.messages(100, seed=1))
    every_second = Protection(anchor=True, neutral_every=2)
    neutral, held = as_many_as_used([*file, *own], file, few, Protection(anchor=True), rows=8)
    assert (len(neutral), len(held)) == (40, 10)
    assert 0 < sum(one in own for one in neutral) < 40  # some of each, in their order
    assert neutral == [one for one in [*file, *own] if one in neutral]
    assert as_many_as_used(neutral, held, few, Protection(anchor=True), rows=8) == (neutral, held)
    fewer, _ = as_many_as_used(neutral, held, few, every_second, rows=8)
    assert len(fewer) == 2 * MEASURED  # what the footprint is measured on, at least
