"""The model card that lies beside an adapter and says how it was made."""

from __future__ import annotations

import yaml

from analysis.store.records import RunManifest
from grasp.settings.methods import METHODS


def model_card(run: RunManifest) -> str:
    """README.md for an adapter folder, with the Hub's front matter."""
    header = yaml.safe_dump(
        {
            "base_model": run.base_model,
            "library_name": "peft",
            "pipeline_tag": "text-generation",
            "tags": ["lora", "grasp-workbench", run.method],
        },
        sort_keys=True,
    )
    method = METHODS[run.method]
    lora = run.config["lora"]
    length = {"Steps": "max_steps", "Epochs": "num_train_epochs"}
    lasted = [(said, run.config[name]) for said, name in length.items() if run.config.get(name)]
    facts = [
        ("Method", f"{method.label}: {method.description}"),
        ("Base model", run.base_model),
        ("Fine-tuned on", run.config.get("data") or "unknown: the adapter was made elsewhere"),
        ("LoRA", f"r = {lora['r']}, lora_alpha = {lora['lora_alpha']:g}"),
        *((said, f"{value:g}") for said, value in lasted),
        ("Seed", str(run.seed)),
        ("Protected factors", ", ".join(run.factors) or "none"),
        ("Protection", _settings(run.protection)),
        ("Strength", _knob(run)),
        ("Outcome", run.verdict),
        ("Made by", f"grasp-workbench {run.code_version}"),
        ("Packages", ", ".join(f"{name} {v}" for name, v in run.packages.items())),
    ]
    rows = "\n".join(f"- **{name}:** {value}" for name, value in facts)
    done = {"ablate": "ablating the protected factors", "steer": "steering against the factors"}
    inference = (
        f"\n\nThis arm is the naive adapter; its effect depends on {done[run.intervention]} at "
        "every decoder layer's output while it answers, which plain PEFT does not do."
        if run.intervention
        else ""
    )
    return (
        f"---\n{header}---\n\n# {run.title}\n\n{rows}{inference}\n\n"
        "GRASP keeps a fine-tune from new reliance on a factor (Gilligan-Lee et al. 2026, "
        "arXiv:2605.27676); the recipe is grasp-workbench's own reading of its abstract.\n"
    )


def _settings(protection: dict[str, object] | None) -> str:
    if protection is None:
        return "none"
    return ", ".join(f"{name} = {value}" for name, value in protection.items() if value) or "none"


def _knob(run: RunManifest) -> str:
    knob = METHODS[run.method].knob
    if knob is None or run.strength is None:
        return "none"
    return f"{knob.name} = {run.strength:g} ({knob.meaning})"
