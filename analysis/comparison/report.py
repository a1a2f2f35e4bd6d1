"""Write a comparison as one static HTML file that needs no other files and no network."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import pandas as pd
from markupsafe import Markup

from analysis.comparison.comparison import (
    BASE,
    ArmReading,
    compare_arms,
    find_dominated_runs,
    load_arms,
    read_instruments,
)
from analysis.comparison.effort import measure_effort
from analysis.comparison.measures import choose_headlines, split_metric
from analysis.comparison.report_figure import intervals_svg
from analysis.comparison.wording import (
    describe_arms,
    difference_text,
    listed_metrics,
    metric_name,
    metric_title,
    verdict_text,
)
from analysis.markup import html_table, render
from analysis.store.records import ROLES, RunManifest, Split, code_revision
from analysis.store.retrain_line import Retrain
from analysis.store.workspace import Workspace
from analysis.text import interval_text, items_text, p_text, score_text, small_text
from analysis.values import TableRow


def render_report(
    workspace: Workspace,
    run_ids: Sequence[str],
    *,
    split: Split = "confirmation",
    labels: Mapping[str, str] | None = None,
) -> str:
    """The HTML of a comparison: runs, prompts, results, how much was tried, and commands.

    Args:
        workspace: of the runs.
        run_ids: runs of one family, all evaluated.
        split: of the prompts.
        labels: run id → display name; None to show ids.

    Raises:
        InputError: the runs are not of one family, or were evaluated on different prompts.
        NotFoundError: a run or its evaluation is missing.
    """
    table = compare_arms(workspace, run_ids, split=split)
    runs = [workspace.run(run) for run in dict.fromkeys(run_ids)]
    dominations = find_dominated_runs(workspace, run_ids, split=split)
    names = {run.id: run.id for run in runs} | dict(labels or {}) | {BASE: "Base model"}
    root = runs[0].root
    return render(
        "comparison/templates/report.html.jinja",
        title=f"Comparison: {_title(workspace, root)}",
        about=_about(workspace, runs, split),
        means=[
            (apart, _means(table, names, listed))
            for apart, listed in listed_metrics(table["metric"]).items()
        ],
        figure=intervals_svg(table, names, _drawn(table)),
        directions=_both_directions(read_instruments(workspace, run_ids, split=split), names),
        tests=_tests(table, names),
        said=[*describe_arms(table, dominations, names), measure_effort(workspace, root).text],
        runs=_runs(runs, names),
        commands=_commands(runs, split),
        made=f"Made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by grasp {code_revision()}.",
    )


def _title(workspace: Workspace, root: str) -> str:
    known = {run.id: run.title for run in workspace.runs().records}
    return known.get(root, root)


def _about(workspace: Workspace, runs: Sequence[RunManifest], split: Split) -> str:
    samples = load_arms(workspace, [runs[0].id])[0].evaluation.samples
    chosen = samples[samples["split"] == split]
    counts = [
        f"{role} {len(rows)} about {rows['cluster'].nunique()} items"
        for role in ROLES
        if len(rows := chosen[chosen["role"] == role])
    ]
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    said = ", ".join(str(seed) for seed in seeds) or "not recorded"
    looked = (
        " These prompts may have been looked at and tuned on." if split == "exploration" else ""
    )
    return (
        f"Base model {runs[0].base_model} and {len(runs)} runs of it, on the {split} half of the "
        f"prompts, which is fixed by a hash of the item: {'; '.join(counts)}. "
        f"Fine-tuning seeds: {said}.{looked}"
    )


def _drawn(table: pd.DataFrame) -> list[str]:
    """The metrics of the figure: drift and removal by each instrument, and the task."""
    there = [str(metric) for metric in dict.fromkeys(table["metric"])]
    heads = [choose_headlines(there, role) for role in ("unrelated", "removal", "task")]
    return [metric for found in heads for metric in found]


def _means(table: pd.DataFrame, names: Mapping[str, str], metrics: Sequence[str]) -> Markup:
    cells = {(row["run"], row["metric"]): row for row in table.to_dict("records")}
    rows = [
        [names[run], *(_mean(cells.get((run, metric))) for metric in metrics)]
        for run in dict.fromkeys(table["run"])
    ]
    return html_table(["Arm", *(metric_title(split_metric(metric)[0]) for metric in metrics)], rows)


def _mean(row: TableRow | None) -> str:
    if row is None:
        return "–"
    if not math.isfinite(row["value"]):
        return "unknown"
    numbers = interval_text(row["value"], row["low"], row["high"], show=score_text)
    items = row["n_items"] if "n_items" in row else row["items"]
    return "\n".join([*numbers.split(" ", 1), items_text(row["n"], items)])


def _both_directions(found: Sequence[ArmReading], names: Mapping[str, str]) -> Markup | None:
    """A table of the sets asked as statements and as reversals; None if there are none."""
    rows = []
    for one in (one for one in found if one.reading.both):
        reading, bias = one.reading, one.reading.agreement
        about = f"{reading.instrument}, {reading.group}\n{reading.scorer}, {reading.items} items"
        ways = [way for way in reading.directions if way.direction]
        spreads = "\n".join(f"{way.direction}s {score_text(way.spread)}" for way in ways)
        means = [_mean(asdict(way.score)) for way in ways]
        agreeing = "–" if bias is None else _mean(asdict(bias))
        rows.append([names[one.run], about, reading.end or "–", *means, spreads, agreeing])
    header = ["Arm", "Instrument", "1 means", "Statements", "Reversals", "Spread", "Agreement bias"]
    return html_table(header, rows) if rows else None


def _tests(table: pd.DataFrame, names: Mapping[str, str]) -> Markup | None:
    tests = table[table["p"].notna() & (table["run"] != BASE)]
    if tests.empty:
        return None
    rows = [
        [
            names[row["run"]],
            metric_name(row["metric"]),
            difference_text(row),
            p_text(row["p"]).removeprefix("p ").removeprefix("= "),
            small_text(row["p_holm"]),
            small_text(row["detectable"]),
            str(int(row["items"])),
            verdict_text(row).replace(" (", "\n("),
        ]
        for row in tests.to_dict("records")
    ]
    header = ["Arm", "Metric", "Difference", "p", "p, Holm", "Detectable", "Items", "Kept?"]
    return html_table(header, rows)


def _runs(runs: Sequence[RunManifest], names: Mapping[str, str]) -> Markup:
    rows = [
        [names[run.id], run.id, run.method, ", ".join(run.factors) or "–", _seed(run), run.verdict]
        for run in runs
    ]
    return html_table(["Arm", "Run", "Method", "Factors protected", "Seed", "Verdict"], rows)


def _seed(run: RunManifest) -> str:
    return "–" if run.seed is None else str(run.seed)


def _commands(runs: Sequence[RunManifest], split: Split) -> str:
    ids = [run.id for run in runs]
    lines = [
        *(_command(run) for run in runs if run.method != "naive"),
        *(shlex.join(["grasp", "evaluate", run]) for run in ids),
        shlex.join(["grasp", "compare", *ids, "--split", split]),
    ]
    return "\n".join(lines)


def _command(run: RunManifest) -> str:
    """The command that makes a run again; what it does not name is in the run's manifest."""
    settings = run.protection or {}
    held = settings.get("anchor") or settings.get("effect")
    tolerance = settings.get("tolerance") if held else None
    made = Retrain(
        run.root,
        tuple(run.factors),
        method=run.method,
        tolerance=tolerance,
        strength=run.strength if tolerance is None else None,
        inoculation=_inoculation(run),
        seed=run.seed,
        out=run.id,
    )
    return shlex.join(["grasp", *made.argv()])


def _inoculation(run: RunManifest) -> str | None:
    """The system prompt that the run was trained with, where its method has one."""
    return run.config.get("inoculation") or None if run.method == "inoculation" else None
