"""The one direction of imports, dashboard → grasp → analysis, and what each never loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import grasp

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("torch", "transformers", "peft", "accelerate", "datasets")
FORBIDDEN = {
    "analysis": (*MODELS, "streamlit", "plotly", "grasp", "dashboard"),
    "grasp": ("streamlit", "plotly", "dashboard"),
    "dashboard": MODELS,
}
DOORS = (
    "grasp.settings.training",
    "grasp.data.report",
    "grasp.foreign.settings",
    "grasp.hub.repository",
    "grasp.hub.outline",
    "grasp.jobs.queue",
    "grasp.settings.methods",
    "grasp.settings.protection",
)
"""All of grasp that the dashboard may use."""

HEAVY = ("torch", "transformers", "peft", "streamlit", "pandas", "scipy", "sklearn", "sqlalchemy")


def modules(package: str) -> list[Path]:
    return sorted(p for p in (ROOT / package).rglob("*.py") if "__pycache__" not in p.parts)


def imported(source: str, *, package: str) -> Iterator[str]:
    """Full names of all modules that a file imports, anywhere in it; `package` is its own."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level]
            start = ".".join(parts) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and name_of(node.func) in ("import_module", "__import__"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value


def name_of(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def imports_of(path: Path) -> list[str]:
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return list(imported(path.read_text(encoding="utf-8"), package=package))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch.nn as nn", ["torch.nn"]),
        ("def f():\n    from torch import nn, optim", ["torch.nn", "torch.optim"]),
        ("from . import b", ["a.sub.b"]),
        ("from ..c import d", ["a.c.d"]),
        ("import importlib\nimportlib.import_module('torch')", ["importlib", "torch"]),
        ("if x:\n    try:\n        import a.b\n    except E: pass", ["a.b"]),
    ],
)
def test_the_walk_finds_every_form_of_import(source: str, expected: list[str]) -> None:
    assert list(imported(source, package="a.sub")) == expected


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    files = modules(package)
    assert len(files) > 5
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in imports_of(path)
        if within(name, FORBIDDEN[package])
    ]
    assert found == []


def test_the_dashboard_uses_the_doors_of_grasp_alone() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules("dashboard")
        for name in imports_of(path)
        if within(name, ("grasp",)) and not within(name, DOORS)
    ]
    assert found == []


def loaded(statement: str) -> set[str]:
    """Top-level packages in sys.modules after `statement`, in a process of its own."""
    code = f"{statement}\nimport sys\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_the_doors_and_all_of_analysis_load_no_model_library() -> None:
    names = [*DOORS, *(dotted(path) for path in modules("analysis"))]
    assert loaded(f"import {', '.join(names)}").isdisjoint((*MODELS, "streamlit", "dashboard"))


def test_the_dashboards_modules_load_no_model_library() -> None:
    """Pages run when they are imported, so they are left to the walk."""
    library = [p for p in modules("dashboard") if "pages" not in p.parts]
    names = [dotted(p) for p in library if p.name not in ("__main__.py", "app.py")]
    assert names
    assert loaded(f"import {', '.join(names)}").isdisjoint(MODELS)


def test_importing_grasp_is_cheap_and_its_names_are_there_when_asked_for() -> None:
    assert loaded("import grasp").isdisjoint((*HEAVY, "numpy", "analysis"))
    assert "torch" not in loaded("import grasp; grasp.TrainConfig, grasp.METHODS")
    assert all(getattr(grasp, name) is not None for name in grasp.__all__)
    with pytest.raises(AttributeError, match="module 'grasp' has no attribute 'nothing'"):
        grasp.nothing  # noqa: B018
