"""The page of results, written from what a benchmark has saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from analysis.errors import InputError
from grasp.bench.make.runner import read_failures, read_plan
from grasp.bench.plan.plan import Plan
from grasp.bench.tables.criteria import criteria_table
from grasp.bench.tables.figures import draw_figures
from grasp.bench.tables.ledger import effort
from grasp.bench.tables.sections import SECTIONS
from grasp.bench.tables.tables import Table

CAPTIONS = {
    "frontier": "Removal against task accuracy, confirmation prompts, 95 % intervals.",
    "phase": "Around the default: |cos| of the best-ranked factor, and removal.",
}


def write_page(root: Path, out: Path, *, notes: Path) -> list[Path]:
    """Write the page `out`, with its figures beside it; the files written.

    Args:
        root: of a benchmark, whole or not.
        out: a Markdown file in a folder that is there.
        notes: Markdown that the page takes in as it stands, after a YAML header whose entries
            become a list; may be missing.

    Raises:
        InputError: there is no benchmark in `root`, or the notes' header is no YAML.
    """
    plan = read_plan(root)
    figures = draw_figures(root, plan, out)
    parts = [
        "# Results",
        f"Written by `grasp bench report` from the plan “{plan.title}”; not edited by hand. Rates "
        "are of confirmation prompts with 95 % intervals: bootstrap over items crossed with "
        "fine-tunes, Wilson's for shares of runs.",
        criteria_table(root, plan).markdown().replace("### ", "## ", 1),
        *_notes(notes),
        *(_figure(path) for path in figures),
        *_sections(root, plan),
        *_failures(root),
        "## How it was made",
        "\n".join(f"- {sentence}" for sentence in effort(root, plan)),
        _commands(plan, root, out),
    ]
    out.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [out, *figures]


def _sections(root: Path, plan: Plan) -> list[str]:
    parts = []
    for title, makes in SECTIONS.items():
        tables: list[Table] = [make(root, plan) for make in makes]
        shown = [table.markdown() for table in tables if table.rows]
        parts += [f"## {title}", *shown] if shown else []
    return parts


def _figure(path: Path) -> str:
    caption = CAPTIONS[path.stem.rpartition("-")[2]]
    return f"![{caption}]({path.name})"


def _failures(root: Path) -> list[str]:
    failed = read_failures(root)
    lines = "\n".join(f"- {task}: {why}" for task, why in failed.items())
    return ["## Cells that failed", lines] if failed else []


def _commands(plan: Plan, root: Path, out: Path) -> str:
    shown = out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else out.name
    flag = {"Quick": "--quick", "Full": "--full"}.get(plan.title, "--config PLAN.yaml")
    lines = [
        f"grasp bench removal {flag} --root {root.name}",
        f"grasp bench report --root {root.name} --out {shown}",
    ]
    return "```\n" + "\n".join(lines) + "\n```"


def _notes(file: Path) -> list[str]:
    """The header's entries as a list, and the text as it stands."""
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8")
    if not text.startswith("---\n"):
        return [text.strip()]
    header, closed, body = text.removeprefix("---\n").partition("\n---\n")
    if not closed:
        raise InputError(f"{file} begins with --- and has no second line ---.")
    try:
        entries: Any = yaml.safe_load(header)
    except yaml.YAMLError as error:
        raise InputError(f"The header of {file} is no YAML ({error}).") from None
    if not isinstance(entries, dict):
        raise InputError(f"The header of {file} has no entries such as 'chosen on: seeds 0 to 2'.")
    listed = "\n".join(f"- **{name}**: {value}" for name, value in entries.items())
    return [part for part in (listed, body.strip()) if part]
