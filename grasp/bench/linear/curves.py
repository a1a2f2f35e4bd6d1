"""Simulations of the linear world against closed forms: the curves of the docs' figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from analysis.spectra.subspace import random_subspace
from grasp.bench.linear import model as lm
from grasp.bench.linear import theory

FloatArray = NDArray[np.float64]

D_OUT, D_IN, WORLDS = 60, 90, 40
STRENGTHS = np.arange(0.1, 1.61, 0.15)


@dataclass(frozen=True)
class Curve:
    """One line and its points: simulations `draws` (x, worlds), and the closed form at `x`.

    `fine` is the closed form on the finer grid `fine_x`.
    """

    label: str
    x: FloatArray
    draws: FloatArray
    expected: FloatArray
    fine_x: FloatArray
    fine: FloatArray

    @property
    def mean(self) -> FloatArray:
        """(x,) means over worlds."""
        return np.asarray(self.draws.mean(axis=1))

    @property
    def standard_error(self) -> FloatArray:
        """(x,) standard errors of the means over worlds."""
        return np.asarray(self.draws.std(axis=1, ddof=1) / np.sqrt(self.draws.shape[1]))

    def points(self) -> dict[str, object]:
        """The points as numbers: x, mean, standard error, closed form, and the largest gap."""
        table = {"x": self.x, "mean": self.mean, "standard_error": self.standard_error}
        table["theory"] = self.expected
        worst = float(np.abs(self.mean - self.expected).max())
        return {
            "worst_gap": worst,
            **{name: np.round(values, 4).tolist() for name, values in table.items()},
        }


def simulate_curve(
    label: str,
    x: FloatArray,
    simulate: Callable[[float, int], float],
    closed_form: Callable[[float], float],
    *,
    spacing: Literal["linear", "log"] = "linear",
) -> Curve:
    """Simulate every x in every world, and evaluate the closed form at x and in between."""
    space = np.geomspace if spacing == "log" else np.linspace
    fine_x = space(x[0], x[-1], 129)
    draws = np.array([[simulate(value, seed) for seed in range(WORLDS)] for value in x])
    expected, fine = (np.array([closed_form(value) for value in grid]) for grid in (x, fine_x))
    return Curve(label, x, draws, expected, fine_x, fine)


def all_curves() -> dict[str, list[Curve]]:
    """The curves of every panel, by its name."""
    return {
        "recovery": recovery_curves(),
        "rotation": rotation_curves(),
        "anchor": anchor_curves(),
        "removal": removal_curves(),
    }


def recovery_curves() -> list[Curve]:
    """Squared cosine of s with the span of the two leading write factors, by strength."""
    return [
        simulate_curve(
            f"ρ = {rho:g}, {n} rows",
            STRENGTHS,
            partial(_recovered, rho=rho, n=n),
            partial(_recoverable, rho=rho, n=n),
        )
        for rho, n in ((0.0, 2400), (0.0, 600), (0.8, 600))
    ]


def _recovered(beta: float, seed: int, *, rho: float, n: int) -> float:
    world = _strong_task(beta, seed, rho=rho)
    data = lm.sample(world, n, seed=seed)
    factors, _ = lm.fit_low_rank(data.inputs, data.changes, r=2)
    return float(((factors.T @ world.spurious) ** 2).sum())


def _recoverable(beta: float, *, rho: float, n: int) -> float:
    return float(theory.recovery(_strong_task(beta, 0, rho=rho), n).spurious.sum())


def _strong_task(beta: float, seed: int, *, rho: float = 0.0) -> lm.LinearWorld:
    return lm.plant(
        D_OUT, D_IN, task_strength=2.0, spurious_strength=beta, correlation=rho, seed=seed
    )


def rotation_curves() -> list[Curve]:
    """Squared cosine with s of the closer of a route's two factors, by β/τ, for ρ = 0.5."""
    labels: dict[theory.Route, str] = {
        "weights": "weights",
        "on-task": "fine-tuning inputs",
        "off-task": "inputs off task",
    }
    return [
        simulate_curve(
            label,
            np.geomspace(0.25, 4.0, 9),
            partial(_nearer_factor, route=route),
            partial(_nearer_in_theory, route=route),
            spacing="log",
        )
        for route, label in labels.items()
    ]


def _nearer_factor(ratio: float, seed: int, *, route: theory.Route) -> float:
    world = _by_ratio(ratio, seed)
    data = lm.sample(world, 4000, seed=seed)
    update = np.matmul(*lm.fit_low_rank(data.inputs, data.changes, r=2))
    if route == "weights":
        factors = lm.leading_factors(update, k=2)
    elif route == "on-task":
        factors = lm.response_factors(update, data.inputs, k=2)
    else:
        neutral = lm.off_task_inputs(world, 4000, seed=seed + WORLDS)
        factors = lm.response_factors(update, neutral, k=2)
    return float(((factors.T @ world.spurious) ** 2).max())


def _nearer_in_theory(ratio: float, *, route: theory.Route) -> float:
    return float(theory.spurious_cosines(_by_ratio(ratio, 0), route).max())


def _by_ratio(ratio: float, seed: int) -> lm.LinearWorld:
    strengths = {"task_strength": 1.0, "spurious_strength": ratio}
    return lm.plant(20, 30, **strengths, correlation=0.5, label_noise=0.3, seed=seed)


