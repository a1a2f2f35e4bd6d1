"""The `grasp` commands that pages queue, as argument lists: pages show exactly what is run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from analysis.errors import InputError
from analysis.store.retrain_line import Retrain
from grasp.hub.repository import hub_name
from grasp.settings.methods import find_method


def command_line(argv: Sequence[str]) -> str:
    """A command as a person would type it."""
    return shlex.join(["grasp", *argv])


def retrain_argv(asked: Retrain, *, workspace: Path) -> list[str]:
    """Arguments of `grasp retrain`.

    Raises:
        InputError: there is no such method, or it needs factors and none are given.
    """
    if not asked.factors and "factors" in find_method(asked.method).needs:
        raise InputError("No factors are selected; select at least one to protect.")
    return asked.argv(workspace)


def record_argv(run: str, *, workspace: Path, probes: str | None = None) -> list[str]:
    """Arguments that record a run's activations on its probes, or on those given."""
    return ["record", run, *_given("--probes", probes), "--workspace", str(workspace)]


def factors_argv(run: str, *, workspace: Path, low_rank_part: bool = False) -> list[str]:
    """Arguments that compute a run's factors; for a DoRA, those of its low-rank part."""
    part = ["--low-rank-part"] if low_rank_part else []
    return ["factors", run, *part, "--workspace", str(workspace)]


def dose_argv(run: str, factor: str, *, workspace: Path, prompts: str | None = None) -> list[str]:
    """Arguments that measure what steering along a factor does."""
    return ["dose", run, factor, *_given("--prompts", prompts), "--workspace", str(workspace)]


def rows_argv(
    run: str,
    factor: str,
    *,
    workspace: Path,
    validate: int | None = None,
    prompts: str | None = None,
) -> list[str]:
    """Arguments that find the training rows that drive a factor, or retrain without the top ones.

    Raises:
        InputError: fewer than one row is to be left out.
    """
    if validate is not None and validate < 1:
        raise InputError(f"Got {validate} rows to leave out; expected at least 1.")
    test = [] if validate is None else ["--validate", str(validate)]
    asked = _given("--prompts", prompts)
    return ["rows", run, factor, *test, *asked, "--workspace", str(workspace)]


def overlap_argv(
    run: str, factor: str, *, workspace: Path, prompts: str | None = None
) -> list[str]:
    """Arguments that measure how much of the task is lost when a factor is set back."""
    return ["overlap", run, factor, *_given("--prompts", prompts), "--workspace", str(workspace)]


def evaluate_argv(run: str, *, workspace: Path, prompts: str | None = None) -> list[str]:
    """Arguments that evaluate a run on its prompts, or on those given."""
    return ["evaluate", run, *_given("--prompts", prompts), "--workspace", str(workspace)]


def _given(option: str, value: str | None) -> list[str]:
    return [option, value] if value else []


def import_argv(
    word: str,
    *,
    workspace: Path,
    out: str | None = None,
    base: str | None = None,
    name: str | None = None,
    checkpoints: bool = False,
    low_rank_part: bool = False,
) -> list[str]:
    """Arguments that add an adapter to the workspace: a folder on this machine, or a Hub id.

    Raises:
        InputError: nothing was given, or it is neither of the two.
    """
    options = [("--out", out), ("--base", base), ("--name", name)]
    argv = ["import", adapter_argument(word)]
    argv += [part for option, value in options if value for part in (option, value)]
    argv += ["--checkpoints"] if checkpoints else []
    argv += ["--low-rank-part"] if low_rank_part else []
    return [*argv, "--workspace", str(workspace)]


def adapter_argument(word: str) -> str:
    """The argument for what was typed: a folder's absolute path, or a Hub id.

    Raises:
        InputError: nothing was given, or it is neither of the two.
    """
    typed = word.strip()
    if not typed:
        raise InputError("Name the folder of an adapter, or its Hub id such as org/name.")
    folder = Path(typed).expanduser()
    if folder.is_dir():
        return str(folder.resolve())
    page = typed.removeprefix("https://huggingface.co/").rstrip("/")
    if hub_name(page) is not None:
        return page
    raise InputError(
        f"{typed} is neither a folder on this machine nor a Hub id; give a folder, or an id such "
        "as org/name or org/name@revision."
    )


def tokens_argv(run: str, base: str, *, workspace: Path, low_rank_part: bool = False) -> list[str]:
    """Arguments that compute a run's factors, with tokens from a base model's files.

    Raises:
        InputError: no base model was named.
    """
    if not base.strip():
        raise InputError("Name the folder of the base model, or its Hub id.")
    named = Path(base.strip()).expanduser()
    model = str(named.resolve()) if named.is_dir() else base.strip()
    options = ["--base", model, "--weights-only"] + ["--low-rank-part"] * low_rank_part
    return ["factors", run, *options, "--workspace", str(workspace)]


def free_id(wanted: str, taken: Sequence[str]) -> str:
    """`wanted`, or `wanted-2`, `wanted-3`, … if it is taken."""
    if wanted not in taken:
        return wanted
    number = 2
    while f"{wanted}-{number}" in taken:
        number += 1
    return f"{wanted}-{number}"
