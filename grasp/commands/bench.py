"""The command that runs the project's benchmarks and writes the page of their results."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

from analysis.errors import InputError
from grasp.commands.calling import FAILED, OK, Result
from grasp.jobs.progress import TerminalProgress


def bench(args: argparse.Namespace) -> Result:
    """Compute the missing cells of a benchmark and show its tables, or write its page."""
    if args.what_to_measure == "report":
        return _report(args)
    if args.what_to_measure == "speed":
        return _speed(args)
    if args.what_to_measure == "real":
        return _real(args)
    from grasp.bench.make.runner import run_plan
    from grasp.bench.plan.plan import load_plan, shipped_plan
    from grasp.bench.tables.sections import collect_results

    name: Literal["quick", "full"] = "full" if args.full else "quick"
    plan = load_plan(Path(args.config)) if args.config else shipped_plan(name)
    root = Path(args.root or f"bench-{Path(args.config).stem if args.config else name}")
    failed = run_plan(
        root, plan, args.what_to_measure, processes=args.processes, progress=TerminalProgress()
    )
    found = collect_results(root, plan, args.what_to_measure)
    data = {"root": str(root.resolve()), **found.data, "failures": failed}
    lines = [f"{task} failed: {why}" for task, why in failed.items()]
    text = "\n\n".join([*(table.text() for table in found.tables), *lines])
    return Result(data, text, code=FAILED if failed else OK)


def _real(args: argparse.Namespace) -> Result:
    """Lay out the plan, the data and the settings for a real model."""
    from grasp.bench.make.real import lay_out_real

    if not args.base or not args.root:
        raise InputError(
            "A plan for a real model needs --base MODEL and --root DIR, a new folder for the plan, "
            "its data and its settings; `grasp model` fetches a small model."
        )
    file = lay_out_real(args.base, Path(args.root))
    text = f"Wrote {file}.\nNow run: grasp bench removal --config {file} --root {args.root}/results"
    return Result({"plan": str(file)}, text)


def _speed(args: argparse.Namespace) -> Result:
    """Measure speed, or read saved figures; show the tables, or write the page."""
    from grasp.bench.speed.page import read_speed_report, report_tables, write_speed_page

    if args.config or args.root:
        raise InputError("`grasp bench speed` uses its own models; omit --config and --root.")
    out = _page(args.out) if args.out else None
    if args.figures:
        report = read_speed_report(Path(args.figures))
    else:
        from grasp.bench.speed.measure import measure_speed

        report = measure_speed("quick" if args.quick else "full", progress=TerminalProgress())
    if out is not None:
        write_speed_page(report, out, notes=_notes(args, out))
    lines = [table.text() for table in report_tables(report)]
    return Result(report.model_dump(mode="json"), "\n\n".join(lines))


def _page(name: str) -> Path:
    out = Path(name).resolve()
    if out.suffix != ".md" or not out.parent.is_dir():
        raise InputError(f"{name} must end in .md and be in an existing folder.")
    return out


def _notes(args: argparse.Namespace, out: Path) -> str:
    notes = _notes_file(args, out)
    return notes.read_text(encoding="utf-8") if notes.is_file() else ""


def _notes_file(args: argparse.Namespace, out: Path) -> Path:
    notes = Path(args.notes) if args.notes else out.with_name(f"{out.stem}-notes.md")
    if args.notes and not notes.is_file():
        raise InputError(f"The notes file {args.notes} does not exist; check --notes.")
    return notes


def _report(args: argparse.Namespace) -> Result:
    from grasp.bench.tables.page import write_page

    if not args.root or not args.out:
        raise InputError("A report needs --root DIR, the folder of a benchmark, and --out FILE.md.")
    out = _page(args.out)
    written = write_page(Path(args.root), out, notes=_notes_file(args, out))
    return Result({"written": [str(path) for path in written]}, "\n".join(map(str, written)))
