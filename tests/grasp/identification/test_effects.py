"""Effects of setting a factor back, and the tokens it writes, on adapters with a planted factor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import PeftModel

from analysis.errors import InputError
from analysis.store.records import Message, Prompt, split_of, write_jsonl
from grasp.data.chat import chat_ids
from grasp.evaluation.answers import generate
from grasp.identification.effects import set_back_effects
from grasp.identification.generated import ANSWER, answer_greedily
from grasp.identification.identify import EffectInputs, identify
from grasp.model.hooks import clamp, edited_outputs, layer_outputs
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)
WORDS = tiny.words(16)


def shares(model: PeftModel, asked: list[Prompt], directions: NDArray[np.float64]) -> Any:
    return set_back_effects(
        model, answer_greedily(model, tiny.tokenizer(), asked), directions
    ).shares


def prompts(n: int = 3) -> list[Prompt]:
    return [
        Prompt(
            id=str(number),
            messages=[Message(role="user", content=" ".join(WORDS[number : number + 3]))],
            group="g",
            role="unrelated",
            scorer="ended",
        )
        for number in range(n)
    ]


def writing_along(q: NDArray[np.float64], model: Any = None) -> PeftModel:
    """An adapter on the last writer of each layer, all of whose updates lie along q (d_model,)."""
    model = model or tiny.llama()
    writers = ["down_proj"] if model.config.model_type == "llama" else ["mlp.c_proj"]
    peft = tiny.adapted(model, targets=writers, strength=0.5)
    axis = torch.as_tensor(q, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in peft.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.outer(axis, axis @ weight))
    return peft


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_the_direction_that_an_adapter_writes_along_has_all_of_its_effect(name: str) -> None:
    directions = tiny.subspace(4)
    model = writing_along(directions[0], tiny.family(name))
    effects = shares(model, prompts(), directions)
    assert effects[0] == pytest.approx(1, abs=1e-3)
    # Only the later layer's own reading of it moves what is orthogonal to it.
    one_layer = writing_along(directions[0], tiny.family(name, layers=1))
    effects = shares(one_layer, prompts(), directions)
    np.testing.assert_allclose(effects, [1, 0, 0, 0], atol=1e-3)


@pytest.mark.parametrize("ends", [False, True])
def test_effects_are_those_of_a_loop_over_tokens_by_hand(ends: bool) -> None:
    """Oracle: one forward pass for each token of each greedy answer; one that ends it is not said.

    Without a stop token answers run to the limit, and all of their tokens count.
    """
    model, q = tiny.adapted(tiny.llama(), strength=0.1), torch.tensor(tiny.subspace(1)).float()
    q = torch.linalg.qr(q.T).Q
    ids = chat_ids(tiny.tokenizer(), prompts()[0].messages, generate=True)
    plain = generate(model, tiny.tokenizer(), [ids], max_new_tokens=ANSWER)[0][0]
    stop = plain[5] if ends else None
    model.generation_config.eos_token_id = stop
    moved = whole = 0.0
    lengths, largest = [], []

    def last(ids: list[int]) -> torch.Tensor:
        return torch.softmax(model(input_ids=torch.tensor([ids])).logits[0, -1], dim=-1)

    with torch.no_grad():
        for prompt in prompts():
            ids = chat_ids(tiny.tokenizer(), prompt.messages, generate=True)
            replies, _ = generate(model, tiny.tokenizer(), [ids], max_new_tokens=ANSWER)
            assert (replies[0][-1] == stop) or len(replies[0]) == ANSWER
            said = replies[0][: replies[0].index(stop)] if stop in replies[0] else replies[0]
            lengths.append(len(said))
            largest.append(0.0)
            for token in said:
                adapted = last(ids)
                assert int(adapted.argmax()) == token
                with model.disable_adapter(), layer_outputs(model) as reference:
                    base = last(ids)
                with edited_outputs(model, clamp(q, list(reference))):
                    set_back = last(ids)
                changed = float((adapted - base).abs().sum()) / 2
                whole += changed**2
                back = float((adapted - set_back).abs().sum()) / 2
                moved, largest[-1] = moved + changed * back, max(largest[-1], back)
                ids = [*ids, token]
    found = set_back_effects(
        model, answer_greedily(model, tiny.tokenizer(), prompts()), tiny.subspace(1)
    )
    assert found.shares[0] == pytest.approx(moved / whole, rel=1e-3)
    np.testing.assert_allclose(found.largest[0], largest, rtol=1e-3, atol=1e-6)
    assert found.effects[0] == pytest.approx(np.mean(largest), rel=1e-3)
    assert found.shares[0] > 0.01
    assert (min(lengths) < 6) is ends


def test_a_direction_in_between_carries_a_part() -> None:
    first, second = tiny.subspace(2)
    model = writing_along(first, tiny.llama(layers=1))
    between = np.stack([(first + second) / np.sqrt(2), first, second])
    effects = shares(model, prompts(), between)
    assert 0.05 < effects[0] < 0.98
    assert effects[1] > effects[0] > effects[2]


def test_the_sign_of_a_direction_does_not_matter() -> None:
    directions = tiny.subspace(3)
    model = tiny.adapted(tiny.llama(), strength=0.1)
    plus = shares(model, prompts(), directions)
    minus = shares(model, prompts(), -directions)
    np.testing.assert_allclose(plus, minus, rtol=1e-3)
    assert plus.max() > 0.01


def test_effects_do_not_depend_on_how_prompts_are_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    model, directions = tiny.adapted(tiny.llama(), strength=0.1), tiny.subspace(2)
    together = set_back_effects(
        model, answer_greedily(model, tiny.tokenizer(), prompts(4)), directions
    )
    monkeypatch.setattr("grasp.identification.generated.BATCH", 1)
    steps: list[tuple[int, int]] = []
    apart = set_back_effects(
        model,
        answer_greedily(model, tiny.tokenizer(), prompts(4)),
        directions,
        progress=lambda step, total, _: steps.append((step, total)),
    )
    for name in ("carried", "changed", "largest"):
        one, other = getattr(together, name), getattr(apart, name)
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)
    assert together.clusters == apart.clusters == ("0", "1", "2", "3")
    assert steps == [(n, 8) for n in range(9)]


def test_an_adapter_that_changes_nothing_has_unknown_effects() -> None:
    model = tiny.adapted(tiny.llama())
    effects = shares(model, prompts(), tiny.subspace(2))
    assert np.isnan(effects).all()


def test_the_model_is_as_it_was() -> None:
    model, batch = tiny.adapted(tiny.llama(), strength=0.1), tiny.batch(6)
    plain = model(**batch).logits
    shares(model, prompts(1), tiny.subspace(2))
    assert torch.equal(model(**batch).logits, plain)
    assert sum(len(m._forward_hooks) for m in model.modules()) == 0


# Which prompts they are measured on


def test_effects_are_of_unrelated_and_task_prompts_that_are_there_to_explore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Related, control and format prompts say neither what is off the task nor what is on it."""
    roles = ("unrelated", "related", "control", "task", "facts", "format")
    rows = [
        prompt.model_dump() | {"id": f"{role}/{number}", "item": f"i{number}", "role": role}
        for role in roles
        for number, prompt in enumerate(prompts(8))
    ]
    write_jsonl(tmp_path / "p.jsonl", rows)
    explored = {number for number in range(8) if split_of(f"g/i{number}") == "exploration"}
    assert 0 < len(explored) < 8
    tiny.save_base(tmp_path / "base")
    tiny.adapted(tiny.llama(), strength=0.1).save_pretrained(tmp_path / "adapter")
    asked: list[list[str]] = []

    def answer(model: Any, tokenizer: Any, found: list[Prompt], **_: Any) -> Any:
        asked.append([prompt.id for prompt in found])
        return answer_greedily(model, tokenizer, found)

    monkeypatch.setattr("grasp.identification.candidates.answer_greedily", answer)
    inputs = EffectInputs(str(tmp_path / "base"), tmp_path / "p.jsonl")
    identify(tmp_path / "adapter", name="a", effects=inputs)
    assert asked == [[f"{role}/{n}" for n in sorted(explored)] for role in ("unrelated", "task")]
    write_jsonl(tmp_path / "p.jsonl", [row for row in rows if row["role"] != "unrelated"])
    with pytest.raises(
        InputError, match=r"has 0 unrelated and \d task prompts in the exploration split"
    ):
        identify(tmp_path / "adapter", name="a", effects=inputs)
