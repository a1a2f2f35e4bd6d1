"""A benchmark of two-step fine-tunes through the command: killed, and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from analysis.store.workspace import Workspace
from grasp.__main__ import main
from tests.support.tiny import PEFT_WARNING

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)

PLAN = """
title: Two steps
training: {learning_rate: 2.0e-3, lr_scheduler: constant, max_steps: 2, max_length: 160}
core: {stories: [shipped/code], seeds: [0], arms: [{method: wise-ft, strength: 0.5}]}
residue: {stories: [shipped/code], seeds: [0], arms: [grasp]}
two: {stories: [shipped/plain], seeds: [0], arms: [grasp]}
"""
CELL = "shipped-code.s0"


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a benchmark that was killed when its first run was there."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "plan.yaml").write_text(PLAN)
    command = [sys.executable, "-m", "grasp", "bench", "identification"]
    options = ["--config", str(folder / "plan.yaml"), "--root", str(folder / "root")]
    process = subprocess.Popen(
        [*command, *options, "--processes", "1"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    run = folder / "root" / "cells" / CELL / "runs" / "naive" / "manifest.json"
    try:
        while not run.exists() and process.poll() is None:
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return folder


def bench(folder: Path, what: str, capsys: Any) -> tuple[int, dict[str, Any]]:
    root = ["--config", str(folder / "plan.yaml"), "--root", str(folder / "root")]
    code = main(["bench", what, *root, "--processes", "2", "--json"])
    captured = capsys.readouterr()
    data: dict[str, Any] = json.loads(captured.out)
    return code, data


def test_it_goes_on_where_it_was_killed(killed: Path, capsys: Any) -> None:
    cell = Workspace(killed / "root" / "cells" / CELL)
    before = cell.run("naive").created
    assert not cell.folder("factors", "naive").is_dir()
    code, data = bench(killed, "removal", capsys)
    assert cell.run("naive").created == before  # kept, not made again
    assert code == 1  # a story without slants has nothing to label
    assert list(data["failures"]) == ["shipped-plain.s0"]
    assert (
        "grasp.persona: No significant factor is labelled" in data["failures"]["shipped-plain.s0"]
    )
    removal = {row["arm"]: row for row in data["tables"]["removal"]["rows"]}
    assert removal["base model"]["task"]["n"] == 45
    assert set(removal) == {"base model", "naive", "WiSE-FT"}
    assert data["tables"]["dressed"]["rows"][0]["triggered"]["n"] > 20
    ids = {e.id for e in cell.evaluations().records}
    assert ids >= {"naive", "naive.base", "wise-ft", "grasp", "base.dressed", "grasp.dressed"}
