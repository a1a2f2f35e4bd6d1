"""Choose the strength at which a method is reported, on the exploration prompts of one seed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from analysis.comparison.measures import headline_metrics, metric_rows
from analysis.errors import InputError
from grasp.bench.plan.cells import BASE, NAIVE
from grasp.bench.plan.plan import Arm, Plan
from grasp.bench.saved.gather import arms_of

MARGIN = 0.02
"""How far task accuracy and facts may fall below the naive run's at an eligible strength."""

ROUNDING = 1e-9

Means = dict[str, pd.Series]
"""Run → mean score by role."""


@dataclass(frozen=True)
class SweepPoint:
    """Results of an arm at one strength on exploration prompts.

    `kept` says that task accuracy and facts are within MARGIN of the naive run's.
    """

    story: str
    arm: Arm
    variant: Arm
    removal: float
    task: float
    facts: float
    kept: bool
    chosen: bool = False


def sweeps(root: Path, plan: Plan) -> list[SweepPoint]:
    """Every strength of every arm of the rivals in each story, with one chosen per arm.

    The chosen strength has the highest removal among those whose task accuracy and facts are
    within MARGIN of the naive run's; if there is none, the best task accuracy.  Arms without a
    knob have one entry.
    """
    if plan.rivals is None:
        return []
    found: list[SweepPoint] = []
    for cell in plan.rivals.first:
        variants = [(arm, one) for arm in plan.rivals.arms for one in arm.variants()]
        arms = arms_of(root, [cell], [one.name for _, one in variants], split="exploration")
        if not {BASE, NAIVE} <= arms.keys():
            continue
        drift = headline_metrics(list(arms.values()))
        if len(drift) != 1:
            raise InputError(
                f"Story {cell.story} has {len(drift)} instruments of drift, {', '.join(drift)}; "
                "expected one to choose strengths by."
            )
        means = {run: _means(table, drift[0]) for run, table in arms.items()}
        for arm in plan.rivals.arms:
            those = [one for of, one in variants if of is arm and one.name in arms]
            found += _with_choice([_tried(cell.story, arm, one, means) for one in those])
    return found


def _means(table: pd.DataFrame, drift: str) -> pd.Series:
    """Mean score by role; that of "unrelated" is of what is reported, whole answers if known."""
    means = table.groupby("role")["score"].mean()
    means["unrelated"] = metric_rows(table, drift)["value"].mean()
    return means


def _tried(story: str, arm: Arm, variant: Arm, means: Means) -> SweepPoint:
    base, naive, own = means[BASE], means[NAIVE], means[variant.name]
    drift = naive["unrelated"] - base["unrelated"]
    removal = 1 - (own["unrelated"] - base["unrelated"]) / drift if drift else math.nan
    lost = max(naive[metric] - own[metric] for metric in ("task", "facts"))
    return SweepPoint(
        story=story,
        arm=arm,
        variant=variant,
        removal=float(removal),
        task=float(own["task"]),
        facts=float(own["facts"]),
        kept=bool(lost <= MARGIN + ROUNDING),
    )


def chosen_arms(root: Path, plan: Plan) -> dict[str, dict[str, Arm]]:
    """Story → arm name → the arm at the strength to report."""
    found: dict[str, dict[str, Arm]] = {}
    for line in sweeps(root, plan):
        if line.chosen:
            found.setdefault(line.story, {})[line.arm.name] = line.variant
    return found


def _with_choice(lines: list[SweepPoint]) -> list[SweepPoint]:
    if not lines:
        return []
    kept = [line for line in lines if line.kept]
    best = (
        max(kept, key=lambda line: -math.inf if math.isnan(line.removal) else line.removal)
        if kept
        else max(lines, key=lambda line: line.task)
    )
    return [replace(line, chosen=line is best) for line in lines]
