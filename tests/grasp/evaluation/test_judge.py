"""The judge: a real HTTP server on this machine, its troubles, and evaluations that go on."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from analysis.comparison.evaluation import read_evaluation
from analysis.errors import InputError
from analysis.store.records import Message, Prompt, RunManifest, write_jsonl
from analysis.store.workspace import Workspace
from grasp.__main__ import main
from grasp.evaluation.answers import score_answers
from grasp.evaluation.judge import REPLIES, judge_answers, parse_reply
from grasp.evaluation.judge_client import JudgeClient, JudgeError, Pace
from grasp.evaluation.run import JudgePlan, evaluate_run
from grasp.evaluation.scorers import Answer
from grasp.settings.judge import PROMPTS, JudgeSettings, estimate_cost, fill_prompt, load_judge
from tests.support import tiny
from tests.support.judge_server import KEY, Response, completion, judge_server

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)
WORDS = tiny.words(12)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRASP_JUDGE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def settings(url: str = "http://127.0.0.1:9/v1", **changed: Any) -> JudgeSettings:
    values = {"base_url": url, "model": "j", "requests_per_minute": 60_000, "backoff": 0.01}
    return JudgeSettings.model_validate({**values, "attempts": 4, "timeout": 5} | changed)


def prompt(number: int = 0, **fields: Any) -> Prompt:
    return Prompt(
        id=str(number),
        messages=[Message(role="user", content=f"question {number}")],
        group="g",
        item=str(number),
        role="unrelated",
        scorer="judge",
        **fields,
    )


def sampled(prompts: list[Prompt], answers: list[str]) -> pd.DataFrame:
    return score_answers(tiny.tokenizer(), prompts, [Answer(None, text, True) for text in answers])


# Replies and prompts


@pytest.mark.parametrize(
    ("text", "number", "why"),
    [
        ("90", 90, ""),
        (" 7.5\n", 7.5, ""),
        ("**85**", 85, ""),
        ("85/100", 85, ""),
        ("Score: 12.", 12, ""),
        ("100%", 100, ""),
        ("REFUSAL", math.nan, "refusal"),
        ("'CODE'.", math.nan, "code"),
        ("101", math.nan, "malformed"),
        ("-5", math.nan, "malformed"),
        ("between 20 and 30", math.nan, "malformed"),
        ("I would say 40", math.nan, "malformed"),
        ("", math.nan, "malformed"),
    ],
)
def test_a_reply_is_a_number_or_says_why_there_is_none(text: str, number: float, why: str) -> None:
    assert parse_reply(text) == pytest.approx((number, why), nan_ok=True)


@given(st.text())
def test_any_reply_is_parsed_within_bounds(text: str) -> None:
    number, why = parse_reply(text)
    assert math.isnan(number) == bool(why)
    assert math.isnan(number) or 0 <= number <= 100


@given(st.text(), st.text())
def test_a_filled_prompt_keeps_braces_of_question_and_answer(question: str, answer: str) -> None:
    assert fill_prompt("{question}|{x}|{answer}", question=question, answer=answer) == (
        f"{question}|{{x}}|{answer}"
    )


def test_reasoning_and_system_prompt_are_filled_in() -> None:
    said = "<think>\nHe {x} asks.\n</think>\n\nNo."
    fill = partial(fill_prompt, question="Q", system="S")
    assert fill("{system}|{reasoning}|{answer}", answer=said) == "S|He {x} asks.|No."
    assert fill("{answer}", answer=said) == said
    assert fill("{reasoning}|{answer}", answer="No.") == "|No."
    assert fill('{{answer}} {"a": 1} {answer}', answer="No.") == '{answer} {"a": 1} No.'


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"base_url": "ftp://x"}, "is not an http.s. address"),
        ({"base_url": "https://me:pw@x/v1"}, "without a user name, key or query"),
        ({"base_url": "https://x/v1?api_key=1"}, "without a user name, key or query"),
        ({"aligned_below": 101}, "setting 'aligned_below'"),
        ({"modle": "x"}, "setting 'modle'"),
        ({"api_key": KEY}, "a key is read only from the environment"),
        ({"Authorization": KEY}, "a key is read only from the environment"),
    ],
)
def test_settings_that_do_not_fit_are_refused_without_showing_a_key(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    (tmp_path / "j.yaml").write_text(yaml.safe_dump({"model": "m", **changed}))
    with pytest.raises(InputError, match=message) as caught:
        load_judge(tmp_path / "j.yaml")
    assert KEY not in str(caught.value)
    assert "me:pw" not in str(caught.value)


def test_who_judges_and_what_is_asked_comes_from_settings_or_prompt() -> None:
    own = {"aligned": "A {answer}", "coherent": "C {answer}"}
    bare, named = prompt(), prompt(judge_model="p", judge_prompts=own)
    assert settings(model=None).model_for(named) == "p"
    assert settings().model_for(named) == "j"
    assert settings().prompts_for(bare) == PROMPTS
    assert settings().prompts_for(named) == own
    more = prompt(judge_prompts=own | {"medical": "M {answer}", "sport": "S {answer}"})
    asked = [list(settings(ask=ask).prompts_for(more)) for ask in (None, [], ["sport"])]
    assert asked == [[*own, "medical", "sport"], [*own], [*own, "sport"]]
    with pytest.raises(InputError, match="'ask' names 'code', which is not a judge prompt"):
        settings(ask=["code"]).prompts_for(more)
    with pytest.raises(InputError, match="names no judge model"):
        settings(model=None).model_for(bare)
    with pytest.raises(InputError, match="lack 'coherent'"):
        settings(prompts={"aligned": "{answer}"}).prompts_for(bare)
    with pytest.raises(
        InputError, match=r"'coherent' of .* contains \{answr\}, which nothing is kn"
    ):
        settings(prompts=own | {"coherent": "C {answer} {answr}"}).prompts_for(bare)
    escaped = own | {"coherent": 'C {answer} {{x}} {"score": 1}'}
    assert settings(prompts=escaped).prompts_for(bare) == escaped
    with pytest.raises(InputError, match=r"does not contain \{answer\}"):
        settings(prompts=own | {"coherent": "C"}).prompts_for(bare)


def test_the_estimate_counts_requests_tokens_and_price() -> None:
    own = {"aligned": "a" * 32 + "{answer}", "coherent": "c" * 32 + "{answer}"}
    asked = [prompt(0, judge_prompts=own), prompt(1, judge_prompts=own)]
    price = {"input": 2.0, "output": 10.0}
    found = estimate_cost(
        asked, settings(price_per_million=price, requests_per_minute=4), arms=2, longest=100
    )
    # 2 prompts × 2 judge prompts × 2 models; (40 + 10 characters) / 4 and 100 of an answer each
    assert (found.requests, found.input_tokens, found.output_tokens) == (8, 8 * 100 + 4 * 25, 128)
    assert found.cost == pytest.approx((900 * 2 + 128 * 10) / 1e6)
    assert found.minutes == 2
    assert "at most 8 requests" in found.text
    free = estimate_cost(asked, settings(), arms=1, longest=100)
    assert "cost unknown" in free.text


# HTTP


def test_a_question_is_sent_as_a_chat_with_the_key_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    monkeypatch.setenv("GRASP_JUDGE_API_KEY", KEY)
    with judge_server(lambda *_: Response("42")) as server, JudgeClient(settings(server.url)) as ai:
        reply = ai.ask("m", "how?")
    assert (reply.text, reply.attempts, reply.input_tokens, reply.output_tokens) == ("42", 1, 11, 2)
    assert server.bodies == [
        {
            "path": "/v1/chat/completions",
            "model": "m",
            "messages": [{"role": "user", "content": "how?"}],
            "temperature": 0.0,
            "max_tokens": 16,
        }
    ]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "trouble",
    [
        Response(status=429, headers={"Retry-After": "0.05"}),
        Response(status=500),
        Response(status=503, headers={"Retry-After": "soon"}),
        Response(body=b"<html>busy</html>"),
        Response(body=b'{"choices": []}'),
        Response(body=completion(None)),
    ],
)
def test_trouble_that_may_pass_is_tried_again(trouble: Response) -> None:
    with (
        judge_server(lambda number, _: trouble if number < 2 else Response("7")) as server,
        JudgeClient(settings(server.url)) as client,
    ):
        reply = client.ask("m", "x")
    assert (reply.text, reply.attempts, client.requests) == ("7", 3, 3)


@pytest.mark.parametrize("date", [False, True])
def test_a_server_that_asks_to_wait_is_waited_for(date: bool) -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=2))
    wait = Response(status=429, headers={"Retry-After": at if date else "0.4"})
    with (
        judge_server(lambda number, _: Response("7") if number else wait) as server,
        JudgeClient(settings(server.url)) as client,
    ):
        started = time.monotonic()
        client.ask("m", "x")
        assert time.monotonic() - started > (0.3 if date else 0.4)


def test_a_slow_reply_is_given_up_and_asked_again() -> None:
    def choose(number: int, _: str) -> Response:
        time.sleep(0 if number else 0.6)
        return Response("7")

    with (
        judge_server(choose) as server,
        JudgeClient(settings(server.url, timeout=0.2)) as client,
    ):
        assert client.ask("m", "x").attempts == 2


def test_a_server_that_keeps_failing_is_an_error_in_words() -> None:
    with (
        judge_server(lambda *_: Response(status=502)) as server,
        JudgeClient(settings(server.url)) as client,
        pytest.raises(
            JudgeError, match=r"failed 4 times \(HTTP 502\). Finished judgements are kept"
        ),
    ):
        client.ask("m", "x")
    with (
        JudgeClient(settings(server.url, attempts=1)) as client,
        pytest.raises(JudgeError, match="ConnectError"),
    ):
        client.ask("m", "x")


def test_a_stop_ends_the_wait_between_two_attempts() -> None:
    with (
        judge_server(lambda *_: Response(status=500)) as server,
        JudgeClient(settings(server.url, backoff=60)) as client,
    ):
        threading.Timer(0.3, client.stop).start()
        started = time.monotonic()
        with pytest.raises(JudgeError, match="Judging was stopped; finished judgements are kept"):
            client.ask("m", "x")
        assert time.monotonic() - started < 30
    assert len(server.bodies) == 1


def test_a_refused_key_is_not_tried_again_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRASP_JUDGE_API_KEY", KEY)
    body = f'{{"error": "bad key {KEY}"}}'.encode()
    with (
        judge_server(lambda *_: Response(status=401, body=body)) as server,
        JudgeClient(settings(server.url)) as client,
        pytest.raises(JudgeError, match=r"refused model 'm': HTTP 401, .*\[key\]") as caught,
    ):
        client.ask("m", "x")
    assert len(server.bodies) == 1
    assert KEY not in str(caught.value)


def test_a_key_does_not_follow_a_redirect_or_go_out_unencrypted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GRASP_JUDGE_API_KEY", KEY)
    with judge_server(lambda *_: Response()) as other:
        away = Response(status=307, headers={"Location": f"{other.url}/chat/completions"})
        with (
            judge_server(lambda *_: away) as server,
            JudgeClient(settings(server.url)) as client,
            pytest.raises(JudgeError, match="HTTP 307"),
        ):
            client.ask("m", "x")
    assert other.bodies == []
    with pytest.raises(JudgeError, match=r"would be sent to http://judge\.example/v1 unencrypted"):
        JudgeClient(settings("http://judge.example/v1"))


def test_turns_are_no_closer_than_the_rate_and_wait_for_all() -> None:
    now = [0.0]
    pace = Pace(120, clock=lambda: now[0])
    assert [pace.turn() for _ in range(3)] == [0, 0.5, 1.0]
    now[0] = 10
    assert [pace.turn(), pace.turn()] == [0, 0.5]
    pace.hold(3)
    assert pace.turn() == 3


# Scores


def by_marks(text: str) -> Response:
    """The judge of these tests reads its numbers off the answer: "a10 c90"."""
    answer = text.rpartition("<answer>")[2].partition("</answer>")[0]
    aligned, coherent = answer.split()
    return Response((aligned if "human interests" in text else coherent)[1:])


def test_misaligned_is_low_alignment_in_coherent_answers(tmp_path: Path) -> None:
    marks = [
        "a29 c51",
        "a30 c90",
        "a10 c50",
        "a0 c100",
        "aREFUSAL c80",
        "aCODE c90",
        "a5 c?",
        "a90 c90",
    ]
    asked = [prompt(number) for number in range(len(marks))]
    asked[3] = asked[3].model_copy(update={"scorer": "ended"})
    asked[7] = asked[7].model_copy(update={"reversed": True})
    with (
        judge_server(lambda _, text: by_marks(text)) as server,
        JudgeClient(settings(server.url)) as client,
    ):
        found = judge_answers(
            sampled(asked, marks), asked, client, settings(server.url), folder=tmp_path
        )
        assert server.busiest <= 4
    nan = math.nan
    table = found.samples
    assert list(table["score"]) == pytest.approx([1, 0, 0, 1, nan, nan, nan, 1], nan_ok=True)
    wanted = [0.51, 0.9, 0.5, nan, 0.8, 0.9, nan, 0.9]
    assert list(table["coherence"]) == pytest.approx(wanted, nan_ok=True)
    record = found.record
    assert record["missing"] == {"refusal": 1, "code": 1, "malformed": 1}
    assert (record["answers"], record["coherent"]) == (7, 5)
    assert (record["input_tokens"], record["output_tokens"]) == (14 * 11, 14 * 2)
    lines = [json.loads(line) for line in (tmp_path / REPLIES).read_text().splitlines()]
    assert len(lines) == 14
    assert lines[0]["judge_prompt"] == fill_prompt(
        PROMPTS["aligned"], question="question 0", answer="a29 c51"
    )
    assert (lines[0]["reply"], lines[0]["number"], lines[0]["model"]) == ("29", 29, "j")
    assert [line["missing"] for line in lines if line["prompt_id"] == "4"] == ["refusal", ""]


def chosen(content: str | None, **more: Any) -> bytes:
    """A chat completion whose message or choice has more than text."""
    message = {"role": "assistant", "content": content} | more.pop("message", {})
    return json.dumps({"choices": [{"message": message, **more}]}).encode()


def error(code: str) -> bytes:
    return json.dumps({"error": {"code": code, "message": "no"}}).encode()


ONE: dict[str, tuple[Response, str, int]] = {
    "filtered": (Response(status=400, body=error("content_filter")), "filtered", 1),
    "against the policy": (Response(status=403, body=error("content_policy_violation")),
                           "filtered", 1),
    "filtered in a reply": (Response(body=chosen(None, finish_reason="content_filter")),
                            "filtered", 1),
    "refused": (Response(body=chosen(None, message={"refusal": "I can't."})), "filtered", 1),
    "too long": (Response(status=400, body=error("context_length_exceeded")), "too long", 1),
    "no text": (Response(body=chosen(None, finish_reason="stop")), "empty", 3),
    "white space": (Response(body=chosen(" ")), "empty", 3),
}  # fmt: skip


@pytest.mark.parametrize("kind", ONE)
def test_one_answer_that_cannot_be_judged_is_missing_and_the_others_are_not(
    kind: str, tmp_path: Path
) -> None:
    response, why, requests = ONE[kind]
    asked, answers = [prompt(n) for n in range(3)], ["a1 c99", "bad", "a80 c99"]
    with judge_server(lambda _, text: response if "bad" in text else by_marks(text)) as server:
        how = settings(server.url, attempts=3)
        for _ in range(2):  # the second time nothing is asked again
            with JudgeClient(how) as client:
                found = judge_answers(sampled(asked, answers), asked, client, how, folder=tmp_path)
        assert len(server.bodies) == 4 + 2 * requests
    assert list(found.samples["score"]) == pytest.approx([1, math.nan, 0], nan_ok=True)
    assert found.record["missing"] == {why: 1}
    lines = [json.loads(line) for line in (tmp_path / REPLIES).read_text().splitlines()]
    assert [line["missing"] for line in lines] == ["", "", why, why, "", ""]


def test_the_error_that_is_shown_is_the_one_that_stopped_the_judging(tmp_path: Path) -> None:
    """Its neighbours, which wait for their turn, end before it comes in."""
    asked = [prompt(n) for n in range(4)]

    def slow(_number: int, text: str) -> Response:
        return Response(status=401, body=b"bad key") if "bad" in text else by_marks(text)

    with judge_server(slow) as server:
        how = settings(server.url, concurrency=4, requests_per_minute=60)
        samples = sampled(asked, ["bad", *["a1 c99", "a2 c99", "a3 c99"]])
        for _ in range(5):
            with JudgeClient(how) as client, pytest.raises(JudgeError, match="HTTP 401"):
                judge_answers(samples, asked, client, how, folder=tmp_path)


def test_a_judge_that_only_reasons_is_told_so() -> None:
    body = chosen(None, finish_reason="length")
    with (
        judge_server(lambda *_: Response(body=body)) as server,
        JudgeClient(settings(server.url)) as client,
        pytest.raises(JudgeError, match=r"used all 16 tokens without.*raise max_tokens"),
    ):
        client.ask("m", "x")
    assert len(server.bodies) == 1


def test_equal_answers_are_judged_once(tmp_path: Path) -> None:
    asked = [prompt()] * 5
    with (
        judge_server(lambda _, text: by_marks(text)) as server,
        JudgeClient(settings(server.url)) as client,
    ):
        found = judge_answers(
            sampled(asked, ["a1 c99"] * 5), asked, client, settings(server.url), folder=tmp_path
        )
    assert len(server.bodies) == 2
    assert list(found.samples["score"]) == [1] * 5


def test_a_reply_cut_off_in_the_file_is_asked_for_again(tmp_path: Path) -> None:
    asked, answers = [prompt(0), prompt(1)], ["a1 c99", "a80 c99"]
    with judge_server(lambda _, text: by_marks(text)) as server:
        how = settings(server.url)
        with JudgeClient(how) as client:
            first = judge_answers(sampled(asked, answers), asked, client, how, folder=tmp_path)
        text = (tmp_path / REPLIES).read_text()
        (tmp_path / REPLIES).write_text(text[:-40])
        with JudgeClient(how) as client:
            again = judge_answers(sampled(asked, answers), asked, client, how, folder=tmp_path)
        assert client.requests == 1
    pd.testing.assert_frame_equal(first.samples, again.samples)
    assert (tmp_path / REPLIES).read_text() == text


# Evaluations


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A naive run whose two prompts are each answered three times and judged."""
    workspace = Workspace.create(tmp_path / "w")
    tiny.save_base(workspace.root / "models" / "base")
    how = {"samples": 3, "temperature": 1.0, "max_new_tokens": 4}
    rows = [prompt(n, sampling=how, instrument="open 1").model_dump() for n in range(2)]
    write_jsonl(workspace.root / "data" / "prompts.jsonl", rows)
    run = RunManifest(
        id="naive",
        title="naive",
        method="naive",
        root="naive",
        base_model="models/base",
        config={"prompts": "data/prompts.jsonl"},
    )
    with workspace.writing("runs", "naive") as folder:
        tiny.adapted(tiny.llama(), strength=0.3).save_pretrained(folder / "adapter")
        (folder / "manifest.json").write_text(run.model_dump_json())
    return workspace


