"""A benchmark plan as data: stories, seeds and arms.  Free of torch."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from analysis.values import Json
from analysis.yaml_files import read_mapping, read_yaml
from grasp.settings.methods import METHODS, find_method
from grasp.settings.training import Settings, check_settings

Measure = Literal["identification", "removal"]
SETTINGS = ("strength", "details", "r", "steps")
"""What cells differ in besides story and seed, and the axes of a phase diagram."""


class Arm(Settings):
    """A method at a strength (None for its default); `name` is the run's id in each cell.

    `settings` are the settings of its protection that differ from the method's defaults.  `sweep`
    are the strengths tried among rivals; None for the method's own grid.
    """

    method: str
    name: str
    strength: float | None = None
    settings: Json = Field({})
    sweep: tuple[float, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, data: Json | str) -> Json:
        """A plain name stands for that method with its defaults."""
        data = {"method": data} if isinstance(data, str) else dict(data)
        if isinstance(data.get("method"), str):
            data.setdefault("name", data["method"])
        return data

    @model_validator(mode="after")
    def _known(self) -> Arm:
        if self.method not in METHODS:
            raise ValueError(
                f"there is no method {self.method!r}; choose from {', '.join(METHODS)}"
            )
        if METHODS[self.method].knob is None and (self.strength is not None or self.sweep):
            raise ValueError(f"method {self.method!r} has no strength to set or sweep")
        return self

    @property
    def label(self) -> str:
        """The method's display name, with its strength if one is set; else the arm's own name."""
        label = find_method(self.method).label
        if self.strength is not None and self.name == f"{self.method}-{self.strength:g}":
            return f"{label}, {self.strength:g}"
        return label if self.name == self.method else self.name

    def variants(self) -> list[Arm]:
        """One arm for each strength to try; the arm itself if there is none."""
        knob = find_method(self.method).knob
        if self.strength is not None or knob is None or self.sweep == ():
            return [self]
        return [self.at(value) for value in self.sweep or knob.grid]

    def at(self, strength: float) -> Arm:
        """This arm at the given strength."""
        name = f"{self.name}-{strength:g}"
        return self.model_copy(update={"name": name, "strength": strength, "sweep": None})


class Cell(Settings):
    """One naive fine-tune and everything derived from it, in a workspace of its own.

    `story` is "shipped/code", "generated-101/lean", "styled-short-1/lean", or the name of one of
    the plan's own stories.
    Settings that are None are those of the story or of the plan's `training`.
    """

    story: str
    seed: int
    strength: float | None = None
    details: int | None = None
    r: int | None = None
    steps: int | None = None

    @property
    def id(self) -> str:
        """The name of its folder, such as "shipped-code.s0.steps240"."""
        changed = [f".{name}{value:g}" for name, value in self.changed.items()]
        return f"{self.story.replace('/', '-')}.s{self.seed}{''.join(changed)}"

    @property
    def changed(self) -> dict[str, float]:
        """The settings that are not None."""
        values = {name: getattr(self, name) for name in SETTINGS}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def world(self) -> str:
        """The name of its world, such as "shipped"; "data" for a story of the plan's own."""
        world, slash, _ = self.story.partition("/")
        return world if slash else "data"


class Section(Settings):
    """Stories crossed with fine-tuning seeds."""

    stories: list[str] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)

    @property
    def cells(self) -> list[Cell]:
        """One cell per story and seed."""
        return [Cell(story=story, seed=seed) for story in self.stories for seed in self.seeds]


class Arms(Section):
    """Naive runs, identification, and arms that protect the best-ranked factor."""

    arms: list[Arm] = Field([])


class Rivals(Arms):
    """Arms swept on the exploration prompts of one seed, and reported at the chosen strength."""

    chosen_on: int = 0

    @property
    def first(self) -> list[Cell]:
        """The cells on which strengths are chosen."""
        return [Cell(story=story, seed=self.chosen_on) for story in self.stories]


class NoFactor(Section):
    """Naive runs without a spurious factor; some are retrained against the best-ranked anyway."""

    retrained: int = Field(0, ge=0)
    arms: list[Arm] = Field([])


class Phase(Section):
    """Cells around the default: one setting changed at a time, and two settings crossed.

    `default` has the values of a cell in which no setting is changed.
    """

    default: dict[str, float] = Field({})
    one_at_a_time: dict[str, list[float]] = Field({})
    crossed: dict[str, list[float]] = Field({}, max_length=2)
    arms: list[Arm] = Field([])

    @model_validator(mode="after")
    def _known(self) -> Phase:
        for name in (*self.one_at_a_time, *self.crossed):
            if name not in SETTINGS:
                raise ValueError(f"there is no setting {name!r}; choose from {', '.join(SETTINGS)}")
        return self

    @property
    def settings(self) -> list[dict[str, float]]:
        """Every combination once, as the settings that differ from the default."""
        found = [{name: v} for name, values in self.one_at_a_time.items() for v in values]
        if self.crossed:
            values = product(*self.crossed.values())
            found += [dict(zip(self.crossed, point, strict=True)) for point in values]
        every = [{k: v for k, v in p.items() if self.default.get(k) != v} for p in found]
        return [point for n, point in enumerate(every) if point not in every[:n]]

    @property
    def cells(self) -> list[Cell]:
        """One cell per story, seed and combination."""
        return [
            Cell.model_validate(cell.model_dump() | point)
            for cell in super().cells
            for point in self.settings
        ]


