"""YAML as people write it: read, and refused in one sentence that says what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.errors import InputError
from analysis.yaml_files import parse_yaml, read_mapping, read_yaml


def test_yaml_and_json_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a: 1\nb: [x, ä]\n", encoding="utf-8")
    assert read_mapping(file, what="settings", example="a: 1") == {"a": 1, "b": ["x", "ä"]}
    file.write_text('{"a": {"b": null}}')
    assert read_mapping(file, what="settings", example="a: 1") == {"a": {"b": None}}
    file.write_text("")
    assert read_yaml(file, what="settings") is None


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, r"there is no such file"),
        (b"\xff\xfe", r"it is not UTF-8 text"),
        (b"a: 1\nb: [", r"line 2: while parsing a flow node, expected the node content"),
        (b"a: 1\n--- 2", r"line 2: expected a single document in the stream, but found"),
        (b"a: 2024-13-45", r"month must be in 1\.\.12"),
        (b"a: \x00", r"unacceptable character #x0000"),
        (b"[" * 5000, r"maximum recursion depth exceeded"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(
    content: bytes | None, problem: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=problem) as caught:
        read_yaml(file, what="a plan")
    assert str(caught.value).startswith(f"{file} cannot be read (")
    assert str(caught.value).endswith("; expected a plan in YAML.")
    assert "\n" not in str(caught.value)


def test_a_folder_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        read_yaml(tmp_path, what="a plan")


@pytest.mark.parametrize("content", ["", "- 1", "text", "3"])
def test_names_and_values_are_asked_for_with_an_example(content: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(content)
    message = r"a\.yaml is not a mapping; expected settings, in lines such as 'title: my run'\.$"
    with pytest.raises(InputError, match=message):
        read_mapping(file, what="settings", example="title: my run")


@pytest.mark.parametrize(("line", "name"), [("on: 1", "True"), ("2024: 1", "2024")])
def test_a_name_that_yaml_does_not_read_as_text_is_refused(
    line: str, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(line)
    with pytest.raises(InputError, match=f"has the name {name}, which is not text; put the name"):
        read_mapping(file, what="settings", example="a: 1")


def test_text_is_named_by_where_it_came_from() -> None:
    with pytest.raises(InputError, match=r"^--set a: \[ cannot be read \(line 1: "):
        parse_yaml("a: [", source="--set a: [", what="settings")
