"""Spectra and factors of synthetic adapters in the shapes of large models."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from analysis.adapters.load import load_adapter
from analysis.factors.residual import residual_factors
from analysis.factors.routes import SIDES
from analysis.spectra.module_svd import module_svds
from analysis.spectra.spectrum import module_spectra
from analysis.values import Json
from grasp.bench.speed.child import Work, watch
from grasp.bench.speed.figure import Figure, value_and_spread
from grasp.bench.speed.shapes import Shape, write_adapter
from grasp.bench.speed.timing import Times, time_action, time_in_turn

SECONDS, TIMES_QR, TIMES_DENSE = 1.5, 3.0, 1000.0
FACTOR_SECONDS, FACTOR_BYTES = 5.0, 1 << 30
LAYERS = 2.0
_SPARE_BYTES = 1 << 30

Halves = dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]


def spectra_figures(
    shape: Shape, *, rounds: int, dense: tuple[str, ...], scratch: Path | None = None
) -> list[Figure]:
    """Figures of full spectra and factors; `dense` lists the modules whose dense SVD is timed."""
    with _written(shape, scratch) as (folder, size):
        halves = {
            module.name: (module.lora_A, module.lora_B) for module in load_adapter(folder).modules
        }
        times = time_in_turn(
            {
                "file to numbers": lambda: list(module_svds(load_adapter(folder).modules)),
                "QR, float32": lambda: _factorised(halves, np.float32),
                "QR, float64": lambda: _factorised(halves, np.float64),
            },
            rounds=rounds,
        )
        told = {
            "modules": len(halves),
            "r": shape.r,
            "bytes": size,
            "file": "in the page cache",
            **{f"{name}, s": median(times.of(name)) for name in ("QR, float32", "QR, float64")},
        }
        made = _full_spectra(shape, times, told, _dense_seconds(shape, dense))
        return [*made, *_factor_figures(shape, folder, size)]


def _full_spectra(shape: Shape, times: Times, told: Json, sampled: Json) -> list[Figure]:
    """Time from file to numbers: by the clock, over bare QR, and under dense SVD."""
    seconds = times.of("file to numbers")
    every = sum(sampled["seconds"].values()) * shape.layers
    what = f"Full spectra, both sides' vectors, of a {shape.name}-shaped adapter"
    common: Json = {"group": "spectra", "what": what}
    return [
        Figure(
            id="spectra.seconds",
            **common,
            against="wall clock, from file to numbers",
            unit="s",
            target=SECONDS,
            **value_and_spread(seconds),
            detail=told,
        ),
        Figure(
            id="spectra.qr",
            **common,
            against="QR of both halves alone, float32, already in memory",
            unit="×",
            target=TIMES_QR,
            **value_and_spread(times.ratio("file to numbers", "QR, float32")),
            detail=told,
        ),
        Figure(
            id="spectra.dense",
            **common,
            against="dense SVD of every ΔW, float32, extrapolated",
            unit="× faster",
            sense="at least",
            target=TIMES_DENSE,
            **value_and_spread([every / one for one in seconds]),
            detail=told | {"dense, s": every} | sampled,
        ),
    ]


def streaming_figure(shape: Shape, *, scratch: Path | None = None) -> Figure:
    """Memory of streaming the spectra of an adapter too large for memory, per largest layer."""
    told: Json = {
        "id": "spectra.streaming",
        "group": "spectra",
        "what": f"Spectra of a {shape.name}-shaped adapter, streamed: memory beside the results",
        "against": "its largest layer as it is stored, bfloat16",
        "unit": "×",
        "target": LAYERS,
    }
    size, layer = 2 * shape.layers * shape.layer_numbers, 2 * shape.layer_numbers
    with TemporaryDirectory(dir=scratch) as place:
        if shutil.disk_usage(place).free < size + _SPARE_BYTES:
            return Figure(**told, missing=f"the disk has no room for {size / 1e9:.1f} GB")
        write_adapter(Path(place), shape)
        found = watch(f"{__name__}:stream_spectra", place)
    beside = found.growth - found.data["result_bytes"]
    return Figure(
        **told,
        value=beside / layer,
        detail={
            "modules": found.data["modules"],
            "adapter, bytes": size,
            "largest layer, bytes": layer,
            "memory beside results, bytes": beside,
            "results, bytes": found.data["result_bytes"],
            "seconds": found.seconds,
            "measure": "VmHWM of a process of its own, above VmRSS when ready",
        },
    )


def stream_spectra(folder: str) -> Work:
    """The work of computing every module's singular values and vectors, one module at a time."""

    def work() -> Json:
        adapter = load_adapter(folder)
        kept = [found.singular_values for found in module_svds(adapter.modules)]
        kept += [found.singular_values for found in module_spectra(adapter)]
        return {"modules": len(adapter.modules), "result_bytes": sum(v.nbytes for v in kept)}

    _warm()
    return work


