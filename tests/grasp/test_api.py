"""What `import grasp` gives to code: the names, each as often and in any order, and the loop."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import PrinterCallback, Trainer, TrainingArguments

import grasp
from analysis.errors import InputError, NotFoundError
from grasp.guard.footprint import footprint
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)
NAMES = [
    "METHODS",
    "GraspMixin",
    "Guard",
    "Protection",
    "TrainConfig",
    "dress",
    "own_chats",
    "protect",
]


WITHOUT_EXAMPLE = ("METHODS", "dress", "own_chats")


def test_the_exported_names_are_these() -> None:
    assert sorted(grasp.__all__) == sorted(NAMES)
    assert set(NAMES) <= set(dir(grasp))


@pytest.mark.parametrize("first", NAMES)
def test_each_name_is_the_same_thing_at_every_access_after_any_other(first: str) -> None:
    """In a process of its own, since what one access imports may shadow the next."""
    checks = [
        f"assert grasp.{name} is grasp.{name} and not hasattr(grasp.{name}, '__path__')"
        for name in [first, *NAMES, first]
    ]
    code = "\n".join(
        [
            "import grasp, types",
            *checks,
            f"from grasp import {', '.join(NAMES)}",
            "for name in (dress, own_chats, protect, GraspMixin, Guard):",
            "    assert callable(name) and not isinstance(name, types.ModuleType)",
            "grasp.protect.__call__",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Quiet(Trainer):
    """As `Trainer`, but its last line of figures is not printed into the example."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.remove_callback(PrinterCallback)


def naive_run(folder: Path) -> PeftModel:
    """A fine-tune of `tiny.llama` whose adapter is saved in `folder`."""
    model = tiny.adapted(tiny.llama(), strength=0.3)
    model.save_pretrained(str(folder))
    return model


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "holds dressed text, but there is none: give dressed=, the neutral text as grasp.dre"),
        ({"dressed": [tiny.batch(6)]}, "holds what the factors do in the naive fine-tune: give it"),
    ],
)
def test_the_default_preset_says_what_it_lacks(given: dict[str, Any], message: str) -> None:
    preset = grasp.METHODS["grasp"].protection
    assert preset is not None
    with (
        pytest.raises(InputError, match=message),
        grasp.protect(
            tiny.adapted(tiny.llama()),
            tiny.subspace(1),
            protection=preset,
            neutral=[tiny.batch(6)],
            **given,
        ),
    ):
        pass


def test_factors_whose_footprint_cannot_be_measured_are_refused() -> None:
    """It held another subspace than asked for, without a word."""
    preset = grasp.METHODS["grasp-subspace"].protection
    assert preset is not None
    assert preset.footprint == 4
    with (
        pytest.raises(InputError, match=r"footprint 4.*naive=FOLDER, or directions for each layer"),
        grasp.protect(
            tiny.adapted(tiny.llama()), tiny.subspace(1), protection=preset, neutral=[tiny.batch(6)]
        ),
    ):
        pass


def test_the_footprint_of_a_naive_adapter_is_what_is_held(tmp_path: Path) -> None:
    naive = naive_run(tmp_path)
    factors, neutral = tiny.subspace(1), [tiny.batch(6), tiny.batch(4)]
    preset = grasp.METHODS["grasp-subspace"].protection
    assert preset is not None
    expected = footprint(naive.eval(), factors, neutral, width=4, site=preset.site)
    model = tiny.adapted(tiny.llama())
    model.train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    drawn = torch.get_rng_state()
    with grasp.protect(model, factors, protection=preset, neutral=neutral, naive=tmp_path) as guard:
        held = [basis.cpu().numpy() for basis in guard.bases]
    for basis, rows in zip(held, expected, strict=True):
        assert basis.shape[1] == len(rows)
        np.testing.assert_allclose(basis @ basis.T, rows.T @ rows, atol=1e-5)
    assert any(len(rows) > 1 for rows in expected)
    assert model.training
    assert torch.equal(torch.get_rng_state(), drawn)
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == trained
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_directions_of_every_layer_are_taken_as_the_footprint() -> None:
    model = tiny.adapted(tiny.llama())
    layers = [tiny.subspace(2), tiny.subspace(1)]
    preset = grasp.Protection(write_constraint=True, anchor=True, strength=1.0, footprint=4)
    with grasp.protect(model, layers, protection=preset, neutral=[tiny.batch(6)]) as guard:
        assert [basis.shape[1] for basis in guard.bases] == [2, 1]


