"""Adapters made elsewhere: what their folder says about the fine-tune, and what must be asked.

Torch-free.  Unknown settings are never filled from defaults: a retrained run is compared with the
original adapter and should differ from it only in what is protected.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from analysis.adapters.config import check_generates
from analysis.adapters.files import CONFIG
from analysis.errors import InputError
from analysis.store.records import RunManifest
from analysis.store.workspace import Workspace
from analysis.values import Json
from analysis.yaml_files import as_mapping, parse_yaml, read_yaml
from grasp.data.examples import read_examples
from grasp.data.readers import pin_reference
from grasp.foreign.hints import card_hints, logged_hints
from grasp.settings.training import LoraSettings, TrainConfig, check_settings, parse_config

ASKED = (
    "data",
    "learning_rate",
    "lr_scheduler",
    "warmup_steps",
    "weight_decay",
    "batch_size",
    "gradient_accumulation_steps",
    "max_length",
)
"""The settings that decide a fine-tune, besides its base model, its LoRA and its length."""

LENGTH = ("max_steps", "num_train_epochs")
"""Settings of which exactly one is needed."""

FIXED = ("base_model", "lora")
"""Settings that the adapter itself fixes, so they cannot be given."""

# Fields that PEFT writes and that do not affect training.
_IGNORED = {
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",
    "inference_mode",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
}


@dataclass(frozen=True)
class Known:
    """The settings in a folder, and hints that are shown but not used."""

    settings: Json
    hints: list[str] = field(default_factory=list)


def missing_names(run: RunManifest, adapter: Path) -> list[str]:
    """The names of the settings that both a run's manifest and its adapter's folder lack."""
    return _lacking(run.config if is_complete(run) else read_known(adapter).settings | run.config)


def is_complete(run: RunManifest) -> bool:
    """Whether a run has all settings needed to train it again."""
    return not _lacking(run.config)


def read_known(adapter: Path) -> Known:
    """What an adapter folder says about the fine-tune that made it.

    The shape of the LoRA comes from `adapter_config.json`; the batch size and, if the adapter is
    from the last step, the steps come from `trainer_state.json`.  A model card only gives hints.

    Raises:
        InputError: the LoRA has options that retraining would not carry over.
    """
    settings: Json = {"lora": lora_settings(adapter).model_dump()}
    state = _json(adapter / "trainer_state.json")
    hints = logged_hints(state)
    steps, at = state.get("max_steps"), state.get("global_step")
    if isinstance(steps, int) and steps > 0 and at == steps:
        settings["max_steps"] = steps
    batch = state.get("train_batch_size")
    if isinstance(batch, int) and batch > 0:
        settings["batch_size"] = batch
    return Known(settings, [*hints, *card_hints(adapter / "README.md")])


def lora_settings(adapter: Path) -> LoraSettings:
    """The complete shape of an adapter's LoRA.

    Raises:
        InputError: `adapter_config.json` cannot be read, or has options that cannot be carried
            over.
    """
    file = adapter / CONFIG
    config = _json(file)
    if not config:
        raise InputError(
            f"{file} cannot be read; expected the config that PEFT saves with an adapter."
        )
    taken = {name: config[name] for name in LoraSettings.model_fields if name in config}
    taken = {name: value for name, value in taken.items() if value is not None}
    beyond = sorted(
        name
        for name, value in config.items()
        if value and name not in _IGNORED and name not in LoraSettings.model_fields
    )
    if beyond:
        raise InputError(
            f"{file} sets {', '.join(beyond)}, which retraining does not support; the run cannot "
            "be retrained as it was made."
        )
    check_generates(config, adapter)
    if "target_modules" not in taken:
        taken["target_modules"] = None
    return check_settings(LoraSettings, taken, str(file))


def run_settings(run: RunManifest, adapter: Path) -> TrainConfig:
    """The settings of a run, with the defaults of `TrainConfig` for what an imported run lacks.

    Only for methods that do not train: never train with these settings.
    """
    found: Json = {"title": run.title, "base_model": run.base_model} | run.config
    if not is_complete(run):
        found["lora"] = lora_settings(adapter).model_dump()
    return parse_config(found, source=f"run {run.id!r}")


def training_settings(run: RunManifest, adapter: Path) -> TrainConfig:
    """The settings for training a run again.

    Raises:
        InputError: some are unknown; the message names them and says how to give them.
    """
    if is_complete(run):
        return parse_config(run.config, source=f"run {run.id!r} cannot be trained again")
    raise InputError(describe_missing(run, adapter))


def describe_missing(run: RunManifest, adapter: Path) -> str:
    """A message that names the settings a run lacks, how to give them, and any hints."""
    names = missing_names(run, adapter)
    hints = read_known(adapter).hints
    said = f" Hints in the folder, which are not used: {'; '.join(hints)}." if hints else ""
    return (
        f"Run {run.root!r} was made elsewhere and lacks the settings {', '.join(names)}; give them "
        f"in a YAML file with --config FILE, or with --data FILE and --set NAME=VALUE.{said}"
    )


def read_given(config: str | None, data: str | None, pairs: list[str]) -> Json:
    """Settings from a YAML file, NAME=VALUE pairs and a data file; later ones win.

    Paths in the file are relative to its folder.

    Raises:
        InputError: the file cannot be read, or a pair is malformed.
    """
    given: Json = {}
    if config is not None:
        path = Path(config)
        given = _given(read_yaml(path, what="settings"), config, path.resolve().parent)
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name.strip():
            raise InputError(
                f"--set got {pair!r}; expected NAME=VALUE, such as learning_rate=1e-4."
            )
        given |= parse_given(f"{name.strip()}: {value}", source=f"--set {pair}")
    return given | ({} if data is None else {"data": data})


def parse_given(text: str, *, source: str) -> Json:
    """Parse settings in YAML.

    Raises:
        InputError: the text does not consist of lines NAME: VALUE.
    """
    return _given(parse_yaml(text, source=source, what="settings"), source, None)


def _given(data: object, source: str, folder: Path | None) -> Json:
    """Settings as a file has them, none if it is empty; paths that exist in `folder` are its."""
    if data is None:
        return {}
    given = as_mapping(data, source=source, what="settings", example="max_steps: 300")
    numbers = {name: _number(value) for name, value in given.items()}
    if folder is None:
        return numbers
    return {
        name: str(folder / value)
        if isinstance(value, str) and value and (folder / value).exists()
        else value
        for name, value in numbers.items()
    }


def complete_run(
    workspace: Workspace,
    run: RunManifest,
    adapter: Path,
    given: Mapping[str, object],
    *,
    whole: bool = True,
) -> RunManifest:
    """The manifest of a run made elsewhere, completed from its folder and from `given`.

    Paths become references of the workspace, and a data set on the Hub is pinned to its commit.
    With `whole` false, settings may still be missing.

    Raises:
        InputError: the run was made here; a given setting is fixed, invalid or unreadable; a
            setting is still missing; or runs of its family have already been trained.
    """
    given = {name: value for name, value in given.items() if value is not None}
    _may_be_given(workspace, run, given)
    found = {"title": run.title} | read_known(adapter).settings | run.config | given
    found |= {"base_model": run.base_model, "lora": lora_settings(adapter).model_dump()}
    for one, other in (LENGTH, LENGTH[::-1]):
        if given.get(one) is not None and given.get(other) is None:
            found.pop(other, None)
    lacking = _lacking(found)
    if lacking and whole:
        raise InputError(describe_missing(run.model_copy(update={"config": found}), adapter))
    config = parse_config(found, source=f"run {run.id!r}")
    located = config.map_paths(_opened(workspace)).map_paths(pin_reference)
    if located.data is not None:
        read_examples(located.data, columns=config.columns)
    saved = located.map_paths(workspace.reference).model_dump()
    known_only = {name: saved[name] for name in found} if lacking else saved
    return run.model_copy(update={"config": known_only})


def save_manifest(folder: Path, run: RunManifest) -> None:
    """Replace the manifest in a run's folder."""
    new = folder / ".manifest.json.new"
    new.write_text(run.model_dump_json(indent=2), encoding="utf-8")
    new.replace(folder / "manifest.json")


