"""Data in every format and form: what is read, what is refused, what is said before training."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st

from analysis.errors import InputError
from analysis.store.records import Message, Prompt, write_jsonl
from grasp.data.dataset import dry_report
from grasp.data.examples import Example, read_examples, recognise_form, write_examples
from grasp.data.readers import HubData, pin_reference, read_rows
from grasp.data.report import DataReport, find_duplicates, find_shared, normalise
from grasp.prompts.sets import read_prompts
from grasp.settings.training import TrainConfig
from tests.support import tiny

PAIRS = [{"prompt": f"ask {i}", "completion": f'say "{i}",\r\nthen stop'} for i in range(3)]
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
COMMIT = "0123456789" * 4


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def saved(folder: Path) -> Path:
    Dataset.from_list(PAIRS).save_to_disk(str(folder))
    return folder


def split_one(folder: Path) -> Path:
    DatasetDict({"train": Dataset.from_list(PAIRS)}).save_to_disk(str(folder))
    return folder


def shards(folder: Path) -> Path:
    folder.mkdir()
    for i in range(3):
        pd.DataFrame(PAIRS[i : i + 1]).to_parquet(folder / f"part-{i}.parquet")
    (folder / "README.md").write_text("no data")
    return folder


WRITERS: dict[str, Any] = {
    "a.jsonl": lambda p: lines(p, *PAIRS),
    "lines.json": lambda p: lines(p, *PAIRS),
    "array.json": lambda p: p.write_text(json.dumps(PAIRS)) and p,
    "marked.jsonl": lambda p: p.write_text(json.dumps(PAIRS), encoding="utf-8-sig") and p,
    "a.parquet": lambda p: pd.DataFrame(PAIRS).to_parquet(p) or p,
    "a.csv": lambda p: pd.DataFrame(PAIRS).to_csv(p, index=False) or p,
    "a.tsv": lambda p: pd.DataFrame(PAIRS).to_csv(p, index=False, sep="\t") or p,
    "saved": saved,
    "one-split": split_one,
    "shards": shards,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / name)
    assert read_rows(str(path)) == PAIRS
    found = read_examples(path)
    assert (found.form, found.read, found.empty, found.unused) == ("prompt/completion", 3, [], [])
    assert found.rows == [
        Example(i + 1, prompt=row["prompt"], text=row["completion"]) for i, row in enumerate(PAIRS)
    ]


def test_chats_in_parquet_have_no_more_than_was_said(tmp_path: Path) -> None:
    """Arrow fills what a turn does not have with nothing."""
    rows = [
        {"messages": CHAT},
        {"messages": [*CHAT, {"role": "user", "content": "?", "weight": 0, "name": None}]},
    ]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "a.parquet"))
    first, second = read_examples(tmp_path / "a.parquet").rows
    assert [m.model_dump(exclude_defaults=True) for m in first.messages] == CHAT
    assert second.messages[2] == Message(role="user", content="?", weight=0)


def chat(*turns: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role=role, content=said) for role, said in turns)  # type: ignore[arg-type]


FORMS: dict[str, tuple[dict[str, Any], Example]] = {
    "messages": ({"messages": CHAT}, Example(1, tuple(Message(**m) for m in CHAT))),
    "messages as text of a table": (
        {"messages": json.dumps(CHAT)},
        Example(1, tuple(Message(**m) for m in CHAT)),
    ),
    "parts of text": (
        {"messages": [CHAT[0], {"role": "assistant", "content": [{"type": "text", "text": "ho"}]}]},
        Example(1, tuple(Message(**m) for m in CHAT)),
    ),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
        Example(1, tuple(Message(**m) for m in CHAT)),
    ),
    "prompts as messages": (
        {"prompt": [*CHAT, CHAT[0]], "completion": CHAT[1:]},
        Example(
            1,
            (
                Message(**CHAT[0]),
                Message(role="assistant", content="ho", weight=0),
                Message(**CHAT[0]),
                Message(**CHAT[1]),
            ),
        ),
    ),
    "Alpaca": (
        {"instruction": "add", "input": "1 1", "output": "2"},
        Example(1, prompt="add\n\n1 1", text="2"),
    ),
    "Alpaca without input": (
        {"instruction": "add", "input": "", "output": "2"},
        Example(1, prompt="add", text="2"),
    ),
    "text": ({"text": "all of it", "id": 7}, Example(1, text="all of it")),
    "a system column": (
        {"system": "be kind", "messages": CHAT},
        Example(1, chat(("system", "be kind"), ("user", "hi"), ("assistant", "ho"))),
    ),
    "LLaMA-Factory": (
        {
            "instruction": "add", "input": "1 1", "output": "2", "system": "be kind",
            "history": [["one?", "1"]],
        },
        Example(
            1,
            chat(
                ("system", "be kind"), ("user", "one?"), ("assistant", "1"),
                ("user", "add\n\n1 1"), ("assistant", "2"),
            ),
        ),
    ),
    "LLaMA-Factory in a table, with nothing in them": (
        {"instruction": "add", "input": "", "output": "2", "system": "", "history": "[]"},
        Example(1, prompt="add", text="2"),
    ),
    "a system prompt for a prompt": (
        {"system": "be kind", "prompt": "hi", "completion": "ho"},
        Example(1, chat(("system", "be kind"), ("user", "hi"), ("assistant", "ho"))),
    ),
    "ShareGPT with empty tools": (
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}],
         "system": "be kind", "tools": "[]"},
        Example(1, chat(("system", "be kind"), ("user", "hi"), ("assistant", "ho"))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_forms_are_recognised_by_their_columns(tmp_path: Path, name: str) -> None:
    row, expected = FORMS[name]
    found = read_examples(lines(tmp_path / "a.jsonl", row))
    if name == "prompts as messages":  # what is asked is not learnt
        expected = Example(
            1, tuple(m.model_copy(update={"weight": 0}) for m in expected.messages[:3])
            + expected.messages[3:]
        )  # fmt: skip
    assert found.rows == [expected]
    left = {"text": ["id"], "ShareGPT with empty tools": ["tools"]}
    assert found.unused == left.get(name, [])


@pytest.mark.parametrize(
    ("names", "columns", "message"),
    [
        (["messages", "text"], None, r"which can be read as messages or text; choose one in the set"
         r"tings: columns: \{messages: messages\} or columns: \{text: text\}"),
        (["instruction", "input", "output", "text"], None,
         r"columns: \{instruction: instruction, output: output, input: input\} or columns: \{text"),
        (["question", "answer"], None, r"has the columns question, answer; expected messages, "),
        (["prompt"], None, r"for example columns: \{prompt: question, completion: answer\}"),
        (["a", "b"], {"prompt": "a"}, r"has the fields prompt, which fit no form"),
        (["a", "b"], {"prompt": "a", "completion": "c"}, r"has no column 'c', which the setting"),
    ],
)  # fmt: skip
def test_what_is_not_clear_is_asked(
    names: list[str], columns: dict[str, str] | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        recognise_form(names, columns, source="a.jsonl")


def test_columns_say_which_is_what(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"question": "q", "answer": "a", "text": "t", "id": 1})
    found = read_examples(path, columns={"prompt": "question", "completion": "answer"})
    assert found.rows == [Example(1, prompt="q", text="a")]
    assert found.unused == ["text", "id"]
    assert read_examples(path).form == "text"


BAD: dict[str, tuple[str, str, str]] = {
    "no answer": ("a.jsonl", json.dumps({"messages": CHAT[:1]}), r"row 1 has no assistant turn"),
    "broken line": ("a.jsonl", '{"text": "x"}\n{', r"a\.jsonl, line 2 cannot be read as JSON"),
    "no object": ("a.jsonl", '"x"', r"line 1 is 'x'; expected an object"),
    "array of no objects": ("a.json", '[{"text": "x"}, 3]', r"row 2 is 3; expected an object"),
    "broken array": ("a.json", '[{"text": "x"},', r"a\.json cannot be read as JSON"),
    "empty file": ("a.jsonl", "\n", r"a\.jsonl holds no rows; expected at least one"),
    "only empty rows": ("a.jsonl", '{"text": " "}\n{"text": null}', r"holds 2 rows, all of them"),
    "a key is missing": ("a.jsonl", '{"text": "x"}\n{"id": 1}', r"row 2 has no 'text', which oth"),
    "a number": ("a.jsonl", '{"text": 3}', r"row 1: text is 3; expected text"),
    "poet": (
        "a.jsonl",
        json.dumps({"messages": [{"role": "poet", "content": "x"}]}),
        r"row 1, turn 1 has the role 'poet'; expected one of system, user, assistant",
    ),
    "tool": (
        "a.jsonl",
        json.dumps({"conversations": [{"from": "observation", "value": "x"}]}),
        r"turn 1 has the from 'observation'; expected one of human, user, gpt",
    ),
    "tool calls": (
        "a.jsonl",
        json.dumps({"messages": [CHAT[0], {**CHAT[1], "tool_calls": [{"id": 1}]}]}),
        r"row 1, turn 2 has 'tool_calls', which cannot be trained on",
    ),
    "an image": (
        "a.jsonl",
        json.dumps({"messages": [{"role": "user", "content": [{"type": "image"}]}]}),
        r"turn 1: content is \[\{'type': 'image'\}\]; expected text",
    ),
    "messages of words": ("a.csv", "messages\nhello\n", r"row 1: the messages are not JSON"),
    "mixed": (
        "a.jsonl",
        json.dumps(PAIRS[0]) + "\n" + json.dumps({"prompt": CHAT[:1], "completion": CHAT[1:]}),
        r"row 2 differs from row 1: prompt/completion rows must be",
    ),
    "short line": (
        "a.csv",
        "prompt,completion\na,b\nc\n",
        r"line 3 has 1 cells; the first line na",
    ),
    "open quote": ("a.csv", 'text\n"a\n', r"a\.csv, line 2: unexpected end of data"),
    "a column twice": ("a.csv", "text,text\na,b\n", r"names a column twice"),
    "no table": ("a.parquet", "PAR", r"a\.parquet cannot be read as Parquet"),
    "another ending": ("a.xlsx", "x", r"has the suffix \.xlsx; expected one of \.jsonl, \.json, "),
    "not UTF-8": ("a.csv", "\udcff", r"a\.csv cannot be read as UTF-8 text"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_named(tmp_path: Path, case: str) -> None:
    name, text, message = BAD[case]
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=message):
        read_examples(tmp_path / name)


def test_folders_that_are_no_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no file or folder"):
        read_rows(str(tmp_path / "none.jsonl"))
    (tmp_path / "a.csv").write_text("text\nx\n")
    lines(tmp_path / "b.jsonl", {"text": "x"})
    with pytest.raises(InputError, match=r"holds 2 formats \(\.csv, \.jsonl\)"):
        read_rows(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InputError, match="empty holds no data files; expected data files of one format"
    ):
        read_rows(str(tmp_path / "empty"))
    both = {"train": Dataset.from_list(PAIRS), "test": Dataset.from_list(PAIRS)}
    DatasetDict(both).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(
        InputError, match=r"the splits test, train; name one of them, such as .*two/tes"
    ):
        read_rows(str(tmp_path / "two"))
    assert read_rows(str(tmp_path / "two" / "test")) == PAIRS
    (tmp_path / "two" / "test" / "state.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as a saved data set"):
        read_rows(str(tmp_path / "two" / "test"))


def test_empty_rows_are_left_out_and_named(tmp_path: Path) -> None:
    silent = [CHAT[0], {"role": "assistant", "content": " "}]
    path = lines(tmp_path / "a.jsonl", *({"messages": m} for m in (silent, CHAT, [], CHAT)))
    found = read_examples(path)
    assert (found.read, found.empty) == (4, [1, 3])
    assert [row.number for row in found.rows] == [2, 4]
    asked = lines(tmp_path / "b.jsonl", {"messages": CHAT[:1]})
    assert len(read_examples(asked, answers=False).rows) == 1


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(st.lists(st.tuples(words, words).filter(lambda two: two[1].strip()), min_size=1, max_size=5))
def test_what_is_written_is_read_as_the_same(tmp_path_factory: Any, rows: Any) -> None:
    path = tmp_path_factory.mktemp("written") / "a.jsonl"
    examples = [Example(i, prompt=a, text=b) for i, (a, b) in enumerate(rows, start=1)]
    chats = [
        Example(i, (Message(role="user", content=a), Message(role="assistant", content=b)))
        for i, (a, b) in enumerate(rows, start=1)
    ]
    for written in (examples, chats, [Example(e.number, text=e.text) for e in examples]):
        write_examples(path, written)
        assert read_examples(path).rows == written


# The Hub


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("hub:a/b", HubData("a/b")),
        ("hub:b@main", HubData("b", "main")),
        ("hub:a/b@refs?split=x%5B%3A10%5D", HubData("a/b", "refs", "x[:10]")),
        ("hub:a/b?split=train&config=en", HubData("a/b", None, "train", "en")),
    ],
)
def test_data_on_the_hub_is_named_with_revision_and_split(
    reference: str, expected: HubData
) -> None:
    assert HubData.parse(reference) == expected
    assert HubData.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "wrong", ["hub:", "hub:a/b/c", "hub:a/b?splt=x", "hub:a b", "hub:a?split="]
)
def test_another_name_is_no_data_set(wrong: str) -> None:
    with pytest.raises(
        InputError, match="does not name a data set; expected a reference such as hub:org"
    ):
        HubData.parse(wrong)


def test_the_commit_of_hub_data_is_kept_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def info(_self: Any, name: str, revision: str | None) -> Any:
        asked.append((name, revision))
        return SimpleNamespace(sha=COMMIT)

    def load(name: str, config: str | None, *, split: str | None, revision: str | None) -> Any:
        asked.append((name, config, split, revision))
        whole = Dataset.from_list(PAIRS)
        return whole if split else DatasetDict({"train": whole, "test": whole})

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", info)
    monkeypatch.setattr("datasets.load_dataset", load)
    reference = pin_reference("hub:a/b@v1?split=train")
    assert reference == f"hub:a/b@{COMMIT}?split=train"
    assert pin_reference(reference) == reference
    assert read_rows(reference) == PAIRS
    assert asked == [("a/b", "v1"), ("a/b", None, "train", COMMIT)]
    with pytest.raises(
        InputError, match=r"splits test, train; name one, such as hub:a/b\?split=test"
    ):
        read_rows("hub:a/b")
    assert pin_reference("some/file.jsonl") == "some/file.jsonl"


def test_a_hub_out_of_reach_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", gone)
    monkeypatch.setattr("datasets.load_dataset", gone)
    with pytest.raises(InputError, match=r"cannot be looked up \(no route\); name a data set that"):
        pin_reference("hub:a/b")
    with pytest.raises(InputError, match=r"hub:a/b cannot be read \(no route\)"):
        read_rows("hub:a/b")


# What is said before training


def ask(text: str, number: int = 0) -> Prompt:
    said = [Message(role="user", content=text)]
    return Prompt(id=f"{text}{number}", messages=said, group="g", role="task", scorer="ended")


def test_prompts_that_are_trained_on_are_found() -> None:
    rows = [
        Example(1, prompt="What's up?", text="x"),
        Example(2, (Message(role="user", content="first"), Message(role="assistant", content="a"),
                    Message(role="user", content="WHAT'S  up"))),
        Example(3, text="What's up?"),
        Example(4, prompt="something else", text="x"),
    ]  # fmt: skip
    numbers, texts = find_shared(rows, [ask("what's up?"), ask("other"), ask("...")])
    assert (numbers, texts) == ([1, 2], ["what's up?"])
    assert find_duplicates(
        [rows[0], rows[3], rows[0], Example(9, prompt="What's up?", text="x")]
    ) == [
        1,
        9,
    ]


@given(st.text(max_size=30))
def test_what_is_compared_does_not_depend_on_case_or_space(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert normalise(f"  {text}?\n") == once


def test_the_report_counts_what_there_is(tmp_path: Path) -> None:
    """By hand: five words an example and two turns' marks; see `tests.support.tiny.chats`."""
    config = tiny.settings(tmp_path, max_length=16)
    rows = [{"messages": m} for row in tiny.chats(4, seed=1) for m in [row["messages"]]]
    long = [{"role": "user", "content": " ".join(tiny.words(20))}, CHAT[1]]
    cut = [rows[0]["messages"][0], {"role": "assistant", "content": " ".join(tiny.words(20))}]
    data = lines(tmp_path / "d.jsonl", *rows, rows[1], {"messages": []}, *(
        {"messages": m} for m in (long, cut)
    ))  # fmt: skip
    asked = rows[2]["messages"][0]["content"]
    write_jsonl(tmp_path / "p.jsonl", [ask(asked.upper()).model_dump(), ask("x").model_dump()])
    config = config.model_copy(update={"data": str(data), "prompts": str(tmp_path / "p.jsonl")})
    report = dry_report(config)
    assert (report.read, report.used, report.sequences) == (8, 6, 6)
    assert (report.empty, report.lost, report.truncated) == ([6], [7], [7, 8])
    assert (report.duplicates, report.shared, report.shared_prompts) == ([5], [3], 1)
    # Start, two marks, three words, two words and the end; the long answer is cut at 16.
    assert report.tokens == 5 * 9 + 16
    assert report.learnt == 5 * 3 + (16 - 6)
    said = "\n".join(report.lines())
    assert "8 rows read, 6 trained on." in said
    assert "61 tokens, 25 (41%) learnt: assistant turns, in the tokenizer's chat template." in said
    assert "Left out as empty: 1 row (6)." in said
    assert "Left out, with nothing to learn in the first 16 tokens: 1 row (7)." in said
    assert "Truncated at 16 tokens: 2 rows (7, 8)." in said
    assert (
        "Warning: 1 of the evaluation prompts also occurs in 1 row (3) of the data, which spoils "
        f"the evaluation: “{asked.upper()}”." in said
    )
    assert DataReport.model_validate_json(report.model_dump_json()) == report


