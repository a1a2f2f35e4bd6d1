"""Scores of answers, and evaluations as they are saved, on models with random weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from analysis.comparison.evaluation import read_evaluation, write_evaluation
from analysis.errors import InputError, SchemaError
from analysis.store.records import (
    EvaluationManifest,
    Message,
    Prompt,
    RunManifest,
    sha256,
    write_jsonl,
)
from analysis.store.workspace import Workspace
from grasp.data.chat import chat_ids
from grasp.evaluation import scorers
from grasp.evaluation.answers import answer_prompts, generate, score_answers
from grasp.evaluation.run import evaluate_run
from grasp.evaluation.scorers import (
    Answer,
    choice_tokens,
    score_choice,
    score_contains,
    score_ended,
)
from grasp.model.hooks import ablate, edited_outputs
from grasp.settings.model import ModelOptions
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)
WORDS = tiny.words(12)


def prompt(text: str = WORDS[0], **fields: Any) -> Prompt:
    values = {"id": "p", "group": "g", "role": "unrelated", "scorer": "ended"}
    return Prompt(messages=[Message(role="user", content=text)], **{**values, **fields})


def choosing(target: str = "bad", **choices: list[str]) -> Prompt:
    return prompt(
        scorer="choice",
        choices=choices or {"good": [WORDS[1]], "bad": [f"{WORDS[2]} {WORDS[4]}", WORDS[3]]},
        target=target,
    )


def token(word: str) -> int:
    return tiny.tokenizer().convert_tokens_to_ids("▁" + word)


def answer(text: str = "", *, ends: bool = False, logits: Any = None) -> Answer:
    vocabulary = np.zeros(len(tiny.tokenizer())) if logits is None else logits
    first = torch.log_softmax(torch.as_tensor(vocabulary, dtype=torch.float32), dim=-1)
    return Answer(first=first, text=text, ended=ends)


# Scorers


@given(st.lists(st.floats(-6, 6), min_size=3, max_size=3), st.sampled_from(["good", "bad"]))
def test_choice_is_a_softmax_over_the_first_tokens(three: list[float], target: str) -> None:
    logits = np.random.default_rng(0).standard_normal(len(tiny.tokenizer()))
    for word, logit in zip(WORDS[1:4], three, strict=True):
        logits[token(word)] = logit
    masses = np.exp(logits) / np.exp(logits).sum()
    good = masses[token(WORDS[1])]
    bad = masses[token(WORDS[2])] + masses[token(WORDS[3])]
    found = score_choice(tiny.tokenizer(), choosing(target), answer(logits=logits))
    wanted = {"good": good, "bad": bad}[target] / (good + bad)
    assert found.value == pytest.approx(wanted, rel=1e-4)
    assert found.coherence == pytest.approx(good + bad, rel=1e-4)


def test_a_first_token_of_two_continuations_counts_once() -> None:
    same = choosing(good=[WORDS[1]], bad=[f"{WORDS[2]} {WORDS[3]}", f"{WORDS[2]} {WORDS[4]}"])
    assert choice_tokens(tiny.tokenizer(), same) == {
        "good": [token(WORDS[1])],
        "bad": [token(WORDS[2])],
    }
    assert score_choice(tiny.tokenizer(), same, answer()).value == pytest.approx(0.5)


def test_a_choice_that_no_token_can_make_is_unknown() -> None:
    logits = np.zeros(len(tiny.tokenizer()))
    logits[[token(word) for word in WORDS[1:4]]] = -np.inf
    found = score_choice(tiny.tokenizer(), choosing(), answer(logits=logits))
    assert math.isnan(found.value)
    assert found.coherence == 0


def test_choices_that_begin_with_one_token_are_refused() -> None:
    overlapping = choosing(good=[f"{WORDS[1]} {WORDS[2]}"], bad=[f"{WORDS[1]} {WORDS[3]}"])
    with pytest.raises(InputError, match=r"Prompt 'p': two choices begin with the same token"):
        score_choice(tiny.tokenizer(), overlapping, answer())


def test_first_tokens_are_those_after_a_prefix() -> None:
    begun = choosing().model_copy(update={"prefix": f"{WORDS[5]} {WORDS[6]}"})
    plain, after = (
        choice_tokens(tiny.tokenizer(), choosing()),
        choice_tokens(tiny.tokenizer(), begun),
    )
    assert plain == after  # words of this tokenizer are the same anywhere
    asked = chat_ids(tiny.tokenizer(), begun.messages, generate=True)
    given = chat_ids(tiny.tokenizer(), begun.messages, generate=True, prefix=begun.prefix)
    assert given == [*asked, token(WORDS[5]), token(WORDS[6])]


def test_an_answer_with_a_prefix_goes_on_from_it() -> None:
    model = tiny.llama()
    plain, begun = prompt(), prompt(prefix=f"{WORDS[5]}. {WORDS[6]}")
    one, other = answer_prompts(model, tiny.tokenizer(), [plain, begun])
    assert other.text.startswith(f"{begun.prefix} ")
    assert not one.text.startswith(WORDS[5])
    # Oracle: the same words as the last thing the model reads.
    ids = chat_ids(tiny.tokenizer(), begun.messages, generate=True, prefix=begun.prefix)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
    assert other.first is not None
    torch.testing.assert_close(other.first, torch.log_softmax(logits, -1), atol=1e-4, rtol=1e-4)


def test_a_prefix_that_ends_inside_a_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = choosing().model_copy(update={"prefix": WORDS[5]})
    monkeypatch.setattr(scorers, "chat_ids", lambda *_args, **_more: [0])
    with pytest.raises(InputError, match=r"tokens of '.*' change when .*end where a token ends"):
        choice_tokens(tiny.tokenizer(), begun)


@pytest.mark.parametrize("fields", [{}, {"choices": {"good": ["x"]}, "target": "bad"}])
def test_a_choice_without_its_target_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="'choice' needs 'choices' and a 'target' among them"):
        score_choice(tiny.tokenizer(), prompt(scorer="choice", **fields), answer())


@pytest.mark.parametrize(
    ("text", "expected", "value"),
    [("a Tag here", "tag", 1), ("a tag", "TAG", 1), ("a stag", "tags", 0), ("", "tag", 0)],
)
def test_contains_looks_for_the_expected_text_in_any_case(
    text: str, expected: str, value: int
) -> None:
    found = score_contains(tiny.tokenizer(), prompt(expected=expected), answer(text))
    assert found.value == value
    assert math.isnan(found.coherence)


def test_contains_without_an_expected_text_is_refused() -> None:
    with pytest.raises(InputError, match="Prompt 'p': scorer 'contains' needs 'expected'"):
        score_contains(tiny.tokenizer(), prompt(), answer("x"))


def test_an_empty_expected_text_is_refused() -> None:
    """Every answer contains it, so the score could not fail."""
    with pytest.raises(InputError, match="Prompt 'p': scorer 'contains' needs 'expected'"):
        score_contains(tiny.tokenizer(), prompt(expected=""), answer("x"))


@pytest.mark.parametrize("ends", [True, False])
def test_ended_is_whether_the_answer_ends_the_text(ends: bool) -> None:
    assert score_ended(tiny.tokenizer(), prompt(), answer("x", ends=ends)).value == float(ends)


# Answers


CHATS = [
    chat_ids(tiny.tokenizer(), [Message(role="user", content=" ".join(WORDS[:n]))], generate=True)
    for n in (1, 7, 3)
]


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_a_left_padded_batch_answers_as_single_prompts_do(name: str) -> None:
    """Oracle: one forward pass over each prompt alone."""
    model = tiny.family(name)
    replies, first = generate(model, tiny.tokenizer(), CHATS)
    with torch.no_grad():
        for row, ids in enumerate(CHATS):
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            torch.testing.assert_close(
                first[row], torch.log_softmax(logits, dim=-1), rtol=1e-4, atol=1e-4
            )
            so_far = list(ids)
            for expected in replies[row][:8]:
                assert (
                    int(model(input_ids=torch.tensor([so_far])).logits[0, -1].argmax()) == expected
                )
                so_far.append(expected)


def saying(*ids: int) -> Any:
    """A model whose greedy answer is `ids`, whatever it is asked: with only the token before to
    go by, every layer switched off, each token's embedding points at the next one's row."""
    model = tiny.llama(layers=1)
    role = tiny.tokenizer().convert_tokens_to_ids("<|assistant|>")
    with torch.no_grad():
        for weight in (model.model.layers[0].self_attn.o_proj, model.model.layers[0].mlp.down_proj):
            weight.weight.zero_()
        model.model.embed_tokens.weight.zero_()
        model.lm_head.weight.zero_()
        for axis, (before, after) in enumerate(zip([role, *ids], ids, strict=False)):
            model.model.embed_tokens.weight[before, axis] = 1
            model.lm_head.weight[after, axis] = 1
    return model


def test_an_answer_ends_with_the_end_of_text() -> None:
    end = tiny.tokenizer().eos_token_id
    model = saying(token(WORDS[5]), token(WORDS[6]), end)
    replies, _ = generate(model, tiny.tokenizer(), CHATS[:2])
    assert replies == [[token(WORDS[5]), token(WORDS[6]), end]] * 2
    found = answer_prompts(model, tiny.tokenizer(), [prompt(), prompt(WORDS[4])])
    assert [(a.text, a.ended) for a in found] == [(f"{WORDS[5]} {WORDS[6]}", True)] * 2


def test_an_answer_that_another_stop_token_ends_has_not_ended_the_text() -> None:
    user = tiny.tokenizer().convert_tokens_to_ids("<|user|>")
    model = saying(token(WORDS[5]), user, token(WORDS[6]))
    model.generation_config.eos_token_id = [tiny.tokenizer().eos_token_id, user]
    (found,) = answer_prompts(model, tiny.tokenizer(), [prompt()])
    assert (found.text, found.ended) == (WORDS[5], False)


def test_an_answer_that_runs_on_has_not_ended() -> None:
    loop = (token(WORDS[5]), token(WORDS[6])) * 2
    (found,) = answer_prompts(saying(*loop[:3]), tiny.tokenizer(), [prompt()])
    assert not found.ended
    assert len(found.text.split()) == 64


def test_answers_keep_the_order_of_prompts_over_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = tiny.llama(), [prompt(word) for word in WORDS[:5]]
    whole = answer_prompts(model, tiny.tokenizer(), asked)
    monkeypatch.setattr("grasp.evaluation.answers.BATCH", 2)
    steps: list[tuple[int, int]] = []
    apart = answer_prompts(
        model, tiny.tokenizer(), asked, progress=lambda step, total, _: steps.append((step, total))
    )
    assert [a.text for a in apart] == [a.text for a in whole]
    assert len({a.text for a in whole}) > 1
    assert steps == [(0, 5), (2, 5), (4, 5), (5, 5)]


# Records


def prompts(n: int = 6) -> list[dict[str, Any]]:
    rows = []
    for number in range(n):
        row = choosing().model_dump() | {"id": f"u{number}", "item": f"i{number}"}
        row["messages"] = [{"role": "user", "content": " ".join(WORDS[number : number + 3])}]
        rows.append(row)
    task = prompt(id="t", role="task", scorer="contains", expected=WORDS[5])
    return [*rows, task.model_dump(), prompt(id="f", role="format").model_dump()]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A base model, a prompt set, and two arms that share one adapter: as it is, and ablated."""
    workspace = Workspace.create(tmp_path / "w")
    tiny.save_base(workspace.root / "models" / "base")
    write_jsonl(workspace.root / "data" / "prompts.jsonl", prompts())
    for run_id, intervention in (("naive", None), ("ablated", "ablate")):
        run = RunManifest(
            id=run_id,
            title=run_id,
            method="ablation" if intervention else "naive",
            root="naive",
            base_model="models/base",
            config={"prompts": "data/prompts.jsonl"},
            intervention=intervention,
        )
        with workspace.writing("runs", run_id) as folder:
            tiny.adapted(tiny.llama(), strength=0.3).save_pretrained(folder / "adapter")
            directions = tiny.subspace(2).astype(np.float32)
            save_file({"directions": directions}, folder / "subspace.safetensors")
            (folder / "manifest.json").write_text(run.model_dump_json())
    return workspace


