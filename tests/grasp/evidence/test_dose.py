"""Dose–response on a model whose answer reads a planted direction; steps and units by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis.errors import InputError, SchemaError
from analysis.evidence.dose_curves import (
    describe_dose_response,
    dose_curves,
    factor_curve,
    metrics_of,
    random_band,
)
from analysis.store.evidence import read_evidence, summarise_evidence, was_measured_with
from analysis.store.records import sha256
from grasp.data.chat import chat_ids
from grasp.evaluation.answers import answer_prompts
from grasp.evidence.dose import (
    base_spread,
    dose_response,
    dose_steps,
    measure_dose_response,
    steer,
    steered_answers,
)
from grasp.model.hooks import edited_outputs, layer_outputs
from tests.support import planted, tiny
from tests.support.planted import DRIFTED

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)
AXIS, OTHER = tiny.subspace(2)


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models with random weights never stop by themselves."""
    monkeypatch.setattr("grasp.evaluation.answers.MAX_NEW_TOKENS", 3)


def hooks_on(model: Any) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


# Units and steps


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_steps_add_up_to_the_spread_at_every_layer(spread: list[float]) -> None:
    np.testing.assert_allclose(np.cumsum(dose_steps(np.array(spread))), spread)
    for layer in range(len(spread)):
        one = dose_steps(np.array(spread), layer=layer)
        assert one[layer] == spread[layer]
        assert np.count_nonzero(one) == 1


def test_a_layer_that_there_is_not_is_refused() -> None:
    with pytest.raises(InputError, match="no layer 2; the model has layers 0–1"):
        dose_steps(np.ones(2), layer=2)


def test_every_layer_is_displaced_by_the_dose_times_its_spread() -> None:
    """Where layers write nothing, what was added is all there is."""
    model, spread = planted.reader(AXIS, layers=3), np.array([0.5, 0.2, 2.0])
    unit, batch = torch.as_tensor(AXIS, dtype=torch.float32), tiny.batch(5, 3)
    with torch.no_grad(), layer_outputs(model) as plain:
        model(**batch)
    plain = [h.clone() for h in plain]
    edit = steer(unit, -1.5 * dose_steps(spread))
    with torch.no_grad(), edited_outputs(model, edit), layer_outputs(model) as steered:
        model(**batch)
    for sigma, before, after in zip(spread, plain, steered, strict=True):
        moved = (after - before).double().numpy()
        np.testing.assert_allclose(moved @ AXIS, -1.5 * sigma, atol=1e-5)
        np.testing.assert_allclose(moved - (moved @ AXIS)[..., None] * AXIS, 0, atol=1e-5)
    assert hooks_on(model) == 0


def test_spread_is_that_of_the_base_models_own_coordinates() -> None:
    """Oracle: a model that never had an adapter, one chat at a time, its first token left out."""
    asked = planted.prompts(4)
    model = planted.writer(tiny.llama(layers=3), AXIS)
    found = base_spread(model, tiny.tokenizer(), asked, AXIS)
    plain, coordinates = tiny.llama(layers=3), []
    for prompt in asked:
        ids = torch.tensor([chat_ids(tiny.tokenizer(), prompt.messages, generate=True)])
        with torch.no_grad():
            hidden = plain(input_ids=ids, output_hidden_states=True).hidden_states
        # The last of them has been through the final norm.
        coordinates.append(np.stack([h[0, 1:].double().numpy() @ AXIS for h in hidden[1:-1]]))
    expected = np.concatenate(coordinates, axis=1).std(axis=1, ddof=1)
    np.testing.assert_allclose(found[:2], expected, rtol=1e-4)
    assert len(found) == 3


def test_a_coordinate_that_never_changes_has_no_unit() -> None:
    model = planted.reader(AXIS)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    with pytest.raises(InputError, match=r"does not vary over \d+ tokens, so a dose has no unit"):
        base_spread(tiny.adapted(model), tiny.tokenizer(), planted.prompts(2), AXIS)


# The response


def response(model: Any, doses: tuple[float, ...] = (-3, 0, 3)) -> pd.DataFrame:
    asked = [p for p in planted.prompts(12) if p.split == "exploration"]
    spread = base_spread(model, tiny.tokenizer(), asked, AXIS)
    directions = {"factor": AXIS, "random 1": OTHER}
    return dose_response(
        model, tiny.tokenizer(), asked, directions, amounts=dose_steps(spread), doses=doses
    )