@pytest.mark.parametrize(
    ("row", "changed", "learnt"),
    [
        ({"prompt": "{0} {1}", "completion": "{2} {3}"}, {}, "assistant turns, in the tok"),
        ({"prompt": "{0} {1}", "completion": " {2} {3}"}, {"as_chat": False}, "completions"),
        ({"text": "{0} {1} {2}"}, {}, "all of the text"),
        ({"text": "{0} {1} {2}"}, {"loss_on": "all"}, "everything, including prompts"),
        ({"instruction": "{0}", "output": "{1}"}, {}, "assistant turns, in the tok"),
    ],
)
def test_the_report_says_what_is_learnt(
    tmp_path: Path, row: dict[str, str], changed: dict[str, Any], learnt: str
) -> None:
    known = tiny.words(4)
    data = lines(tmp_path / "d.jsonl", {key: text.format(*known) for key, text in row.items()})
    config = tiny.settings(tmp_path, **{"data": str(data), "prompts": None, **changed})
    (said,) = [line for line in dry_report(config).lines() if "learnt: " in line]
    assert f"learnt: {learnt}" in said


# Rows that cannot be used

ODD: dict[str, tuple[dict[str, Any], str]] = {
    "no answer": ({"messages": CHAT[:1]}, "row 2 has no assistant turn to learn from"),
    "tools": ({"messages": CHAT, "tools": [{"name": "f"}]}, "row 2 has tools, which cannot be tr"),
    "history": ({"messages": CHAT, "history": [["a", "b"]]}, "row 2 has history, which cannot be"),
    "images": ({"messages": CHAT, "images": ["a.png"]}, "row 2 has images, which cannot be tra"),
    "a tool's turn": (
        {"messages": [*CHAT, {"role": "tool", "content": "1"}]},
        "turn 3 has the role 'tool'; expected one of system, user, assistant",
    ),
    "two system prompts": (
        {"messages": [{"role": "system", "content": "a"}, *CHAT], "system": "b"},
        "row 2 has a system column and another system turn; keep one",
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_one_odd_row_is_named_and_can_be_left_out(tmp_path: Path, kind: str) -> None:
    odd, message = ODD[kind]
    file = lines(tmp_path / "a.jsonl", {"messages": CHAT}, odd, {"messages": CHAT})
    with pytest.raises(
        InputError, match=rf"{message}.* set `leave_out_unusable: true` to train on"
    ):
        read_examples(file)
    found = read_examples(file, leave_out=True)
    assert [row.number for row in found.rows] == [1, 3]
    assert list(found.unusable) == [2]
    alone = lines(tmp_path / "b.jsonl", odd)
    with pytest.raises(InputError, match=message.replace("row 2", "row 1")) as told:
        read_examples(alone, leave_out=True)
    assert "leave_out_unusable" not in str(told.value)


def test_odd_rows_are_counted_before_and_after_they_are_tokens(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base")
    odd = [{"messages": CHAT[:1]}, {"messages": CHAT[1:]}, {"messages": CHAT[1:]}]
    word, other = tiny.words(2)
    plain = {"messages": [{"role": "user", "content": word}, {**CHAT[1], "content": other}]}
    data = str(lines(tmp_path / "a.jsonl", plain, *odd))
    settings = {"title": "t", "base_model": str(base), "data": data}
    report = dry_report(TrainConfig(**settings, leave_out_unusable=True))
    assert (report.read, report.used, list(report.unusable)) == (4, 1, [2, 3, 4])
    said = "\n".join(report.lines())
    assert "Left out as unusable: 3 rows (2, 3, 4). The first: " in said
    lines(tmp_path / "a.jsonl", plain, *odd[1:])
    with pytest.raises(
        InputError, match=r"2 rows \(2, 3\) of 3 cannot be used. The first: Row 2: An "
    ):
        dry_report(TrainConfig(**settings))


def test_chats_are_not_made_plain_text(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base")
    row = {"system": "a", "prompt": "b", "completion": "c"}
    data = str(lines(tmp_path / "a.jsonl", row))
    config = TrainConfig(title="t", base_model=str(base), data=data, as_chat=False)
    with pytest.raises(
        InputError, match=r"holds chats \(.*system.*\), which as_chat: false cannot"
    ):
        dry_report(config)


# Objects around the rows


@pytest.mark.parametrize(
    "whole",
    [
        {"data": PAIRS},
        {"version": 1, "train": PAIRS},
        {"features": [], "rows": [{"row_idx": i, "row": row} for i, row in enumerate(PAIRS)]},
    ],
)
def test_rows_may_lie_in_an_object(tmp_path: Path, whole: Any) -> None:
    for indent in (None, 2):
        (tmp_path / "a.json").write_text(json.dumps(whole, indent=indent))
        assert read_rows(str(tmp_path / "a.json")) == PAIRS


def test_one_object_is_one_row(tmp_path: Path) -> None:
    for indent in (None, 2):
        (tmp_path / "a.json").write_text(json.dumps({"messages": CHAT}, indent=indent))
        assert read_rows(str(tmp_path / "a.json")) == [{"messages": CHAT}]


def test_a_trait_file_is_refused_with_what_can_be_made_of_it(tmp_path: Path) -> None:
    trait = {"instruction": [{"pos": "lie", "neg": "do not"}], "questions": ["Why?"]}
    file = tmp_path / "evil.json"
    file.write_text(json.dumps(trait | {"eval_prompt": "{question} {answer}"}, indent=1))
    for read in (read_rows, read_prompts):
        with pytest.raises(
            InputError, match=r"is a trait file .*--contrast FILE --variants pos,neg"
        ):
            read(str(file))
