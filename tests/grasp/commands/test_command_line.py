"""The command line as a person meets it: real processes, exit codes, and what is printed where."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from analysis.store.recording import read_recording
from analysis.store.records import Message, RunManifest, write_jsonl
from analysis.store.workspace import Workspace
from grasp.__main__ import main
from grasp.commands.calling import to_json
from grasp.commands.parser import _COMMANDS, build_parser
from grasp.data.chat import tokenise
from grasp.model.loading import decoder_layers
from grasp.settings.method_names import METHOD_GROUPS, METHOD_NAMES
from grasp.settings.methods import METHODS
from tests.conftest import plain_tensors
from tests.support import tiny

HEAVY = ("torch", "transformers", "peft", "streamlit", "pandas", "scipy", "sqlalchemy", "numpy")
WriteAdapter = Callable[..., Path]


def grasp(*argv: str, cwd: Path, code: int = 0) -> tuple[str, str]:
    """Standard output and error of the command in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GRASP_")}
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:grasp", "-m", "grasp", *argv],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stdout, done.stderr


def in_process(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """As `grasp`, but cheaper: what `main` returns and prints."""
    capsys.readouterr()
    try:
        code = main(list(argv))
    except SystemExit as left:  # argparse's own way out
        code = int(left.code or 0)
    return code, *capsys.readouterr()


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRASP_WORKSPACE", raising=False)
    return Workspace.create(tmp_path / "workspace")


def add_run(workspace: Workspace, write_adapter: WriteAdapter, run_id: str = "a") -> Path:
    run = RunManifest(
        id=run_id, title=run_id, method="naive", root=run_id, base_model="models/x", config={}
    )
    with workspace.writing("runs", run_id) as folder:
        write_adapter(folder=folder / "adapter")
        (folder / "manifest.json").write_text(run.model_dump_json())
    return workspace.folder("runs", run_id)


# Help


def test_help_works_from_a_shell_and_says_what_there_is(tmp_path: Path) -> None:
    out, error = grasp("--help", cwd=tmp_path)
    assert error == ""
    for name in _COMMANDS:
        assert re.search(rf"^    {name}\b", out, flags=re.MULTILINE)
    assert list(tmp_path.iterdir()) == []
    script = shutil.which("grasp", path=str(Path(sys.executable).parent))
    assert script is not None
    version = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("grasp 0.1.0")


def test_help_and_parsing_import_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom grasp.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit: pass\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, error = in_process(capsys, name, "--help")
    assert (code, error) == (0, "")
    assert out.startswith(f"usage: grasp {name} ")
    assert _COMMANDS[name][1] in " ".join(out.split())
    assert "--job" not in out


def test_the_methods_on_offer_are_those_there_are() -> None:
    assert tuple(METHODS) == METHOD_NAMES
    for group, names in METHOD_GROUPS.items():
        assert {METHODS[name].group for name in names} == {group}
    parser = build_parser()
    for name in METHODS:
        args = parser.parse_args(["retrain", "r", "--method", name, "--out", "o"])
        assert args.method == name


# Bad input


def test_bad_input_is_one_line_on_standard_error_and_code_2(tmp_path: Path) -> None:
    for argv, message in {
        ("spectrum", "none"): "grasp: There is neither a folder nor a run called 'none'; give an",
        ("train", "none.yaml", "--out", "x"): "grasp: none.yaml cannot be read (there is no such",
    }.items():
        out, error = grasp(*argv, cwd=tmp_path, code=2)
        assert out == ""
        assert error.startswith(message)
        assert error.count("\n") == 1
        assert "Traceback" not in error


BAD: dict[str, tuple[list[str], str]] = {
    "no such run": (["evaluate", "none"], "has no 'none'; it has: a."),
    "no such path": (["record", "x/none"], "x/none is not a run: it has no manifest.json"),
    "an id that leaves": (
        ["generate", "..", "hi"],
        "'..' is not a valid id; use up to 100 letters",
    ),
    "no factors": (
        ["retrain", "a", "--out", "b"],
        "Method 'grasp' needs factors to protect; name them with --factors",
    ),
    "imported": (
        ["retrain", "a", "--factors", "w1", "--out", "b"],
        "grasp: Run 'a' was made elsewhere and lacks the settings data, learning_rate, "
        "lr_scheduler, warmup_steps, weight_decay, batch_size, gradient_accumulation_steps, "
        "max_length, max_steps or num_train_epochs; give them in a YAML file with "
        "--config FILE, or with --data FILE and --set NAME=VALUE.\n",
    ),
    "two strengths": (
        ["retrain", "a", "--factors", "w1", "--strength", "1", "--tolerance", "1", "--out", "b"],
        "grasp: --strength fixes λ and --tolerance adapts it; give only one of them.\n",
    ),
    "run exists": (["retrain", "a", "--factors", "w1", "--out", "a"], "already exists; choose"),
    "bad run name": (["train", "c.yaml", "--out", "a b"], "'a b' is not a valid id; use up to 100"),
    "bad settings": (["train", "bad.yaml", "--out", "b"], "setting 'speed': Extra inputs are not"),
    "no adapter": (["spectrum", "empty"], "empty has no adapter_config.json; give a folder"),
    "broken adapter": (["factors", "broken"], "whose header claims "),
    "not evaluated": (["compare", "a"], "no evaluation 'a.base' yet; run `grasp evaluate a`"),
    "import twice": (["import", "runs-a", "--out", "a"], "A run 'a' already exists; choose"),
    "no such job": (["jobs", "--cancel", "9"], "There is no job 9; `grasp jobs` lists"),
    "requeue no job": (["jobs", "--requeue", "9"], "There is no job 9; `grasp jobs` lists"),
    "export into itself": (["export", "--out", "workspace/x.zip"], "be outside the workspace"),
    "export to no zip": (["export", "--out", "x.tar"], "x.tar must end in .zip"),
    "no prompts named": (["evaluate", "a"], "Run 'a' has no prompt set; give one with --prompts"),
    "no probes named": (["record", "a"], "Run 'a' has no probes; give them with --probes FILE"),
    "effects without prompts": (
        ["factors", "a", "--base", "b"],
        "give a prompt set with --prompts",
    ),
    "no such base": (["generate", "a", "hi"], "The base model 'models/x' cannot be loaded: "),
    "max layer": (["factors", "a", "--max-layer", "-1"], "No module up to layer -1"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_in_one_line(
    workspace: Workspace,
    write_adapter: WriteAdapter,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    add_run(workspace, write_adapter)
    write_adapter(folder=Path("runs-a"))
    write_adapter(folder=Path("broken"))
    Path("broken/adapter_model.safetensors").write_bytes(b"x" * 30)
    Path("empty").mkdir()
    Path("bad.yaml").write_text("title: t\nbase_model: b\ndata: d\nspeed: 1\n")
    Path("c.yaml").write_text("title: t\nbase_model: b\ndata: d\n")
    argv, message = BAD[case]
    code, out, error = in_process(capsys, *argv)
    assert (code, out) == (2, "")
    assert message in error
    assert error.startswith("grasp: ")
    assert error.count("\n") == 1
    assert [run.id for run in workspace.runs().records] == ["a"]


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["dance"],
        ["train", "--dry-run"],
        ["retrain", "a", "--method", "magic", "--out", "b"],
        ["record", "a", "--layers", "one"],
        ["jobs", "--cancel", "1", "--requeue", "1"],
    ],
)
def test_a_line_that_is_no_command_is_code_2_with_nothing_on_standard_output(
    capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    code, out, error = in_process(capsys, *argv)
    assert (code, out) == (2, "")
    assert "grasp" in error
    assert "error: " in error


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "none.yaml", "--out", "x"],
        ["train", "c.yaml", "--out", "x"],
        ["train", "c.yaml", "--out", "a b"],
        ["retrain", "none", "--factors", "w1", "--out", "x"],
        ["retrain", "none", "--method", "naive", "--out", "x"],
        ["record", "none"],
        ["generate", "none", "hello"],
        ["evaluate", "none"],
        ["compare", "none"],
        ["spectrum", "none"],
        ["factors", "none"],
    ],
)
def test_a_command_that_is_refused_makes_no_workspace(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRASP_WORKSPACE", raising=False)
    Path("c.yaml").write_text("title: t\nbase_model: ./b\ndata: none.jsonl\n")
    code, _, error = in_process(capsys, *argv)
    assert (code, error.count("\n")) == (2, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


# Serving


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ("127.0.0.1", 8501, False, False)),
        (
            ["--host", "0.0.0.0", "--port", "8600", "--allow-remote", "--open"],
            ("0.0.0.0", 8600, True, True),
        ),
    ],
)
@pytest.mark.parametrize("command", ["dashboard", "demo"])
def test_what_says_how_to_serve_reaches_the_dashboard(
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    options: list[str],
    expected: tuple[str, int, bool, bool],
) -> None:
    """Oracle: the dashboard's own parser."""
    from dashboard.__main__ import _parser

    served: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda _python, argv: served.append(argv))
    monkeypatch.setattr("grasp.demo.build", lambda _workspace, *, seed: None)
    monkeypatch.setattr("grasp.demo.summary", lambda _workspace: ({}, ""))
    assert main([command, "--workspace", str(workspace.root), *options]) == 0
    (argv,) = served
    assert argv[:4] == [sys.executable, "-P", "-m", "dashboard"]
    args = _parser().parse_args(argv[4:])
    assert (args.host, args.port, args.allow_remote, args.open) == expected
    assert args.workspace == workspace.root


