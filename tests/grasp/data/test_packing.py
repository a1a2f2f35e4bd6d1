"""Packing: rows do not see each other, and what would let them is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import BloomConfig, BloomForCausalLM

from analysis.errors import InputError
from analysis.store.workspace import Workspace
from grasp.data.packing import check_packing, collate_packed, pack_rows
from grasp.data.report import read_report
from grasp.data.tokenise import IGNORED
from grasp.settings.training import TrainConfig
from grasp.training.train import retrain, train
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)


def rows(*lengths: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Rows of random tokens, of which the last half is learnt."""
    rng = np.random.default_rng(seed)
    found = []
    for length in lengths:
        ids = rng.integers(7, len(tiny.tokenizer()), length).tolist()
        labels = [IGNORED] * (length - length // 2) + ids[length - length // 2 :]
        found.append({"input_ids": ids, "attention_mask": [1] * length, "labels": labels})
    return found


@given(st.lists(st.integers(2, 20), min_size=1, max_size=30), st.integers(20, 40))
def test_every_row_lies_whole_in_one_place(lengths: list[int], size: int) -> None:
    given_rows = rows(*lengths)
    packed = pack_rows(given_rows, max_length=size)
    found = []
    for one in packed:
        starts = [i for i, place in enumerate(one["position_ids"]) if place == 0]
        assert len(one["input_ids"]) <= size
        for start, end in zip(starts, [*starts[1:], len(one["input_ids"])], strict=True):
            assert one["position_ids"][start:end] == list(range(end - start))
            found.append((one["input_ids"][start:end], one["labels"][start:end]))
    assert sorted(found) == sorted((row["input_ids"], row["labels"]) for row in given_rows)
    # No place could have taken in another one's rows whole where two are less than half full.
    assert sum(len(one["input_ids"]) <= size // 2 for one in packed) <= 1


def losses(model: Any, batch: dict[str, Tensor]) -> tuple[float, int]:
    """Sum of the loss over labels, and how many there are."""
    labels = batch["labels"][:, 1:]
    with torch.no_grad():
        given_input = {key: value for key, value in batch.items() if key != "labels"}
        logits = model(**given_input, use_cache=False).logits[:, :-1]
    kept = labels != IGNORED
    loss = torch.nn.functional.cross_entropy(logits[kept], labels[kept], reduction="sum")
    return float(loss), int(kept.sum())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_loss_of_packed_rows_is_that_of_the_rows_alone(family: str) -> None:
    model = tiny.adapted(tiny.family(family), strength=0.3)
    given_rows = rows(9, 5, 12, 3, 7)
    packed = pack_rows(given_rows, max_length=20)
    check_packing(model, given_rows)
    assert len(packed) == 2
    together = losses(model, collate_packed(packed))
    alone = [
        losses(model, {key: torch.tensor([value]) for key, value in row.items()})
        for row in given_rows
    ]
    assert together[1] == sum(count for _, count in alone)
    assert together[0] == pytest.approx(sum(loss for loss, _ in alone), rel=1e-5)


def test_a_model_whose_rows_see_each_other_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.adapted(tiny.llama())
    plain = model.get_base_model()
    forward = plain.forward

    def blind(*, position_ids: Tensor, **rest: Any) -> Any:
        return forward(position_ids=torch.arange(position_ids.shape[1])[None], **rest)

    monkeypatch.setattr(plain, "forward", blind)
    message = r"In LlamaForCausalLM a packed row sees the row before it .* turn packing off"
    with pytest.raises(InputError, match=message):
        check_packing(model, rows(9, 5))


def test_a_model_without_positions_is_refused() -> None:
    config = BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=2)
    model = tiny.adapted(BloomForCausalLM(config), targets=["dense"])
    with pytest.raises(InputError, match="BloomForCausalLM takes no position_ids, so rows cannot"):
        check_packing(model, rows(9, 5))


def test_a_packed_run_is_protected_as_any_other(tmp_path: Path) -> None:
    """Neutral text is never packed: held back or not, its drift or its effect falls."""
    workspace = Workspace.create(tmp_path / "w")
    packing = {"packing": True, "max_length": 40, "batch_size": 2, "num_train_epochs": 6.0}
    config = tiny.settings(workspace.root / "data", max_steps=None, **packing)
    train(workspace, config, out=workspace.folder("runs", "naive"))
    report = read_report(workspace.folder("runs", "naive"))
    assert report is not None
    assert (report.used, report.packed) == (16, 4)  # of 9 tokens each
    assert "16 rows read, 16 trained on, packed into 4." in report.lines()
    tiny.weigh(workspace, "naive")
    last = {}
    for name in ("naive", "grasp", "grasp-subspace", "grasp-anchor-task"):
        folder = workspace.folder("runs", f"again-{name}")
        source = workspace.folder("runs", "naive")
        factors = [] if name == "naive" else ["w1"]
        run = retrain(workspace, source, factors=factors, out=folder, arm=name)
        assert run.results["steps"] == 12
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        last[name] = rows[-1]
        assert np.isfinite([row["loss"] for row in rows]).all()
    assert "drift" not in last["naive"]
    assert last["grasp-subspace"]["drift"] < 1
    assert last["grasp"]["effect"] < 0.8


@pytest.mark.parametrize(("count", "epochs", "steps"), [(16, 1.0, 2), (17, 1.0, 3), (16, 2.5, 5)])
def test_epochs_are_steps_over_all_rows(count: int, epochs: float, steps: int) -> None:
    settings = TrainConfig(
        title="t",
        base_model="b",
        batch_size=4,
        gradient_accumulation_steps=2,
        num_train_epochs=epochs,
    )
    assert settings.total_steps(count) == steps