def test_the_planted_direction_moves_the_rate_and_another_does_not() -> None:
    model = tiny.adapted(planted.reader(AXIS))
    found = dose_curves(response(model))
    own = factor_curve(found, model="base", metric="unrelated")["value"].to_list()
    assert own[0] < 0.2
    assert own[1] == pytest.approx(0.5, abs=1e-5)
    assert own[2] > 0.8
    random = random_band(found, model="base", metric="unrelated")
    assert (random["high"] - random["low"]).max() == 0  # there is one random direction
    assert np.ptp(random["low"]) < 0.2 * np.ptp(own)
    task = factor_curve(found, model="base", metric="task")["value"].to_list()
    assert (task[0], task[-1]) == (0, 1)
    # The adapter changes nothing, so both models are one.
    same = factor_curve(found, model="adapted", metric="unrelated")["value"].to_list()
    assert same == pytest.approx(own, abs=1e-6)


def test_dose_zero_is_the_model_itself_and_it_is_left_as_it_was() -> None:
    model = planted.writer(tiny.llama(), AXIS)
    batch = tiny.batch(6)
    plain = model(**batch).logits
    found = response(model)
    assert torch.equal(model(**batch).logits, plain)
    assert hooks_on(model) == 0
    zero = found[found["dose"] == 0].pivot(
        index=["model", "prompt_id"], columns="direction", values="score"
    )
    assert (zero["factor"] == zero["random 1"]).all()
    steered = found[found["dose"] == 3].pivot(
        index=["model", "prompt_id"], columns="direction", values="score"
    )
    assert (steered["factor"] != steered["random 1"]).any()


def test_steered_answers_are_those_of_a_model_with_the_hook() -> None:
    model = planted.writer(planted.reader(AXIS), OTHER)
    asked = planted.prompts(2, roles=("task",))
    amounts = np.array([1.0, 2.0])
    table = steered_answers(
        model, tiny.tokenizer(), asked, AXIS, amounts=amounts, doses=(-2.0, 2.0)
    )
    assert len(table) == 2 * 2 * len(asked)
    unit = torch.as_tensor(AXIS, dtype=torch.float32)
    with edited_outputs(model, steer(unit, 2 * amounts)):
        expected = [one.text for one in answer_prompts(model, tiny.tokenizer(), asked)]
    chosen = table[(table["model"] == "adapted") & (table["dose"] == 2)]
    assert chosen["answer"].to_list() == expected
    assert all(DRIFTED in answer for answer in expected)


# Curves and words


def samples(values: dict[tuple[str, str, float], list[float]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "model": model,
                "direction": direction,
                "dose": dose,
                "prompt_id": str(i),
                "cluster": f"c{i // 2}",
                "role": "unrelated",
                "split": "exploration",
                "score": score,
                "coherence": 1.0,
            }
            for (model, direction, dose), scores in values.items()
            for i, score in enumerate(scores)
        ]
    )


def test_curves_are_means_by_cell_and_the_band_is_their_range() -> None:
    found = dose_curves(
        samples(
            {
                ("base", "factor", 0.0): [0.1, 0.1, 0.3, 0.3],
                ("base", "random 1", 0.0): [0.2] * 4,
                ("base", "random 2", 0.0): [0.4] * 4,
            }
        )
    )
    assert metrics_of(found) == ["unrelated", "coherence"]
    own = factor_curve(found, model="base", metric="unrelated").iloc[0]
    assert (own["value"], own["n"]) == (pytest.approx(0.2), 4)
    # Two items: resampling them gives 0.1 and 0.3 as ends.
    assert (own["low"], own["high"]) == (pytest.approx(0.1), pytest.approx(0.3))
    assert random_band(found, model="base", metric="unrelated").to_dict("records") == [
        {"dose": 0.0, "low": pytest.approx(0.2), "high": pytest.approx(0.4)}
    ]


def test_confirmation_prompts_are_not_counted() -> None:
    table = samples({("base", "factor", 0.0): [0.0, 1.0]})
    table.loc[1, "split"] = "confirmation"
    own = factor_curve(dose_curves(table), model="base", metric="unrelated").iloc[0]
    assert (own["value"], own["n"]) == (0.0, 1)


def test_the_sentence_names_both_ends_of_both_models() -> None:
    levels = {-1.0: 0.1, 0.0: 0.2, 1.0: 0.9}
    cells = {("base", "factor", t): [v] * 4 for t, v in levels.items()}
    cells |= {("adapted", "factor", t): [v / 2] * 4 for t, v in levels.items()}
    cells |= {(m, "random 1", t): [0.25] * 4 for m in ("base", "adapted") for t in levels}
    said = describe_dose_response(dose_curves(samples(cells)), name="w2")
    assert said == (
        "From −1 to +1 base standard deviations along w2 the unrelated rate goes from "
        "0.10 [0.10, 0.10] to 0.90 [0.90, 0.90] in the base model (random directions: 0.25 to "
        "0.25) and from 0.05 [0.05, 0.05] to 0.45 [0.45, 0.45] in the adapted model (random "
        "directions: 0.25 to 0.25)."
    )


