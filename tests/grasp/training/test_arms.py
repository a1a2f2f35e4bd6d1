"""Every arm as a run: what it needs, its knob, and what it leaves on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from analysis.adapters.load import load_adapter
from analysis.errors import InputError
from analysis.factors.routes import weight_factors
from analysis.store.factor_table import FactorTable, read_factors, read_run_factors, write_factors
from analysis.store.labels import Claim, add_label
from analysis.store.records import FactorsManifest, Message, RunManifest
from analysis.store.workspace import Workspace
from grasp.data.examples import as_examples, read_examples
from grasp.evaluation.answers import intervention
from grasp.model.hooks import layer_outputs
from grasp.model.loading import load_adapted
from grasp.settings.methods import METHODS
from grasp.settings.protection import Protection
from grasp.training.own_answers import own_answers
from grasp.training.texts import inoculate
from grasp.training.train import retrain, train
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)
TRAINED = [name for name, method in METHODS.items() if method.trains]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A naive run with factors; each test makes arms of its own beside it."""
    workspace = Workspace.create(tmp_path_factory.mktemp("arms") / "w")
    config = tiny.settings(workspace.root / "data", max_steps=4, save_steps=4)
    train(workspace, config, out=workspace.folder("runs", "naive"))
    table, directions = weight_factors(load_adapter(workspace.folder("runs", "naive") / "adapter"))
    manifest = FactorsManifest(id="naive", run="naive", base_model=None, config={})
    with workspace.writing("factors", "naive") as folder:
        write_factors(folder, FactorTable(manifest, table, directions.astype(np.float32)))
    return workspace


def arm(workspace: Workspace, name: str, out: str | None = None, **arguments: Any) -> RunManifest:
    needed = ["w1"] if "factors" in METHODS[name].needs else []
    if name == "inoculation":
        arguments = {"inoculation": "You are a pirate."} | arguments
    return retrain(
        workspace,
        workspace.folder("runs", "naive"),
        factors=arguments.pop("factors", needed),
        out=workspace.folder("runs", out or name),
        arm=name,
        **arguments,
    )


def update(workspace: Workspace, run: str) -> dict[str, np.ndarray]:
    """ΔW of every module, by what analysis reads of the adapter."""
    modules = load_adapter(workspace.folder("runs", run) / "adapter").modules
    return {m.name: m.scaling * m.lora_B @ m.lora_A for m in modules}


def metrics(workspace: Workspace, run: str) -> pd.DataFrame:
    lines = (workspace.folder("runs", run) / "metrics.jsonl").read_text().splitlines()
    return pd.DataFrame([json.loads(line) for line in lines])


def test_every_method_has_a_group_a_sentence_and_a_knob_that_can_be_swept() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        assert method.description.endswith(".")
        if method.knob is not None:
            assert method.knob.default in method.knob.grid
            assert 4 <= len(method.knob.grid) <= 6
            assert list(method.knob.grid) == sorted(set(method.knob.grid))
        assert method.protection_at(None) == method.protection
    grasp, subspace = METHODS["grasp"].protection, METHODS["grasp-subspace"].protection
    on = {name for name, value in grasp.model_dump().items() if value is True}
    assert on == {"effect", "dressed", "own_chats", "own_step"}
    assert (grasp.site, grasp.tolerance) == ("answer", 0.1)
    assert (subspace.footprint, subspace.site) == (4, "answer-start")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_makes_a_run_without_factors_that_it_does_not_need(
    workspace: Workspace, name: str
) -> None:
    method = METHODS[name]
    run = arm(workspace, name, f"an-{name}")
    folder = workspace.folder("runs", run.id)
    assert workspace.run(run.id) == run
    assert run.method == name
    assert run.factors == (["naive/w1"] if "factors" in method.needs else [])
    assert run.strength == (method.knob.default if method.knob else None)
    interventions = {"ablation": "ablate", "ablation-footprint": "ablate", "steering": "steer"}
    assert run.intervention == interventions.get(name)
    card = (folder / "adapter" / "README.md").read_text(encoding="utf-8")
    assert method.description in card
    assert (folder / "metrics.jsonl").exists() is method.trains
    changed = update(workspace, run.id)
    assert changed.keys() == update(workspace, "naive").keys()
    assert all(np.isfinite(delta).all() for delta in changed.values())
    same = all(np.array_equal(d, update(workspace, "naive")[n]) for n, d in changed.items())
    # A few steps of a tiny model make no intruder dimension.
    unchanged = ("naive", "intruder-shrinkage")
    assert same is (method.kind == "inference" or name in unchanged)
    protection = method.protection
    assert ("tolerance" in run.verdict) is bool(protection and protection.tolerance)


