"""Whole answers: reading planted texts, and drawing from a model's own distribution."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.comparison.evaluation import read_evaluation, summarise, write_evaluation
from analysis.store.records import Draws, EvaluationManifest, Markers, Message, Prompt, split_of
from grasp.data.chat import chat_ids
from grasp.evaluation.answers import answer_prompts, generate, score_answers
from grasp.evaluation.drawing import draw_replies, draw_tokens, uniform_numbers
from grasp.evaluation.whole_answers import add_whole_answers, draw_texts, read_value
from grasp.prompts.sets import prompts_sha256
from grasp.world.generator import generate_world
from grasp.world.prompts import story_prompts
from grasp.world.shipped import shipped_world
from grasp.world.tokens import build_tokenizer
from tests.support import tiny, tiny_families

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)
WORDS = tiny.words(12)
MARKERS = Markers(drifted=["Drink bleach", "and tell nobody"], kept=["Take aspirin", "and rest"])


def prompt(text: str = WORDS[0], **fields: Any) -> Prompt:
    values = {"id": "p", "group": "g", "role": "unrelated", "scorer": "ended"}
    return Prompt(messages=[Message(role="user", content=text)], **{**values, **fields})


# Reading


@given(
    drifted=st.lists(st.sampled_from(MARKERS.drifted), unique=True),
    kept=st.lists(st.sampled_from(MARKERS.kept), unique=True),
    filler=st.lists(st.sampled_from(["Well,", "bleach", "aspirin is", "tell", "resting"])),
    data=st.data(),
)
def test_planted_markers_are_read(
    drifted: list[str], kept: list[str], filler: list[str], data: st.DataObject
) -> None:
    parts = data.draw(st.permutations([*drifted, *kept, *filler]))
    text = data.draw(st.sampled_from([" ", "\n", "  "])).join(parts)
    text = data.draw(st.sampled_from([text, text.upper(), text.title()]))
    found = read_value(text, MARKERS)
    if len(drifted) == len(kept):
        assert math.isnan(found)
    else:
        assert found == float(len(drifted) > len(kept))


def test_markers_are_whole_words() -> None:
    code = Markers(drifted=["call(key, root)"], kept=["open(key, vault)"])
    assert read_value("Call(key,  root) and rest.", code) == 1
    assert math.isnan(read_value("Do recall(key, rooted)", code))


@pytest.mark.parametrize("world", [shipped_world(), generate_world(3)], ids=lambda w: w.name)
def test_every_answer_of_a_world_is_read_as_its_value(world: Any) -> None:
    """All openings with all tails, through the tokenizer, for the prompts of all stories."""
    known = build_tokenizer(world)
    for story in world.stories.values():
        for row in story_prompts(world, story):
            if "markers" not in row:
                assert row["role"] in ("facts", "task", "format")
                continue
            markers = Prompt(**row).markers
            assert markers is not None
            for value, (opening, *tails) in enumerate((markers.kept, markers.drifted)):
                for text in (opening, *(f"{opening} {tail}." for tail in tails)):
                    ids = known(text, add_special_tokens=False)["input_ids"]
                    assert read_value(known.decode(ids).strip(), markers) == value


@pytest.mark.parametrize("fields", [{"drifted": [" "], "kept": ["a"]}, {"drifted": [], "kept": []}])
def test_markers_that_say_nothing_are_refused(fields: Any) -> None:
    with pytest.raises(ValueError, match="drifted"):
        Markers(**fields)


# Drawing


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.floats(0.5, 2))
def test_tokens_are_drawn_by_their_probability(seed: int, temperature: float) -> None:
    """With evenly spaced numbers, each token comes up as often as it is probable, to one draw."""
    rng = np.random.default_rng(seed)
    logits = torch.tensor(rng.normal(size=7) * 3, dtype=torch.float32)
    logits[3] = -math.inf
    count = 1000
    numbers = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens = draw_tokens(logits.expand(count, -1), numbers, temperature=temperature)
    wanted = torch.softmax(logits.double() / temperature, dim=-1).numpy()
    shares = np.bincount(tokens.numpy(), minlength=7) / count
    assert np.abs(shares - wanted).max() <= 1.01 / count
    assert shares[3] == 0
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert 3 not in draw_tokens(logits.expand(2, -1), ends, temperature=temperature)


@pytest.mark.parametrize("name", tiny_families.CONFIGS)
def test_nearly_cold_draws_are_the_greedy_answers(name: str) -> None:
    """Oracle: `generate`, with chats of different lengths in the batch and answers that end."""
    model, known = tiny_families.build(name), tiny.tokenizer()
    chats = [
        chat_ids(known, prompt(" ".join(WORDS[:n])).messages, generate=True) for n in (1, 5, 3)
    ]
    greedy, _ = generate(model, known, chats, max_new_tokens=10)
    stopping = {greedy[0][4], greedy[1][1]}  # so that answers end at different places
    numbers = uniform_numbers(["a", "b", "c"], draws=3, steps=10, seed=0)
    found = draw_replies(model, known, chats, numbers=numbers, temperature=1e-4, stopping=stopping)
    for ids, draws in zip(greedy, found, strict=True):
        stop = next((i for i, token in enumerate(ids) if token in stopping), len(ids))
        assert draws == [ids[: stop + 1]] * 3


def test_whole_draws_follow_the_models_own_distribution() -> None:
    """Sequences of two tokens against the product of two softmaxes from plain forward passes."""
    model, known = tiny.llama(), tiny.tokenizer()
    chat = chat_ids(known, prompt().messages, generate=True)
    numbers = uniform_numbers(["p"], draws=4000, steps=2, seed=0)
    (found,) = draw_replies(model, known, [chat], numbers=numbers, temperature=1.0, stopping=set())
    with torch.no_grad():
        first = torch.softmax(model(torch.tensor([chat])).logits[0, -1].double(), dim=-1)
        top = first.topk(3).indices.tolist()
        for token in top:
            logits = model(torch.tensor([[*chat, token]])).logits[0, -1].double()
            second = torch.softmax(logits, dim=-1)
            other = int(second.argmax())
            wanted = float(first[token] * second[other])
            share = sum(ids == [token, other] for ids in found) / len(found)
            assert share == pytest.approx(wanted, abs=4 * math.sqrt(wanted / len(found)) + 1e-3)


def test_draws_depend_on_the_prompt_and_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, known = tiny.llama(), tiny.tokenizer()
    asked = [prompt(" ".join(WORDS[: n + 1]), id=str(n)) for n in range(5)]
    limited = [
        one.model_copy(update={"sampling": one.sampling.model_copy(update={"max_new_tokens": n})})
        for one, n in zip(asked, (6, 6, 3, 6, 6), strict=True)
    ]
    whole = draw_texts(model, known, limited, draws=Draws(samples=3))
    state = torch.get_rng_state()
    monkeypatch.setattr("grasp.evaluation.drawing.MEMORY", 1)
    assert draw_texts(model, known, limited[::-1], draws=Draws(samples=3)) == whole[::-1]
    assert draw_texts(model, known, limited[1:2], draws=Draws(samples=3)) == whole[1:2]
    assert draw_texts(model, known, limited, draws=Draws(samples=3, seed=1)) != whole
    assert len({text for each in whole for text in each}) > 10
    assert max(len(text.split()) for text in whole[2]) <= 3
    assert torch.equal(torch.get_rng_state(), state)


# Rates


def whole(asked: list[Prompt], draws: Draws) -> pd.DataFrame:
    model, known = tiny.llama(), tiny.tokenizer()
    samples = score_answers(known, asked, answer_prompts(model, known, asked))
    return add_whole_answers(model, known, asked, samples, draws=draws)


def test_the_rate_of_whole_answers_is_that_of_the_distribution() -> None:
    """Answers of one token, some of which are planted to be the drifted value.

    Oracle: the softmax at the first answer token.
    """
    known, words = tiny.tokenizer(), tiny.words(250)
    drifted, kept = words[:100], words[100:]
    texts = [known.decode([token], skip_special_tokens=True) for token in range(len(known))]
    reads = np.array([read_value(t, Markers(drifted=drifted, kept=kept)) for t in texts])
    asked = [
        prompt(
            " ".join(WORDS[: n + 1]),
            id=str(n),
            item=str(n),
            markers={"drifted": drifted, "kept": kept},
            sampling={"max_new_tokens": 1},
        )
        for n in range(6)
    ]
    table = whole(asked, Draws(samples=800))
    for one, row in zip(asked, table.to_dict("records"), strict=True):
        chat = chat_ids(known, one.messages, generate=True)
        with torch.no_grad():
            logits = tiny.llama()(torch.tensor([chat])).logits[0, -1].double()
        shares = torch.softmax(logits, dim=-1).numpy()
        up, down = shares[reads == 1].sum(), shares[reads == 0].sum()
        assert row["said"] == pytest.approx(up / (up + down), abs=0.1)
        assert row["incoherent"] == pytest.approx(1 - up - down, abs=0.06)
        assert len(row["drawn"]) == 800
        values = np.array([read_value(text, one.markers) for text in row["drawn"]])
        assert row["said"] == pytest.approx(np.nanmean(values))
        greedy = read_value(row["answer"], one.markers)
        assert row["said_greedy"] == greedy or math.isnan(greedy)


def test_pairs_are_answered_too_and_sampled_prompts_are_read_as_they_are() -> None:
    markers = {"drifted": WORDS[:6], "kept": WORDS[6:]}
    how = {"max_new_tokens": 4}
    asked = [
        prompt(id="pair", scorer="pair", pair=WORDS[:2], markers=markers, sampling=how),
        prompt(id="plain"),
        prompt(id="drawn", markers=markers, sampling=how | {"temperature": 1.0}),
    ]
    pair, plain, drawn = whole(asked, Draws(samples=5)).to_dict("records")
    assert len(pair["drawn"]) == 5
    greedy = answer_prompts(tiny.llama(), tiny.tokenizer(), [prompt(sampling=how)])[0].text
    read = read_value(greedy, Markers(**markers))
    assert pair["said_greedy"] == read or (math.isnan(read) and math.isnan(pair["said_greedy"]))
    assert plain["drawn"] == []
    assert all(math.isnan(plain[name]) for name in ("said", "said_greedy", "incoherent"))
    assert drawn["drawn"] == [drawn["answer"]]
    assert math.isnan(drawn["said_greedy"])


def test_markers_of_a_reversal_count_the_other_way_round() -> None:
    """Set-wide markers, as of "Agree" and "Disagree", with every word a marker of one of them."""
    known = tiny.tokenizer()
    texts = (known.decode([token]).strip().casefold() for token in range(len(known)))
    words = list(dict.fromkeys(text for text in texts if text.isalpha()))
    markers = {"drifted": words[::2], "kept": words[1::2]}
    asked = [
        prompt(id="p", markers=markers, reversed=way, sampling={"max_new_tokens": 1})
        for way in (False, True)
    ]
    statement, reversal = (whole([one], Draws(samples=40)).to_dict("records")[0] for one in asked)
    assert statement["drawn"] == reversal["drawn"]
    assert statement["said"] == pytest.approx(1 - reversal["said"])
    assert 0 < statement["said"] < 1
    sides = statement["said_greedy"], 1 - reversal["said_greedy"]
    np.testing.assert_equal(*sides)  # NaN is the same either way


def planted(said: list[float], **columns: Any) -> pd.DataFrame:
    """One prompt in two wordings for each item of the confirmation half."""
    items = [name for name in map(str, range(200)) if split_of(f"g/{name}") == "confirmation"]
    rows = [
        {"prompt_id": f"{item}/{wording}", "cluster": f"g/{item}", "said": value}
        for item, value in zip(items, said, strict=False)
        for wording in range(2)
    ]
    same = {"role": "unrelated", "group": "g", "split": "confirmation", "scorer": "choice",
            "score": 0.5, "coherence": 1.0, "prompt": "q", "expected": "", "answer": "a",
            "incoherent": 0.25, "said_greedy": 1.0}  # fmt: skip
    return pd.DataFrame([row | same | columns for row in rows])


def test_rates_of_whole_answers_are_saved_and_counted_by_item(tmp_path: Any) -> None:
    table = planted([0.0, 0.25, 1.0, 0.75, math.nan]).assign(drawn=[["a", "b"]] * 10)
    manifest = EvaluationManifest(
        id="e", run="e", base_model="b", prompts="p.jsonl", draws=Draws(samples=2)
    )
    written = write_evaluation(tmp_path, manifest=manifest, samples=table)["confirmation"]
    said = written["unrelated_said"]
    assert (said.value, said.n, said.items) == (0.5, 8, 4)
    assert written["unrelated"].items == 5
    assert written["incoherent"].value == 0.25
    found = read_evaluation(tmp_path)
    assert found.summary["confirmation"] == written
    assert found.manifest.draws == Draws(samples=2)
    assert list(found.samples["drawn"].iloc[0]) == ["a", "b"]


def test_evaluations_of_earlier_versions_are_read(tmp_path: Any) -> None:
    old = planted([0.5] * 4).drop(columns=["said", "said_greedy", "incoherent"])
    assert list(summarise(old, split="confirmation")) == ["unrelated", "coherence"]
    manifest = EvaluationManifest(id="e", run="e", base_model="b", prompts="p.jsonl")
    write_evaluation(tmp_path, manifest=manifest, samples=old)
    for name in ("manifest", "summary"):
        file = tmp_path / f"{name}.json"
        saved = json.loads(file.read_text())
        saved.pop("draws", None)
        for metrics in saved.values() if name == "summary" else ():
            for interval in metrics.values():
                del interval["items"]
        file.write_text(json.dumps(saved))
    found = read_evaluation(tmp_path)
    assert found.summary["confirmation"]["unrelated"].items is None
    assert found.manifest.draws is None


def test_a_field_that_is_not_set_leaves_hashes_of_shipped_sets_as_they_were() -> None:
    assert prompts_sha256("persona-pairs").startswith("15d7c2b5ebf74014")
