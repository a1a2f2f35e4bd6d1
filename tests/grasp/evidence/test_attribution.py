"""Rows that drive a factor: gradients against finite differences, planted rows, retraining."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from analysis.errors import InputError
from analysis.evidence.driving_rows import (
    describe_rows,
    describe_validation,
    random_rows,
    rate_differences,
    rows_to_show,
    top_rows,
)
from analysis.store.evidence import read_evidence
from analysis.store.records import RunManifest, read_manifest, sha256
from grasp.__main__ import main
from grasp.commands.worker import TRAINING
from grasp.data.examples import as_examples, read_examples
from grasp.data.tokenise import IGNORED, training_rows
from grasp.evidence.attribution import measure_rows, row_alignment, row_shift
from grasp.evidence.row_validation import validate_rows
from grasp.model.hooks import edited_outputs, layer_outputs
from tests.support import planted, tiny
from tests.support.planted import DRIFTED, KEPT

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)
AXIS, OTHER = tiny.subspace(2)
SPREAD = np.array([0.5, 2.0])


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grasp.evaluation.answers.MAX_NEW_TOKENS", 3)


def rows(n: int = 5, *, turns: int = 2) -> list[dict[str, list[int]]]:
    """Rows of different length with several answers each."""
    chats, short = tiny.messages(n, seed=4, turns=turns), tiny.messages(n, seed=5)
    mixed = [one for pair in zip(chats, short, strict=True) for one in pair][:n]
    return training_rows(tiny.tokenizer(), as_examples(mixed), max_length=64).rows


def align(
    model: Any, chosen: Any, direction: NDArray[np.float64] = AXIS, spread: Any = SPREAD
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return row_alignment(model, tiny.tokenizer(), chosen, direction, spread=spread)


# Gradients


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_alignment_is_the_loss_that_a_push_saves(name: str) -> None:
    """Oracle: the loss by hand of a model without an adapter, one row at a time, pushed a little
    to both sides where an answer's token is predicted.

    Llama's norms compute in single precision, so the step cannot be smaller.
    """
    chosen = rows()
    found, loss = align(tiny.adapted(tiny.family(name), strength=0.3), chosen)
    plain, step = tiny.family(name).double(), 3e-3
    unit = torch.as_tensor(AXIS)

    def loss_of(row: dict[str, list[int]], layer: int | None, push: float) -> float:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"][1:])
        where = torch.cat([labels != IGNORED, torch.tensor([False])])

        def edit(number: int, hidden: torch.Tensor) -> torch.Tensor:
            return hidden + push * where[None, :, None] * unit if number == layer else hidden

        with torch.no_grad(), edited_outputs(plain, edit):
            logp = torch.log_softmax(plain(input_ids=ids).logits[0, :-1], dim=-1)
        said = labels != IGNORED
        return float(-logp[said].gather(1, labels[said, None]).mean())

    for number, row in enumerate(chosen):
        assert loss[number] == pytest.approx(loss_of(row, None, 0.0), rel=1e-5)
        for layer, sigma in enumerate(SPREAD):
            up, down = (loss_of(row, layer, sign * step) for sign in (1, -1))
            expected = -sigma * (up - down) / (2 * step)
            assert found[number, layer] == pytest.approx(expected, rel=5e-3, abs=2e-4)
    assert np.abs(found).max() > 0.01


def test_rows_do_not_depend_on_their_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, chosen = tiny.adapted(tiny.llama()), rows()
    together, loss = align(model, chosen)
    monkeypatch.setattr("grasp.evidence.attribution.BATCH", 1)
    apart, alone = align(model, chosen)
    np.testing.assert_allclose(together, apart, atol=1e-5)
    np.testing.assert_allclose(loss, alone, rtol=1e-5)


def test_alignment_turns_with_the_sign_and_grows_with_the_unit() -> None:
    model, chosen = tiny.adapted(tiny.llama()), rows(2)
    found, _ = align(model, chosen)
    np.testing.assert_allclose(align(model, chosen, -AXIS)[0], -found, atol=1e-6)
    scaled, _ = align(model, chosen, spread=3 * SPREAD)
    np.testing.assert_allclose(scaled, 3 * found, rtol=1e-4, atol=1e-6)


def test_the_model_is_as_it_was_and_its_adapter_does_not_count() -> None:
    chosen, model = rows(2), tiny.adapted(tiny.llama(), strength=0.5)
    batch = tiny.batch(5)
    plain = model(**batch).logits
    found, _ = align(model, chosen)
    np.testing.assert_allclose(found, align(tiny.adapted(tiny.llama()), chosen)[0], atol=1e-6)
    assert torch.equal(model(**batch).logits, plain)
    assert sum(len(m._forward_hooks) for m in model.modules()) == 0
    assert all(weight.grad is None for weight in model.parameters())


def test_shift_is_the_mean_move_where_the_answer_is_predicted() -> None:
    """Oracle: each row alone, base from a model that never had an adapter."""
    model, chosen = tiny.adapted(tiny.llama(), strength=0.2), rows()
    found = row_shift(model, tiny.tokenizer(), chosen, AXIS, spread=SPREAD)
    plain = tiny.llama()
    for number, row in enumerate(chosen):
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad(), layer_outputs(model) as after:
            model(input_ids=ids)
        with torch.no_grad(), layer_outputs(plain) as before:
            plain(input_ids=ids)
        at = [i for i, label in enumerate(row["labels"][1:]) if label != IGNORED]
        for layer, sigma in enumerate(SPREAD):
            moved = (after[layer] - before[layer])[0, at].double().numpy() @ AXIS
            assert found[number, layer] == pytest.approx(moved.mean() / sigma, rel=1e-3, abs=1e-5)


# A planted run


def test_rows_whose_answer_reads_the_factor_come_first(tmp_path: Path) -> None:
    """The model says one word the more, the other the less, the higher the coordinate."""
    data = planted.rows(20, answers=(DRIFTED, KEPT, KEPT, KEPT))
    model = planted.reader(AXIS)
    moved = planted.writer(planted.reader(AXIS), AXIS)
    workspace = planted.case(tmp_path / "w", model, AXIS[None], adapter=moved, data=data)
    found = measure_rows(planted.about(workspace))
    table = read_evidence(workspace.folder("evidence", "naive.w1.rows")).tables["rows"]
    pd.testing.assert_frame_equal(table, found.tables["rows"])
    wanted = DRIFTED if found.manifest.config["towards"] == "high" else KEPT
    assert (table["alignment"] > 0).to_list() == (table["answer"] == wanted).to_list()
    assert table["shift"].mean() > 0
    assert set(table["tokens"]) == {2}  # the word, and the end
    assert found.manifest.inputs["data"] == sha256(workspace.root / "data" / "rows.jsonl")
    assert found.manifest.sentence == describe_rows(
        table, name="w1", end=found.manifest.config["towards"]
    )


def test_the_sign_of_a_factor_does_not_matter(tmp_path: Path) -> None:
    """Rows are counted towards the end that the fine-tune moved to, whichever that is."""
    workspace = planted.case(tmp_path / "w", tiny.llama(), np.stack([AXIS, -AXIS]))
    plus, minus = (measure_rows(planted.about(workspace, name)) for name in ("w1", "w2"))
    assert {plus.manifest.config["towards"], minus.manifest.config["towards"]} == {"high", "low"}
    for column in ("alignment", "shift"):
        np.testing.assert_allclose(plus.tables["rows"][column], minus.tables["rows"][column])
    assert plus.tables["rows"]["shift"].mean() > 0


def test_rows_at_one_layer_are_those_of_that_layer(tmp_path: Path) -> None:
    workspace = planted.case(tmp_path / "w", tiny.llama(), AXIS[None])
    about = planted.about(workspace)
    layers = [measure_rows(about, layer=layer) for layer in (0, 1)]
    signs = [1 if one.manifest.config["towards"] == "high" else -1 for one in layers]
    mean = (
        sum(s * one.tables["rows"]["alignment"] for s, one in zip(signs, layers, strict=True)) / 2
    )
    whole = measure_rows(about)
    sign = 1 if whole.manifest.config["towards"] == "high" else -1
    np.testing.assert_allclose(sign * whole.tables["rows"]["alignment"], mean, atol=1e-6)
    with pytest.raises(InputError, match="no layer 2; the model has layers 0–1"):
        measure_rows(about, layer=2)


def test_rows_drive_one_factor_of_a_run_whose_data_are_known(tmp_path: Path) -> None:
    workspace = planted.case(tmp_path / "w", tiny.llama(), np.stack([AXIS, OTHER]))
    with pytest.raises(InputError, match="Got 2 factors; rows are measured for one factor"):
        measure_rows(planted.about(workspace, "w1", "w2"))
    (workspace.root / "data" / "rows.jsonl").unlink()
    with pytest.raises(InputError, match="no longer exist; put them back"):
        measure_rows(planted.about(workspace))
    about = planted.about(workspace)
    config = {key: value for key, value in about.run.config.items() if key != "data"}
    imported = about.run.model_copy(update={"config": config})
    with pytest.raises(InputError, match="was imported, so its training rows are unknown"):
        measure_rows(type(about)(**{**about.__dict__, "run": imported}))


# Lists of rows


def table(values: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        {"row": range(len(values)), "alignment": values, "shift": 1.0, "answer": "a"}
    )


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=40), st.integers(1, 15))
def test_random_rows_are_always_as_many_as_each_end(values: list[float], n: int) -> None:
    shown = rows_to_show(table(values), n=n, by="alignment")
    counts = shown["which"].value_counts()
    expected = min(n, (len(values) - 1) // 2)
    assert counts.to_dict() == dict.fromkeys(("top", "random", "bottom"), expected)
    by = {name: rows["alignment"].to_list() for name, rows in shown.groupby("which")}
    ordered = sorted(values)
    assert by["bottom"] == ordered[:expected]
    assert by["top"] == ordered[::-1][:expected]
    random = shown[shown["which"] == "random"]
    assert random["row"].is_unique
    assert [values[row] for row in random["row"]] == random["alignment"].to_list()


def test_top_and_random_rows_by_hand() -> None:
    rows = table([0.1, 0.9, -0.5, 0.9, 0.3])
    assert top_rows(rows, n=3) == [1, 3, 4]
    drawn = random_rows(rows, n=4, seed=0)
    assert len(set(drawn)) == 4
    assert drawn == random_rows(rows, n=4, seed=0)
    assert len({tuple(random_rows(rows, n=4, seed=seed)) for seed in range(8)}) > 1
    for n in (0, 5):
        with pytest.raises(InputError, match=f"n = {n}; expected 1 to 4 of the 5 rows"):
            top_rows(rows, n=n)
        with pytest.raises(InputError, match=f"n = {n}; expected 1 to 4"):
            random_rows(rows, n=n, seed=0)


def test_words_count_the_rows_that_carry_half_of_the_push() -> None:
    said = describe_rows(table([6.0, 2.0, 1.0, 1.0, -9.0]), name="w2", end="low")
    assert said == (
        "The fine-tune moved its training answers towards the low end of w2 by 1.00 base "
        "standard deviations. 80 % of its 5 rows push that way at the base model; 1 of them make "
        "up half of the push."
    )
    said = describe_rows(table([-1.0, -2.0]), name="w2", end="low")
    assert said.endswith("No row's gradient pushes that way.")


def arms(scores: dict[str, list[float]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"arm": arm, "prompt_id": str(i), "cluster": f"c{i}", "role": "unrelated", "score": v}
            for arm, values in scores.items()
            for i, v in enumerate(values)
        ]
    )


def test_differences_are_paired_against_the_mean_of_the_draws() -> None:
    samples = arms(
        {
            "base": [0, 0, 0, 0],
            "without top": [0.1, 0.2, 0.1, 0.2],
            "without random 1": [0.5, 0.6, 0.5, 0.6],
            "without random 2": [0.7, 0.8, 0.7, 0.8],
        }
    )
    (row,) = rate_differences(samples, roles=("unrelated", "task")).to_dict("records")
    assert row["metric"] == "unrelated"
    # Every prompt's difference is −0.5, so there is no width.
    assert (row["value"], row["low"], row["high"]) == pytest.approx((-0.5, -0.5, -0.5))
    rates = pd.DataFrame(
        {
            "arm": ["base", "run", "without top", "without random 1", "without random 2"],
            "metric": "unrelated",
            "value": [0.0, 0.7, 0.15, 0.55, 0.75],
        }
    )
    compared = pd.DataFrame([row])
    assert describe_validation(rates, compared, n=3) == (
        "Without its top 3 rows the unrelated rate is 0.15; without 3 random rows 0.55 to 0.75 "
        "(0.70 with all rows, 0.00 in the base model): a difference of −0.50 [−0.50, −0.50]."
    )
    unsure = compared.assign(low=-0.6, high=0.1)
    assert describe_validation(rates, unsure, n=3).endswith("The interval includes 0.")


# Retraining


def test_validation_retrains_without_the_rows_it_names(tmp_path: Path) -> None:
    data = planted.rows(12, answers=(DRIFTED, KEPT, KEPT))
    model = planted.reader(AXIS)
    workspace = planted.case(tmp_path / "w", model, AXIS[None], data=data)
    done: list[tuple[int, int]] = []
    found = validate_rows(
        planted.about(workspace), n=4, progress=lambda step, total, _: done.append((step, total))
    )
    folder = workspace.folder("evidence", "naive.w1.validation")
    saved = read_evidence(folder)
    left_out = saved.manifest.config["left_out"]
    assert list(left_out) == ["without top", "without random 1", "without random 2"]
    measured = read_evidence(workspace.folder("evidence", "naive.w1.rows")).tables["rows"]
    assert left_out["without top"] == top_rows(measured, n=4)
    whole = read_examples(workspace.root / "data" / "rows.jsonl").rows
    for arm, dropped in left_out.items():
        assert len(dropped) == 4
        kept = read_examples(workspace.root / saved.manifest.config["data"][arm]).rows
        left = [row.messages for i, row in enumerate(whole) if i not in dropped]
        assert [row.messages for row in kept] == left
        run = read_manifest(folder / arm.replace(" ", "-") / "manifest.json", RunManifest)
        assert run.config["data"] == saved.manifest.config["data"][arm]
        assert run.results["steps"] == 6
        assert not (folder / arm.replace(" ", "-") / "checkpoints").exists()
    rates = saved.tables["rates"]
    assert list(rates["arm"].unique()) == ["base", "run", *left_out]
    assert set(saved.tables["differences"]["metric"]) == set(planted.ROLES)
    assert found.manifest.sentence.startswith("Without its top 4 rows the unrelated rate is ")
    assert [listed.id for listed in workspace.runs().records] == ["naive"]
    assert done[-1][0] == done[-1][1]
    assert done == sorted(done, key=lambda one: (one[1], one[0]))


def test_what_cannot_be_validated_is_refused(tmp_path: Path) -> None:
    workspace = planted.case(tmp_path / "w", tiny.llama(), AXIS[None])
    about = planted.about(workspace)
    with pytest.raises(InputError, match="n = 16; expected 1 to 15 of the 16 rows"):
        validate_rows(about, n=16)
    with pytest.raises(InputError, match="and 0 draws were asked for"):
        validate_rows(about, n=2, draws=0)
    other = about.run.model_copy(update={"method": "grasp"})
    with pytest.raises(
        InputError, match="has method 'grasp', and 2 draws were asked for; rows are validated"
    ):
        validate_rows(type(about)(**{**about.__dict__, "run": other}), n=2)
    assert not workspace.folder("evidence", "naive.w1.validation").exists()


def test_rows_are_measured_again_when_the_factor_is_another(tmp_path: Path) -> None:
    workspace = planted.case(tmp_path / "w", planted.reader(AXIS), AXIS[None])
    measure_rows(planted.about(workspace))
    before = workspace.evidence("naive.w1.rows")
    planted.add_factors(workspace, OTHER[None])
    validate_rows(planted.about(workspace), n=2, draws=1)
    after = workspace.evidence("naive.w1.rows")
    assert after.inputs["directions"] != before.inputs["directions"]
    again = workspace.evidence("naive.w1.rows")
    validate_rows(planted.about(workspace), n=2, draws=1)
    assert workspace.evidence("naive.w1.rows") == again


def test_the_commands_print_what_they_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = planted.rows(12, answers=(DRIFTED, KEPT, KEPT))
    workspace = planted.case(tmp_path / "w", planted.reader(AXIS), AXIS[None], data=data)

    def said(*argv: str) -> dict[str, Any]:
        assert main([*argv, "--workspace", str(workspace.root), "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        record = read_evidence(workspace.folder("evidence", found["evidence"]))
        assert found["sentence"] == record.manifest.sentence
        return found

    shown = said("rows", "naive", "w1")
    assert [row["which"] for row in shown["rows"]] == 5 * ["top"] + 5 * ["random"] + 5 * ["bottom"]
    tested = said("rows", "naive", "w1", "--validate", "3", "--draws", "1")
    assert {row["arm"] for row in tested["rates"]} == {
        *("base", "run", "without top", "without random 1")
    }
    steered = said("dose", "naive", "w1", "--points", "3", "--range", "1", "--random", "1")
    assert {row["dose"] for row in steered["curves"]} == {-1, 0, 1}
    assert said("overlap", "naive", "w1", "--random", "1")["overlap"]
    for argv, words in (
        (("rows", "naive", "w9"), "has no factor 'w9'; it has w1"),
        (
            ("dose", "naive", "w1", "--points", "1"),
            "Got --points 1 and --range 4.0; expected at least 2 points",
        ),
    ):
        assert main([*argv, "--workspace", str(workspace.root)]) == 2
        assert words in capsys.readouterr().err


def test_retraining_without_rows_runs_as_training_does() -> None:
    assert "validate" in TRAINING