def anchor_curves() -> list[Curve]:
    """What still writes s, by anchor weight: the effect of each cue, for two kinds of text."""
    kinds = (
        ("spurious cue", None, 1),
        ("task cue, text blurs into it", None, 0),
        ("task cue, text never has it", 0.0, 0),
    )
    return [
        simulate_curve(
            label,
            np.geomspace(0.03, 1000, 9),
            partial(_still_written, task_cue_variance=variance, cue=cue),
            partial(_still_written_in_theory, task_cue_variance=variance, cue=cue),
            spacing="log",
        )
        for label, variance, cue in kinds
    ]


def _still_written(weight: float, seed: int, *, task_cue_variance: float | None, cue: int) -> float:
    world = _correlated(seed)
    data = lm.sample(world, 1000, seed=seed)
    neutral = lm.off_task_inputs(
        world, 1000, task_cue_variance=task_cue_variance, seed=seed + WORLDS
    )
    Q = world.spurious[:, None]
    update = lm.fit_anchored(data.inputs, data.changes, Q=Q, neutral=neutral, weight=weight)
    return float(world.spurious @ update @ world.cues[:, cue])


def _still_written_in_theory(weight: float, *, task_cue_variance: float | None, cue: int) -> float:
    found = theory.anchored_reliance(
        _correlated(0), weight=weight, task_cue_variance=task_cue_variance
    )
    return float(found[cue])


def _correlated(seed: int) -> lm.LinearWorld:
    return lm.plant(20, 30, task_strength=2.0, spurious_strength=1.0, correlation=0.7, seed=seed)


def removal_curves() -> list[Curve]:
    """Removal by the factor with the larger ratio of effects, and by random directions."""
    found = [
        simulate_curve(
            label,
            STRENGTHS,
            partial(_removed_by_factor, same_rows=same),
            partial(_removed_in_theory, same_rows=same),
        )
        for label, same in (("same rows", True), ("fresh rows", False))
    ]
    share = theory.random_share(D_OUT, 3)[0]
    control = simulate_curve("3 random directions", STRENGTHS, _removed_at_random, lambda _: share)
    return [*found, control]


def _removed_by_factor(beta: float, seed: int, *, same_rows: bool) -> float:
    world = _strong_task(beta, seed)
    data = lm.sample(world, 600, seed=seed)
    neutral = lm.off_task_inputs(world, 600, seed=seed + WORLDS)
    B, A = lm.fit_low_rank(data.inputs, data.changes, r=2)
    on, off = lm.measure_effects(B @ A, B, inputs=data.inputs, neutral=neutral)
    again = data if same_rows else _fresh(world, seed)
    return _removed(world, again, B[:, [(off / on).argmax()]])


def _removed_at_random(beta: float, seed: int) -> float:
    world = _strong_task(beta, seed)
    return _removed(world, _fresh(world, seed), random_subspace(D_OUT, 3, seed=seed))


def _fresh(world: lm.LinearWorld, seed: int) -> lm.Sample:
    return lm.sample(world, 600, seed=seed + 10 * WORLDS)


def _removed(world: lm.LinearWorld, rows: lm.Sample, Q: lm.FloatArray) -> float:
    """Share of the naive reliance on the spurious cue that protecting Q takes away."""
    update = np.matmul(*lm.fit_protected(rows.inputs, rows.changes, Q=Q, r=D_OUT))
    naive = theory.reliance(world)[1, 1]
    # Compare with the same rows without protection, so that their noise cancels.
    free = world.spurious @ lm.fit_least_squares(rows.inputs, rows.changes) @ world.cues[:, 1]
    return float((free - world.spurious @ update @ world.cues[:, 1]) / naive)


def _removed_in_theory(beta: float, *, same_rows: bool) -> float:
    return float(theory.predicted_removal(_strong_task(beta, 0), 600, same_rows=same_rows)[1])


def wrong_choices() -> list[dict[str, object]]:
    """The values of β at which ranking the two weight factors by effects prefers the wrong one.

    Uses closed forms only, for 161 values of β/τ from ¼ to 4.  `ratio` is off/on; `score` is
    off · √(off/(off + on)), by which the workbench ranks factors of equal stability.
    """
    grid = np.geomspace(0.25, 4.0, 161)
    return [
        {
            "correlation": rho,
            "neutral": "blurs into the task cue" if p is None else "never has the task cue",
            **{
                rule: np.round([b for b in grid if _is_wrong(float(b), rho, p, rule)], 2).tolist()
                for rule in ("ratio", "score")
            },
        }
        for p in (None, 0.0)
        for rho in (0.2, 0.5, 0.8)
    ]


def _is_wrong(beta: float, rho: float, p: float | None, rule: str) -> bool:
    """Whether a rule prefers the weight factor that is farther from s (τ = 1, ν = 0.5)."""
    world = lm.plant(20, 30, task_strength=1.0, spurious_strength=beta, correlation=rho, seed=0)
    _, directions = theory.eigen(theory.route_moment(world, "weights"))
    pairs = [
        theory.expected_effects(world, direction, task_cue_variance=p) for direction in directions
    ]
    values = [off / on if rule == "ratio" else off * np.sqrt(off / (off + on)) for on, off in pairs]
    return bool(np.argmax(values) != theory.spurious_cosines(world, "weights").argmax())
