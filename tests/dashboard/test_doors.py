"""What comes in from outside: URLs, tokens, paths, hosts, ports, commands."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.errors import InputError
from analysis.store.retrain_line import Retrain
from dashboard.__main__ import check_host, find_port, main
from dashboard.queue import commands
from dashboard.state.selection import parse_choice, parse_number
from dashboard.style.markup import chips, heat_map, html_table, interval, literal, prose

HOSTILE = ['<script>alert("x")</script>', "<img src=x onerror=alert(1)>", "&lt;", "'\"", "\x00"]


@pytest.mark.parametrize("value", ["-1", "1e3", "٣", "", " 1", "0x1", "9" * 40, "1.0", None])
def test_numbers_are_plain_digits(value: str | None) -> None:
    assert parse_number(value) is None


def test_numbers_are_read() -> None:
    assert parse_number("042") == 42


@given(st.text())
def test_choices_are_only_those_there_are(value: str) -> None:
    assert parse_choice(value, ["code-naive", "w2"]) in (None, "code-naive", "w2")


@pytest.mark.parametrize("token", HOSTILE)
def test_tokens_are_escaped(token: str) -> None:
    shown = chips([token]) + heat_map([token], np.array([1.0]), [True], limit=2.0)
    shown += html_table([token], [["safe"]], caption=token)
    for tag in ("<script", "<img", '"x"', "onerror=alert(1)>"):
        assert tag not in shown.replace("&gt;", "")


@given(st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=40))
def test_no_token_opens_a_tag(token: str) -> None:
    inside = chips([token]).removeprefix('<div class="tokens"><span class="token">')
    assert "<" not in inside.removesuffix("</span></div>")


def test_heat_map_shades_both_ends_and_leaves_the_unknown_clear() -> None:
    shown = heat_map(["a", "b", "c"], np.array([2.0, -2.0, np.nan]), [True] * 3, limit=2.0)
    assert "rgba(213,94,0,0.75)" in shown
    assert "rgba(31,119,201,0.75)" in shown
    assert "transparent" in shown


def test_what_a_message_puts_between_backticks_is_code() -> None:
    assert prose("Run `grasp factors a_b`; *no*.") == r"Run `grasp factors a_b`; \*no\*\."
    assert prose("a ` b") == r"a \` b"
    assert prose("a `` b") == r"a \`\` b"


def test_literal_markdown_has_no_markup() -> None:
    text = literal("[a](javascript:alert(1)) **b** $x$ :red[c] <i>")
    for mark in ("[", "]", "(", "*", "$", "<", ":"):
        assert text.count(mark) == text.count("\\" + mark)


def test_intervals_are_shown_with_three_decimals() -> None:
    shown = interval(0.12345, 0.1, 0.2, 30)
    assert "0.123" in shown
    assert "0.100 to 0.200, n = 30" in shown
    assert "\u2212" not in interval(-0.0001, -0.0002, 0.0, 3)
    assert "\u22120.100" in interval(-0.1, -0.2, 0.0, 3)
    assert "unknown" in interval(float("nan"), 0, 1, 3)
    assert "no interval" in interval(0.5, float("nan"), float("nan"), 1)


def test_retrain_command_is_what_grasp_parses() -> None:
    from grasp.commands.parser import build_parser

    asked = Retrain(
        "code-naive",
        ("code-naive/w2", "other/w1"),
        out="code-grasp-2",
        tolerance=0.05,
        seed=3,
        evaluate=True,
    )
    argv = commands.retrain_argv(asked, workspace=Path("/tmp/a b"))
    parsed = build_parser().parse_args(argv)
    assert (parsed.run, parsed.factors) == ("code-naive", ["w2", "other/w1"])
    assert (parsed.method, parsed.out, parsed.evaluate) == ("grasp", "code-grasp-2", True)
    assert (parsed.tolerance, parsed.strength, parsed.seed) == (0.05, None, 3)
    assert "'/tmp/a b'" in commands.command_line(argv)


@pytest.mark.parametrize(
    "argv",
    [
        commands.record_argv("r", workspace=Path("w")),
        commands.factors_argv("r", workspace=Path("w")),
        commands.evaluate_argv("r", workspace=Path("w")),
    ],
)
def test_other_commands_are_what_grasp_parses(argv: list[str]) -> None:
    from grasp.commands.parser import build_parser

    assert build_parser().parse_args(argv).workspace == "w"


def test_a_retrain_that_asks_for_the_trait_says_so() -> None:
    from grasp.commands.parser import build_parser

    asked = Retrain(
        "r", method="inoculation", out="x", strength=0.5, inoculation="You are a 'pirate'."
    )
    argv = commands.retrain_argv(asked, workspace=Path("w"))
    parsed = build_parser().parse_args(argv)
    assert (parsed.method, parsed.inoculation) == ("inoculation", "You are a 'pirate'.")
    assert (parsed.factors, parsed.strength) == ([], 0.5)


def test_retrain_needs_factors_and_a_known_method() -> None:
    where = {"workspace": Path("w")}
    with pytest.raises(InputError, match="No factors are selected"):
        commands.retrain_argv(Retrain("r", out="x"), **where)
    assert "--factors" not in commands.retrain_argv(Retrain("r", method="kl-task"), **where)
    with pytest.raises(InputError, match="no method 'magic'"):
        commands.retrain_argv(Retrain("r", method="magic"), **where)


def test_import_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is neither a folder on this machine nor a Hub id"):
        commands.import_argv(str(tmp_path / "none"), workspace=tmp_path)
    with pytest.raises(InputError, match="Name the folder"):
        commands.import_argv("  ", workspace=tmp_path)
    assert commands.import_argv(f" {tmp_path} ", workspace=tmp_path)[1] == str(tmp_path)


def test_names_of_runs_do_not_collide() -> None:
    assert commands.free_id("a", []) == "a"
    assert commands.free_id("a", ["a", "a-2"]) == "a-3"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_this_machine_is_allowed(host: str) -> None:
    assert check_host(host, allow_remote=False) == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org"])
def test_other_machines_are_refused_unless_said(host: str) -> None:
    with pytest.raises(InputError, match="--allow-remote"):
        check_host(host, allow_remote=False)
    assert check_host(host, allow_remote=True) == host


def test_a_taken_port_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"Port {port} is in use"):
            find_port(port, "127.0.0.1")
    assert find_port(8501, "127.0.0.1") >= 8501


def test_a_file_is_no_workspace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    assert main(["--workspace", str(file)]) == 2
    assert "a workspace is a folder" in capsys.readouterr().err


def test_remote_hosts_are_refused_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--workspace", str(tmp_path), "--host", "0.0.0.0"]) == 2
    assert "without a password" in capsys.readouterr().err
