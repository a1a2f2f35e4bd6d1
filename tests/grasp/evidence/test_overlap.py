"""Overlap with the task: answers with coordinates set back against a loop without a cache."""

from __future__ import annotations

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
from analysis.evidence.task_overlap import describe_overlap, mean_scores, overlap_table
from analysis.store.evidence import read_evidence
from grasp.data.chat import chat_ids
from grasp.data.examples import as_examples
from grasp.data.tokenise import training_rows
from grasp.evaluation.answers import generate
from grasp.evidence.overlap import answer_likelihood, measure_overlap, set_back_replies
from grasp.model.hooks import clamp, edited_outputs, layer_outputs
from tests.support import planted, tiny
from tests.support.planted import DRIFTED, KEPT

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)
AXIS, OTHER = tiny.subspace(2)
LENGTH = 6


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grasp.evaluation.answers.MAX_NEW_TOKENS", LENGTH)
    monkeypatch.setattr("grasp.evidence.overlap.MAX_NEW_TOKENS", LENGTH)


def chats() -> list[list[int]]:
    """Of different length, so that a batch of them is padded."""
    texts = (planted.WORDS[:2], planted.WORDS[3:9], planted.WORDS[4:5])
    prompts = planted.prompts(3, roles=("format",))
    for prompt, words in zip(prompts, texts, strict=True):
        prompt.messages[-1].content = " ".join(words)
    return [chat_ids(tiny.tokenizer(), prompt.messages, generate=True) for prompt in prompts]


def replies(model: Any, basis: NDArray[np.float64], limit: int | None = None) -> Any:
    return set_back_replies(model, tiny.tokenizer(), basis, chats(), limit)


# Answers


@pytest.mark.parametrize("name", tiny.FAMILIES)
@pytest.mark.parametrize("stops", [False, True])
def test_answers_are_those_of_a_loop_over_tokens_by_hand(name: str, stops: bool) -> None:
    """Oracle: every chat alone, read anew for each token, without padding or cache."""
    model = tiny.adapted(tiny.family(name), strength=0.3)
    q = torch.as_tensor(tiny.subspace(3).T, dtype=torch.float32)

    def last(ids: list[int]) -> torch.Tensor:
        batch = {"input_ids": torch.tensor([ids])}
        with torch.no_grad():
            with model.disable_adapter(), layer_outputs(model) as reference:
                model(**batch)
            with edited_outputs(model, clamp(q, list(reference))):
                return torch.log_softmax(model(**batch).logits[0, -1], dim=-1)

    expected, first = [], []
    for chat in chats():
        ids = list(chat)
        first.append(last(ids))
        for _ in range(LENGTH):
            ids.append(int(last(ids).argmax()))
        expected.append(ids[len(chat) :])
    model.generation_config.eos_token_id = None
    if stops:
        stop = expected[0][2]
        model.generation_config.eos_token_id = stop
        expected = [r[: r.index(stop) + 1] if stop in r else r for r in expected]
        assert len(expected[0]) <= 3
    found, log_probabilities = replies(model, q.double().numpy())
    assert found == expected
    torch.testing.assert_close(log_probabilities, torch.stack(first), rtol=1e-3, atol=1e-3)
    plain, _ = generate(model, tiny.tokenizer(), chats())
    assert found != plain
    short, _ = replies(model, q.double().numpy(), 1)
    assert short == [reply[:1] for reply in expected]
    assert sum(len(m._forward_hooks) for m in model.modules()) == 0


def test_all_directions_set_back_are_the_base_model_and_an_unused_one_changes_nothing() -> None:
    model = planted.writer(tiny.llama(layers=1), AXIS)
    adapted, _ = generate(model, tiny.tokenizer(), chats())
    with model.disable_adapter():
        base, _ = generate(model, tiny.tokenizer(), chats())
    assert adapted != base
    assert replies(model, np.eye(tiny.WIDTH))[0] == base
    assert replies(model, AXIS[:, None])[0] == base
    assert replies(model, OTHER[:, None])[0] == adapted


