"""Commands on saved adapters and tables that load no model: spectrum, import, compare."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.adapters.copy import copy_adapter
from analysis.adapters.load import Adapter
from analysis.adapters.place import has_tokenizer
from analysis.errors import InputError
from analysis.spectra.report import (
    adapter_report,
    report_lines,
    spectrum_lines,
    trajectory_lines,
)
from analysis.spectra.spectrum import ModuleSpectrum, module_spectra
from analysis.store.layout import adapter_of
from analysis.store.records import RunManifest, sha256
from analysis.store.workspace import Workspace
from analysis.tables import align_columns
from analysis.text import interval_text, number_text, small_text
from analysis.values import Json, TableRow
from grasp.commands.calling import Result
from grasp.commands.resolve import (
    AdapterHistory,
    AdapterPlace,
    find_workspace,
    make_workspace,
    open_adapter,
    run_folder,
)
from grasp.jobs.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

    from analysis.comparison.comparison import ArmReading


def spectrum(args: argparse.Namespace) -> Result:
    """Show the singular values of every module's update; no model is loaded."""
    started = time.monotonic()
    workspace = find_workspace(args, args.adapter)
    with open_adapter(workspace, args, with_checkpoints=args.checkpoints) as opened:
        found = [(one.step, one.as_named, module_spectra(one.adapter)) for one in opened.stages()]
    steps, adapters, spectra = zip(*found, strict=True)
    lines = [*report_lines(adapters[-1]), ""]
    if args.checkpoints:
        data: Json = {
            "checkpoints": [
                {"step": step, "path": str(adapter.path), "modules": _rows(each)}
                for step, adapter, each in found
            ]
        }
        lines += trajectory_lines(steps, spectra)
    else:
        data = {"modules": _rows(spectra[-1])}
        lines += spectrum_lines(spectra[-1], each=args.modules)
    seconds = time.monotonic() - started
    data |= {"adapter": adapter_report(adapters[-1]), "seconds": seconds}
    lines.append(f"{len(spectra[-1])} modules in {seconds:.2f} s")
    source = {"source": opened.place.source} if opened.place.source else {}
    return Result(data | source, "\n".join(lines))


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
    unmade = find_workspace(args)
    with open_adapter(unmade, args, with_checkpoints=args.checkpoints) as opened:
        run_id = args.out or args.name or opened.place.name
        return _imported(make_workspace(args), run_id, opened, base=args.base)


def _imported(
    workspace: Workspace, run_id: str, opened: AdapterHistory, *, base: str | None
) -> Result:
    place, adapter = opened.place, opened.last.adapter
    base = base or adapter.base_model
    if base is None:
        raise InputError(f"{place.folder} names no base model; name it with --base MODEL.")
    if workspace.folder("runs", run_id).exists():
        raise InputError(f"A run {run_id!r} already exists; choose another id with --out.")
    with workspace.writing("runs", run_id) as partial:
        weights = copy_adapter(adapter, adapter_of(partial))
        steps = _copy_checkpoints(opened, partial / "checkpoints")
        # Where it will lie, once the folder has its name.
        own = has_tokenizer(adapter_of(partial))
        tokenizer = f"runs/{run_id}/{adapter_of(partial).name}" if own else None
        run = RunManifest(
            id=run_id,
            title=run_id,
            method="naive",
            root=run_id,
            base_model=workspace.reference(base) if Path(base).exists() else base,
            config=_imported_settings(adapter, tokenizer),
            inputs={"adapter": sha256(weights)},
            source=place.source,
            verdict=f"Imported from {_origin(place)}; {len(adapter.modules)} modules"
            + (f", {steps} checkpoints." if steps else "."),
        )
        (partial / "manifest.json").write_text(run.model_dump_json(indent=2), encoding="utf-8")
    text = f"Imported {len(adapter.modules)} modules, {adapter.n_parameters:,} parameters."
    shown = opened.last.as_named
    data = {
        "run": run_id,
        "modules": len(adapter.modules),
        "tokenizer": tokenizer,
        "adapter": adapter_report(shown),
    }
    lines = [text, *report_lines(shown)]
    if tokenizer is not None:
        lines.append(
            "Chats will be in the tokenizer and chat template that lie beside the adapter."
        )
    return Result(data, "\n".join(lines))


def _copy_checkpoints(opened: AdapterHistory, target: Path) -> int:
    """Copy the stages that are of a step; how many there were."""
    steps = 0
    for stage in opened.stages():
        if stage.step is not None:
            copy_adapter(stage.adapter, target / f"checkpoint-{stage.step}")
            steps += 1
    return steps


def _imported_settings(adapter: Adapter, tokenizer: str | None) -> Json:
    """What an adapter records of its own fine-tune, in the form of a run's settings."""
    lora = {"r": adapter.config.get("r"), "lora_alpha": adapter.config["lora_alpha"]}
    named = {"revision": adapter.base_revision, "tokenizer": tokenizer}
    model = {name: value for name, value in named.items() if value}
    return {"lora": lora} | ({"model": model} if model else {})


def _origin(place: AdapterPlace) -> str:
    if not place.source:
        return str(place.folder)
    return f"{place.source['asked']} on the Hub, commit {place.source['revision'][:12]}"


BESIDE = ("related", "control", "unrelated_greedy", "removal_greedy")
"""Measures that --json and the page have, but a terminal has no room for."""


def compare(args: argparse.Namespace) -> Result:
    """Compare runs of one family: metrics, and tests against the naive run."""
    from analysis.comparison.comparison import compare_arms, find_dominated_runs, read_instruments
    from analysis.comparison.effort import measure_effort
    from analysis.comparison.wording import describe_arms

    workspace = find_workspace(args, *args.runs)
    runs = [run_folder(workspace, word) for word in args.runs]
    ids = [folder.name for folder, _ in runs]
    table = compare_arms(workspace, ids, split=args.split)
    dominations = find_dominated_runs(workspace, ids, split=args.split)
    effort = measure_effort(workspace, runs[0][1].root)
    said = [*describe_arms(table, dominations, {}), effort.text]
    measured = read_instruments(workspace, ids, split=args.split)
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
    """A table of arms for each instrument, whole answers first, of what most people look at."""
    from analysis.comparison.measures import split_metric
    from analysis.comparison.wording import listed_metrics, metric_name

    lines = []
    for apart, listed in listed_metrics(table["metric"]).items():
        metrics = [one for one in listed if not one.startswith(BESIDE)]
        names = [metric_name(split_metric(one)[0]) for one in metrics]
        rows: list[tuple[str, ...]] = [("arm", *names)]
        for run, found in table.groupby("run", sort=False):
            by_metric = {row["metric"]: row for row in found.to_dict("records")}
            rows.append((str(run) or "base", *(_cell(by_metric.get(one)) for one in metrics)))
        most = table.groupby("metric")["n_items"].max()
        rows.append(("items", *(number_text(most[one], 0) for one in metrics)))
        lines += [f"Prompts of {apart}"] if apart else []
        lines += [*align_columns(rows, "<" + ">" * len(metrics)), ""]
    return [*lines[:-1], f"{split} prompts; 95 % intervals in brackets, by items"]


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
    return ["", *align_columns(rows, "<<<>>>>")]


def _cell(row: TableRow | None) -> str:
    return "–" if row is None else interval_text(row["value"], row["low"], row["high"])
