"""What can be known of a retrain before it starts, without loading a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.adapters.files import read_json
from analysis.base_model.files import CONFIG
from analysis.errors import GraspError, InputError
from analysis.factors.independence import explain_dependent
from analysis.store.factor_table import select_directions
from analysis.store.records import RunManifest
from analysis.store.retrain_line import Retrain
from analysis.store.workspace import Workspace
from dashboard.queue.needs import missing_base
from dashboard.state import caches
from grasp.foreign.settings import run_settings, training_settings
from grasp.settings.methods import find_method
from grasp.settings.protection import Method
from grasp.settings.training import TrainConfig


@dataclass(frozen=True)
class Selection:
    """The factors that a retrain protects, and those that add nothing, with the reason."""

    factors: list[str]
    left_out: dict[str, str]


def drop_dependent(workspace: Workspace, factors: Sequence[str], *, run: str) -> Selection:
    """Leave out the factors that lie in the span of those before them: the span stays the same.

    Raises:
        GraspError: as `select_directions`.
    """
    if not factors:
        return Selection([], {})
    names, directions = select_directions(workspace, list(factors), run=run)
    left_out = explain_dependent(names, directions)
    return Selection([name for name in names if name not in left_out], left_out)


def find_problems(workspace: Workspace, run: RunManifest, asked: Retrain) -> list[str]:
    """Why a retrain cannot work, one sentence each; empty if nothing known is in its way."""
    method = find_method(asked.method)
    adapter = workspace.adapter(run.id)
    try:
        read = training_settings if method.trains else run_settings
        config = method.config_at(read(run, adapter), asked.strength)
    except GraspError as error:
        return [str(error)]
    found = [missing_base(workspace, run)] if method.trains or asked.evaluate else []
    found += _needs(run, method, config, asked)
    found += _files(workspace, method, config, asked)
    found += _widths(workspace, run, asked)
    return [problem for problem in found if problem]


def _needs(run: RunManifest, method: Method, config: TrainConfig, asked: Retrain) -> list[str]:
    found = []
    if "neutral text" in method.needs and config.neutral is None:
        found.append(
            f"{method.label} needs neutral text, and the settings of {run.id} name none; choose "
            "another method, or give the setting neutral."
        )
    if "inoculation prompt" in method.needs and not (asked.inoculation or config.inoculation):
        found.append(f"{method.label} needs a system prompt that asks for the trait; enter one.")
    return found


def _files(workspace: Workspace, method: Method, config: TrainConfig, asked: Retrain) -> list[str]:
    found = []
    read = {"training data": config.data, "neutral text": config.neutral} if method.trains else {}
    for what, reference in read.items():
        if reference and not reference.startswith("hub:"):
            path = Path(workspace.resolve(reference))
            if not path.exists():
                found.append(f"The {what} {path} is not on this machine; restore it.")
    if asked.evaluate and config.prompts:
        problem = caches.prompts_problem(workspace.resolve(config.prompts))
        if problem:
            found.append(f"The prompts of the evaluation cannot be read: {problem}")
    return found


def _widths(workspace: Workspace, run: RunManifest, asked: Retrain) -> list[str]:
    """Factors of a model of another width than the base model, as far as its config is here."""
    base = Path(workspace.resolve(run.base_model))
    if not asked.factors or not base.is_dir():
        return []
    try:
        config = read_json(base, CONFIG)
        _, directions = select_directions(workspace, list(asked.factors), run=run.id)
    except InputError as error:
        return [str(error)]
    except GraspError:
        return []
    text = config.get("text_config")
    width = (text if isinstance(text, dict) else config).get("hidden_size")
    if not isinstance(width, int) or width == directions.shape[1]:
        return []
    return [
        f"The factors have {directions.shape[1]} numbers each, and the base model {run.base_model} "
        f"has a residual stream of width {width}; compute the factors again."
    ]
