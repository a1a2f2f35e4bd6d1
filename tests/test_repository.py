"""What the repository's own files say of each other: versions, checks, dependencies, the site."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import analysis
import grasp
from grasp.__main__ import main
from grasp.bench.speed.page import read_speed_report, write_speed_page
from grasp.commands.parser import _COMMANDS

ROOT = Path(__file__).resolve().parent.parent
UNPINNED = {"bitsandbytes", "grasp-workbench"}
"""Not installed on a machine without a GPU; and this package's own extras."""


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def checks() -> list[str]:
    """The commands of `make check`, without the folder that they lie in."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe is not None
    return [line.partition("$(BIN)/")[2] for line in recipe[1].splitlines()]


@pytest.fixture
def site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs" / "site_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_version_has_one_source(capsys: pytest.CaptureFixture[str]) -> None:
    settings = project()
    assert "version" in settings["project"]["dynamic"]
    assert settings["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "analysis.__version__"
    assert grasp.__version__ == analysis.__version__
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith(f"grasp {analysis.__version__}")


def test_pre_commit_runs_what_make_check_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    entries = [hook["entry"] for repo in hooks["repos"] for hook in repo["hooks"]]
    assert [entry.removeprefix(".venv/bin/") for entry in entries] == [
        check for check in checks() if not check.startswith("mkdocs")
    ]


def test_every_dependency_is_pinned() -> None:
    settings = project()["project"]
    extras = settings["optional-dependencies"].values()
    named = [*settings["dependencies"], *(name for extra in extras for name in extra)]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()[1:]
    pinned = {distribution(line.partition("==")[0]) for line in lines}
    assert {distribution(re.split(r"[\[<>=]", name)[0]) for name in named} - pinned == UNPINNED


def distribution(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_citation_fits_the_package_and_the_readme() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert "version" not in citation
    settings = project()["project"]
    assert citation["title"] == settings["name"]
    assert citation["license"] == settings["license"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert citation["references"][0]["url"] in readme


def test_the_page_of_speed_is_what_its_figures_give(tmp_path: Path) -> None:
    folder = ROOT / "docs" / "method"
    notes = (folder / "performance-notes.md").read_text(encoding="utf-8")
    write_speed_page(
        read_speed_report(folder / "performance.json"), tmp_path / "page.md", notes=notes
    )
    saved = (folder / "performance.md").read_text(encoding="utf-8")
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == saved


def test_the_site_lists_every_command_with_its_options(site: ModuleType) -> None:
    page = "\n\n".join(site.command_page(site.build_parser()))
    assert re.findall(r"^## grasp (\w+)$", page, re.MULTILINE) == list(_COMMANDS)
    assert "| `--tolerance TOLERANCE` |" in page
    assert "--job" not in page.replace("--jobs", "")


@pytest.mark.parametrize(
    ("link", "page", "expected"),
    [
        ("[a](docs/how-to/data.md#b)", "index.md", "[a](how-to/data.md#b)"),
        ("[a](CONTRIBUTING.md)", "index.md", "[a](reference/contributing.md)"),
        ("[a](docs/how-to/data.md)", "reference/changelog.md", "[a](../how-to/data.md)"),
        ("![a](docs/start/b.png)", "index.md", "![a](start/b.png)"),
        ("[a](https://x.org/y)", "index.md", "[a](https://x.org/y)"),
    ],
)
def test_links_of_the_readme_lead_to_the_same_pages_of_the_site(
    link: str, page: str, expected: str, site: ModuleType
) -> None:
    assert site.relinked(link, page) == expected