def test_likelihood_is_transformers_own_loss_over_the_words_said() -> None:
    """Oracle: each row alone, by the model's own loss; the token that ends an answer left out."""
    model, end = tiny.adapted(tiny.llama(), strength=0.3), tiny.tokenizer().eos_token_id
    chats = as_examples([*tiny.messages(3, turns=2), *tiny.messages(2, seed=1)])
    rows = training_rows(tiny.tokenizer(), chats, max_length=64).rows
    back = {"all": np.eye(tiny.WIDTH), "factor": AXIS[:, None]}
    found = answer_likelihood(model, tiny.tokenizer(), rows, bases=back)
    wide = found.pivot(index="row", columns="arm", values="score")

    def by_hand(row: dict[str, list[int]]) -> float:
        labels = [-100 if label == end else label for label in row["labels"]]
        assert labels != row["labels"]
        given = {"input_ids": torch.tensor([row["input_ids"]]), "labels": torch.tensor([labels])}
        with torch.no_grad():
            return -float(model(**given).loss)

    for number, row in enumerate(rows):
        assert wide.loc[number, "adapted"] == pytest.approx(by_hand(row), rel=1e-4)
        with model.disable_adapter():
            assert wide.loc[number, "base"] == pytest.approx(by_hand(row), rel=1e-4)
    np.testing.assert_allclose(wide["all"], wide["base"], rtol=1e-4)
    assert (wide["factor"] - wide["adapted"]).abs().max() > 1e-3


# Shares


def samples(**arms: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"measure": "task", "arm": arm.replace("_", " "), "item": str(i), "cluster": f"c{i}",
             "score": value}
            for arm, values in arms.items()
            for i, value in enumerate(values)
        ]
    )  # fmt: skip


@given(
    st.floats(-2, 2),
    st.lists(st.tuples(st.floats(0, 0.2), st.floats(0.6, 1)), min_size=4, max_size=12),
)
def test_overlap_is_the_share_of_the_gain_that_goes(
    share: float, pairs: list[tuple[float, float]]
) -> None:
    base, adapted = (list(side) for side in zip(*pairs, strict=True))
    back = [a - share * (a - b) for b, a in pairs]
    (row,) = overlap_table(samples(base=base, adapted=adapted, factor=back)).to_dict("records")
    assert row["value"] == pytest.approx(share, abs=1e-9)
    assert (row["low"], row["high"]) == pytest.approx((share, share), abs=1e-9)
    assert (row["measure"], row["subspace"], row["n"]) == ("task", "factor", len(pairs))


def test_overlap_is_unknown_where_nothing_was_gained() -> None:
    table = overlap_table(
        samples(base=[0, 1, 0, 1], adapted=[1, 0, 1, 0], factor=[0, 0, 0, 0], random_1=[1, 1, 1, 1])
    )
    assert table["value"].isna().all()
    assert describe_overlap(table, name="w1").startswith(
        "On the task's exploration prompts the run did not gain"
    )


def test_overlap_needs_both_models_and_leaves_out_what_is_unknown() -> None:
    with pytest.raises(InputError, match="Measure 'task' has no scores of the arm adapted"):
        overlap_table(samples(base=[0.0, 1.0], factor=[1.0, 1.0]))
    base, adapted = [0.0] * 4, [1.0] * 4
    table = overlap_table(samples(base=base, adapted=adapted, factor=[1, 0, 1, np.nan]))
    assert table["n"].to_list() == [3]
    assert table["value"].iloc[0] == pytest.approx(1 / 3)


def test_levels_are_means_by_arm() -> None:
    table = mean_scores(
        samples(base=[0.0, 0.2], adapted=[1.0, 0.8], factor=[0.5, 0.5], random_1=[0, 0])
    )
    assert table.to_dict("records") == [
        {"measure": "task", "base": pytest.approx(0.1), "adapted": pytest.approx(0.9),
         "factor": pytest.approx(0.5)}
    ]  # fmt: skip


def row(measure: str, subspace: str, value: float, low: float, high: float) -> dict[str, Any]:
    return {"measure": measure, "subspace": subspace, "value": value, "low": low, "high": high}


