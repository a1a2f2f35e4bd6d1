"""Exact spectra of a LoRA update against dense SVD, in one run, as a ratio.

Modules have the shapes of Qwen2.5-7B's, r = 32.  Dense SVD is timed on two of the smaller shapes
only, which bounds the ratio from below.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np

from analysis.spectrum import update_singular_values

HIDDEN, INTERMEDIATE, KEY_VALUE, LAYERS, RANK = 3584, 18944, 512, 28, 32
SHAPES = {
    "q_proj": (HIDDEN, HIDDEN),
    "k_proj": (KEY_VALUE, HIDDEN),
    "v_proj": (KEY_VALUE, HIDDEN),
    "o_proj": (HIDDEN, HIDDEN),
    "gate_proj": (INTERMEDIATE, HIDDEN),
    "up_proj": (INTERMEDIATE, HIDDEN),
    "down_proj": (HIDDEN, INTERMEDIATE),
}
DENSE_SAMPLE = ("k_proj", "q_proj")
"""Dense SVD of the largest shapes takes minutes."""


def main() -> None:
    """Time both routes and print one JSON object."""
    rng = np.random.default_rng(0)
    halves = {
        name: (
            rng.standard_normal((RANK, d_in)).astype(np.float32),
            rng.standard_normal((d_out, RANK)).astype(np.float32),
        )
        for name, (d_out, d_in) in SHAPES.items()
    }
    factored = {name: _seconds(lambda n=name: _factored(*halves[n])) for name in SHAPES}
    dense = {name: _seconds(lambda n=name: _dense(*halves[n])) for name in DENSE_SAMPLE}
    report = {
        "factored_seconds_all_modules": LAYERS * sum(factored.values()),
        "ratio_dense_to_factored": {name: dense[name] / factored[name] for name in dense},
        "dense_measured_on": list(DENSE_SAMPLE),
        "modules": LAYERS * len(SHAPES),
        "r": RANK,
    }
    print(json.dumps(report, indent=2))


def _factored(lora_A: np.ndarray, lora_B: np.ndarray) -> None:
    update_singular_values(lora_A, lora_B, scaling=1.0)


def _dense(lora_A: np.ndarray, lora_B: np.ndarray) -> None:
    np.linalg.svd(lora_B @ lora_A, compute_uv=False)


def _seconds(action: Callable[[], None]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
