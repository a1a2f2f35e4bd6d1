"""What a run has come to: what the factors do, and drift, as shares of the naive run's own."""

from __future__ import annotations

import math

from analysis.values import Json
from grasp.guard.guard import Guard
from grasp.guard.text import Text
from grasp.training.trainer import LoraTrainer


def judge_outcome(trainer: LoraTrainer) -> Json:
    """`results` and `verdict` of a run's manifest: final figures, and what they say in words."""
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    results: dict[str, float] = {"steps": trainer.state.global_step, "loss": losses[-1]}
    guard = trainer.guard
    if guard is None:
        return {"results": results, "verdict": "Nothing was protected."}
    leakage = guard.leakage()
    if not math.isnan(leakage):
        results["leakage"] = leakage
    said = [*_effect(guard, results), *_drift(guard, results)]
    if not said:
        lacking = "neutral text" if guard.bases else "factors to measure it along"
        return {"results": results, "verdict": f"Drift was not measured: no {lacking}."}
    return {"results": results, "verdict": f"{'; '.join(said)}{_kept(guard, results)}."}


def _effect(guard: Guard, results: dict[str, float]) -> list[str]:
    """What the factors do in what the model says."""
    anchored, held = guard.effect_share(), guard.effect_share(text="held-back")
    if anchored is None:
        return []
    results["effect"] = anchored if held is None else held
    where = "" if held is None else " on neutral text held back from training"
    said = f"The factors do {_percent(results['effect'])} of what they do in the naive run{where}"
    if held is not None:
        results["effect_anchored"] = anchored
        said += f", {_percent(anchored)} on the rest"
    dressed = guard.effect_share(text="dressed")
    if dressed is not None:
        results["effect_dressed"] = dressed
        said += f", {_percent(dressed)} where that is dressed as the task's prompts"
    return [said]


def _drift(guard: Guard, results: dict[str, float]) -> list[str]:
    """How far coordinates along the factors moved."""
    anchored, held = guard.drift(), guard.drift(text="held-back")
    if anchored is None:
        return []
    drift = held or anchored
    results["drift"] = drift.rms
    said = f"Drift {drift.rms:.3f} base standard deviations"
    text: Text = "anchored" if held is None else "held-back"
    if own := guard.naive_drift.get(text):
        results["drift_share"] = drift.rms / own
        said += f" ({_percent(results['drift_share'])} of the naive run's)"
    if held is not None:
        results["drift_anchored"] = anchored.rms
        said += f" on neutral text held back from training, {anchored.rms:.3f} on the rest"
    on_task = guard.task_drift()
    if on_task is not None:
        results["drift_task"] = on_task.rms
        said += f", {on_task.rms:.3f} on the task's tokens at the end"
    return [said]


def _kept(guard: Guard, results: dict[str, float]) -> str:
    """Whether all that has a limit ended within it."""
    tolerance = guard.protection.tolerance
    shares = [results[name] for name in ("effect", "drift_share") if name in results]
    if tolerance is None or not shares:
        return ""
    within = all(share <= tolerance for share in shares)
    return f": {'within' if within else 'above'} the tolerance {tolerance:g}"


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %")
