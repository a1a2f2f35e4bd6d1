"""Fixtures shared by several test files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from safetensors.numpy import save_file

from analysis.store.workspace import Workspace

# Seeded, and without a clock, since a loaded machine is no failure.
settings.register_profile("workbench", derandomize=True, database=None, deadline=None)
settings.load_profile("workbench")


@pytest.fixture(autouse=True)
def _own_settings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trusted models and this machine's key are not those of whoever runs the tests."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "own-settings"))


WriteAdapter = Callable[..., Path]


@pytest.fixture
def write_adapter(tmp_path: Path) -> WriteAdapter:
    """Writes a PEFT LoRA folder from arrays, without torch; returns its path.

    Without arguments: two layers of o_proj (8, 6) and q_proj (6, 8), r = 2.
    `config` entries override the valid defaults; `tensors` replaces all tensors.
    """

    def write(
        config: Mapping[str, Any] | None = None,
        tensors: Mapping[str, np.ndarray] | None = None,
        folder: Path = tmp_path / "adapter",
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_config.json").write_text(
            json.dumps(
                {
                    "peft_type": "LORA",
                    "r": 2,
                    "lora_alpha": 4,
                    "target_modules": ["o_proj", "q_proj"],
                    "init_lora_weights": True,
                    "base_model_name_or_path": "some/base",
                    **(config or {}),
                }
            )
        )
        save_file(
            dict(plain_tensors() if tensors is None else tensors),
            folder / "adapter_model.safetensors",
        )
        return folder

    return write


def plain_tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tensors = {}
    for layer in range(2):
        for name, (d_out, d_in) in {"o_proj": (8, 6), "q_proj": (6, 8)}.items():
            path = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{path}.lora_A.weight"] = rng.standard_normal((2, d_in)).astype(np.float32)
            tensors[f"{path}.lora_B.weight"] = rng.standard_normal((d_out, 2)).astype(np.float32)
    return tensors


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    """The tensors that `write_adapter` writes by default, to be spoilt by a test."""
    return plain_tensors()


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a record of every kind, to be copied."""
    from tests.support import synthetic

    workspace = synthetic.build(tmp_path_factory.mktemp("synthetic") / "workspace")
    workspace.database.engine.dispose()
    return workspace.root


@pytest.fixture
def whole(template: Path, tmp_path: Path) -> Workspace:
    """A copy of that workspace, which a test may change."""
    shutil.copytree(template, tmp_path / "whole")
    return Workspace(tmp_path / "whole")
