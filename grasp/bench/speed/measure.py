"""Measure all figures of speed and memory in one run."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import psutil
import torch

from analysis.store.records import code_revision, tracked_packages
from analysis.values import Json
from grasp.bench.speed.figure import Figure, Report
from grasp.bench.speed.model import Size
from grasp.bench.speed.recording import recording_figures
from grasp.bench.speed.shapes import LLAMA_405B, QWEN_7B, Shape
from grasp.bench.speed.spectra import spectra_figures, streaming_figure
from grasp.bench.speed.starting import starting_figures
from grasp.bench.speed.training import training_figures
from grasp.jobs.progress import Progress, silent


@dataclass(frozen=True)
class Sizes:
    """What is measured, and how much of it; a `streamed` of None is skipped."""

    shape: Shape
    dense: tuple[str, ...]
    streamed: Shape | None
    recorded: Size
    prompts: int
    trained: Size
    rounds: int
    browse: bool = True


_SMALL = Size(layers=6, d_model=512, d_ffn=1408, vocabulary=16_000, rows=8, tokens=64)
_LARGE = Size(layers=12, d_model=768, d_ffn=2048, vocabulary=32_000, rows=8, tokens=128)
SIZES = {
    "quick": Sizes(
        shape=QWEN_7B,
        dense=("self_attn.k_proj",),
        streamed=None,
        recorded=_SMALL,
        prompts=32,
        trained=_SMALL,
        rounds=3,
    ),
    "full": Sizes(
        shape=QWEN_7B,
        dense=("self_attn.k_proj", "self_attn.q_proj"),
        streamed=LLAMA_405B,
        recorded=_LARGE,
        prompts=32,
        trained=_LARGE,
        rounds=5,
    ),
}


def measure_speed(
    plan: Literal["quick", "full"], *, sizes: Sizes | None = None, progress: Progress = silent
) -> Report:
    """Measure every figure of a plan; takes two minutes (quick) or ten (full)."""
    chosen, started = sizes or SIZES[plan], time.monotonic()
    parts: dict[str, Callable[[], list[Figure]]] = {
        "start": lambda: starting_figures(rounds=chosen.rounds, browse=chosen.browse),
        "spectra": lambda: spectra_figures(chosen.shape, rounds=chosen.rounds, dense=chosen.dense),
        "a streamed adapter": lambda: _streamed(chosen.streamed),
        "training steps": lambda: training_figures(chosen.trained, rounds=chosen.rounds),
        "recording": lambda: recording_figures(
            chosen.recorded, prompts=chosen.prompts, rounds=chosen.rounds
        ),
    }
    figures: list[Figure] = []
    for number, (name, part) in enumerate(parts.items()):
        progress(number, len(parts), name)
        figures += part()
    progress(len(parts), len(parts), "speed")
    return Report(
        plan=plan,
        measured=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        seconds=time.monotonic() - started,
        machine=_machine(),
        versions={
            "grasp": code_revision(),
            "streamlit": version("streamlit"),
            **tracked_packages(),
        },
        figures=figures,
    )


def _streamed(shape: Shape | None) -> list[Figure]:
    return [] if shape is None else [streaming_figure(shape)]


def _versions() -> dict[str, str]:
    streamlit = {"streamlit": version("streamlit")}
    return {"grasp": code_revision(), **tracked_packages(), **streamlit}


def _machine() -> Json:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory, GiB": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": sys.version.split()[0],
        "threads of torch": torch.get_num_threads(),
        "threads of OpenBLAS": os.environ.get("OPENBLAS_NUM_THREADS", "all"),
        "load at the end, over 1 and 5 minutes": [round(load, 1) for load in os.getloadavg()[:2]],
    }