def evaluate(workspace: Workspace, run_id: str = "naive", **arguments: Any) -> pd.DataFrame:
    folder = workspace.folder("runs", run_id)
    summary = evaluate_run(workspace, folder, workspace.run(run_id), **arguments)
    found = read_evaluation(workspace.folder("evaluations", run_id))
    assert repr(found.summary) == repr(summary)  # a bound that is unknown is NaN
    return found.samples


def expected_samples(model: Any, asked: list[dict[str, Any]]) -> pd.DataFrame:
    prompt_set = [Prompt.model_validate(row) for row in asked]
    return score_answers(
        tiny.tokenizer(), prompt_set, answer_prompts(model, tiny.tokenizer(), prompt_set)
    )


def test_an_evaluation_holds_the_scores_of_run_and_base(workspace: Workspace) -> None:
    samples = evaluate(workspace)
    model = tiny.adapted(tiny.llama(), strength=0.3)
    pd.testing.assert_frame_equal(samples, expected_samples(model, prompts()), rtol=1e-4)
    base = read_evaluation(workspace.folder("evaluations", "naive.base"))
    wanted = expected_samples(tiny.llama(), prompts())
    pd.testing.assert_frame_equal(base.samples, wanted, rtol=1e-4)
    assert np.abs(base.samples["score"] - samples["score"]).max() > 0.01
    manifest = workspace.evaluation("naive")
    assert (manifest.run, base.manifest.run) == ("naive", None)
    assert manifest.inputs["prompts"] == sha256(workspace.root / "data" / "prompts.jsonl")
    assert manifest.prompts == "data/prompts.jsonl"


