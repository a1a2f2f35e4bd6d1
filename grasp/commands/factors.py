"""The `factors` command: directions by every route, ranked, and matched with another run's.

Weights alone need no model; one is loaded only for effects or activations.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.errors import InputError
from analysis.store.records import FactorsManifest
from analysis.store.workspace import Workspace, writing_folder
from analysis.tables import align_columns
from analysis.text import number_text
from analysis.values import Json
from grasp.commands.calling import Result
from grasp.commands.resolve import (
    adapter_place,
    check_replaceable,
    find_workspace,
    open_adapter,
)
from grasp.jobs.progress import Progress, TerminalProgress
from grasp.settings.model import model_options

if TYPE_CHECKING:
    import pandas as pd

    from analysis.store.factor_table import FactorTable
    from grasp.identification.identify import EffectInputs, Routes
    from grasp.identification.lens import LensSource


def factors(args: argparse.Namespace, progress: Progress | None = None) -> Result:
    """Find and rank the residual-stream factors of an adapter, with effects if a model is given."""
    from analysis.spectra.report import adapter_report
    from analysis.store.factor_table import write_factors
    from grasp.identification.identify import identify

    workspace = find_workspace(args, args.adapter)
    if args.out:
        check_replaceable(Path(args.out).resolve(), FactorsManifest)
    with open_adapter(workspace, args) as opened:
        name, run = opened.place.name, opened.place.run
        found = identify(
            opened.last.adapter,
            name=name,
            run=run,
            effects=_effect_inputs(args, workspace, run),
            routes=_routes(args, workspace),
            max_layer=args.max_layer,
            tokens=_tokens(args, workspace, run),
            progress=progress or TerminalProgress(),
        )
        report = adapter_report(opened.last.as_named)
    matched = _matched(args, workspace, found) if args.match else {}
    if args.out:
        with writing_folder(Path(args.out).resolve()) as target:
            write_factors(target, found)
    elif run is not None:
        with workspace.writing("factors", name) as target:
            write_factors(target, found)
    rows = _records(found.table)
    without = found.manifest.config.get("no_tokens")
    note = [f"no promoted tokens: {without}"] if without else []
    if report["low_rank_part"]:
        note.append("factors of a DoRA's low-rank part, scaling · B A, not of its ΔW")
    text = "\n".join([_factor_lines(rows), *note, *_match_lines(matched)])
    source = {"source": opened.place.source} if opened.place.source else {}
    data = {"run": name, "factors": rows, "adapter": report}
    return Result({**data, **matched, **source}, text)


def _routes(args: argparse.Namespace, workspace: Workspace) -> Routes:
    """The routes on the command line other than the weights of the one adapter."""
    from grasp.foreign.directions import Import
    from grasp.identification.identify import Routes

    if (args.import_json or args.layer is not None) and not args.imports:
        raise InputError(
            "--import-json and --layer select directions of a file; add --import FILE."
        )
    contrast = None
    if args.contrast:
        from grasp.identification.shifts import Contrast

        if len(args.variants) != 2:
            raise InputError("--contrast needs two variants; name them with --variants HIGH,LOW.")
        high, low = args.variants
        contrast = Contrast(Path(args.contrast), high, low, args.contrast_of)
    choice = Path(args.import_json) if args.import_json else None
    return Routes(
        joint=tuple(adapter_place(workspace, word).folder for word in args.joint),
        activations=args.activations,
        contrast=contrast,
        imports=tuple(Import(Path(file), choice, args.layer) for file in args.imports),
    )


def _effect_inputs(
    args: argparse.Namespace, workspace: Workspace, run: Path | None
) -> EffectInputs | None:
    """Base model and prompts for effects: from the command line, else the run's own."""
    from grasp.identification.identify import EffectInputs, run_effect_inputs

    own = run_effect_inputs(workspace, run) if run else None
    if args.weights_only or (own is None and args.base is None):
        return None
    prompts = Path(args.prompts) if args.prompts else own.prompts if own else None
    if prompts is None:
        raise InputError("Effects are measured on prompts; give a prompt set with --prompts FILE.")
    base = args.base or (own.base if own else "")
    return EffectInputs(base, prompts, model_options(args))


def _tokens(args: argparse.Namespace, workspace: Workspace, run: Path | None) -> LensSource | None:
    """The base model whose files give the tokens: from the command line, else the run's own."""
    from grasp.identification.identify import run_lens_source
    from grasp.identification.lens import LensSource

    if args.base:
        return LensSource(args.base, named=True)
    return run_lens_source(workspace, run) if run else None


def _matched(args: argparse.Namespace, workspace: Workspace, found: FactorTable) -> Json:
    """Matches with the factors of another run: its saved ones, else those of its weights."""
    from analysis.factors.matching import match_factors, span_angles
    from analysis.store.factor_table import read_factors
    from grasp.identification.identify import identify

    place = adapter_place(workspace, args.match)
    saved = place.run.parent.parent / "factors" / place.run.name if place.run else None
    if saved is not None and saved.is_dir():
        other = read_factors(saved)
    else:
        other = identify(place.folder, name=place.name, max_layer=args.max_layer)
    return {
        "matched_with": other.manifest.run,
        "matches": _records(match_factors(found, other)),
        "span_cosines": span_angles(found, other).tolist(),
    }


def _records(table: pd.DataFrame) -> list[Json]:
    """Rows made fit for JSON; unknown values are None or NaN, which later becomes null."""
    import pandas as pd

    return [
        {str(key): None if value is pd.NA else value for key, value in row.items()}
        for row in table.to_dict(orient="records")
    ]


_COLUMNS = {
    "singular_value": "σ",
    "null_high": "null 95 %",
    "stability": "stability",
    "off_task": "off-task",
    "on_task": "on-task",
    "effect": "effect",
    "score": "score",
}


def _factor_lines(rows: list[Json]) -> str:
    cells = [("factor", "", *_COLUMNS.values(), "promoted")]
    for row in rows:
        numbers = (number_text(row[key], unknown="–") for key in _COLUMNS)
        mark = "*" if row["significant"] else ""
        cells.append((row["id"], mark, *numbers, " ".join(row["promoted"][:6])))
    lines = align_columns(cells, "<<>>>>>>>")
    lines.append("* significant: above the null band and, if effects were measured, above chance")
    return "\n".join([*lines, *(row["explanation"] for row in rows[:1])])


def _match_lines(matched: Json) -> list[str]:
    if not matched:
        return []
    cells = [("factor", matched["matched_with"], "cosine", "", "null 95 %", "span", "null 95 %")]
    for row in matched["matches"]:
        cosine, mark = number_text(row["cosine"], unknown="–"), "*" if row["same"] else ""
        numbers = (number_text(row[key]) for key in ("null_high", "span", "null_span"))
        cells.append((row["factor"], row["other"] or "–", cosine, mark, *numbers))
    spans = " ".join(f"{value:.2f}" for value in matched["span_cosines"])
    about = f"cosines of the principal angles between the write factors: {spans or '–'}"
    return ["", *align_columns(cells, "<<><>>>"), about]