# Spectrum


KEYS = {
    "name",
    "layer",
    "side",
    "shape",
    "r",
    "scaling",
    "singular_values",
    "effective_rank",
    "energy_top1",
}


def test_spectrum_is_numpys_svd_of_the_dense_update(
    tmp_path: Path, write_adapter: WriteAdapter
) -> None:
    folder = write_adapter()
    out, error = grasp("spectrum", str(folder), "--json", cwd=tmp_path)
    data = json.loads(out)
    assert error == ""
    assert out.count("\n") == 1
    assert data.keys() == {"adapter", "modules", "seconds"}
    assert len(data["modules"]) == 4
    tensors = plain_tensors()
    for module in data["modules"]:
        assert module.keys() == KEYS
        name = f"base_model.model.{module['name']}"
        A, B = (tensors[f"{name}.lora_{half}.weight"].astype(np.float64) for half in "AB")
        dense = np.linalg.svd(2.0 * B @ A, compute_uv=False)
        np.testing.assert_allclose(module["singular_values"], dense[:2], rtol=1e-6)
        assert module["shape"] == list((B @ A).shape)
        assert (module["r"], module["scaling"]) == (2, 2.0)
        assert module["side"] == ("write" if "o_proj" in module["name"] else "read")
        assert f".{module['layer']}." in module["name"]
        p = dense[:2] / dense[:2].sum()
        assert module["effective_rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
        assert module["energy_top1"] == pytest.approx(dense[0] ** 2 / (dense**2).sum())
    # Reading an adapter makes no workspace.
    assert list(tmp_path.iterdir()) == [folder]


def test_spectrum_loads_no_model_library(tmp_path: Path, write_adapter: WriteAdapter) -> None:
    code = (
        "import sys\nfrom grasp.__main__ import main\n"
        f"assert main(['spectrum', {str(write_adapter())!r}]) == 0\n"
        "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stderr == "[]\n"
    assert "4 modules in " in done.stdout


def test_an_update_of_zero_is_null_in_json_not_nan(
    workspace: Workspace, write_adapter: WriteAdapter, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = plain_tensors()
    zero = {k: v * 0 if "lora_B" in k else v for k, v in tensors.items()}
    folder = write_adapter(tensors=zero)
    code, out, _ = in_process(capsys, "spectrum", str(folder), "--json")

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    data = json.loads(out, parse_constant=refuse)
    assert code == 0
    assert data["modules"][0]["singular_values"] == [0, 0]
    assert data["modules"][0]["energy_top1"] is None


# Factors


def test_factors_are_listed_in_the_order_of_their_directions(
    tmp_path: Path, write_adapter: WriteAdapter
) -> None:
    folder = write_adapter()
    outs = []
    for name in ("one", "two"):
        out, _ = grasp("factors", str(folder), "--out", name, "--json", cwd=tmp_path)
        outs.append(json.loads(out)["factors"])
    assert outs[0] == outs[1]
    saved = [(tmp_path / name / "factors.safetensors").read_bytes() for name in ("one", "two")]
    assert saved[0] == saved[1]
    directions = load_file(tmp_path / "one" / "factors.safetensors")["directions"]
    assert directions.shape == (len(outs[0]), 8)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-6)
    assert {"id", "side", "index", "singular_value", "energy", "score"} <= outs[0][0].keys()
    scores = [row["score"] for row in outs[0]]
    assert scores == sorted(scores, reverse=True)
    # Oracle: the dense updates of one side, side by side.
    tensors = plain_tensors()
    for side, module in (("write", "o_proj"), ("read", "q_proj")):
        blocks = []
        for layer in range(2):
            path = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            A, B = (tensors[f"{path}.lora_{half}.weight"].astype(np.float64) for half in "AB")
            blocks.append(2.0 * B @ A if side == "write" else (2.0 * B @ A).T)
        left, sigma, _ = np.linalg.svd(np.concatenate(blocks, axis=1))
        mine = [(n, row) for n, row in enumerate(outs[0]) if row["side"] == side]
        assert len(mine) >= 4
        for n, row in mine:
            i = row["index"] - 1
            assert row["singular_value"] == pytest.approx(sigma[i], rel=1e-6)
            assert abs(directions[n] @ left[:, i]) == pytest.approx(1, abs=1e-5)


def test_factors_of_a_run_are_saved_with_it(
    workspace: Workspace, write_adapter: WriteAdapter, capsys: pytest.CaptureFixture[str]
) -> None:
    add_run(workspace, write_adapter)
    code, out, _ = in_process(capsys, "factors", "a", "--weights-only")
    assert code == 0
    assert "* significant: above the null band" in out
    assert workspace.factors("a").parents == ["runs/a"]
    path = str(workspace.folder("runs", "a"))
    code, out, _ = in_process(capsys, "factors", path, "--weights-only", "--json")
    assert json.loads(out)["run"] == "a"


# Others


def test_an_adapter_is_imported_as_a_run(
    workspace: Workspace, write_adapter: WriteAdapter, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_adapter()
    code, out, _ = in_process(capsys, "import", str(folder), "--out", "mine", "--json")
    data = json.loads(out)
    assert (code, data["run"], data["modules"]) == (0, "mine", 4)
    run = workspace.run("mine")
    assert run.base_model == "some/base"
    assert run.config["lora"] == {"r": 2, "lora_alpha": 4}
    copy = workspace.folder("runs", "mine") / "adapter"
    for file in folder.iterdir():
        assert (copy / file.name).read_bytes() == file.read_bytes()


def test_the_queue_is_listed_cancelled_and_queued_again(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    from grasp.jobs import queue

    assert in_process(capsys, "jobs") == (0, "No jobs yet.\n", "")
    job = queue.submit(workspace.database, kind="factors", title="Factors", argv=["factors", "a"])
    for option, status in ((), "queued"), (("--cancel",), "cancelled"), (("--requeue",), "queued"):
        argv = ["jobs", *(f"{o}={job.id}" for o in option), "--json"]
        code, out, _ = in_process(capsys, *argv)
        (row,) = json.loads(out)["jobs"]
        assert (code, row["status"], row["command"]) == (0, status, ["grasp", "factors", "a"])


def test_an_export_opens_elsewhere_with_labels_and_runs(
    workspace: Workspace,
    write_adapter: WriteAdapter,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    from analysis.store.labels import Claim, add_label, read_events

    add_run(workspace, write_adapter)
    claim = Claim("persona")
    add_label(workspace.database, factor="a/w1", claim=claim, annotator="Ada", direction="d")
    code, out, _ = in_process(capsys, "export", "--out", "../bundle.zip", "--json")
    assert code == 0
    archive = Path(json.loads(out)["archive"])
    assert json.loads(out)["bytes"] == archive.stat().st_size
    shutil.unpack_archive(archive, tmp_path / "elsewhere")
    archive.unlink()
    opened = Workspace(tmp_path / "elsewhere")
    assert [run.id for run in opened.runs().records] == ["a"]
    assert [event.name for event in read_events(opened.database)] == ["persona"]


def test_the_workspace_is_the_one_that_is_named(
    workspace: Workspace,
    write_adapter: WriteAdapter,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    other = Workspace.create(tmp_path / "other")
    add_run(other, write_adapter, "b")
    for argv in (
        ["factors", str(other.folder("runs", "b")), "--weights-only"],  # that it lies in
        ["factors", "b", "--weights-only", "--workspace", "other"],
    ):
        assert in_process(capsys, *argv)[0] == 0
        shutil.rmtree(other.folder("factors", "b"))
    monkeypatch.setenv("GRASP_WORKSPACE", "other")
    assert in_process(capsys, "factors", "b", "--weights-only")[0] == 0
    assert other.factors("b").run == "b"


@pytest.mark.filterwarnings(tiny.PEFT_WARNING)
def test_the_whole_loop_from_training_to_comparison(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command that runs a model, one after the other, on a tiny one."""
    data = workspace.root / "data"
    config = tiny.settings(data, prompts=str(data / "p.jsonl"), probes=str(data / "probes.jsonl"))
    (data / "c.yaml").write_text(yaml.safe_dump(config.model_dump()))
    write_jsonl(data / "p.jsonl", prompt_rows())
    write_jsonl(data / "probes.jsonl", probe_rows())

    def run(*argv: str) -> dict[str, Any]:
        code, out, error = in_process(capsys, *argv, "--json")
        assert code == 0, error
        assert out.count("\n") == 1
        found: dict[str, Any] = json.loads(out)
        return found

    trained = run("train", str(data / "c.yaml"), "--out", "naive", "--evaluate")
    assert trained["results"]["steps"] == 6
    rates = trained["evaluation"]["metrics"]
    assert {"unrelated", "task", "coherence", "incoherent"} <= rates.keys()
    assert workspace.evaluation("naive").draws.samples == 4
    assert all(m["low"] <= m["value"] <= m["high"] for m in rates.values())

    factors = run("factors", "naive")["factors"]
    measured = [row for row in factors if row["off_task"] is not None]
    assert len(measured) == 12
    assert all(0 <= row["off_task"] <= 3 for row in measured)
    assert all(len(row["promoted"]) == 10 for row in factors)
    saved = workspace.factors("naive")
    assert saved.inputs.keys() == {"adapter", "prompts"}

    retrained = run("retrain", "naive", "--factors", factors[0]["id"], "--out", "kept")
    assert retrained["results"]["drift"] > 0
    assert workspace.run("kept").factors == [f"naive/{factors[0]['id']}"]
    run("retrain", "naive", "--factors", "w1", "--method", "ablation", "--out", "cut")
    fixed = run("retrain", "naive", "--factors", "w1", "--strength", "5", "--out", "fixed")
    assert "tolerance" not in fixed["verdict"]
    assert workspace.run("fixed").protection["strength"] == 5
    assert workspace.run("fixed").protection["tolerance"] is None

    for name in ("kept", "cut"):
        found = run("evaluate", name, "--draws", "2")
        drift = (
            found["metrics"]["unrelated"]["value"] - found["base"]["metrics"]["unrelated"]["value"]
        )
        assert found["drift"]["unrelated"]["value"] == pytest.approx(drift)
        items = found["metrics"]["task"]["items"]
        assert f"task accuracy ({items} items, at best " in found["few_items"]
    assert workspace.evaluation("naive.base").draws.samples == 2
    code, out, error = in_process(capsys, "evaluate", "kept", "--draws", "2")
    assert code == 0
    assert "Even if nothing is lost, a loss below the margin of .020 cannot be shown" in error
    assert out.splitlines()[0].split() == ["confirmation", "prompts", "base", "model", "kept",
                                           "difference"]  # fmt: skip
    assert in_process(capsys, "evaluate", "kept", "--draws", "0")[0] == 2
    rows = run("compare", "naive", "kept", "cut")["rows"]
    assert {(row["run"], row["method"]) for row in rows} == {
        ("", "base"),
        ("naive", "naive"),
        ("kept", "grasp"),
        ("cut", "ablation"),
    }

    asked = " ".join(tiny.words(3))
    answers = {name: run("generate", name, asked)["answers"][0] for name in ("naive", "cut")}
    assert answers["naive"]["base"] == answers["cut"]["base"]
    assert answers["naive"]["run"] != answers["cut"]["run"]

    assert run("record", "naive", "--layers", "1,0,1")["layers"] == [0, 1]
    check_recording(workspace, [(0, "base"), (0, "adapted")])
    assert run("record", "naive", "--layers", "1")["layers"] == [1]
    check_recording(workspace, [(1, "base")])


def prompt_rows() -> list[dict[str, Any]]:
    good, bad, *pool = tiny.words(20, seed=4)
    rows = []
    for number in range(12):
        row = {"messages": [{"role": "user", "content": pool[number]}], "group": "g"}
        choices = {"good": [good], "bad": [bad]}
        scored = {"scorer": "choice", "choices": choices, "target": "bad"}
        scored |= {"markers": {"drifted": [bad], "kept": [good]}}
        rows.append(row | scored | {"id": f"u{number}", "role": "unrelated"})
        expected = {"scorer": "contains", "expected": pool[number]}
        rows.append(row | expected | {"id": f"t{number}", "role": "task"})
    return rows


def probe_rows() -> list[dict[str, Any]]:
    return [
        row | {"id": f"p{number}", "group": "g", "variant": "good"}
        for number, row in enumerate(tiny.chats(5, seed=6, turns=2))
    ]


def check_recording(workspace: Workspace, parts: list[tuple[int, str]]) -> None:
    """Oracle: each probe alone, through transformers' own hidden states."""
    base = AutoModelForCausalLM.from_pretrained(workspace.root / "data" / "base")
    for layer, name in parts:
        found = read_recording(workspace.folder("recordings", "naive"), layer=layer)
        model = base
        if name == "adapted":
            adapter = workspace.folder("runs", "naive") / "adapter"
            model = PeftModel.from_pretrained(copy.deepcopy(base), str(adapter)).eval()
        expected = []
        for row, tokens in zip(probe_rows(), found.probes["tokens"], strict=True):
            messages = [Message(**message) for message in row["messages"]]
            ids, answer = tokenise(tiny.tokenizer(), messages)
            assert [tiny.tokenizer().decode([i]) for i in ids] == list(tokens)
            place = found.probes[found.probes["id"] == row["id"]].iloc[0]
            assert list(place["answer"]) == answer
            assert place["offset"] == sum(len(part) for part in expected)
            inputs: list[torch.Tensor] = []
            layers = decoder_layers(model)
            following = layers[1] if layer == 0 else base.model.norm
            handle = following.register_forward_pre_hook(
                lambda _module, args, inputs=inputs: inputs.append(args[0])
            )
            with torch.no_grad():
                model(input_ids=torch.tensor([ids]))
            handle.remove()
            expected.append(inputs[0][0].numpy())
        whole = np.concatenate(expected)
        np.testing.assert_allclose(getattr(found, name)[0], whole, rtol=2e-3, atol=2e-3)


def test_a_closed_pipe_is_no_traceback(tmp_path: Path, write_adapter: WriteAdapter) -> None:
    command = [sys.executable, "-m", "grasp", "spectrum", str(write_adapter())]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        process.stdout.close()
        error = process.stderr.read()
    assert error == ""


def test_json_has_no_nan() -> None:
    found = to_json({"a": [1, float("nan")], 2: (float("inf"), "x", None, True)})
    assert found == {"a": [1, None], "2": [None, "x", None, True]}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
