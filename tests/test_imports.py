"""What a linter cannot see: imports by name, and which libraries a process has loaded.

Who may import whom is a contract in pyproject.toml, which `lint-imports` checks.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import grasp
from tests.support import synthetic

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("torch", "transformers", "peft", "accelerate", "datasets")
HEAVY = ("torch", "transformers", "peft", "streamlit", "pandas", "scipy", "sklearn", "sqlalchemy")
DYNAMIC = {
    "grasp/__init__.py": "grasp",
    "grasp/commands/calling.py": "grasp",
    "grasp/bench/speed/child.py": "grasp",
    "dashboard/__main__.py": "dashboard",
}
"""Files that import by a name known only when they run, and the package they stay within."""


def modules(package: str) -> list[Path]:
    return sorted(p for p in (ROOT / package).rglob("*.py") if "__pycache__" not in p.parts)


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_by_name(source: str) -> Iterator[str | None]:
    """What `import_module` and `__import__` are called with; None where that is computed."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and name_of(node.func) in ("import_module", "__import__"):
            first = node.args[0] if node.args else None
            yield first.value if is_text(first) else None


def is_text(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def name_of(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import_module('torch')", ["torch"]),
        ("def f():\n    importlib.import_module('a.b')", ["a.b"]),
        ("__import__('c')", ["c"]),
        ("import_module(f'a.{name}')", [None]),
        ("import torch", []),
    ],
)
def test_the_walk_finds_every_import_by_name(source: str, expected: list[str | None]) -> None:
    assert list(imported_by_name(source)) == expected


def test_imports_by_name_are_few_and_stay_within_their_package() -> None:
    found = {
        str(path.relative_to(ROOT)): list(imported_by_name(path.read_text(encoding="utf-8")))
        for package in ("analysis", "grasp", "dashboard")
        for path in modules(package)
    }
    found = {file: names for file, names in found.items() if names}
    assert found.keys() == DYNAMIC.keys()
    for file, names in found.items():
        assert all(name is None or name.split(".")[0] == DYNAMIC[file] for name in names), file


def doors() -> list[str]:
    """Modules of grasp that the dashboard may import, by the contract that says so."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    (allowed,) = (
        one["ignore_imports"] for one in contracts if one.get("forbidden_modules") == ["grasp"]
    )
    patterns = [line.partition(" -> ")[2] for line in allowed]
    names = [dotted(path) for path in modules("grasp")]
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def loaded(statement: str) -> set[str]:
    """Top-level packages in sys.modules after `statement`, in a process of its own."""
    code = f"{statement}\nimport sys\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_doors_and_all_of_analysis_load_no_model_library() -> None:
    names = [*doors(), *(dotted(path) for path in modules("analysis"))]
    assert "grasp.jobs.queue" in names
    assert loaded(f"import {', '.join(names)}").isdisjoint((*MODELS, "streamlit", "dashboard"))


def test_the_dashboards_modules_load_no_model_library() -> None:
    names = [dotted(path) for path in modules("dashboard") if path.name != "app.py"]
    assert loaded(f"import {', '.join(names)}").isdisjoint(MODELS)


PAGES = """
import os, sys
from streamlit.testing.v1 import AppTest
os.environ["GRASP_WORKSPACE"] = {workspace!r}
for page in ("home", "workspace", "spectra", "factors", "labels", "retrain", "compare"):
    test = AppTest.from_file("dashboard/app.py", default_timeout=60).run()
    test.switch_page(f"views/{{page}}.py").run()
    assert not test.exception and test.title[0].value == page.capitalize(), page
"""


def test_pages_that_are_drawn_load_no_model_library(tmp_path: Path) -> None:
    workspace = synthetic.build(tmp_path / "workspace", live=False)
    workspace.database.engine.dispose()
    packages = loaded(PAGES.format(workspace=str(workspace.root)))
    assert "streamlit" in packages
    assert packages.isdisjoint(MODELS)


def test_importing_grasp_is_cheap_and_its_names_are_there_when_asked_for() -> None:
    assert loaded("import grasp").isdisjoint((*HEAVY, "numpy", "analysis"))
    assert "torch" not in loaded("import grasp; grasp.TrainConfig, grasp.METHODS")
    assert all(getattr(grasp, name) is not None for name in grasp.__all__)
    with pytest.raises(AttributeError, match="module 'grasp' has no attribute 'nothing'"):
        grasp.nothing  # noqa: B018
