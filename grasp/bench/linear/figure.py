"""Simulations of the linear world against closed forms, as numbers and as a figure of the docs.

Points are means over worlds, bars two standard errors, lines closed forms.  Needs the `bench`
extra (matplotlib).  The same seeds give the same file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.spectra.subspace import random_subspace
from grasp.bench.linear import model as lm
from grasp.bench.linear import theory

FIGURE = Path(__file__).resolve().parents[3] / "docs" / "method" / "identifiability.svg"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#767676")
"""Four colours with a contrast of at least 3 to 1 on white and on near-black."""

D_OUT, D_IN, WORLDS = 60, 90, 40


@dataclass(frozen=True)
class Curve:
    """One line and its points: simulations `draws` (x, worlds), and the closed form at `x`.

    `fine` is the closed form on the finer grid `fine_x`.
    """

    label: str
    x: np.ndarray
    draws: np.ndarray
    expected: np.ndarray
    fine_x: np.ndarray
    fine: np.ndarray


def main() -> None:
    """Simulate, write the figure, and print the numbers as one JSON object."""
    panels = {
        "recovery": recovery(),
        "rotation": rotation(),
        "anchor": anchor(),
        "removal": removal(),
    }
    draw(panels)
    report = {
        name: {curve.label: gaps(curve) for curve in curves} for name, curves in panels.items()
    }
    report["wrong_choice"] = wrong_choices()
    print(json.dumps(report, indent=2, ensure_ascii=False))


def gaps(curve: Curve) -> dict[str, object]:
    """The points of one curve: x, mean, standard error, closed form, and the largest gap."""
    error = standard_error(curve.draws)
    table = (curve.x, curve.draws.mean(axis=1), error, curve.expected)
    names = ("x", "mean", "standard_error", "theory")
    worst = float(np.abs(table[1] - table[3]).max())
    return {"worst_gap": worst, **{n: np.round(t, 4).tolist() for n, t in zip(names, table)}}  # noqa: B905


def standard_error(draws: np.ndarray) -> np.ndarray:
    """Standard error (x,) of the mean over worlds, the last axis of draws (x, worlds)."""
    return draws.std(axis=1, ddof=1) / np.sqrt(draws.shape[1])


def curve(
    label: str,
    x: np.ndarray,
    simulate: Callable[[float, int], float],
    closed_form: Callable[[float], float],
    *,
    log: bool = False,
) -> Curve:
    """Simulate every x in every world, and evaluate the closed form at x and in between."""
    space = np.geomspace if log else np.linspace
    fine_x = space(x[0], x[-1], 129)
    draws = np.array([[simulate(value, seed) for seed in range(WORLDS)] for value in x])
    expected, fine = ([closed_form(value) for value in grid] for grid in (x, fine_x))
    return Curve(label, x, draws, np.array(expected), fine_x, np.array(fine))


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
                rule: np.round([b for b in grid if wrong(float(b), rho, p, rule)], 2).tolist()
                for rule in ("ratio", "score")
            },
        }
        for p in (None, 0.0)
        for rho in (0.2, 0.5, 0.8)
    ]


def wrong(beta: float, rho: float, p: float | None, rule: str) -> bool:
    """Whether a rule prefers the weight factor that is farther from s (τ = 1, ν = 0.5)."""
    world = lm.plant(20, 30, task_strength=1.0, spurious_strength=beta, correlation=rho, seed=0)
    _, directions = theory.eigen(theory.route_moment(world, "weights"))
    pairs = [theory.effects(world, direction, task_cue_variance=p) for direction in directions]
    values = [off / on if rule == "ratio" else off * np.sqrt(off / (off + on)) for on, off in pairs]
    return bool(np.argmax(values) != theory.spurious_cosines(world, "weights").argmax())


def recovery() -> list[Curve]:
    """Squared cosine of s with the span of the two leading write factors, by strength."""

    def planted(beta: float, rho: float, seed: int) -> lm.LinearWorld:
        return lm.plant(
            D_OUT, D_IN, task_strength=2.0, spurious_strength=beta, correlation=rho, seed=seed
        )

    def simulate(beta: float, seed: int, rho: float, n: int) -> float:
        world = planted(beta, rho, seed)
        data = lm.sample(world, n, seed=seed)
        factors, _ = lm.low_rank(data.inputs, data.changes, r=2)
        return float(((factors.T @ world.spurious) ** 2).sum())

    return [
        curve(
            f"ρ = {rho:g}, {n} rows",
            np.arange(0.1, 1.61, 0.15),
            lambda beta, seed, rho=rho, n=n: simulate(beta, seed, rho, n),
            lambda beta, rho=rho, n=n: theory.recovery(planted(beta, rho, 0), n).spurious.sum(),
        )
        for rho, n in ((0.0, 2400), (0.0, 600), (0.8, 600))
    ]


def rotation() -> list[Curve]:
    """Squared cosine with s of the closer of a route's two factors, by β/τ, for ρ = 0.5."""

    def planted(ratio: float, seed: int) -> lm.LinearWorld:
        return lm.plant(
            20,
            30,
            task_strength=1.0,
            spurious_strength=ratio,
            correlation=0.5,
            label_noise=0.3,
            seed=seed,
        )

    def simulate(ratio: float, seed: int, route: theory.Route) -> float:
        world = planted(ratio, seed)
        data = lm.sample(world, 4000, seed=seed)
        neutral = lm.off_task_inputs(world, 4000, seed=seed + WORLDS)
        update = np.matmul(*lm.low_rank(data.inputs, data.changes, r=2))
        factors = {
            "weights": lambda: lm.weight_factors(update, k=2),
            "on-task": lambda: lm.response_factors(update, data.inputs, k=2),
            "off-task": lambda: lm.response_factors(update, neutral, k=2),
        }[route]()
        return float(((factors.T @ world.spurious) ** 2).max())

    def closed_form(ratio: float, route: theory.Route) -> float:
        return float(theory.spurious_cosines(planted(ratio, 0), route).max())

    labels = {"weights": "weights", "on-task": "fine-tuning inputs", "off-task": "inputs off task"}
    return [
        curve(
            label,
            np.geomspace(0.25, 4.0, 9),
            lambda ratio, seed, route=route: simulate(ratio, seed, route),
            lambda ratio, route=route: closed_form(ratio, route),
            log=True,
        )
        for route, label in labels.items()
    ]