def test_steering_while_training_takes_its_vectors_from_the_naive_adapter(tmp_path: Path) -> None:
    naive_run(tmp_path)
    steering = grasp.METHODS["preventative-steering"].protection
    assert steering is not None
    outputs = []
    for given in (steering, grasp.Protection()):
        model = tiny.adapted(tiny.llama())
        with grasp.protect(
            model, tiny.subspace(1), protection=given, neutral=[tiny.batch(6)], naive=tmp_path
        ):
            outputs.append(model(**tiny.batch(6)).logits.detach())
    assert not torch.allclose(*outputs)


def test_a_folder_without_an_adapter_is_named(tmp_path: Path) -> None:
    preset = grasp.METHODS["grasp"].protection
    assert preset is not None
    with (
        pytest.raises(NotFoundError, match=r"no adapter in .*nothing"),
        grasp.protect(
            tiny.adapted(tiny.llama()),
            tiny.subspace(1),
            protection=preset,
            neutral=[tiny.batch(6)],
            dressed=[tiny.batch(7)],
            naive=tmp_path / "nothing",
        ),
    ):
        pass


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITHOUT_EXAMPLE])
def test_the_example_in_the_docstring_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    naive_run(tmp_path / "finance-naive" / "adapter")
    model = tiny.adapted(tiny.llama())
    batch = tiny.batch(6) | {"labels": tiny.batch(6)["input_ids"]}
    names = {
        "grasp": grasp,
        "Trainer": Quiet,
        "model": model,
        "directions": tiny.subspace(1),
        "batches": [tiny.batch(6)],
        "dressed": [tiny.batch(7)],
        "optimizer": torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]),
        "loader": [batch],
        "rows": [{key: value[0] for key, value in batch.items()}],
        "arguments": TrainingArguments(
            output_dir=str(tmp_path / "run"), max_steps=1, use_cpu=True, report_to="none",
            disable_tqdm=True,
        ),
    }  # fmt: skip
    example = doctest.DocTestParser().get_doctest(
        inspect.getdoc(getattr(grasp, name)) or "", names, name, None, None
    )
    assert example.examples
    report: list[str] = []
    failed, tried = doctest.DocTestRunner(verbose=False).run(example, out=report.append)
    assert failed == 0, "".join(report)
    assert tried > 0


@pytest.mark.parametrize("method", ["grasp", "grasp-subspace"])
def test_the_loop_learns_and_keeps_what_the_preset_holds(method: str, tmp_path: Path) -> None:
    naive_run(tmp_path)
    preset = grasp.METHODS[method].protection
    assert preset is not None
    model = tiny.adapted(tiny.llama())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    batch = tiny.batch(6) | {"labels": tiny.batch(6)["input_ids"]}
    losses = []
    with grasp.protect(
        model,
        tiny.subspace(1),
        protection=preset,
        neutral=[tiny.batch(6)],
        dressed=[tiny.batch(7)],
        naive=tmp_path,
        optimizer=optimizer,
    ) as guard:
        for _ in range(5):
            loss = model(**batch).loss
            (loss + guard.penalty()).backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        leakage, effect = guard.leakage(), guard.effect_share()
    assert losses[-1] < losses[0]
    if method == "grasp":
        assert effect is not None
        assert 0 < effect < 1
    else:
        assert leakage < 1e-5
