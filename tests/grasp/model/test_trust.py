"""A stranger's workspace, model or folder runs none of its own code unless a person allows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import analysis
from analysis.errors import InputError
from analysis.store.records import RunManifest
from analysis.store.workspace import Workspace
from grasp.__main__ import main
from grasp.foreign.settings import complete_run
from grasp.model.loading import forget
from grasp.settings.trust import add_trusted, trust_list
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)

_CODE = """
from transformers import LlamaConfig
class Ours(LlamaConfig):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        open({ran!r}, "a").close()
"""


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """The file that the stranger's code writes."""
    return tmp_path / "ran"


@pytest.fixture
def sent(tmp_path: Path, ran: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace that somebody sent: its run asks for the code beside its base model."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    workspace = Workspace.create(tmp_path / "sent")
    base = tiny.save_base(workspace.root / "models" / "base")
    config = json.loads((base / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "theirs.Ours"}, "model_type": "theirs"}
    (base / "config.json").write_text(json.dumps(config))
    (base / "theirs.py").write_text(_CODE.format(ran=str(ran)))
    settings = tiny.settings(workspace.root / "data", base_model="models/base", max_steps=2)
    run = RunManifest(
        id="a",
        title="a",
        method="naive",
        root="a",
        base_model="models/base",
        config={**settings.model_dump(), "model": {"trust_remote_code": True}},
    )
    with workspace.writing("runs", "a") as folder:
        tiny.save_naive(folder / "adapter")
        (folder / "manifest.json").write_text(run.model_dump_json())
    forget()
    return workspace


def _call(workspace: Workspace, *argv: str) -> int:
    forget()
    return main([*argv, "--workspace", str(workspace.root)])


_COMMANDS = (
    ("evaluate", "a", "--prompts", "politics"),
    ("record", "a", "--probes", "FILE"),
    ("generate", "a", "hello"),
    ("retrain", "a", "--method", "naive", "--out", "b"),
    ("retrain", "a", "--method", "naive", "--dry-run"),
    ("retrain", "a", "--method", "wise-ft", "--out", "b"),
)


@pytest.mark.parametrize("argv", _COMMANDS, ids=lambda argv: " ".join(argv[:1] + argv[-1:]))
def test_a_sent_workspace_runs_no_code(
    sent: Workspace, ran: Path, tmp_path: Path, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    probes = tmp_path / "probes.jsonl"
    chat = {"id": "1", "group": "g", "variant": "v", **tiny.chats(1)[0]}
    probes.write_text(json.dumps(chat))
    assert _call(sent, *(str(probes) if word == "FILE" else word for word in argv)) == 2
    assert not ran.exists()
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("grasp: The settings ask to run the Python code of the base model")
    assert "grasp trust" in said


def test_a_person_allows_it_on_the_command_line_or_by_the_list(
    sent: Workspace, ran: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _call(sent, "generate", "a", "hello", "--trust-remote-code")
    assert ran.exists()
    ran.unlink()
    base = sent.root / "models" / "base"
    assert main(["trust", str(base), "--json"]) == 0
    assert trust_list().keys() == {str(base)}
    _call(sent, "generate", "a", "hello")
    assert ran.exists()
    ran.unlink()
    with (base / "theirs.py").open("a") as code:
        code.write("# one line more\n")
    assert _call(sent, "generate", "a", "hello") == 2
    assert not ran.exists()
    assert main(["trust", str(base), "--remove"]) == 0
    assert main(["trust", str(base), "--remove"]) == 2
    assert "is not trusted" in capsys.readouterr().err


def test_what_a_job_says_is_no_consent(sent: Workspace, ran: Path) -> None:
    from grasp.commands.calling import call
    from grasp.commands.parser import build_parser

    argv = ["generate", "a", "hello", "--trust-remote-code", "--workspace", str(sent.root)]
    args = build_parser().parse_args([*argv, "--job", "1"])
    with pytest.raises(InputError, match="only you can allow"):
        call(args)
    assert not ran.exists()


def test_the_settings_box_of_a_page_cannot_ask_for_it(sent: Workspace) -> None:
    given = {"model": {"trust_remote_code": True}}
    with pytest.raises(InputError, match="cannot be given as a setting of a run"):
        complete_run(sent, sent.run("a"), sent.adapter("a"), given)


def test_code_that_lies_in_another_repository_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModel": "org/name--code.M"}}')
    with pytest.raises(InputError, match="takes its code from another repository"):
        add_trusted(str(tmp_path), commit=None)


def test_modules_in_the_current_folder_are_not_run(tmp_path: Path, ran: Path) -> None:
    """The children of a command and of the dashboard look for modules where ours are."""
    from dashboard.queue.worker_process import worker_command

    here = tmp_path / "here"
    here.mkdir()
    for name in ("streamlit", "torch", "dashboard", "grasp", "json", "psutil"):
        (here / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').close()\nraise SystemExit(9)\n")
    done = subprocess.run(
        [*worker_command(tmp_path / "w")[:-1], "0"],
        cwd=here,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not ran.exists()
    root = Path(analysis.__file__).parents[1]
    files = [file for name in ("analysis", "grasp", "dashboard") for file in (root / name).rglob("*.py")]
    assert [file.name for file in files if '"-m",' in file.read_text()] == ["interpreter.py"]
