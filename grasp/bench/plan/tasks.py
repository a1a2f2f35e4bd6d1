"""The tasks of a plan: for each cell, the steps that its sections need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from grasp.bench.plan.cells import NAIVE, needs_base
from grasp.bench.plan.plan import Arm, Cell, Measure, Plan, Rivals
from grasp.settings.methods import METHODS

Kind = Literal["naive", "identify", "record", "evaluate", "label", "arm", "residue"]
BEST, ALL = "best", "all"
"""What an arm protects: the best-ranked factor, or the factors of all latents.

Any other value is the name of one latent."""

SECONDS: dict[Kind, float] = {
    "naive": 6,
    "identify": 6,
    "record": 1,
    "evaluate": 6,
    "label": 3,
    "arm": 11,
    "residue": 9,
}
"""Rough time per step on one core, for the estimate."""

BASE_SECONDS = 250.0


@dataclass(frozen=True)
class Demand:
    """One step of a cell, about the naive run or about an `arm`."""

    kind: Kind
    arm: Arm | None = None
    protect: str = BEST

    @property
    def run(self) -> str:
        """The id of the step's run."""
        if self.arm is None:
            return NAIVE
        return self.arm.name if self.protect == BEST else f"{self.arm.name}.{self.protect}"


@dataclass(frozen=True)
class Task:
    """What one process does at a time: train a base model, or do the steps of a cell in order.

    `after` is the id of a task that must be done first.
    """

    id: str
    demands: tuple[Demand, ...] = ()
    cell: Cell | None = None
    world: str | None = None
    after: str | None = None

    @property
    def seconds(self) -> float:
        """A rough estimate of its time on one core."""
        if self.cell is None:
            return BASE_SECONDS
        return sum(SECONDS[demand.kind] for demand in self.demands)


Wanted = Iterator[tuple[Cell, list[Demand]]]

_FOUND = [Demand("naive"), Demand("identify"), Demand("record")]
_NAIVE = [*_FOUND, Demand("evaluate")]


def first_tasks(plan: Plan, measure: Measure) -> list[Task]:
    """All tasks except the rivals at their chosen strengths, which are not known yet."""
    wanted = _identification(plan) if measure == "identification" else _removal(plan)
    cells = list(_merged(wanted))
    worlds = dict.fromkeys(task.cell.world for task in cells if task.cell)
    bases = [Task(id=f"base of {name}", world=name) for name in worlds if needs_base(name)]
    return [*bases, *cells]


def later_tasks(plan: Plan, chosen: dict[str, dict[str, Arm]]) -> list[Task]:
    """The rivals on their other seeds; `chosen` maps story and arm name to the arm to report."""
    if plan.rivals is None:
        return []
    return list(
        _merged(
            (cell, [*_NAIVE, *(Demand("arm", arm) for arm in chosen[cell.story].values())])
            for cell in plan.rivals.cells
            if cell.story in chosen
        )
    )


def later_seconds(plan: Plan) -> float:
    """A rough estimate of the time `later_tasks` will take on one core."""
    if plan.rivals is None:
        return 0.0
    cells = len([cell for cell in plan.rivals.cells if cell.seed != plan.rivals.chosen_on])
    return cells * (len(plan.rivals.arms) * SECONDS["arm"] + sum(SECONDS[d.kind] for d in _NAIVE))


def latent_sets(arm: Arm, latents: Iterable[str]) -> list[str]:
    """What an arm protects in a story of several latents: each one's factor, then all of them.

    An arm that needs no factors does not depend on the latent, so it is trained once.
    """
    return [*latents, ALL] if "factors" in METHODS[arm.method].needs else [BEST]


def _identification(plan: Plan) -> Wanted:
    for section in (plan.core, plan.none, plan.phase, plan.styles):
        for cell in section.cells if section else []:
            yield cell, _FOUND


def _removal(plan: Plan) -> Wanted:
    for section in (plan.core, plan.needed, plan.phase, plan.styles):
        for cell in section.cells if section else []:
            yield cell, [*_NAIVE, *_arms(section.arms if section else [])]
    if plan.rivals is not None:
        for cell in plan.rivals.first:
            yield cell, [*_NAIVE, *_swept(plan.rivals)]
    for cell in plan.two.cells if plan.two else []:
        assert plan.two is not None
        yield cell, [*_NAIVE, Demand("label"), *_by_latent(plan.two.arms)]
    for number, cell in enumerate(plan.none.cells if plan.none else []):
        assert plan.none is not None
        retrained = number in _spread(len(plan.none.cells), plan.none.retrained)
        yield cell, [*_NAIVE, *_arms(plan.none.arms)] if retrained else _FOUND
    for cell in plan.residue.cells if plan.residue else []:
        assert plan.residue is not None
        arms = plan.residue.arms
        yield cell, [*_NAIVE, *_arms(arms), *(Demand("residue", arm) for arm in arms)]


def _arms(arms: Iterable[Arm]) -> list[Demand]:
    return [Demand("arm", arm) for arm in arms]


def _swept(rivals: Rivals) -> list[Demand]:
    return [Demand("arm", variant) for arm in rivals.arms for variant in arm.variants()]


def _by_latent(arms: Iterable[Arm]) -> list[Demand]:
    """In every world, a story with two slants slants the world's first two latents."""
    return [
        Demand("arm", arm, protect)
        for arm in arms
        for protect in latent_sets(arm, ("persona", "lean"))
    ]


def _spread(n: int, chosen: int) -> set[int]:
    """`chosen` numbers out of 0 … n − 1, evenly spaced."""
    return {round(i * n / chosen) for i in range(min(chosen, n))} if chosen else set()


def _merged(wanted: Iterable[tuple[Cell, list[Demand]]]) -> Iterator[Task]:
    """One task per cell, with every demand once, in the order first seen."""
    demands: dict[str, dict[str, Demand]] = {}
    cells: dict[str, Cell] = {}
    for cell, asked in wanted:
        cells[cell.id] = cell
        found = demands.setdefault(cell.id, {})
        for demand in asked:
            found.setdefault(f"{demand.kind}/{demand.run}", demand)
    for name, cell in cells.items():
        after = f"base of {cell.world}" if needs_base(cell.world) else None
        yield Task(id=name, demands=tuple(demands[name].values()), cell=cell, after=after)