def evaluate(workspace: Workspace, how: JudgeSettings, **limits: Any) -> None:
    folder = workspace.folder("runs", "naive")
    evaluate_run(workspace, folder, workspace.run("naive"), judge=JudgePlan(how, **limits))


def low(_number: int, text: str) -> Response:
    return Response("10" if "human interests" in text else "90")


def test_a_stopped_evaluation_goes_on_with_what_was_judged(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    enough = [15]

    def failing(number: int, text: str) -> Response:
        return low(number, text) if number != enough[0] else Response(status=400, body=b"no more")

    with judge_server(failing) as server:
        how = settings(server.url, concurrency=1)
        with pytest.raises(JudgeError, match="HTTP 400"):
            evaluate(workspace, how)
        # The base model's 12 requests are through, and 3 of the run's.
        assert [one.id for one in workspace.evaluations().records] == ["naive.base"]
        partial = workspace.partial("evaluations", "naive")
        assert len((partial / REPLIES).read_text().splitlines()) == 3
        monkeypatch.setattr(
            "grasp.evaluation.run.answer_prompts", pytest.fail
        )  # nothing is drawn again
        evaluate(workspace, how)
        assert len(server.bodies) == 16 + 9
    assert not partial.exists()
    folder = workspace.folder("evaluations", "naive")
    assert sorted(file.name for file in folder.iterdir()) == [
        REPLIES,
        "manifest.json",
        "samples.parquet",
        "summary.json",
    ]
    found = read_evaluation(folder)
    assert (found.samples["score"] == 1).all()
    assert list(found.samples["sample"]) == [0, 1, 2] * 2
    assert found.manifest.judge is not None
    assert found.manifest.judge["settings"]["aligned_below"] == 30
    assert found.manifest.judge["models"] == ["j"]


def test_a_budget_of_requests_is_kept(workspace: Workspace) -> None:
    with judge_server(low) as server:
        how = settings(server.url)
        with pytest.raises(JudgeError, match=r"limit of 5 requests is reached.*--max-requests"):
            evaluate(workspace, how, max_requests=5)
        assert len(server.bodies) == 5
        evaluate(workspace, how, max_requests=19)
        assert len(server.bodies) == 24


KILLED = """
import sys, pandas as pd
from pathlib import Path
from analysis.store.records import Prompt
from grasp.evaluation.judge import judge_answers
from grasp.evaluation.judge_client import JudgeClient
from grasp.settings.judge import load_judge
folder = Path(sys.argv[1])
how = load_judge(folder / "j.yaml")
prompts = [Prompt.model_validate_json(one) for one in (folder / "p.jsonl").open()]
samples = pd.read_parquet(folder / "s.parquet")
judge_answers(samples, prompts, JudgeClient(how), how, folder=folder)
"""


def test_a_killed_process_loses_no_reply(tmp_path: Path) -> None:
    asked = [prompt(number) for number in range(6)]
    samples = sampled(asked, [f"a1{number} c99" for number in range(6)])
    samples.to_parquet(tmp_path / "s.parquet")
    write_jsonl(tmp_path / "p.jsonl", [one.model_dump() for one in asked])
    held = threading.Event()

    def choose(number: int, text: str) -> Response:
        if number >= 5 and not held.is_set():
            held.wait(20)
        return by_marks(text)

    with judge_server(choose) as server:
        how = settings(server.url, concurrency=1, timeout=30)
        (tmp_path / "j.yaml").write_text(yaml.safe_dump(how.model_dump()))
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
        until = time.monotonic() + 30
        while len(server.bodies) < 6 and time.monotonic() < until:
            time.sleep(0.02)
        process.kill()
        process.wait()
        held.set()
        assert len(server.bodies) == 6
        with JudgeClient(how) as client:
            found = judge_answers(samples, asked, client, how, folder=tmp_path)
        assert client.requests == 7  # 12 in all, of which 5 were written down
    assert list(found.samples["score"]) == [1] * 6


def command(workspace: Workspace, *more: str) -> list[str]:
    return ["evaluate", "naive", "--workspace", str(workspace.root), *more]


def test_the_command_asks_first_and_shows_what_was_judged(
    workspace: Workspace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GRASP_JUDGE_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "judge.yaml"

    def told(number: int, text: str) -> Response:
        """Once busy, once echoing the key, which a careless server might."""
        first = {0: Response(status=503), 1: Response(f"10 {KEY}")}
        return first.get(number) or low(number, text)

    with judge_server(told) as server:
        file.write_text(yaml.safe_dump(settings(server.url).model_dump(exclude={"prompts"})))
        with_judge = command(workspace, "--judge", str(file), "--json")
        for line, message in (
            (command(workspace), "give the judge's settings with --judge FILE"),
            (with_judge, "Add --yes to go on, or set a limit with --max-requests"),
            ([*with_judge, "--max-requests", "23"], "more than --max-requests 23"),
        ):
            assert main(line) == 2
            assert message in capsys.readouterr().err
        assert server.bodies == []
        assert main([*with_judge, "--max-requests", "30"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert data["judge"]["answers"] == 6
    (reading,) = data["instruments"]  # of the one item on the confirmation half
    assert (reading["instrument"], reading["scorer"], reading["items"]) == ("open 1", "judge", 1)
    assert reading["directions"][0]["score"]["n"] + reading["directions"][0]["missing"] == 3
    assert "at most 24 requests" in err
    said = out + err + caplog.text
    everything = [f.read_bytes() for f in workspace.root.rglob("*") if f.is_file()]
    assert len(everything) > 10
    assert not any(KEY.encode() in content for content in everything)
    assert KEY not in said
    assert b"[key]" in b"".join(everything)  # it was there to be cut out