class OwnStory(Settings):
    """A story of the plan's own: its settings file, and what its probes show.

    `config` is a settings file for `grasp train` with data, neutral text, prompts and probes;
    `ends` are the probe variants at the two ends of the known spurious factor; `dressed` is a
    further prompt set, with which the residue is measured.
    """

    config: str
    latent: str = "factor"
    ends: tuple[str, str] | None = None
    dressed: str | None = None


class Plan(Settings):
    """A benchmark.  A section that is absent is not measured.

    `training` has the settings of fine-tunes on the stories of worlds, as in a file for
    `grasp train`; `base` has settings of `grasp.world.pretraining.Recipe` for generated worlds.  A
    world's style comes before `training`, and after `base`.  `styles` is like `core`, on worlds
    that differ from those that settings were chosen on; other fine-tuning seeds fit it.
    """

    title: str
    training: Json = Field({})
    base: Json = Field({})
    stories: dict[str, OwnStory] = Field({})
    core: Arms | None = None
    styles: Arms | None = None
    rivals: Rivals | None = None
    two: Arms | None = None
    needed: Arms | None = None
    none: NoFactor | None = None
    phase: Phase | None = None
    residue: Arms | None = None

    @property
    def found(self) -> list[Cell]:
        """The cells in which the planted factor is to be found and removed."""
        return [cell for section in (self.core, self.styles) if section for cell in section.cells]

    @property
    def sections(self) -> dict[str, Section]:
        """The sections present, by name."""
        names = ("core", "styles", "rivals", "two", "needed", "none", "phase", "residue")
        found = {name: getattr(self, name) for name in names}
        return {name: section for name, section in found.items() if section is not None}

    @model_validator(mode="after")
    def _one_arm_a_name(self) -> Plan:
        """Sections share cells, and an arm's name is the id of its run in a cell."""
        known: dict[str, tuple[object, ...]] = {}
        for section in self.sections.values():
            for arm in getattr(section, "arms", []):
                made_of = (arm.method, arm.strength, arm.settings)
                if known.setdefault(arm.name, made_of) != made_of:
                    raise ValueError(f"two different arms are called {arm.name!r}; rename one")
        return self

    @model_validator(mode="after")
    def _stories_exist(self) -> Plan:
        for name, section in self.sections.items():
            for story in section.stories:
                if "/" not in story and story not in self.stories:
                    raise ValueError(
                        f"section {name!r} has the unknown story {story!r}; write world/story, or "
                        "describe it under stories"
                    )
        return self

    def training_of(self, cell: Cell, *, own: Json | None = None) -> Json:
        """The settings of a cell's fine-tune on a story of a world.

        `own` are those of the world's style, which replace the plan's.
        """
        settings: Json = {"lora": {"r": 8, "lora_alpha": 16}} | self.training
        settings |= (own or {}) | {"seed": cell.seed}
        return settings | cell_overrides(cell, settings["lora"])

    def digest(self) -> str:
        """Hex SHA-256 of everything that affects a cell's results, so not of sections and seeds."""
        made_of = self.model_dump(include={"training", "base", "stories"})
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def cell_overrides(cell: Cell, lora: Json) -> Json:
    """Training settings for a cell's rank, with alpha / r unchanged, and for its steps."""
    found: Json = {}
    if cell.r is not None:
        alpha = lora["lora_alpha"] / lora["r"] * cell.r
        found["lora"] = lora | {"r": cell.r, "lora_alpha": alpha}
    if cell.steps is not None:
        found["max_steps"] = cell.steps
    return found


def shipped_plan(name: Literal["quick", "full"]) -> Plan:
    """A plan shipped with the workbench."""
    data = read_yaml(files("grasp.bench.plan") / f"{name}.yaml", what="a plan")
    return check_settings(Plan, data, f"the {name} plan")


def load_plan(path: Path) -> Plan:
    """Read a plan; paths in its own stories are relative to its folder.

    Raises:
        InputError: it cannot be read, or a setting is invalid; the message names the first one.
    """
    data = read_mapping(path, what="a plan", example="title: my benchmark")
    plan = check_settings(Plan, data, str(path))
    folder = path.resolve().parent
    located = {name: _located(own, folder) for name, own in plan.stories.items()}
    return plan.model_copy(update={"stories": located})


def _located(own: OwnStory, folder: Path) -> OwnStory:
    paths = {"config": own.config, "dressed": own.dressed}
    return own.model_copy(update={k: str(folder / p) for k, p in paths.items() if p})
