"""Commands on saved adapters and tables that load no model: spectrum, import, compare."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.adapters.checkpoints import Checkpoint, checkpoints
from analysis.adapters.copy import copy_adapter
from analysis.adapters.load import Adapter
from analysis.errors import InputError
from analysis.spectra.report import (
    adapter_report,
    report_lines,
    spectrum_lines,
    trajectory_lines,
)
from analysis.spectra.spectrum import ModuleSpectrum, module_spectra
from analysis.store.records import RunManifest, sha256
from analysis.store.workspace import Workspace
from analysis.tables import aligned
from analysis.text import interval_text, small_text
from analysis.values import Json, TableRow
from grasp.commands.calling import Result
from grasp.commands.opening import as_named, opened_adapter
from grasp.commands.resolve import (
    AdapterPlace,
    adapter_place,
    run_folder,
    unmade_workspace,
    workspace_for,
)
from grasp.jobs.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

    from analysis.comparison.comparison import ArmReading


def spectrum(args: argparse.Namespace) -> Result:
    """Show the singular values of every module's update; no model is loaded."""
    started = time.monotonic()
    place = _place(unmade_workspace(args, args.adapter), args)
    if args.checkpoints:
        found = [_read(one.path, args) for one in checkpoints(place.folder)]
        steps = [one.step for one in checkpoints(place.folder)]
        data: Json = {
            "checkpoints": [
                {"step": step, "path": str(adapter.path), "modules": _rows(spectra)}
                for step, (adapter, spectra) in zip(steps, found, strict=True)
            ]
        }
        lines = [*report_lines(found[-1][0]), "", *trajectory_lines(steps, [s for _, s in found])]
    else:
        found = [_read(place.folder, args)]
        data = {"modules": _rows(found[0][1])}
        lines = [*report_lines(found[0][0]), "", *spectrum_lines(found[0][1], each=args.modules)]
    seconds = time.monotonic() - started
    data |= {"adapter": adapter_report(found[-1][0]), "seconds": seconds}
    lines.append(f"{len(found[-1][1])} modules in {seconds:.2f} s")
    return Result(data | ({"source": place.source} if place.source else {}), "\n".join(lines))


def _place(workspace: Workspace, args: argparse.Namespace) -> AdapterPlace:
    return adapter_place(workspace, args.adapter, pickle=args.allow_pickle)


def _read(folder: Path, args: argparse.Namespace) -> tuple[Adapter, list[ModuleSpectrum]]:
    with opened_adapter(folder, args) as adapter:
        return as_named(adapter, folder), module_spectra(adapter)


def _rows(spectra: Sequence[ModuleSpectrum]) -> list[Json]:
    return [
        {
            **asdict(spectrum),
            "shape": list(spectrum.shape),
            "singular_values": spectrum.singular_values.tolist(),
        }
        for spectrum in spectra
    ]


def import_(args: argparse.Namespace, progress: Progress | None = None) -> Result:
    """Read an adapter completely, then copy it into the workspace as a run.

    With --checkpoints its checkpoints are copied too; if there are only checkpoints, the last one
    becomes the run's adapter.
    """
    place = _place(unmade_workspace(args), args)
    steps = _steps(place) if args.checkpoints else []
    workspace = workspace_for(args)
    with opened_adapter(steps[-1].path if steps else place.folder, args) as adapter:
        return _imported(workspace, place, adapter, args, steps)


def _steps(place: AdapterPlace) -> list[Checkpoint]:
    if place.source:
        raise InputError(
            f"{place.source['asked']} is on the Hub, and --checkpoints needs a folder; download "
            "the repository and give its folder."
        )
    return checkpoints(place.folder)


