"""Commands that run the model for evidence on a factor: dose, rows, overlap."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from analysis.errors import InputError
from analysis.evidence.driving_rows import rows_to_show
from analysis.store.evidence import Evidence, summarise_evidence
from analysis.store.factor_table import select_directions
from analysis.store.records import RunManifest
from analysis.store.workspace import Workspace, ensure_workspace
from analysis.tables import align_columns
from analysis.text import number_text
from grasp.commands.calling import Result
from grasp.commands.resolve import find_workspace, run_folder
from grasp.jobs.progress import Progress, TerminalProgress
from grasp.settings.model import model_options

SHOWN_ROWS = 10


def dose(args: argparse.Namespace, progress: Progress | None = None) -> Result:
    """Score the base and the adapted model while steering them along a factor."""
    if args.points < 2 or args.range <= 0:
        raise InputError(
            f"Got --points {args.points} and --range {args.range}; expected at least 2 points and "
            "a range above 0."
        )
    place = _place(args)
    from grasp.evidence.dose import measure_dose_response
    from grasp.evidence.subject import select_subject

    found = measure_dose_response(
        select_subject(*place, args.factor, options=model_options(args)),
        doses=[float(one) for one in np.linspace(-args.range, args.range, args.points)],
        layer=args.layer,
        random=args.random,
        seed=args.seed,
        prompts=_prompts(args),
        progress=progress or TerminalProgress(),
    )
    return _result(found, "curves")


def rows(args: argparse.Namespace, progress: Progress | None = None) -> Result:
    """Rank training rows by how much they drive a factor; with --validate, test the top ones."""
    place = _place(args)
    progress = progress or TerminalProgress()
    from grasp.evidence.subject import select_subject

    about = select_subject(*place, args.factor, options=model_options(args))
    if args.validate is not None:
        from grasp.evidence.row_validation import validate_rows

        found = validate_rows(
            about,
            n=args.validate,
            layer=args.layer,
            draws=args.draws,
            seed=args.seed,
            prompts=_prompts(args),
            progress=progress,
        )
        return _result(found, "rates", "differences")
    from grasp.evidence.attribution import measure_rows

    found = measure_rows(about, layer=args.layer, prompts=_prompts(args), progress=progress)
    shown = rows_to_show(found.tables["rows"], n=SHOWN_ROWS, by="alignment", seed=args.seed)
    rows = [
        (row["which"], str(row["row"]), number_text(row["alignment"], 4, sign=True), row["answer"])
        for row in shown.to_dict("records")
    ]
    lines = [f"  {line}" for line in align_columns(rows, "<>>")]
    data = summarise_evidence(found, tables=()) | {"rows": shown.to_dict("records")}
    return Result(data, "\n".join([found.manifest.sentence, *lines]))


def overlap(args: argparse.Namespace, progress: Progress | None = None) -> Result:
    """Measure the share of a run's gains that is lost when factors are set back."""
    place = _place(args)
    from grasp.evidence.overlap import measure_overlap
    from grasp.evidence.subject import select_subject

    found = measure_overlap(
        select_subject(*place, args.factor, options=model_options(args)),
        random=args.random,
        seed=args.seed,
        prompts=_prompts(args),
        progress=progress or TerminalProgress(),
    )
    return _result(found, "overlap")


def _place(args: argparse.Namespace) -> tuple[Workspace, Path, RunManifest]:
    """The workspace, folder and manifest of the run; checks the factors before torch loads."""
    workspace = find_workspace(args, args.run)
    folder, run = run_folder(workspace, args.run)
    select_directions(workspace, args.factor, run=folder.name)
    return ensure_workspace(workspace.root), folder, run


def _prompts(args: argparse.Namespace) -> Path | None:
    return Path(args.prompts) if args.prompts else None


def _result(found: Evidence, *tables: str) -> Result:
    return Result(summarise_evidence(found, tables=tables), found.manifest.sentence)