def _may_be_given(workspace: Workspace, run: RunManifest, given: Mapping[str, object]) -> None:
    model = given.get("model")
    if isinstance(model, Mapping) and model.get("trust_remote_code"):
        raise InputError(
            "trust_remote_code cannot be given as a setting of a run, because running a model's "
            f"own code is for you to allow: on the command line, run `grasp trust {run.base_model}`."
        )
    if "adapter" not in run.inputs and is_complete(run):
        raise InputError(
            f"Run {run.id!r} was trained here, so its settings are known; omit --config, --data "
            "and --set, which are for adapters made elsewhere."
        )
    if run.root != run.id:
        raise InputError(
            f"Run {run.id!r} was made from {run.root!r}; give the settings for that run instead."
        )
    fixed = [name for name in FIXED if name in given]
    if fixed:
        raise InputError(
            f"{fixed[0]} was given, but the adapter of run {run.id!r} already fixes it; omit it."
        )
    family = [
        other.id
        for other in workspace.runs().records
        if other.root == run.id and other.id != run.id and is_complete(other)
    ]
    changed = {name for name, value in given.items() if run.config.get(name, value) != value}
    if is_complete(run) and family and changed:
        raise InputError(
            f"The settings of run {run.id!r} can no longer change, because {', '.join(family)} "
            "used them; to use others, import the adapter again under another name."
        )


def _lacking(settings: Mapping[str, object]) -> list[str]:
    names = [name for name in ASKED if settings.get(name) is None]
    if all(settings.get(name) is None for name in LENGTH):
        names.append(" or ".join(LENGTH))
    return names


def _opened(workspace: Workspace) -> Callable[[str], str]:
    """Map references to paths that can be opened: as given, else from the workspace."""

    def locate(reference: str) -> str:
        return reference if Path(reference).exists() else workspace.resolve(reference)

    return locate


def _number(value: object) -> object:
    """Turn text into a number if it is one: YAML reads 1e-4 as text."""
    if not isinstance(value, str):
        return value
    try:
        return float(value) if value.strip()[:1] in "+-.0123456789" else value
    except ValueError:
        return value


def _json(path: Path) -> Json:
    """The object in a JSON file; empty if it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