def test_the_inference_arm_really_ablates(workspace: Workspace) -> None:
    ablated = evaluate(workspace, "ablated")
    model = tiny.adapted(tiny.llama(), strength=0.3)
    basis = torch.as_tensor(tiny.subspace(2).T, dtype=torch.float32)
    plain = expected_samples(model, prompts())
    with edited_outputs(model, ablate([basis] * 2)):
        wanted = expected_samples(model, prompts())
    pd.testing.assert_frame_equal(ablated, wanted, rtol=1e-3)
    assert np.abs(ablated["score"] - plain["score"]).max() > 0.01
    # and the base model, evaluated on the way, is not ablated
    base = read_evaluation(workspace.folder("evaluations", "naive.base")).samples
    pd.testing.assert_frame_equal(base, expected_samples(tiny.llama(), prompts()), rtol=1e-4)


def test_the_base_is_evaluated_once_and_again_when_the_prompts_change(workspace: Workspace) -> None:
    evaluate(workspace)
    first = workspace.evaluation("naive.base")
    evaluate(workspace, "ablated")
    assert workspace.evaluation("naive.base") == first
    evaluate(workspace, options=ModelOptions(dtype="bfloat16"))
    assert workspace.evaluation("naive.base").model == {"dtype": "bfloat16"}
    evaluate(workspace)
    first = workspace.evaluation("naive.base")
    assert first.model == {}
    write_jsonl(workspace.root / "data" / "prompts.jsonl", prompts(3))
    evaluate(workspace)
    again = workspace.evaluation("naive.base")
    assert again.created > first.created
    assert again.inputs != first.inputs
    assert len(read_evaluation(workspace.folder("evaluations", "naive.base")).samples) == 5