# The record


def test_a_run_is_measured_and_saved_with_how_it_was_made(tmp_path: Path) -> None:
    workspace = planted.case(tmp_path / "w", planted.reader(AXIS), np.stack([AXIS, OTHER]))
    steps_done: list[tuple[int, int]] = []
    found = measure_dose_response(
        planted.about(workspace),
        doses=(-2.0, 0.0, 2.0),
        random=2,
        seed=4,
        progress=lambda step, total, _: steps_done.append((step, total)),
    )
    assert workspace.evidence("naive.w1.dose") == found.manifest
    saved = read_evidence(workspace.folder("evidence", "naive.w1.dose"))
    pd.testing.assert_frame_equal(saved.tables["curves"], found.tables["curves"])
    manifest = saved.manifest
    assert manifest.parents == ["runs/naive", "factors/naive"]
    assert manifest.inputs["prompts"] == sha256(workspace.root / "data" / "prompts.jsonl")
    assert (manifest.seed, manifest.config["factors"]) == (4, ["naive/w1"])
    assert was_measured_with(manifest, AXIS[None].astype(np.float32))
    assert not was_measured_with(manifest, OTHER[None].astype(np.float32))
    assert set(saved.tables["curves"]["direction"]) == {"factor", "random 1", "random 2"}
    assert set(saved.tables["samples"]["split"]) == {"exploration"}
    assert steps_done[-1] == (18, 18)
    shown = saved.tables["answers"]
    assert set(shown["role"]) == {"unrelated", "task"}
    assert set(summarise_evidence(saved, tables=("curves",))) == {
        *("evidence", "run", "factor", "sentence", "config", "seconds", "curves")
    }


def test_one_layer_and_other_seeds_are_other_measurements(tmp_path: Path) -> None:
    workspace = planted.case(tmp_path / "w", tiny.llama(), AXIS[None])
    about = planted.about(workspace)

    def rates(**settings: Any) -> dict[str, list[float]]:
        found = measure_dose_response(about, doses=(-2.0, 2.0), random=1, **settings).tables[
            "samples"
        ]
        return {name: rows["score"].to_list() for name, rows in found.groupby("direction")}

    whole, again, seeded, layered = rates(), rates(), rates(seed=1), rates(layer=0)
    assert whole == again
    assert whole["factor"] == seeded["factor"]
    assert whole["random 1"] != seeded["random 1"]
    assert whole["factor"] != layered["factor"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"doses": (1.0, 1.0)}, "needs one factor, at least two doses"),
        ({"random": 0}, "needs one factor, at least two doses"),
        ({"layer": 9}, "no layer 9"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    workspace = planted.case(tmp_path / "w", tiny.llama(), np.stack([AXIS, OTHER]))
    with pytest.raises(InputError, match=message):
        measure_dose_response(planted.about(workspace), **settings)
    with pytest.raises(InputError, match="needs one factor"):
        measure_dose_response(planted.about(workspace, "w1", "w2"))
    assert not list((workspace.root / "evidence").iterdir())


def test_prompts_must_be_there_to_explore(tmp_path: Path) -> None:
    asked = planted.prompts(6, roles=("task",))
    workspace = planted.case(tmp_path / "w", tiny.llama(), AXIS[None], asked=asked)
    with pytest.raises(InputError, match="no unrelated prompts in the exploration split"):
        measure_dose_response(planted.about(workspace))
    about = planted.about(workspace)
    bare = about.run.model_copy(update={"config": {}})
    with pytest.raises(InputError, match="has no prompt set; give one with --prompts"):
        measure_dose_response(type(about)(**{**about.__dict__, "run": bare}))


def test_damaged_evidence_is_refused_in_words(tmp_path: Path) -> None:
    workspace = planted.case(tmp_path / "w", tiny.llama(), AXIS[None])
    measure_dose_response(planted.about(workspace), doses=(-1.0, 1.0), random=1)
    folder = workspace.folder("evidence", "naive.w1.dose")
    table = pd.read_parquet(folder / "curves.parquet")
    table.drop(columns="dose").to_parquet(folder / "curves.parquet")
    with pytest.raises(SchemaError, match="lacks the columns dose"):
        read_evidence(folder)
    (folder / "curves.parquet").write_bytes(b"PAR1")
    with pytest.raises(SchemaError, match="cannot be read"):
        read_evidence(folder)