def find_factors(folder: str) -> Work:
    """The work of computing the factors of both sides over all layers, as identification does."""

    def work() -> Json:
        modules = load_adapter(folder).modules
        started = time.perf_counter()
        found = {side: residual_factors(modules, side=side, k=k) for side, k in SIDES}
        return {
            "factors": {side: len(one.singular_values) for side, one in found.items()},
            "method": {side: one.method for side, one in found.items()},
            "seconds": time.perf_counter() - started,
        }

    _warm()
    return work


def _factor_figures(shape: Shape, folder: Path, size: int) -> list[Figure]:
    found = watch(f"{__name__}:find_factors", str(folder))
    what = f"Residual-stream factors over all layers of a {shape.name}-shaped adapter, both sides"
    detail = found.data | {"adapter, bytes": size, "resident growth, bytes": found.growth}
    return [
        Figure(
            id="factors.seconds",
            group="spectra",
            what=what,
            against="wall clock, from file to factors",
            unit="s",
            target=FACTOR_SECONDS,
            value=found.seconds,
            detail=detail,
        ),
        Figure(
            id="factors.memory",
            group="spectra",
            what=f"{what}: peak resident memory",
            against="the adapter's size and what the process held when ready",
            unit="GiB more",
            target=FACTOR_BYTES / 2**30,
            value=max(0, found.growth - size) / 2**30,
            detail=detail,
        ),
    ]


@contextmanager
def _written(shape: Shape, scratch: Path | None) -> Iterator[tuple[Path, int]]:
    with TemporaryDirectory(dir=scratch) as place:
        yield Path(place), write_adapter(Path(place), shape)


def _factorised(halves: Halves, dtype: type[np.floating]) -> None:
    for lora_A, lora_B in halves.values():
        np.linalg.qr(np.asarray(lora_A.T, dtype))
        np.linalg.qr(np.asarray(lora_B, dtype))


def _dense_seconds(shape: Shape, sample: tuple[str, ...]) -> Json:
    """Seconds of a dense SVD with vectors for each module of a layer, timed or extrapolated.

    A thin SVD of an m × n matrix takes time proportional to m n min(m, n).  Shapes that were not
    timed are extrapolated from the largest timed one, which has the best rate.
    """
    cost = {name: out * into * min(out, into) for name, (out, into) in shape.modules.items()}
    timed = {name: _dense(*shape.modules[name]) for name in sample}
    largest = max(sample, key=lambda name: cost[name])
    seconds: Mapping[str, float] = {
        name: timed.get(name, timed[largest] * cost[name] / cost[largest]) for name in cost
    }
    return {
        "seconds": dict(seconds),
        "timed": list(sample),
        "scaled": f"the others by m n min(m, n) from {largest}",
    }


def _dense(d_out: int, d_in: int) -> float:
    matrix = np.random.default_rng(0).standard_normal((d_out, d_in), dtype=np.float32)
    return time_action(lambda: np.linalg.svd(matrix, full_matrices=False))


def _warm() -> None:
    """Trigger what numpy and scipy set up at first use, so that it is not measured."""
    square = np.random.default_rng(0).standard_normal((64, 64))
    np.linalg.svd(square @ square)
    np.linalg.eigh(square + square.T)