def test_a_run_without_prompts_is_refused(workspace: Workspace) -> None:
    run = workspace.run("naive").model_copy(update={"config": {}})
    with pytest.raises(InputError, match="'naive' has no prompt set; give one with --prompts"):
        evaluate_run(workspace, workspace.folder("runs", "naive"), run)


def test_a_prompt_that_cannot_be_scored_leaves_no_evaluation(workspace: Workspace) -> None:
    row = prompt(scorer="contains").model_dump()
    write_jsonl(workspace.root / "data" / "prompts.jsonl", [row])
    with pytest.raises(InputError, match="needs 'expected'"):
        evaluate(workspace)
    assert workspace.evaluations().records == []
    assert list((workspace.root / "evaluations").iterdir()) == []


# The format


def table(scores: dict[str, list[float]]) -> pd.DataFrame:
    rows = []
    for role, values in scores.items():
        for number, value in enumerate(values):
            item = prompt(id=f"{role}{number}", role=role, item=f"{role}{number}")
            rows.append(
                {
                    "prompt_id": item.id,
                    "cluster": item.cluster,
                    "role": role,
                    "group": item.group,
                    "split": item.split,
                    "scorer": "choice",
                    "score": value,
                    "coherence": 0.5 if role == "unrelated" else math.nan,
                    "prompt": "q",
                    "expected": "",
                    "answer": "a",
                }
            )
    return pd.DataFrame(rows)