def anchor() -> list[Curve]:
    """What still writes s, by anchor weight: the effect of each cue, for two kinds of text."""

    def planted(seed: int) -> lm.LinearWorld:
        return lm.plant(
            20, 30, task_strength=2.0, spurious_strength=1.0, correlation=0.7, seed=seed
        )

    def simulate(weight: float, seed: int, p: float | None, cue: int) -> float:
        world = planted(seed)
        data = lm.sample(world, 1000, seed=seed)
        neutral = lm.off_task_inputs(world, 1000, task_cue_variance=p, seed=seed + WORLDS)
        Q = world.spurious[:, None]
        update = lm.anchored(data.inputs, data.changes, Q=Q, neutral=neutral, weight=weight)
        return float(world.spurious @ update @ world.cues[:, cue])

    kinds = (
        ("spurious cue", None, 1),
        ("task cue, text blurs into it", None, 0),
        ("task cue, text never has it", 0.0, 0),
    )
    return [
        curve(
            label,
            np.geomspace(0.03, 1000, 9),
            lambda weight, seed, p=p, cue=cue: simulate(weight, seed, p, cue),
            lambda weight, p=p, cue=cue: theory.anchored_reliance(
                planted(0), weight=weight, task_cue_variance=p
            )[cue],
            log=True,
        )
        for label, p, cue in kinds
    ]


