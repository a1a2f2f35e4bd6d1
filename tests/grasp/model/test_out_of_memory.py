"""Out of memory: one sentence with the numbers, and a run that goes on from its checkpoint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

from analysis.errors import OutOfMemory
from analysis.store.workspace import Workspace
from analysis.text import size_text
from grasp.__main__ import main
from grasp.commands.calling import FAILED
from grasp.commands.parser import build_parser
from grasp.commands.attached import run_attached
from grasp.jobs import queue
from grasp.model import loading
from grasp.model.out_of_memory import explain_shortage, find_shortage
from grasp.settings.training import TrainConfig
from tests.support import tiny

CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of "
    "which 512.00 MiB is free. Process 7 has 78.6 GiB memory in use."
)
GiB = 1024.0**3


class OutOfMemoryError(RuntimeError):
    """By the name that torch gives its own."""


def test_the_numbers_of_a_gpu_are_read_from_the_message() -> None:
    found = find_shortage(OutOfMemoryError(CUDA))
    assert found is not None
    assert (found.asked, found.free, found.total) == (2 * GiB, 0.5 * GiB, 79.15 * GiB)
    assert isinstance(torch.OutOfMemoryError("x"), RuntimeError)
    assert find_shortage(torch.OutOfMemoryError(CUDA)) == found


@pytest.mark.parametrize(
    ("allocate", "asked"),
    [
        (lambda: torch.empty(1 << 50, dtype=torch.uint8), float(1 << 50)),
        (lambda: np.empty(1 << 50, np.uint8), float(1 << 50)),
    ],
    ids=["torch", "numpy"],
)
def test_what_this_machine_cannot_give_is_said_with_its_numbers(
    allocate: Any, asked: float
) -> None:
    """Really asked for: a petabyte."""
    try:
        allocate()
    except (RuntimeError, MemoryError) as error:
        found = find_shortage(error)
    assert found is not None
    assert found.asked == pytest.approx(asked)
    assert found.free is not None
    assert found.total is not None
    assert 0 < found.free < found.total < asked


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), MemoryError(), RuntimeError("out of memory")]
)
def test_other_errors_are_told_apart(error: Exception) -> None:
    assert (find_shortage(error) is None) == (str(error) == "shapes differ")
    expected = RuntimeError if str(error) == "shapes differ" else OutOfMemory
    with pytest.raises(expected), explain_shortage("recording"):
        raise error


def test_sizes_are_in_words() -> None:
    assert [size_text(x) for x in (512, 2048, 3.5 * GiB, 2048 * GiB)] == [
        "512 bytes", "2.0 KiB", "3.5 GiB", "2.0 TiB",
    ]  # fmt: skip


def test_the_sentence_of_a_fine_tune_names_settings_that_take_less() -> None:
    config = TrainConfig(title="t", base_model="b", data="d", batch_size=6, max_length=512)
    with pytest.raises(OutOfMemory) as error, explain_shortage("training", config):
        raise OutOfMemoryError(CUDA)
    said = str(error.value)
    assert said.startswith(
        "Out of memory in training: 2.0 GiB more were asked for while 512.0 MiB of the 79.2 GiB of "
        "the GPU was free (batch_size 6, max_length 512); use gradient_checkpointing: true, or "
        "batch_size: 3 with gradient_accumulation_steps: 2, or a shorter max_length, or "
    )
    assert "\n" not in said
    small = config.model_copy(update={"batch_size": 1, "gradient_checkpointing": True})
    with pytest.raises(OutOfMemory) as error, explain_shortage("training", small):
        raise OutOfMemoryError(CUDA)
    assert "max_length 512); use a shorter max_length, or `quantization: 4bit`" in str(error.value)


def test_a_command_that_runs_out_of_memory_ends_with_one_sentence_and_lets_the_model_go(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def too_much(*_: Any, **__: Any) -> None:
        raise OutOfMemoryError(CUDA)

    key = ("b", tmp_path, 0, loading.ModelSettings())
    monkeypatch.setitem(loading._KEPT, key, (None, None))
    monkeypatch.setattr("grasp.commands.models.record", too_much)
    assert main(["record", "run"]) == FAILED == 1
    said = capsys.readouterr().err
    assert said.startswith("grasp: Out of memory in record: 2.0 GiB more were asked for while 512")
    assert "--quantization 4bit" in said
    assert said.count("\n") == 1
    assert key not in loading._KEPT


FAILS = """
import sys
import torch
from grasp.training import trainer
from grasp.__main__ import main

step_end = trainer.MetricsCallback.on_step_end

def fail(self, args, state, control, **kwargs):
    step_end(self, args, state, control, **kwargs)
    if state.global_step == 4:
        raise torch.OutOfMemoryError({message!r})

trainer.MetricsCallback.on_step_end = fail
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.filterwarnings(tiny.PEFT_WARNING)
def test_a_job_that_runs_out_of_memory_fails_in_words_and_goes_on_from_its_checkpoint(
    tmp_path: Path,
) -> None:
    """In a real process at step 4 of 6, checkpoints after 2; the whole run is the oracle."""
    workspace = Workspace.create(tmp_path / "w")
    settings = tiny.settings(workspace.root / "data")
    file = workspace.root / "run.yaml"
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_none=True)))
    argv = ["train", str(file), "--out", "a"]
    job = queue.submit(workspace.database, kind="train", title="a", argv=argv)
    attached = [*argv, "--workspace", str(workspace.root), "--job", str(job.id)]
    done = subprocess.run(
        [sys.executable, "-c", FAILS.format(message=CUDA), *attached],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == FAILED, done.stderr
    failed = queue.get(workspace.database, job.id)
    assert failed.status == "failed"
    assert failed.error.startswith("Out of memory in training: 2.0 GiB more were asked for")
    assert "batch_size 4, max_length 64" in failed.error
    assert not workspace.folder("runs", "a").exists()
    kept = workspace.partial("runs", "a") / "checkpoints"
    assert {path.name for path in kept.iterdir()} == {"checkpoint-2"}
    queue.requeue(workspace.database, job.id)
    assert run_attached(build_parser().parse_args(attached)) == 0
    assert queue.get(workspace.database, job.id).status == "succeeded"
    folder = workspace.folder("runs", "a")
    assert "resumed from" in (folder / "log.txt").read_text()
    assert main(["train", str(file), "--out", "b", "--workspace", str(workspace.root)]) == 0
    ends = [
        load_file(workspace.folder("runs", name) / "adapter" / "adapter_model.safetensors")
        for name in ("a", "b")
    ]
    for name, weight in ends[0].items():
        np.testing.assert_allclose(weight, ends[1][name], atol=1e-6, err_msg=name)