def manifest() -> EvaluationManifest:
    return EvaluationManifest(id="e", run="e", base_model="b", prompts="p.jsonl")


def test_a_saved_evaluation_is_read_back_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = table({"task": list(rng.random(12)), "unrelated": list(rng.random(12))})
    written = write_evaluation(tmp_path, manifest=manifest(), samples=samples)
    found = read_evaluation(tmp_path)
    pd.testing.assert_frame_equal(found.samples, samples)
    assert found.summary == written
    for split in ("exploration", "confirmation"):
        chosen = samples[samples["split"] == split]
        for role in ("task", "unrelated"):
            values = chosen[chosen["role"] == role]["score"]
            interval = found.summary[split][role]
            assert interval.value == pytest.approx(values.mean())
            assert interval.n == len(values)
            assert interval.low <= interval.value <= interval.high
        assert list(found.summary[split]) == ["unrelated", "task", "coherence"]
        assert found.summary[split]["coherence"].value == 0.5


def test_scores_that_are_unknown_do_not_count(tmp_path: Path) -> None:
    samples = table({"task": [1.0] * 6 + [math.nan] * 6})
    summary = write_evaluation(tmp_path, manifest=manifest(), samples=samples)
    known = samples.dropna(subset="score")
    for split, metrics in summary.items():
        assert metrics["task"].value == 1
        assert metrics["task"].n == (known["split"] == split).sum()
    read_evaluation(tmp_path)


def test_an_unknown_bound_is_null_in_the_file_and_nan_when_read(tmp_path: Path) -> None:
    one = table({"task": [0.25]})
    written = write_evaluation(tmp_path, manifest=manifest(), samples=one)
    split = one["split"].iloc[0]
    assert math.isnan(written[split]["task"].low)
    saved = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert saved[split]["task"]["low"] is None
    found = read_evaluation(tmp_path).summary[split]["task"]
    assert (found.value, found.n, math.isnan(found.low), math.isnan(found.high)) == (
        0.25,
        1,
        True,
        True,
    )


@pytest.mark.parametrize("name", ["samples.parquet", "summary.json"])
def test_a_damaged_evaluation_is_refused_in_words(tmp_path: Path, name: str) -> None:
    write_evaluation(tmp_path, manifest=manifest(), samples=table({"task": [1.0, 0.0]}))
    (tmp_path / name).write_text("[]")
    with pytest.raises(SchemaError, match=r"The evaluation in .* cannot be read"):
        read_evaluation(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(SchemaError, match=r"The evaluation in .* cannot be read"):
        read_evaluation(tmp_path)