def removal() -> list[Curve]:
    """Removal by the factor with the larger ratio of effects, and by random directions."""

    def planted(beta: float, seed: int) -> lm.LinearWorld:
        return lm.plant(D_OUT, D_IN, task_strength=2.0, spurious_strength=beta, seed=seed)

    def simulate(beta: float, seed: int, *, same_rows: bool, random: int = 0) -> float:
        world = planted(beta, seed)
        data = lm.sample(world, 600, seed=seed)
        again = data if same_rows else lm.sample(world, 600, seed=seed + 10 * WORLDS)
        if random:
            Q = random_subspace(D_OUT, random, seed=seed)
        else:
            neutral = lm.off_task_inputs(world, 600, seed=seed + WORLDS)
            B, A = lm.low_rank(data.inputs, data.changes, r=2)
            on, off = lm.effects(B @ A, B, inputs=data.inputs, neutral=neutral)
            Q = B[:, [(off / on).argmax()]]
        update = np.matmul(*lm.protected(again.inputs, again.changes, Q=Q, r=D_OUT))
        naive = theory.reliance(world)[1, 1]
        # Compare with the same rows without protection, so that their noise cancels.
        free = world.spurious @ lm.least_squares(again.inputs, again.changes) @ world.cues[:, 1]
        return float((free - world.spurious @ update @ world.cues[:, 1]) / naive)

    grid = np.arange(0.1, 1.61, 0.15)
    found = [
        curve(
            label,
            grid,
            lambda beta, seed, same=same: simulate(beta, seed, same_rows=same),
            lambda beta, same=same: theory.predicted_removal(planted(beta, 0), 600, same_rows=same)[
                1
            ],
        )
        for label, same in (
            ("same rows", True),
            ("fresh rows", False),
        )
    ]
    share = theory.random_share(D_OUT, 3)[0]
    control = curve(
        "3 random directions",
        grid,
        lambda beta, seed: simulate(beta, seed, same_rows=False, random=3),
        lambda _: share,
    )
    return [*found, control]


AXES = {
    "recovery": ("a  s in the span of the factors", "spurious strength β", "squared cosine"),
    "rotation": (
        "b  the nearer factor, ρ = 0.5",
        "spurious over task strength, β/τ",
        "squared cosine",
    ),
    "anchor": ("c  what still writes s", "anchor weight", "effect on s"),
    "removal": ("d  removal by one factor", "spurious strength β", "removal"),
}
LEGENDS = {
    "recovery": "lower right",
    "rotation": "lower right",
    "anchor": "upper right",
    "removal": "center right",
}


def draw(panels: dict[str, list[Curve]]) -> None:
    """Write the figure, transparent and in colours that work on light and dark pages."""
    grey = COLOURS[-1]
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "identifiability",
        "font.size": 9,
        "path.simplify_threshold": 0.5,
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), grey
        ),
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(8.4, 6.2), layout="constrained")
        for axes, (name, curves) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
            panel(axes, name, curves)
        figure.savefig(FIGURE, transparent=True, metadata={"Date": None, "Creator": None})


def panel(axes: Axes, name: str, curves: list[Curve]) -> None:
    """Draw one panel: lines are closed forms, points means with two standard errors."""
    for drawn, colour in zip(curves, COLOURS, strict=False):
        axes.plot(drawn.fine_x, drawn.fine, color=colour, linewidth=1.3, label=drawn.label)
        axes.errorbar(
            drawn.x,
            drawn.draws.mean(axis=1),
            2 * standard_error(drawn.draws),
            fmt="o",
            color=colour,
            markersize=3,
            linewidth=1,
        )
    title, x, y = AXES[name]
    axes.set_title(title, loc="left", fontsize=10)
    axes.set(xlabel=x, ylabel=y, ylim=(-0.05, 1.08))
    if name in ("rotation", "anchor"):
        axes.set_xscale("log")
    if name == "rotation":
        axes.set_xticks([0.25, 0.5, 1, 2, 4], ["¼", "½", "1", "2", "4"])
        axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc=LEGENDS[name])


if __name__ == "__main__":
    main()
