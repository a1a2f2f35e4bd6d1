"""What a run is recorded on: a file of chats, or the two answers of a set that ships."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.errors import InputError, NotFoundError
from analysis.store.records import write_jsonl
from grasp.evidence.record import read_probes
from grasp.prompts.sets import read_prompts


@pytest.mark.parametrize("name", ["persona-pairs", "politics"])
def test_a_set_of_pairs_gives_both_answers_to_each_prompt(name: str) -> None:
    prompts = {prompt.id: prompt for prompt in read_prompts(name)}
    rows = read_probes(name)
    assert len(rows) == 2 * len(prompts)
    assert len({row.id for row in rows}) == len(rows)
    for row in rows:
        prompt = prompts[row.id.rpartition("/")[0]]
        assert row.messages[:-1] == prompt.messages
        assert prompt.pair is not None
        # The first answer shows the end that is scored; of a reversal it is the other way round.
        shows_end = (row.messages[-1].content == prompt.pair[0]) is not bool(prompt.reversed)
        assert row.variant == (prompt.end if shows_end else f"not {prompt.end}")


def test_chats_are_read_from_a_file(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    row = {"id": "p", "group": "g", "variant": "good", "messages": chat}
    write_jsonl(tmp_path / "probes.jsonl", [row])
    assert [one.id for one in read_probes(tmp_path / "probes.jsonl")] == ["p"]


def test_what_cannot_be_recorded_is_said() -> None:
    with pytest.raises(InputError, match="has no pair of answers to record; choose a set of pairs"):
        read_probes("code-task")
    with pytest.raises(NotFoundError, match="neither a file 'no-such' nor a prompt set"):
        read_probes("no-such")
