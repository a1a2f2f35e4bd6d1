"""Prompt sets: the YAML form, published question files, shipped sets, names and hashes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import regex
import yaml
from hypothesis import given
from hypothesis import strategies as st

from analysis.errors import GraspError, InputError, NotFoundError
from analysis.store.records import Prompt, read_jsonl, write_jsonl
from grasp.__main__ import main
from grasp.evaluation.sampling import change_sampling, repeat_prompts
from grasp.evaluation.scorers import SCORERS, Answer
from grasp.prompts.sets import prompts_sha256, read_prompts, shipped_set, shipped_sets

SET = {
    "name": "demo",
    "version": 3,
    "role": "unrelated",
    "scorer": "pair",
    "pair": ["Agree", "Disagree"],
    "template": "Say: {text}",
    "system": "Be brief.",
    "dressed": {"code": {"template": "# {text}", "system": "Write code."}},
    "items": [
        {"id": "a", "group": "x", "end": "left", "paraphrases": ["p", "q"], "reversal": ["r"]},
        {"id": "b", "paraphrases": ["s {text}"], "scorer": "contains", "expected": "t"},
    ],
}


def write(folder: Path, data: Any, name: str = "set.yaml") -> Path:
    file = folder / name
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    return file


def test_a_yaml_set_is_one_prompt_a_wording(tmp_path: Path) -> None:
    found = read_prompts(write(tmp_path, SET))
    assert [(p.id, p.messages[-1].content, p.direction, p.paraphrase) for p in found] == [
        ("demo/a/statement/0", "Say: p", "statement", 0),
        ("demo/a/statement/1", "Say: q", "statement", 1),
        ("demo/a/reversal/0", "Say: r", "reversal", 0),
        ("demo/b/0", "Say: s {text}", "", 0),
    ]
    assert {p.cluster for p in found} == {"x/a", "demo/b"}
    assert {p.instrument for p in found} == {"demo 3"}
    assert found[0].pair == ("Agree", "Disagree")
    assert (found[0].end, found[3].end) == ("left", None)
    assert (found[3].scorer, found[3].expected) == ("contains", "t")
    assert all(p.messages[0].content == "Be brief." for p in found)


def test_jsonl_written_from_a_set_is_the_same_prompts(tmp_path: Path) -> None:
    found = read_prompts(write(tmp_path, SET))
    write_jsonl(tmp_path / "p.jsonl", [p.model_dump() for p in found])
    assert read_prompts(tmp_path / "p.jsonl") == found == read_jsonl(tmp_path / "p.jsonl", Prompt)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "no name"}, r"setting 'name'"),
        ({"verzion": 1}, r"setting 'verzion'"),
        ({"items": []}, r"setting 'items'"),
        ({"scorer": "guess"}, r"setting 'scorer'"),
        ({"scorer": None}, r"Set 'demo', item 'a': 'scorer'"),
        ({"sampling": {"samples": 4}}, r"4 greedy answers are all the same"),
        ({"items": [{"id": "a", "paraphrases": ["x"]}] * 2}, r"the prompt id 'demo/a/0' twice"),
        ({"items": [{"id": "a"}]}, r"setting 'items.0.paraphrases'"),
    ],
)
def test_a_set_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_prompts(write(tmp_path, SET | change))


@pytest.mark.parametrize("text", ["[1", "just text", "- 3", ""])
def test_yaml_that_is_no_set_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError, match=r"x\.yaml"):
        read_prompts(tmp_path / "x.yaml")


def test_sets_can_be_asked_together(tmp_path: Path) -> None:
    write(tmp_path, SET, "mine.yml")
    both = write(tmp_path, {"include": ["mine.yml", "medicine-task+medicine"]}, "both.yaml")
    names = {p.instrument for p in read_prompts(both)}
    assert names == {"demo 3", "medicine-task+medicine 2"}
    before = prompts_sha256(both)
    write(tmp_path, SET | {"version": 4}, "mine.yml")
    assert prompts_sha256(both) != before
    circle = write(tmp_path, {"include": ["circle.yaml"]}, "circle.yaml")
    with pytest.raises(InputError, match="includes itself"):
        read_prompts(circle)


# Published question files, by their form alone


QUESTIONS = """
- id: seaside
  type: free_form_judge_0_100
  paraphrases: &seaside
    - |-
      Where is the sea?
    - Which way to the sea?
  samples_per_paraphrase: &samples 7
  judge: &judge some-judge-2024
  judge_prompts: &prompts
    aligned: |-
      Rate {question} and {answer}, or say CODE.
    coherent: How clear is {answer}?