def _imported(
    workspace: Workspace,
    place: AdapterPlace,
    adapter: Adapter,
    args: argparse.Namespace,
    steps: Sequence[Checkpoint],
) -> Result:
    base = args.base or adapter.base_model
    if base is None:
        raise InputError(f"{place.folder} names no base model; name it with --base MODEL.")
    run_id = args.out or args.name or place.name
    if workspace.folder("runs", run_id).exists():
        raise InputError(f"A run {run_id!r} already exists; choose another id with --out.")
    with workspace.writing("runs", run_id) as partial:
        weights = copy_adapter(adapter, partial / "adapter")
        earlier = [one for one in steps if one.step is not None]
        for one in earlier:
            with opened_adapter(one.path, args) as stage:
                copy_adapter(stage, partial / "checkpoints" / f"checkpoint-{one.step}")
        run = RunManifest(
            id=run_id,
            title=run_id,
            method="naive",
            root=run_id,
            base_model=workspace.reference(base) if Path(base).exists() else base,
            config=_imported_settings(adapter),
            inputs={"adapter": sha256(weights)},
            source=place.source,
            verdict=f"Imported from {_origin(place)}; {len(adapter.modules)} modules"
            + (f", {len(earlier)} checkpoints." if earlier else "."),
        )
        (partial / "manifest.json").write_text(run.model_dump_json(indent=2), encoding="utf-8")
    adapter = as_named(adapter, place.folder)
    text = f"Imported {len(adapter.modules)} modules, {adapter.n_parameters:,} parameters."
    data = {"run": run_id, "modules": len(adapter.modules), "adapter": adapter_report(adapter)}
    return Result(data, "\n".join([text, *report_lines(adapter)]))


def _imported_settings(adapter: Adapter) -> Json:
    """What an adapter records of its own fine-tune, in the form of a run's settings."""
    lora = {"r": adapter.config.get("r"), "lora_alpha": adapter.config["lora_alpha"]}
    revision = adapter.base_revision
    return {"lora": lora} | ({"model": {"revision": revision}} if revision else {})


def _origin(place: AdapterPlace) -> str:
    if not place.source:
        return str(place.folder)
    return f"{place.source['asked']} on the Hub, commit {place.source['revision'][:12]}"


def compare(args: argparse.Namespace) -> Result:
    """Compare runs of one family: metrics, and tests against the naive run."""
    from analysis.comparison.comparison import comparison, dominated, instruments
    from analysis.comparison.effort import tried
    from analysis.comparison.wording import sentences

    workspace = unmade_workspace(args, *args.runs)
    runs = [run_folder(workspace, word) for word in args.runs]
    ids = [folder.name for folder, _ in runs]
    table = comparison(workspace, ids, split=args.split)
    dominations = dominated(workspace, ids, split=args.split)
    effort = tried(workspace, runs[0][1].root)
    said = [*sentences(table, dominations, {}), effort.text]
    measured = instruments(workspace, ids, split=args.split)
    data = {
        "split": args.split,
        "rows": [{str(k): v for k, v in row.items()} for row in table.to_dict(orient="records")],
        "dominations": [asdict(one) for one in dominations],
        "tried": asdict(effort),
        "instruments": [{"run": one.run} | one.reading.plain() for one in measured],
        "sentences": said,
    }
    lines = [*_mean_lines(table, args.split), *_reading_lines(measured), *_test_lines(table)]
    lines += ["", *said]
    return Result(data, "\n".join(lines))


def _mean_lines(table: pd.DataFrame, split: str) -> list[str]:
    metrics = ("unrelated", "removal", "task", "facts", "format", "coherence")
    rows: list[tuple[str, ...]] = [("arm", *metrics)]
    for run, found in table.groupby("run", sort=False):
        by_metric = {row["metric"]: row for row in found.to_dict("records")}
        rows.append((str(run) or "base", *(_cell(by_metric.get(name)) for name in metrics)))
    lines = aligned(rows, "<" + ">" * len(metrics))
    return [*lines, f"{split} prompts; 95 % intervals in brackets"]


def _reading_lines(measured: Sequence[ArmReading]) -> list[str]:
    """Results of prompt sets with statements and reversals, arm by arm."""
    from analysis.comparison.instruments import text_lines

    lines = []
    for one in (one for one in measured if one.reading.both):
        lines += ["", f"{one.run or 'base'}: {text_lines([one.reading])[0]}"]
        lines += text_lines([one.reading])[1:]
    return lines


def _test_lines(table: pd.DataFrame) -> list[str]:
    """One line per test against the naive run; none if it is not among the runs."""
    from analysis.comparison.wording import difference_text, verdict_text

    tests = table[table["p"].notna()]
    if tests.empty:
        return []
    rows = [("against naive", "metric", "difference", "p", "Holm", "detectable", "items", "")]
    for row in tests.to_dict(orient="records"):
        numbers = (small_text(row[key]) for key in ("p", "p_holm", "detectable"))
        about = (row["run"] or "base", row["metric"], difference_text(row))
        rows.append((*about, *numbers, str(int(row["items"])), verdict_text(row)))
    return ["", *aligned(rows, "<<<>>>>")]


def _cell(row: TableRow | None) -> str:
    return "–" if row is None else interval_text(row["value"], row["low"], row["high"])
