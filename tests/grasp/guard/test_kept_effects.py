"""Effects on disk: read where nothing has changed, measured again where anything has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from grasp.guard import naive as naive_module
from grasp.guard.naive import follow_naive
from grasp.guard.plan import GuardPlan
from grasp.settings.protection import Protection
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)
HELD = Protection(effect=True, site="all")


def plan(keep: Path | None, protection: Protection = HELD, *, seed: int = 0) -> GuardPlan:
    texts = [tiny.batch(6, 9, seed=seed), tiny.batch(7, seed=seed)]
    return GuardPlan(protection, tiny.subspace(2), texts, held_back=[tiny.batch(5)], keep=keep)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each text that is measured."""
    calls: list[int] = []
    real = naive_module.measure_effects

    def counting(*args, **kwargs):
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(naive_module, "measure_effects", counting)
    return calls


def run(asked: GuardPlan, *, adapter: int = 3):
    naive = tiny.adapted(tiny.llama(), strength=0.3, seed=adapter)
    return follow_naive(asked, naive, seed=0).effects


def same(one, other) -> bool:
    return all(
        one[text].own == pytest.approx(other[text].own, rel=1e-12)
        and torch.equal(one[text].unit, other[text].unit)
        and len(one[text].pieces) == len(other[text].pieces)
        and all(
            torch.equal(a.directions, b.directions)
            and torch.equal(a.kept, b.kept)
            and torch.equal(a.chosen, b.chosen)
            and all(torch.equal(a.batch[n], b.batch[n]) for n in a.batch)
            for a, b in zip(one[text].pieces, other[text].pieces, strict=True)
        )
        for text in one
    )


def test_what_was_measured_is_read(tmp_path: Path, measured: list[int]) -> None:
    first = run(plan(tmp_path))
    assert len(measured) == 2  # what is anchored, and what is held back
    again = run(plan(tmp_path))
    assert len(measured) == 2
    assert same(first, again)
    assert same(first, run(plan(None)))
    assert len(measured) == 4


def test_anything_else_is_measured_anew(tmp_path: Path, measured: list[int]) -> None:
    first = run(plan(tmp_path))
    for other in (
        run(plan(tmp_path), adapter=4),
        run(replace(plan(tmp_path), directions=tiny.subspace(3)[1:])),
        run(plan(tmp_path, HELD.model_copy(update={"site": "prompt-end", "neutral_share": 0.5}))),
    ):
        assert not same(first, other)
    assert len(measured) > 6
    before = len(measured)
    run(plan(tmp_path, seed=1))
    assert len(measured) == before + 1  # the text that is held back is the same


def test_a_broken_file_is_measured_and_written_again(tmp_path: Path, measured: list[int]) -> None:
    first = run(plan(tmp_path))
    for file in tmp_path.iterdir():
        file.write_bytes(b"broken")
    assert same(first, run(plan(tmp_path)))
    assert len(measured) == 4
    run(plan(tmp_path))
    assert len(measured) == 4
    assert not list(tmp_path.glob("*.partial"))
