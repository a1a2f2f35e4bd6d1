"""What a run has come to: drift where it was and was not anchored, against its tolerance."""

from __future__ import annotations

import math

from analysis.values import Json
from grasp.guard.guard import Guard
from grasp.guard.penalty import Drift
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
    anchored, held = guard.drift(), guard.drift(text="held-back")
    if anchored is None:
        lacking = "neutral text" if guard.bases else "factors to measure it along"
        return {"results": results, "verdict": f"Drift was not measured: no {lacking}."}
    drift = held or anchored
    results["drift"] = drift.rms
    verdict = f"Drift {drift.rms:.3f} base standard deviations"
    if held is not None:
        results["drift_anchored"] = anchored.rms
        verdict += f" on neutral text held back from training, {anchored.rms:.3f} on the rest"
    on_task = guard.task_drift()
    if on_task is not None:
        results["drift_task"] = on_task.rms
        verdict += f", {on_task.rms:.3f} on the task's tokens at the end"
    return {"results": results, "verdict": f"{verdict}{_kept(guard, drift, on_task)}."}


def _kept(guard: Guard, neutral: Drift, on_task: Drift | None) -> str:
    """Whether drift ended within the tolerance, on all text that is anchored."""
    protection = guard.protection
    anchored = [neutral] if protection.anchor else []
    anchored += [on_task] if on_task is not None else []
    if protection.tolerance is None or not anchored:
        return ""
    within = all(drift.rms <= protection.tolerance for drift in anchored)
    return f": {'within' if within else 'above'} the tolerance {protection.tolerance:g}"
