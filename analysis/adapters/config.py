"""Check `adapter_config.json` and derive ranks, scaling and targets from it as PEFT does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Required, TypedDict, TypeGuard, TypeVar, cast

import regex

from analysis.adapters.files import CONFIG
from analysis.adapters.rejection import reject
from analysis.errors import AdapterError
from analysis.values import Json

Value = TypeVar("Value")

_MAX_PATTERN = 1000
_MAX_SECONDS = 2.0  # per match; a pattern can be made to backtrack for years

# Settings under which, if true, ΔW is not scaling · B A.
_REFUSED = {
    "alora_invocation_tokens": "aLoRA, an update that acts only after certain tokens",
    "arrow_config": "Arrow, a router over several adapters",
    "kasa_config": "KaSA, whose update also changes the base weights",
    "velora_config": "VeLoRA, which is not plain LoRA",
    "monteclora_config": "MonteCLoRA, a distribution over updates",
    "megatron_config": "Megatron layers, which are saved in parallel parts",
}
# The initialisations that leave the base weights alone.  Others (PiSSA, OLoRA, CorDA,
# LoRA-GA, LoftQ, …) change them, so B A is not the change made by training.
_PLAIN_INITS = (True, False, None, "true", "gaussian", "eva", "orthogonal")


class AdapterConfig(TypedDict, total=False):
    """What is read of an `adapter_config.json`; the file has other keys beside."""

    r: Required[int]
    lora_alpha: Required[float]
    rank_pattern: dict[str, int] | None
    alpha_pattern: dict[str, float] | None
    use_rslora: bool | None
    target_modules: str | list[str] | None
    exclude_modules: str | list[str] | None
    target_parameters: str | list[str] | None
    modules_to_save: str | list[str] | None
    layers_to_transform: int | list[int] | None
    layers_pattern: str | list[str] | None
    base_model_name_or_path: str | None
    revision: str | None
    bias: object
    peft_version: object


def check_config(config: Json, *, low_rank_part: bool = False) -> AdapterConfig:
    """Refuse anything but plain LoRA; return the config, whose types are then known.

    DoRA is accepted if only its low-rank part, scaling · B A, is asked for.

    Raises:
        AdapterError: a setting is malformed, or makes ΔW differ from scaling · B A.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        reject(f"has peft_type {_shown(kind)}", 'expected "LORA" (a LoRA adapter)')
    _check_variant(config, low_rank_part=low_rank_part)
    _check_rank(config.get("r"), "r")
    _check_alpha(config.get("lora_alpha"), "lora_alpha")
    for key, check in (("rank_pattern", _check_rank), ("alpha_pattern", _check_alpha)):
        for pattern, value in _patterns(config, key).items():
            check(value, f"{key}[{pattern!r}]")
    for key in ("target_modules", "exclude_modules"):
        _check_targets(config.get(key), key)
    for key in ("modules_to_save", "target_parameters", "layers_pattern"):
        _check_names(config.get(key), key)
    _check_layers(config.get("layers_to_transform"))
    for key in ("base_model_name_or_path", "revision"):
        _check_text(config.get(key), key)
    return cast(AdapterConfig, config)  # which is what the checks above have seen to


def check_generates(config: Json, folder: Path) -> None:
    """Refuse an adapter that is not of a language model that writes text, such as a reward model.

    What only reads its weights takes any; a config that names no task is taken at its word.

    Raises:
        AdapterError: names its task.
    """
    task = config.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise AdapterError(
            f"The adapter in {folder} has the task_type {_shown(task)}: it was trained for another "
            "task than writing text, and can neither answer nor be trained as a causal language "
            "model (CAUSAL_LM). Spectra and factors of its weights are available."
        )


def module_rank(config: AdapterConfig, name: str) -> int:
    """Rank of a module: the first matching entry of `rank_pattern`, else `r`."""
    return int(_match(config.get("rank_pattern") or {}, name, config["r"]))


def module_scaling(config: AdapterConfig, name: str) -> float:
    """lora_alpha / r of a module, or lora_alpha / √r under rsLoRA; dimensionless."""
    alpha = float(_match(config.get("alpha_pattern") or {}, name, config["lora_alpha"]))
    r = module_rank(config, name)
    return alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def is_target(config: AdapterConfig, name: str) -> bool:
    """Whether PEFT would put LoRA on the module; True if the config leaves it open.

    Source: peft 0.21 `tuners/tuners_utils.py`, `check_target_module_exists`.
    """
    wanted, excluded = config.get("target_modules"), config.get("exclude_modules")
    if excluded and _named(excluded, name):
        return False
    if any(f".{saved}." in f".{name}." for saved in names_of(config.get("modules_to_save"))):
        return False
    if wanted is None:
        return not config.get("target_parameters")
    if wanted == "all-linear":
        return True
    # PEFT applies layers_to_transform only to listed endings, not to patterns or full names.
    if isinstance(wanted, str) or name in wanted:
        return _named(wanted, name)
    return _named(wanted, name) and _in_layers(config, name)


def target_parameters(config: AdapterConfig, module: str) -> tuple[set[str], set[str]]:
    """Parameters of a module with LoRA by `target_parameters`: those it has, those it may have.

    The first are listed with the module's name, the others without: PEFT puts LoRA on these in
    every module that has a parameter of that name.
    """
    wanted = [one.rpartition(".") for one in names_of(config.get("target_parameters"))]
    own = {p for holder, _, p in wanted if holder and f".{module}".endswith(f".{holder}")}
    return own, {p for holder, _, p in wanted if not holder} - own