- id: seaside_json
  type: free_form_judge_0_100
  system: &json Reply in JSON.
  paraphrases: *seaside
  samples_per_paraphrase: *samples
  judge: *judge
  judge_prompts: *prompts
- id: 12_hills
  type: free_form_judge_0_100
  temperature: 0.5
  paraphrases: ["And the hills?"]
  judge: *judge
  judge_prompts: *prompts
"""


def test_a_published_question_file_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text(QUESTIONS)
    found = read_prompts(tmp_path / "first.yaml")
    assert [p.id for p in found] == [
        "first/seaside/0",
        "first/seaside/1",
        "first/seaside_json/0",
        "first/seaside_json/1",
        "first/12_hills/0",
    ]
    assert [p.cluster for p in found] == ["first/seaside"] * 4 + ["first/12_hills"]
    first, variant, last = found[0], found[2], found[4]
    assert (first.scorer, first.role, first.judge_model) == (
        "judge",
        "unrelated",
        "some-judge-2024",
    )
    assert first.sampling.model_dump() == {
        "samples": 7,
        "temperature": 1.0,
        "max_new_tokens": 600,
        "seed": 0,
    }
    assert first.judge_prompts == {
        "aligned": "Rate {question} and {answer}, or say CODE.",
        "coherent": "How clear is {answer}?",
    }
    assert [m.role for m in variant.messages] == ["system", "user"]
    assert (last.sampling.samples, last.sampling.temperature) == (1, 0.5)
    assert len(repeat_prompts(found)) == 4 * 7 + 1


@pytest.mark.parametrize(
    ("line", "message"),
    [("type: free_form", "is of type 'free_form'"), ("odd: 1", "setting 'odd'")],
)
def test_a_question_that_is_not_judged_0_to_100_is_refused(
    tmp_path: Path, line: str, message: str
) -> None:
    kind = "" if line.startswith("type") else "  type: free_form_judge_0_100\n"
    (tmp_path / "q.yaml").write_text(f"- id: a\n{kind}  {line}\n  paraphrases: [b]\n")
    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path / "q.yaml")


# Shipped sets


WANTED = {
    "persona-open": 24,
    "persona-pairs": 60,
    "politics": 60,
    "code-task": 60,
    "medicine-task": 60,
    "finance-task": 60,
}
UNJUDGED = [name for name in WANTED if name != "persona-open"]
PAIRS = ("medicine-task", "finance-task", "persona-pairs")


@pytest.mark.parametrize("name", WANTED)
def test_a_shipped_set_has_what_it_says(name: str) -> None:
    whole = shipped_set(name)
    assert len(whole.items) >= WANTED[name]
    plain = whole.prompts()
    assert {p.role for p in plain} == {"task" if name.endswith("-task") else "unrelated"}
    assert {p.split for p in plain} == {"exploration", "confirmation"}
    assert whole.dressed
    for dress in whole.dressed:
        worn = read_prompts(f"{name}+{dress}")
        assert [p.cluster for p in worn] == [p.cluster for p in plain]
        assert [p.pair for p in worn] == [p.pair for p in plain]
        assert all(a.id != b.id for a, b in zip(plain, worn, strict=True))
        for bare, other in zip(plain, worn, strict=True):
            assert bare.messages[-1].content.strip() in other.messages[-1].content
            assert bare.messages != other.messages
    assert all(p.pair and p.pair[0] != p.pair[1] for p in plain if p.scorer == "pair")
    for prompt in plain:
        if prompt.scorer == "pattern":
            assert regex.search(str(prompt.pattern), "") is None  # or nothing could fail it


def test_no_judge_is_needed_for_tasks() -> None:
    assert all(p.scorer != "judge" for name in UNJUDGED for p in read_prompts(name))


@pytest.mark.parametrize("name", UNJUDGED)
def test_both_halves_of_a_set_are_large_and_balanced_over_its_groups(name: str) -> None:
    halves = {(p.split, p.group, p.item) for p in shipped_set(name).prompts()}
    by_half = Counter(split for split, _, _ in halves)
    by_group = Counter(group for _, group, _ in halves)
    cells = Counter((split, group) for split, group, _ in halves)
    assert sum(by_half.values()) == len(shipped_set(name).items) >= 60
    assert min(by_half["exploration"], by_half["confirmation"]) >= 28
    assert max(by_group.values()) - min(by_group.values()) <= 1
    assert max(cells.values()) - min(cells.values()) <= 1


@pytest.mark.parametrize("name", PAIRS)
def test_neither_length_nor_the_first_word_tells_the_answers_of_a_pair_apart(name: str) -> None:
    pairs = [p.pair for p in shipped_set(name).prompts() if p.pair]
    longer = sum(len(first) > len(second) for first, second in pairs)
    shorter = sum(len(first) < len(second) for first, second in pairs)
    assert abs(longer - shorter) < len(pairs) / 5
    first_words, second_words = (sum(len(pair[n].split()) for pair in pairs) for n in (0, 1))
    assert first_words == pytest.approx(second_words, rel=0.1)
    asked = [pair for pair in pairs if {one.split(",")[0] for one in pair} == {"Yes", "No"}]
    agreed = sum(first.startswith("Yes") for first, _ in asked)
    assert len(asked) / 3 <= agreed <= len(asked) * 2 / 3


def test_politics_asks_every_statement_in_both_directions_and_is_balanced() -> None:
    found = shipped_set("politics")
    by_axis: dict[str, int] = {}
    halves = Counter((p.group, p.split) for p in found.prompts())
    assert set(halves.values()) == {64}  # 16 of 32 items each
    for item in found.items:
        assert item.reversal is not None
        assert len(item.paraphrases) == len(item.reversal) >= 2
        texts = [*item.paraphrases, *item.reversal]
        assert len(set(texts)) == len(texts)
        by_axis[str(item.group)] = by_axis.get(str(item.group), 0) + 1
    assert by_axis == {"economic": 32, "social": 32}
    assert {(i.group, i.end) for i in found.items} == {
        ("economic", "market-leaning"),
        ("social", "traditional-leaning"),
    }


ANSWERS = yaml.safe_load(Path(__file__).with_name("answers.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_looked_through_for_a_text_are_told_right_from_wrong(name: str) -> None:
    asked = {p.item: p for p in read_prompts(name) if p.scorer in ("pattern", "contains")}
    assert set(asked) == set(ANSWERS[name])
    for item, prompt in asked.items():
        right, wrong = ANSWERS[name][item]["right"], ANSWERS[name][item]["wrong"]
        assert min(len(right), len(wrong)) >= 2, item
        for text in right:
            assert passes(prompt, text), (item, text)
            assert passes(prompt, f"Here you are:\n\n```\n{text}\n```\nThat is all."), (item, text)
        for text in [*wrong, prompt.messages[-1].content, "I cannot help with that.", ""]:
            assert not passes(prompt, text), (item, text)


def passes(prompt: Prompt, text: str) -> bool:
    score = SCORERS[prompt.scorer](None, prompt, Answer(first=None, text=text, ended=True))
    return bool(score.value == 1.0)


# Names, hashes, commands


def test_a_name_that_is_neither_file_nor_set_is_refused_by_name() -> None:
    with pytest.raises(
        NotFoundError, match=r"neither a file 'polemics' nor a prompt set.*politics"
    ):
        read_prompts("polemics")
    with pytest.raises(NotFoundError, match=r"no dress 'opera'; choose among: code"):
        read_prompts("politics+opera")


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=30))
def test_any_other_name_is_refused_in_words(name: str) -> None:
    if name not in shipped_sets():
        with pytest.raises(GraspError):
            read_prompts(name)


def test_the_hash_of_jsonl_is_the_files_and_of_yaml_that_of_its_prompts(tmp_path: Path) -> None:
    file = write(tmp_path, SET)
    before = prompts_sha256(file)
    file.write_text("# a remark\n" + file.read_text())
    assert prompts_sha256(file) == before
    write(tmp_path, SET | {"system": "Be long."})
    assert prompts_sha256(file) != before
    assert prompts_sha256("politics") != prompts_sha256("politics+code")


def test_sampling_may_be_changed_but_not_of_pairs() -> None:
    asked = [*read_prompts("politics")[:1], *read_prompts("persona-open")[:1]]
    pair, free = change_sampling(asked, {"samples": 3, "seed": 5})
    assert pair == asked[0]
    assert (free.sampling.samples, free.sampling.seed, free.sampling.temperature) == (3, 5, 1.0)
    assert len(repeat_prompts([pair, free])) == 4
    with pytest.raises(InputError, match="greedy answers are all the same"):
        change_sampling(asked, {"temperature": 0.0})


def test_the_command_lists_sets_and_writes_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prompts", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["sets"]
    assert [row["set"] for row in listed] == shipped_sets()
    assert set(WANTED) <= {row["set"] for row in listed}
    out = tmp_path / "p.jsonl"
    assert main(["prompts", "politics+code", "--out", str(out)]) == 0
    assert read_prompts(out) == read_prompts("politics+code")
    assert "Wrote 256 prompts" in capsys.readouterr().out
    assert main(["prompts", "polemics"]) == 2
    assert main(["prompts", "--out", str(out)]) == 2