def test_the_sentence_says_what_to_expect() -> None:
    table = pd.DataFrame(
        [
            row("task", "factor", 0.03, -0.01, 0.074),
            row("task", "random 1", 0.01, 0, 0),
            row("task", "random 2", 0.04, 0, 0),
        ]
    )
    assert describe_overlap(table, name="w2") == (
        "Setting w2 back costs 3 % of the gain in the task [−1 % to 7 %]; random directions cost "
        "1 % to 4 %."
    )
    drift = [row("unrelated", "factor", 0.7, 0, 1), row("unrelated", "random 1", -0.02, 0, 0)]
    said = describe_overlap(pd.concat([table, pd.DataFrame(drift)]), name="w2")
    taken = "It removes 70 % of the drift on unrelated prompts; random directions remove −2 % to"
    assert said.endswith(f" {taken} −2 %.")
    only_rows = table.assign(measure="rows")
    assert "of the gain in likelihood of its training answers" in describe_overlap(
        only_rows, name="w2"
    )


# The record


def test_the_direction_that_a_run_wrote_along_carries_all_of_its_gain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One layer, all of whose updates lie along u: w1 is u, w2 is orthogonal to it."""
    for module in ("evaluation.answers", "evidence.overlap"):
        monkeypatch.setattr(f"grasp.{module}.MAX_NEW_TOKENS", 1)
    model = planted.reader(AXIS, layers=1)
    moved = tiny.adapted(planted.reader(AXIS, layers=1), targets=["down_proj"])
    unit = torch.as_tensor(AXIS, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in moved.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.outer(unit, torch.tensor([40.0, 40.0, 40.0, 40.0])))
    sign = _moves_up(moved)
    with torch.no_grad():
        for name, weight in moved.named_parameters():
            if "lora_B" in name:
                weight.mul_(sign)
    data = planted.rows(12, answers=(DRIFTED,))
    asked = planted.prompts(24)
    directions = np.stack([AXIS, OTHER])
    workspace = planted.case(
        tmp_path / "w", model, directions, adapter=moved, data=data, asked=asked
    )
    found = measure_overlap(planted.about(workspace), random=2)
    saved = read_evidence(workspace.folder("evidence", "naive.w1.overlap"))
    pd.testing.assert_frame_equal(saved.tables["overlap"], found.tables["overlap"])
    wide = saved.tables["overlap"].pivot(index="measure", columns="subspace", values="value")
    for measure in ("task", "rows", "unrelated"):
        assert wide.loc[measure, "factor"] == pytest.approx(1, abs=1e-3)
        assert wide.loc[measure, ["random 1", "random 2"]].abs().max() < 0.6
    assert saved.manifest.sentence.startswith("Setting w1 back costs 100 % of the gain in the task")
    unused = measure_overlap(planted.about(workspace, "w2"), random=1).tables["overlap"]
    own = unused[unused["subspace"] == "factor"].set_index("measure")["value"]
    np.testing.assert_allclose(own[["task", "rows", "unrelated"]], 0, atol=1e-3)
    both = measure_overlap(planted.about(workspace, "w1", "w2"), random=1)
    assert both.manifest.id == "naive.w1-w2.overlap"
    assert both.manifest.config["rank"] == 2


def _moves_up(model: Any) -> float:
    """1 where the adapter raises the planted coordinate at the answer, else −1."""
    ids = torch.tensor([chats()[0]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, -1]
    return 1.0 if logits[planted.token(DRIFTED)] > logits[planted.token(KEPT)] else -1.0


def test_a_run_without_known_rows_is_measured_on_its_prompts_alone(tmp_path: Path) -> None:
    workspace = planted.case(tmp_path / "w", planted.reader(AXIS), AXIS[None])
    about = planted.about(workspace)
    config = {key: value for key, value in about.run.config.items() if key != "data"}
    imported = about.run.model_copy(update={"config": config})
    found = measure_overlap(type(about)(**{**about.__dict__, "run": imported}), random=1)
    assert "rows" not in set(found.tables["overlap"]["measure"])
    assert set(found.manifest.inputs) == {"adapter", "directions", "prompts"}


def test_factors_that_are_not_independent_are_refused(tmp_path: Path) -> None:
    workspace = planted.case(tmp_path / "w", planted.reader(AXIS), np.stack([AXIS, -AXIS]))
    with pytest.raises(
        InputError, match="Direction 1 lies in the span of the directions before it"
    ):
        measure_overlap(planted.about(workspace, "w1", "w2"))