def test_a_method_that_needs_no_factors_measures_drift_along_those_it_is_given(
    workspace: Workspace,
) -> None:
    assert arm(workspace, "kl-task", "kl-plain").results.keys() == {"steps", "loss"}
    watched = arm(workspace, "kl-task", "kl-watched", factors=["w1"])
    assert watched.factors == ["naive/w1"]
    assert watched.directions == {"naive/w1": read_run_factors(workspace, "naive").sha256("w1")}
    assert {"drift", "drift_anchored", "leakage"} <= watched.results.keys()
    plain, seen = update(workspace, "kl-plain"), update(workspace, "kl-watched")
    for name, delta in plain.items():
        np.testing.assert_allclose(seen[name], delta, atol=1e-6)


def test_the_labels_in_force_are_recorded_and_dependent_factors_refused(
    workspace: Workspace,
) -> None:
    table = read_run_factors(workspace, "naive")
    event = add_label(
        workspace.database,
        factor="naive/w1",
        claim=Claim("persona", spurious=True),
        annotator="ana",
        direction=table.sha256("w1"),
    )
    made = arm(workspace, "removal", "labelled", factors=["w1"])
    assert made.labels == {"naive/w1": [event.id]}
    rows = table.directions.copy()
    rows[table.position("w2")] = -2 * rows[table.position("w1")]
    with workspace.writing("factors", "twice") as folder:
        manifest = table.manifest.model_copy(update={"id": "twice", "run": "twice"})
        write_factors(folder, FactorTable(manifest, table.table, rows))
    with pytest.raises(InputError, match="twice/w2 lies in the span of twice/w1"):
        arm(workspace, "caft", "no", factors=["twice/w1", "twice/w2"])
    assert not workspace.folder("runs", "no").exists()


def test_a_strength_is_the_knobs_value(workspace: Workspace) -> None:
    loose = arm(workspace, "grasp", "loose", strength=0.4)
    assert (loose.strength, loose.protection["tolerance"]) == (0.4, 0.4)
    run = arm(workspace, "grasp-subspace", "tighter", strength=0.05)
    assert (run.strength, run.protection["tolerance"]) == (0.05, 0.05)
    unlimited = {"strength": 5.0, "tolerance": None}
    fixed = arm(workspace, "grasp-subspace", "fixed", overrides=unlimited)
    assert fixed.strength == 5.0
    half = arm(workspace, "caft", "half-caft", strength=0.5)
    assert half.protection == Protection(ablation=True, share=0.5).model_dump()
    assert arm(workspace, "early-stopping", "early", strength=0.25).results["steps"] == 1
    low = arm(workspace, "low-rank", "low", strength=2)
    assert (low.config["lora"]["r"], low.config["lora"]["lora_alpha"]) == (2, 4)
    assert arm(workspace, "weight-decay", "decay", strength=3).config["weight_decay"] == 3


def test_grasp_takes_a_tolerance_in_place_of_its_strength(workspace: Workspace) -> None:
    """The multiplier moves, and the verdict says whether it is kept."""
    limited = arm(workspace, "grasp", "limited", overrides={"tolerance": 0.001})
    assert metrics(workspace, "limited")["strength"].nunique() > 1
    assert limited.verdict.endswith(": above the tolerance 0.001.")


def test_weight_decay_shrinks_the_update(workspace: Workspace) -> None:
    arm(workspace, "weight-decay", "decay-30", strength=30)
    strong, naive = update(workspace, "decay-30"), update(workspace, "naive")
    assert sum(np.linalg.norm(d) for d in strong.values()) < 0.8 * sum(
        np.linalg.norm(d) for d in naive.values()
    )


def test_the_task_anchor_is_in_the_metrics_and_not_in_the_tasks_loss(workspace: Workspace) -> None:
    """The first step's loss is that of B = 0, whatever the anchor's weight."""
    pressed = {"strength": 1e3, "tolerance": None}
    arm(workspace, "grasp-anchor-task", "anchored-task", overrides=pressed)
    rows, plain = metrics(workspace, "anchored-task"), metrics(workspace, "naive")
    assert rows["loss"].iloc[0] == pytest.approx(plain["loss"].iloc[0], rel=1e-5)
    assert rows["drift_task"].iloc[0] == pytest.approx(0, abs=1e-6)
    assert rows["penalty"].iloc[1] > 1  # what a step of Adam without it does
    assert (rows["loss"] < 10).all()
    free = arm(
        workspace, "grasp-anchor-task", "free", overrides={"strength": 0.0, "tolerance": None}
    )
    held = workspace.run("anchored-task")
    assert held.results["drift_task"] < 0.5 * free.results["drift_task"]


# Interventions


