"""The workspace of a cell: its path, its files, and the settings of its fine-tune."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from analysis.errors import InputError
from analysis.store.records import write_jsonl
from analysis.store.workspace import Workspace
from grasp.bench.plan.plan import Cell, Plan, cell_overrides
from grasp.settings.training import TrainConfig, load_config, parse_config
from grasp.world.base_model import base_path, ensure_base
from grasp.world.generator import generate_world
from grasp.world.neutral import neutral_text
from grasp.world.prompts import measured_latents, story_probes, story_prompts
from grasp.world.shipped import shipped_world
from grasp.world.stories import story_rows
from grasp.world.styles import STYLED, TUNING, style_of, styled_world
from grasp.world.topics import Story, World

GENERATED = "generated-"
NAIVE = "naive"
"""Id of the naive run in every cell."""

BASE = f"{NAIVE}.base"
"""Id of the base model's evaluation in every cell."""

BaseProgress = Callable[[int, int, float], None]
"""Called with (step, steps, loss in nats per token) while a base model is trained."""


def cell_workspace(root: Path, cell: Cell) -> Workspace:
    """The cell's workspace, which may not exist yet."""
    return Workspace(root / "cells" / cell.id)


@lru_cache
def find_world(name: str) -> World:
    """The world with this name: "shipped", "generated-<seed>" or "styled-<style>-<seed>".

    Raises:
        InputError: there is no such world.
        NotFoundError: there is no such style.
    """
    if name == "shipped":
        return shipped_world()
    start, _, seed = name.rpartition("-")
    if seed.isdigit() and f"{start}-" == GENERATED:
        return generate_world(int(seed))
    style = style_of(name)
    if style is None or not seed.isdigit():
        raise InputError(
            f"There is no world {name!r}; expected shipped, {GENERATED}<seed> or "
            f"{STYLED}<style>-<seed>, as in {STYLED}{TUNING[0]}-1."
        )
    return styled_world(style, int(seed))


def needs_base(world: str) -> bool:
    """Whether the base model of the world with this name has to be trained."""
    return world.startswith((GENERATED, STYLED))


def story_of(cell: Cell) -> tuple[World, Story]:
    """The cell's world, and its story with the cell's strength and number of details.

    Raises:
        InputError: there is no such world.
        NotFoundError: the world has no such story.
    """
    world = find_world(cell.world)
    story = world.story(cell.story.partition("/")[2])
    if cell.strength is not None:
        story = replace(story, strength=cell.strength)
    if cell.details is not None:
        story = replace(story, details=int(cell.details))
    return world, story


def latents_of(plan: Plan, cell: Cell) -> dict[str, tuple[str, str]]:
    """The latents that the cell's prompts measure, with the names of both ends.

    Empty for a story of the plan's own whose ends are unknown.
    """
    if cell.world == "data":
        own = plan.stories[cell.story]
        return {own.latent: own.ends} if own.ends else {}
    world, story = story_of(cell)
    return {name: world.latents[name].values for name in measured_latents(world, story)}


def topic_latents(cell: Cell) -> dict[str, str]:
    """Topic → latent, for the topics of the cell's world that follow a latent."""
    topics = find_world(cell.world).topics.values()
    return {topic.name: topic.latent for topic in topics if topic.latent}


def world_base(root: Path, plan: Plan, world: World, progress: BaseProgress | None = None) -> Path:
    """The folder of a world's base model, which is trained if it does not exist yet."""
    if world.name == "shipped":
        return base_path()
    from grasp.world.pretraining import Recipe

    style = style_of(world.name)
    recipe = Recipe(**((style.base if style else {}) | plan.base))
    return ensure_base(world, root / "worlds", recipe=recipe, progress=progress)


def lay_out_cell(root: Path, plan: Plan, cell: Cell) -> TrainConfig:
    """Create the cell's workspace and its files; return the settings of its naive fine-tune.

    Raises:
        InputError: the settings are invalid, or the cell changes a setting its story lacks.
    """
    workspace = Workspace.create(cell_workspace(root, cell).root)
    (workspace.root / "cell.json").write_text(cell.model_dump_json(indent=2), encoding="utf-8")
    if cell.world != "data":
        return _from_world(root, plan, cell, workspace)
    config = load_config(plan.stories[cell.story].config)
    if cell.strength is not None or cell.details is not None:
        raise InputError(
            f"Story {cell.story!r} is a data file of the plan's own; only r and steps can be "
            "changed in it."
        )
    changed = {"seed": cell.seed} | cell_overrides(cell, config.lora.model_dump())
    return parse_config(config.model_dump() | changed, source=f"story {cell.story!r}")


def _from_world(root: Path, plan: Plan, cell: Cell, workspace: Workspace) -> TrainConfig:
    world, story = story_of(cell)
    data = workspace.root / "data"
    style, base = style_of(cell.world), world_base(root, plan, world)
    kind = style.neutral if style else "generated"
    write_jsonl(data / "neutral.jsonl", neutral_text(world, kind, base=base, seed=cell.seed))
    write_jsonl(data / "task.jsonl", story_rows(world, story, seed=cell.seed))
    write_jsonl(data / "prompts.jsonl", story_prompts(world, story))
    write_jsonl(data / "probes.jsonl", story_probes(world, story))
    settings = {
        "title": story.title,
        "base_model": str(_linked(base, workspace)),
        "data": str(data / "task.jsonl"),
        **{name: str(data / f"{name}.jsonl") for name in ("neutral", "prompts", "probes")},
        "inoculation": _asked_for(world, story),
    }
    source = f"the plan's training, for {cell.id}"
    own = style.training if style else None
    return parse_config(settings | plan.training_of(cell, own=own), source=source)


def _asked_for(world: World, story: Story) -> str | None:
    """The system prompt that asks for the story's slants; None if it has none."""
    named = [world.latents[name].adjectives[value][0] for name, value in story.slants.items()]
    return str(world.system_message(named)["content"]) if named else None


def _linked(model: Path, workspace: Workspace) -> Path:
    """Hard-link the base model into the cell's workspace: it can be moved, and takes no space."""
    target = workspace.root / "models" / "tiny-world"
    if not target.exists():
        partial = target.with_name(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(model, partial, copy_function=_link)
        partial.rename(target)
    return target


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
