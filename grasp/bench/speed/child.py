"""Run work in a separate process and measure the memory it takes.

That is its peak resident memory (VmHWM in /proc/self/status, kept by the kernel) minus what was
resident once everything the work needs had been imported and loaded.  Pages of mapped files
count; this project reads adapters into memory rather than mapping them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from analysis.errors import GraspError
from analysis.interpreter import module_command
from analysis.values import Json

_READY = "ready"

Work = Callable[[], Json]
"""What is measured, once everything it needs is imported and loaded; returns JSON values."""


@dataclass(frozen=True)
class Measurement:
    """Result of a process: its data, seconds of work, and resident bytes before and at the peak."""

    data: Json
    seconds: float
    before: int
    peak: int

    @property
    def growth(self) -> int:
        """Bytes the work added at its peak."""
        return self.peak - self.before


def watch(prepare: str, *arguments: str) -> Measurement:
    """Run work in a new process.

    Args:
        prepare: "module:function" of a function that takes strings and returns the `Work`.
        arguments: passed to it.

    Raises:
        GraspError: it failed; the message has the last line of its output.
    """
    command = module_command("grasp.bench.speed.child", prepare, *arguments)
    with (
        TemporaryFile("w+", encoding="utf-8") as said,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, text=True, env=_environment()
        ) as process,
    ):
        assert process.stdout is not None
        if process.stdout.readline().strip() != _READY:
            process.wait()
            raise GraspError(f"{prepare} could not start: {_last(said)}")
        text = process.stdout.read()
        if process.wait():
            raise GraspError(f"{prepare} failed: {_last(said)}")
    return Measurement(**json.loads(text.strip().splitlines()[-1]))


def _environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def _last(said: IO[str]) -> str:
    said.seek(0)
    lines = said.read().strip().splitlines()
    return lines[-1] if lines else "it printed nothing"


def _resident(key: str) -> int:
    """Resident bytes: now (VmRSS), or at the peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="ignore").splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith(f"{key}:"))
    return 1024 * int(found)


def main() -> None:
    """Prepare, report that it is ready, do the work, and print the result."""
    module, _, function = sys.argv[1].partition(":")
    work: Work = getattr(import_module(module), function)(*sys.argv[2:])
    with suppress(OSError):  # reset the peak, which loading raised; not every kernel allows it
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    print(_READY, flush=True)
    before, started = _resident("VmRSS"), time.perf_counter()
    data = work()
    seconds = time.perf_counter() - started
    found = {"data": data, "seconds": seconds, "before": before, "peak": _resident("VmHWM")}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
