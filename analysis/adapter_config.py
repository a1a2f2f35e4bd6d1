"""What `adapter_config.json` says about a LoRA: checks, ranks and scaling as PEFT has them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from analysis.errors import AdapterError

_MAX_PATTERN = 1000

# Truthy settings under which ΔW is not scaling · B A, or not all that was trained.
_REFUSED = {
    "use_dora": "DoRA, whose update depends on the base weights",
    "modules_to_save": "modules_to_save, fully trained modules that are not low-rank updates",
    "trainable_token_indices": "trainable_token_indices, trained token rows",
    "lora_bias": "lora_bias, a trained bias beside B A",
    "target_parameters": "target_parameters, LoRA on bare parameters such as fused experts",
    "alora_invocation_tokens": "aLoRA, an update that acts only after certain tokens",
    "arrow_config": "Arrow, a router over several adapters",
    "kasa_config": "KaSA, whose update also changes the base weights",
    "velora_config": "VeLoRA, which is not plain LoRA",
    "monteclora_config": "MonteCLoRA, a distribution over updates",
    "megatron_config": "Megatron layers, which are saved in parallel parts",
}
# The initialisations that leave the base weights alone; others (PiSSA, OLoRA, CorDA,
# LoRA-GA, LoftQ, …) change them, so that B A is not the change made by training.
_PLAIN_INITS = (True, False, None, "true", "gaussian", "eva", "orthogonal")


def check_config(config: Mapping[str, Any], folder: Path) -> tuple[str | None, str | None]:
    """Refuse what is not plain LoRA; return the base model's name and revision.

    Raises:
        AdapterError: a setting is malformed, or cannot be treated exactly.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        _refuse(folder, f"has peft_type {_shown(kind)}", 'expected "LORA", a LoRA adapter')
    _check_variant(config, folder)
    _check_rank(config.get("r"), "r", folder)
    _check_alpha(config.get("lora_alpha"), "lora_alpha", folder)
    for key, check in (("rank_pattern", _check_rank), ("alpha_pattern", _check_alpha)):
        for pattern, value in _patterns(config, key, folder).items():
            check(value, f"{key}[{pattern!r}]", folder)
    _check_targets(config.get("target_modules"), folder)
    return (
        _text_or_none(config, "base_model_name_or_path", folder),
        _text_or_none(config, "revision", folder),
    )


def module_rank(config: Mapping[str, Any], name: str) -> int:
    """Rank of a module: the first matching entry of `rank_pattern`, else `r`."""
    return int(_match(config.get("rank_pattern") or {}, name, config["r"]))


def module_scaling(config: Mapping[str, Any], name: str) -> float:
    """lora_alpha / r of a module, or lora_alpha / √r under rsLoRA; dimensionless."""
    alpha = float(_match(config.get("alpha_pattern") or {}, name, config["lora_alpha"]))
    r = module_rank(config, name)
    return alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def targets(config: Mapping[str, Any], name: str) -> bool:
    """Whether PEFT would put LoRA on the module; True where the config leaves it open."""
    wanted = config.get("target_modules")
    if wanted is None or wanted == "all-linear":
        return True
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name == ending or name.endswith("." + ending) for ending in wanted)


def _match(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """PEFT's rule: a pattern matches the whole name or its end after a dot; first one wins.

    "First" is the order in the file, as for PEFT when it loads the folder.  PEFT sorts
    the keys on saving, so where patterns overlap, training may have used another one.
    """
    for pattern, value in patterns.items():
        if re.match(_wrapped(pattern), name):
            return value
    return default


def _wrapped(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def _check_variant(config: Mapping[str, Any], folder: Path) -> None:
    for key, meaning in _REFUSED.items():
        if config.get(key):
            _refuse(folder, f"uses {meaning}", "train with plain LoRA to analyse it")
    for key, value in config.items():
        # Variants are switched on by names of this form; one added later must not pass.
        if key.startswith("use_") and key != "use_rslora" and value:
            _refuse(folder, f"sets {key}, which is not plain LoRA", "train without it")
    if not isinstance(config.get("use_rslora", False), bool | None):
        _refuse(folder, f"has use_rslora {_shown(config['use_rslora'])}", "expected true or false")
    init = config.get("init_lora_weights")
    if not isinstance(init, str | bool | None) or init not in _PLAIN_INITS:
        _refuse(folder, f"was initialised by {_shown(init)}, which may change the base weights",
                "convert it with path_initial_model_for_weight_conversion")  # fmt: skip


def _check_rank(value: Any, key: str, folder: Path) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
        _refuse(folder, f"has {key} = {_shown(value)}", "expected a positive whole number")


def _check_alpha(value: Any, key: str, folder: Path) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) < 1e30:
        _refuse(folder, f"has {key} = {_shown(value)}", "expected a finite number")


def _patterns(config: Mapping[str, Any], key: str, folder: Path) -> Mapping[str, Any]:
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        _refuse(folder, f"has {key} = {_shown(patterns)}", "expected an object of pattern: number")
    for pattern in patterns:
        _check_regex(pattern, key, folder)
    return patterns


def _check_targets(wanted: Any, folder: Path) -> None:
    if isinstance(wanted, list) and all(isinstance(ending, str) for ending in wanted):
        return
    if isinstance(wanted, str):
        _check_regex(wanted, "target_modules", folder)
    elif wanted is not None:
        _refuse(folder, f"has target_modules = {_shown(wanted)}", "expected names or a pattern")


def _check_regex(pattern: str, key: str, folder: Path) -> None:
    form = pattern if key == "target_modules" else _wrapped(pattern)
    try:
        valid = len(pattern) <= _MAX_PATTERN and re.compile(form) is not None
    except (re.error, RecursionError, OverflowError):
        valid = False
    if not valid:
        _refuse(folder, f"has the pattern {_shown(pattern)} in {key}",
                "expected a valid regular expression")  # fmt: skip


def _text_or_none(config: Mapping[str, Any], key: str, folder: Path) -> str | None:
    value = config.get(key)
    if value is not None and not isinstance(value, str):
        _refuse(folder, f"has {key} = {_shown(value)}", "expected a name")
    return value or None


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer too long to print
        return "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "…"


def _refuse(folder: Path, problem: str, remedy: str) -> NoReturn:
    raise AdapterError(f"{folder}/adapter_config.json {problem}; {remedy}.")