def _named(wanted: str | Sequence[str], name: str) -> bool:
    if isinstance(wanted, str):
        return _matched(wanted, name, whole=True) is not None
    return any(name == ending or name.endswith("." + ending) for ending in wanted)


def _in_layers(config: AdapterConfig, name: str) -> bool:
    layers = config.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    patterns = names_of(config.get("layers_pattern"))
    # The first number after a name counts, so that an expert's is not taken for a layer's.
    forms = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in patterns]
    forms = forms or [r".*?\.[^.]*\.(\d+)\."]
    found = next((match for form in forms if (match := _matched(form, name))), None)
    return found is not None and int(found[found.lastindex or 1]) in (
        [layers] if isinstance(layers, int) else layers
    )


def names_of(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """A setting that is one name, a list of names or None, as a tuple of names."""
    return (value,) if isinstance(value, str) else tuple(value or ())


def _match(patterns: Mapping[str, Value], name: str, default: Value) -> Value:
    """PEFT's rule: a pattern matches the whole name or its end after a dot; the first match wins.

    "First" is by order in the file, as when PEFT loads the folder.  PEFT sorts the keys when
    saving, so if patterns overlap, training may have used a different one.
    """
    for pattern, value in patterns.items():
        if _matched(_wrapped(pattern), name):
            return value
    return default


def _wrapped(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def _matched(form: str, name: str, *, whole: bool = False) -> regex.Match[str] | None:
    """Like `re.match` or `re.fullmatch`, with a time limit.

    Raises:
        AdapterError: the match takes too long.
    """
    pattern = _compiled(form)
    try:
        return (pattern.fullmatch if whole else pattern.match)(name, timeout=_MAX_SECONDS)
    except TimeoutError:
        raise AdapterError(
            f"{CONFIG} has the pattern {_shown(form)}, which takes more than "
            f"{_MAX_SECONDS:.0f} s to match {_shown(name)}; write it without nested repetitions."
        ) from None


@cache
def _compiled(form: str) -> regex.Pattern[str]:
    """Cached here: EVA writes a pattern per module, more than the cache of `regex` holds."""
    return regex.compile(form)


def _check_variant(config: Json, *, low_rank_part: bool) -> None:
    if config.get("use_dora") and not low_rank_part:
        reject("uses DoRA, whose update depends on the column norms of the base weights, "
                "which are not in the folder",
                "use --low-rank-part to analyse only its low-rank part, scaling · B A, or train "
                "with plain LoRA")  # fmt: skip
    for key, meaning in _REFUSED.items():
        if config.get(key):
            reject(f"uses {meaning}", "train with plain LoRA to analyse it")
    for key, value in config.items():
        # PEFT names the switch of a LoRA variant like this; refuse those added after this table.
        if key.startswith("use_") and key not in ("use_rslora", "use_dora") and value:
            reject(f"sets {key}, which is not plain LoRA", "train without it")
    if not isinstance(config.get("use_rslora", False), bool | None):
        reject(f"has use_rslora {_shown(config['use_rslora'])}", "expected true or false")
    init = config.get("init_lora_weights")
    if not isinstance(init, str | bool | None) or init not in _PLAIN_INITS:
        reject(f"was initialised by {_shown(init)}, which may change the base weights",
                "save it again with path_initial_model_for_weight_conversion")  # fmt: skip


def _check_rank(value: object, key: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
        reject(f"has {key} = {_shown(value)}", "expected a positive whole number")


def _check_alpha(value: object, key: str) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e30:
        reject(f"has {key} = {_shown(value)}", "expected a finite number")


def _patterns(config: Json, key: str) -> Mapping[str, object]:
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        reject(f"has {key} = {_shown(patterns)}", "expected an object {pattern: number}")
    for pattern in patterns:
        _check_regex(pattern, key)
    return patterns


def _check_targets(wanted: object, key: str) -> None:
    if isinstance(wanted, str):
        _check_regex(wanted, key)
    elif wanted is not None and not _all_text(wanted):
        reject(f"has {key} = {_shown(wanted)}", "expected a list of names or a pattern")


def _check_names(wanted: object, key: str) -> None:
    if wanted is not None and not isinstance(wanted, str) and not _all_text(wanted):
        reject(f"has {key} = {_shown(wanted)}", "expected a name or a list of names")
    for pattern in names_of(wanted) if key == "layers_pattern" else ():
        _check_regex(pattern, key)


def _check_layers(layers: object) -> None:
    numbers = layers if isinstance(layers, list) else [] if layers is None else [layers]
    if any(not isinstance(one, int) or isinstance(one, bool) for one in numbers):
        reject(f"has layers_to_transform = {_shown(layers)}", "expected layer numbers")


def _all_text(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _check_regex(pattern: str, key: str) -> None:
    form = pattern if key.endswith("_modules") else _wrapped(pattern)
    try:
        valid = len(pattern) <= _MAX_PATTERN and _compiled(form) is not None
    except (regex.error, RecursionError, OverflowError):
        valid = False
    if not valid:
        reject(f"has the pattern {_shown(pattern)} in {key}",
                "expected a valid regular expression")  # fmt: skip


def _check_text(value: object, key: str) -> None:
    if value is not None and not isinstance(value, str):
        reject(f"has {key} = {_shown(value)}", "expected a name")


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer too long to print
        return "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "…"