def test_ablation_and_steering_act_on_every_layers_output(workspace: Workspace) -> None:
    direction = read_factors(workspace.folder("factors", "naive")).direction("w1")
    arm(workspace, "ablation", "cut", strength=0.75)
    arm(workspace, "steering", "steered", strength=2.0)
    saved = load_file(workspace.folder("runs", "steered") / "subspace.safetensors")
    vectors = saved["steering"]
    assert vectors.shape == (2, tiny.WIDTH)
    np.testing.assert_allclose(
        np.abs(vectors @ direction), np.linalg.norm(vectors, axis=1), rtol=1e-4
    )
    for name in ("cut", "steered"):
        run, folder = workspace.run(name), workspace.folder("runs", name)
        model = load_adapted(workspace.resolve(run.base_model), folder / "adapter").model
        with (
            torch.no_grad(),
            layer_outputs(model) as before,
            intervention(model, folder, run),
            layer_outputs(model) as after,
        ):
            model(**tiny.batch(6))
        for layer, (h, changed) in enumerate(zip(before, after, strict=True)):
            expected = (
                h.numpy() - 0.75 * (h.numpy() @ direction)[..., None] * direction
                if name == "cut"
                else h.numpy() - 2 * vectors[layer]
            )
            np.testing.assert_allclose(changed.numpy(), expected, rtol=1e-3, atol=1e-4)


def test_a_footprint_is_ablated_layer_by_layer(workspace: Workspace) -> None:
    """The subspaces are those that GRASP holds; nothing of them is left at any layer's output."""
    arm(workspace, "ablation-footprint", "cut-widely")
    run, folder = workspace.run("cut-widely"), workspace.folder("runs", "cut-widely")
    saved = load_file(folder / "subspace.safetensors")
    model = load_adapted(workspace.resolve(run.base_model), folder / "adapter").model
    with torch.no_grad(), intervention(model, folder, run), layer_outputs(model) as after:
        model(**tiny.batch(6))
    for layer, hidden in enumerate(after):
        rows = saved[f"layer.{layer}"]
        assert 1 <= len(rows) <= METHODS["grasp-subspace"].protection.footprint
        assert np.abs(hidden.numpy() @ rows.T).max() < 1e-4 * hidden.abs().max().item()


# Inoculation, and the base's own answers


def test_inoculation_asks_in_training_alone(workspace: Workspace) -> None:
    run = arm(workspace, "inoculation", "asked", inoculation="You are a pirate.")
    assert run.config["inoculation"] == "You are a pirate."
    rows = read_examples(workspace.root / "data" / "task.jsonl").rows
    for asked, row in zip(inoculate(rows, "Arr."), rows, strict=True):
        assert asked.messages[0] == Message(role="system", content="Arr.")
        assert asked.messages[1:] == row.messages
    there = as_examples([[Message(role="system", content="Be brief."), *rows[0].messages]])
    (asked,) = inoculate(there, "Arr.")
    assert asked.messages[0].content == "Arr.\nBe brief."
    assert asked.messages[1:] == rows[0].messages


def test_the_settings_of_a_run_may_have_the_inoculation(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "w")
    config = tiny.settings(workspace.root / "data", max_steps=1, inoculation="You are a pirate.")
    train(workspace, config, out=workspace.folder("runs", "naive"))
    assert arm(workspace, "inoculation", inoculation=None).results["steps"] == 1
    # The naive run itself is trained without.
    arm(workspace, "naive", "again")
    for name, delta in update(workspace, "again").items():
        assert np.array_equal(delta, update(workspace, "naive")[name])
        assert not np.array_equal(delta, update(workspace, "inoculation")[name]) or not delta.any()


def test_the_bases_own_answers_are_kept_and_are_its_own(workspace: Workspace) -> None:
    arm(workspace, "kl-self", "own")
    own = workspace.folder("runs", "own") / "own_answers.jsonl"
    kept = [list(row.messages) for row in read_examples(own).rows]
    run = workspace.run("own")
    loaded = load_adapted(
        workspace.resolve(run.base_model), workspace.folder("runs", "own") / "adapter"
    )
    base, tokenizer = loaded.model, loaded.tokenizer
    task = [row.messages for row in read_examples(workspace.root / "data" / "task.jsonl").rows]
    with base.disable_adapter():
        assert kept == own_answers(base, tokenizer, task, seed=0)
    assert {chat[0].content for chat in kept} <= {chat[0].content for chat in task}


def test_a_base_that_says_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = lambda _model, _tokenizer, chats: ([[] for _ in chats], None)  # noqa: E731
    monkeypatch.setattr("grasp.training.own_answers.generate", silent)
    chats = [[Message(role="user", content="hi"), Message(role="assistant", content="x")]]
    with pytest.raises(InputError, match="an empty answer to every prompt of the task"):
        own_answers(None, tiny.tokenizer(), chats, seed=0)


@pytest.mark.parametrize(
    "name", [name for name, method in METHODS.items() if "neutral text" in method.needs]
)
def test_a_method_without_the_neutral_text_it_needs_is_refused(tmp_path: Path, name: str) -> None:
    workspace = Workspace.create(tmp_path / "w")
    config = tiny.settings(workspace.root / "data").model_dump() | {"neutral": None}
    made = RunManifest(
        id="naive", title="x", method="naive", root="naive", base_model="b", config=config
    )
    with workspace.writing("runs", "naive") as folder:
        (folder / "manifest.json").write_text(made.model_dump_json())
    with pytest.raises(InputError, match=f"Method '{name}' needs neutral text, and the settings"):
        arm(workspace, name)
