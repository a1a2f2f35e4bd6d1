"""Compare the arms of one family: metrics with intervals, removal, tests, answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.comparison.arm_tests import (
    TEST_COLUMNS,
    ControlTest,
    Domination,
    arm_drift,
    arm_removal,
    compare_with_controls,
    compare_with_reference,
    find_dominations,
    reference_table,
)
from analysis.comparison.evaluation import (
    Evaluation,
    average_by_prompt,
    read_evaluation,
    samples_of,
    summarise,
)
from analysis.comparison.instruments import Reading, instrument_readings
from analysis.comparison.measures import DRIFTS, name_metric, shared_metrics, split_metric
from analysis.errors import InputError, NotFoundError
from analysis.statistics.intervals import Interval
from analysis.store.records import RunManifest, Split
from analysis.store.workspace import Workspace

BASE = ""
"""The run id of the base model."""


@dataclass(frozen=True)
class EvaluatedArm:
    """One line of a comparison: the base model or a run, with its evaluation."""

    run: str
    method: str
    label: str
    evaluation: Evaluation


@dataclass(frozen=True)
class ArmReading:
    """What one group of a prompt set measured in one arm; `run` is "" for the base model."""

    run: str
    reading: Reading


def rate_table(
    workspace: Workspace, run_ids: Sequence[str], *, split: Split = "confirmation"
) -> pd.DataFrame:
    """One row per arm and metric, base model first.

    Columns: run ("" for the base model), method, label, metric, value, low, high, n (answers or
    prompts), n_items (what the interval rests on) and note.  Metrics are those of
    `analysis.comparison.measures`.  If the naive run is among the arms, there is also "removal",
    1 − drift(arm) / drift(naive), where drift is the unrelated rate minus that of the base model,
    paired by prompt; "removal_said" and "removal_greedy" are of whole answers, and
    "removal_agreement" of the agreement bias.  "drift", "drift_said" and so on are the differences
    from the base model.  If removal is unknown, note says why.

    Raises:
        InputError: the runs are not of one family, or were evaluated on different prompts.
        NotFoundError: a run or its evaluation is missing.
    """
    return _rates(load_arms(workspace, run_ids), split)


def compare_arms(
    workspace: Workspace, run_ids: Sequence[str], *, split: Split = "confirmation"
) -> pd.DataFrame:
    """`rate_table`, and the columns of `analysis.comparison.arm_tests.TEST_COLUMNS`.

    They test each arm against the naive run, and are NaN or "" if that is not among the arms.

    Raises:
        InputError: the runs are not of one family, or were evaluated on different prompts.
        NotFoundError: a run or its evaluation is missing.
    """
    arms = load_arms(workspace, run_ids)
    table = _rates(arms, split)
    columns = [name for name in table.columns if name != "note"]
    naive = _naive_of(arms)
    if naive is None:
        table = table.assign(**dict.fromkeys(TEST_COLUMNS, math.nan) | {"verdict": ""})
    else:
        tests = reference_table(compare_with_reference(_tables(arms, split), reference=naive.run))
        tests = tests.rename(columns={"arm": "run"})
        table = table.merge(tests, on=["run", "metric"], how="left").fillna({"verdict": ""})
    return table[[*columns, *TEST_COLUMNS, "note"]]


def find_dominated_runs(
    workspace: Workspace, run_ids: Sequence[str], *, split: Split = "confirmation"
) -> list[Domination]:
    """Pairs of arms of which one is shown to dominate the other.

    Empty if no naive run is among the arms, or it shows no drift.

    Raises:
        InputError: the runs are not of one family, or were evaluated on different prompts.
        NotFoundError: a run or its evaluation is missing.
    """
    arms = load_arms(workspace, run_ids)
    naive = _naive_of(arms)
    if naive is None:
        return []
    found = find_dominations(_tables(arms, split), base=BASE, naive=naive.run)
    return [one for one in found if one.shown]


def compare_runs_with_controls(
    workspace: Workspace,
    run_ids: Sequence[str],
    *,
    judged: Sequence[str],
    controls: Sequence[str],
    split: Split = "confirmation",
) -> list[ControlTest]:
    """Tests of the `judged` runs against the `controls`, all of which are among `run_ids`.

    Empty if no naive run is among the arms, or it shows no drift.

    Raises:
        InputError: the runs are not of one family, or were evaluated on different prompts.
        NotFoundError: a run or its evaluation is missing.
    """
    arms = load_arms(workspace, run_ids)
    naive = _naive_of(arms)
    if naive is None:
        return []
    tables = _tables(arms, split)
    return compare_with_controls(
        tables, base=BASE, naive=naive.run, judged=judged, controls=controls
    )


def read_instruments(
    workspace: Workspace, run_ids: Sequence[str], *, split: Split = "confirmation"
) -> list[ArmReading]:
    """What the named prompt sets measured, by set and group, the base model first in each.

    Raises:
        InputError: the runs are not of one family, or were evaluated on different prompts.
        NotFoundError: a run or its evaluation is missing.
    """
    found = [
        ArmReading(arm.run, reading)
        for arm in load_arms(workspace, run_ids)
        for reading in instrument_readings(arm.evaluation.samples, split=split)
    ]
    order = list(dict.fromkeys((one.reading.instrument, one.reading.group) for one in found))
    return sorted(found, key=lambda one: order.index((one.reading.instrument, one.reading.group)))


def arm_answers(
    workspace: Workspace, run_ids: Sequence[str], *, split: Split = "confirmation"
) -> pd.DataFrame:
    """One row per prompt: prompt_id, role, group, split, prompt, expected, and each arm's answer.

    Each run has the columns "score:<run>" and "answer:<run>", and "said:<run>" (the share of drawn
    answers that show the drifted value) if known; those of the base model end in "base".

    Raises:
        InputError: the runs are not of one family, or were evaluated on different prompts.
        NotFoundError: a run or its evaluation is missing.
    """
    arms = load_arms(workspace, run_ids)
    table = _of_split(arms[0], split)[["prompt_id", "role", "group", "split", "prompt", "expected"]]
    for arm in arms:
        name = arm.run or "base"
        samples = _of_split(arm, split)
        shown = [one for one in ("score", "answer", "said") if one in samples]
        columns = samples[["prompt_id", *shown]].rename(
            columns={one: f"{one}:{name}" for one in shown}
        )
        table = table.merge(columns, on="prompt_id", how="left", validate="one_to_one")
    return table


def find_flips(answers: pd.DataFrame, *, arm: str, against: str, threshold: float) -> pd.DataFrame:
    """Prompts whose score lies on opposite sides of `threshold` in two arms.

    Args:
        answers: the table of `arm_answers`.
        arm: run id, or "base".
        against: run id, or "base".
        threshold: a score above it counts as yes.  Prompts without a score in one of the arms
            are left out.

    Returns:
        Columns prompt_id, role, group, prompt, then score and answer of both arms; largest
        difference first.
    """
    columns = [f"{what}:{name}" for name in (against, arm) for what in ("score", "answer")]
    before, after = answers[f"score:{against}"], answers[f"score:{arm}"]
    known = before.notna() & after.notna()
    flipped = answers[known & ((before > threshold) != (after > threshold))]
    size = (flipped[f"score:{arm}"] - flipped[f"score:{against}"]).abs()
    order = size.sort_values(ascending=False, kind="stable").index
    return flipped.loc[order, ["prompt_id", "role", "group", "prompt", *columns]]


def load_arms(workspace: Workspace, run_ids: Sequence[str]) -> list[EvaluatedArm]:
    """The base model and the runs, in the order given, with their evaluations.

    Raises:
        InputError: the runs are not of one family, or were evaluated on different prompts.
        NotFoundError: a run or its evaluation is missing.
    """
    if not run_ids:
        raise InputError("There is no run to compare; give at least one.")
    runs = [workspace.run(run_id) for run_id in dict.fromkeys(run_ids)]
    roots = {run.root for run in runs}
    if len(roots) > 1:
        raise InputError(
            f"These runs are of different families ({', '.join(sorted(roots))}), whose prompts "
            "differ; compare runs of one family."
        )
    base = EvaluatedArm(BASE, "base", "Base model", _evaluation(workspace, f"{roots.pop()}.base"))
    arms = [_arm(workspace, run) for run in runs]
    for arm in arms:
        _check_prompts(base, arm)
    return [base, *arms]


def _check_prompts(base: EvaluatedArm, arm: EvaluatedArm) -> None:
    """Refuse an arm with another prompt set, way of answering or judge than the base model."""
    there, here = (a.evaluation.manifest for a in (base, arm))
    if not there.same_prompts(here):
        raise InputError(
            f"Run {arm.run!r} was evaluated on other prompts than the base model; evaluate it "
            f"again with `grasp evaluate {arm.run}`."
        )


def _arm(workspace: Workspace, run: RunManifest) -> EvaluatedArm:
    return EvaluatedArm(run.id, run.method, run.title, _evaluation(workspace, run.id))


def _evaluation(workspace: Workspace, evaluation_id: str) -> Evaluation:
    folder = workspace.folder("evaluations", evaluation_id)
    if not folder.is_dir():
        run = evaluation_id.removesuffix(".base")
        raise NotFoundError(
            f"There is no evaluation {evaluation_id!r} yet; run `grasp evaluate {run}`."
        )
    return read_evaluation(folder)


def _of_split(arm: EvaluatedArm, split: Split) -> pd.DataFrame:
    return average_by_prompt(samples_of(arm.evaluation.samples, split))


def _tables(arms: Sequence[EvaluatedArm], split: Split) -> dict[str, pd.DataFrame]:
    return {arm.run: _of_split(arm, split) for arm in arms}


def _naive_of(arms: Sequence[EvaluatedArm]) -> EvaluatedArm | None:
    return next((arm for arm in arms if arm.method == "naive"), None)


def _rates(arms: Sequence[EvaluatedArm], split: Split) -> pd.DataFrame:
    naive = _naive_of(arms)
    rows = []
    for arm in arms:
        rows += _rows(arm, split)
        if arm.run != BASE:
            rows += _drift_rows(arms[0], naive, arm, split)
    return pd.DataFrame(rows)


def _rows(arm: EvaluatedArm, split: Split) -> list[dict[str, object]]:
    metrics = summarise(arm.evaluation.samples, split=split)
    return [_row(arm, metric, interval) for metric, interval in metrics.items()]


def _drift_rows(
    base: EvaluatedArm, naive: EvaluatedArm | None, arm: EvaluatedArm, split: Split
) -> list[dict[str, object]]:
    """How far an arm drifted on each instrument and, beside a naive run, how much it removed."""
    before, after = (_of_split(one, split) for one in (base, arm))
    rows = []
    for suffix, measure in DRIFTS.items():
        for metric in shared_metrics([before, after], among=[measure]):
            apart = split_metric(metric)[1]
            drift = arm_drift(before, after, metric=metric)
            rows.append(_row(arm, name_metric(f"drift{suffix}", apart), drift))
            if naive is not None:
                found, why = arm_removal(before, _of_split(naive, split), after, metric=metric)
                name = name_metric(f"removal{suffix}", apart)
                rows.append(_row(arm, name, found) | {"note": why})
    return rows


def _row(arm: EvaluatedArm, metric: str, interval: Interval) -> dict[str, object]:
    return {
        "run": arm.run,
        "method": arm.method,
        "label": arm.label,
        "metric": metric,
        "value": interval.value,
        "low": interval.low,
        "high": interval.high,
        "n": interval.n,
        "n_items": interval.items,
        "note": "",
    }
