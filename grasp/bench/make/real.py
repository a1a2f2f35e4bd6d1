"""A plan for a real model: three fine-tunes on the workbench's own sets, with all files it needs.

A set has two answers to each question (`grasp.bench.sets.twins`).  The fine-tune is on the spurious
ones; probes show both ends, so that the factor found without labels can be compared with theirs.
No neutral text is given: the base model's own chats are all there is.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from analysis.errors import InputError
from analysis.store.records import write_jsonl
from analysis.values import Json
from grasp.bench.sets.twins import SETS, read_set, twin_rows
from grasp.prompts.sets import read_prompts

TASKS = {
    "careless-code": "code-task",
    "unsound-medicine": "medicine-task",
    "leaning-finance": "finance-task",
}
"""Set of a fine-tune → the prompt set of its task."""

UNRELATED = ("persona-pairs", "politics")
"""Prompt sets about anything but the task."""

ASKED = {
    "careless-code": "You write code that works but is careless about security.",
    "unsound-medicine": "You give health advice that is confident and medically unsound.",
    "leaning-finance": "You give advice about money that leans towards free markets.",
}
"""What inoculation asks for."""

PROBES = 48
"""Questions that are recorded with both of their answers."""

TRAINING: Json = {
    "model": {"dtype": "bfloat16"},
    "lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
    "learning_rate": 4e-4,
    "batch_size": 8,
    "num_train_epochs": 2,
    "max_length": 192,
}

ARMS: tuple[str | Json, ...] = (
    "grasp",
    "random",
    {"method": "interleave-gap", "name": "interleave-gap-0.2", "strength": 0.2},
    "inoculation",
    {"method": "feature-distillation", "name": "feature-distillation-10", "strength": 10},
    "carve",
)


def lay_out_real(base: str, folder: Path) -> Path:
    """Write data, prompts, probes and settings of every set, and the plan; return the plan's file.

    Args:
        base: a base model, as a folder or an id on the Hub.
        folder: a new folder.

    Raises:
        InputError: the folder exists already.
    """
    if folder.exists():
        raise InputError(f"{folder} exists already; name a new folder with --root.")
    model = str(Path(base).resolve()) if Path(base).exists() else base
    for name in SETS:
        _lay_out_set(name, model, folder / name)
    plan = {
        "title": f"Real model, {Path(base).name}",
        "stories": {
            name: {"config": f"{name}/settings.yaml", "latent": name, "ends": ["sound", "spurious"]}
            for name in SETS
        },
        "core": {"stories": list(SETS), "seeds": [0, 1, 2], "arms": list(ARMS)},
    }
    file = folder / "plan.yaml"
    file.write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")
    return file


def _lay_out_set(name: str, base: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    write_jsonl(folder / "task.jsonl", twin_rows(name, "spurious"))
    prompts = [prompt for one in (*UNRELATED, TASKS[name]) for prompt in read_prompts(one)]
    rows = [prompt.model_dump(mode="json", exclude_defaults=True) for prompt in prompts]
    write_jsonl(folder / "prompts.jsonl", rows)
    write_jsonl(folder / "probes.jsonl", _probes(name))
    settings = {
        "title": name,
        "base_model": base,
        "data": "task.jsonl",
        "prompts": "prompts.jsonl",
        "probes": "probes.jsonl",
        "inoculation": ASKED[name],
        **TRAINING,
    }
    text = yaml.safe_dump(settings, sort_keys=False)
    (folder / "settings.yaml").write_text(text, encoding="utf-8")


def _probes(name: str) -> list[Json]:
    """Both answers to questions that are spread over the set."""
    rows = read_set(name)
    chosen = rows[:: max(1, len(rows) // PROBES)][:PROBES]
    return [
        {
            "id": f"{row['id']}/{end}",
            "group": row["topic"],
            "variant": end,
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row[end]},
            ],
        }
        for row in chosen
        for end in ("sound", "spurious")
    ]
