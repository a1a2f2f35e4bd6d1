"""The names of all methods, kept apart from the methods so that a command line parses fast."""

from __future__ import annotations

METHOD_GROUPS = {
    "GRASP and its parts": (
        "grasp",
        "grasp-plain",
        "grasp-file",
        "grasp-joint",
        "grasp-subspace",
        "grasp-projection",
        "grasp-anchor-task",
        "grasp-write",
        "grasp-write-indirect",
        "grasp-clamp",
        "grasp-shared",
    ),
    "controls": ("naive", "random"),
    "rivals": (
        "caft",
        "ablation",
        "caft-footprint",
        "ablation-footprint",
        "steering",
        "preventative-steering",
        "inoculation",
        "kl-neutral",
        "kl-dressed",
        "kl-task",
        "kl-self",
        "feature-distillation",
        "interleave",
        "interleave-gap",
        "wise-ft",
        "spectral-truncation",
        "intruder-shrinkage",
        "removal",
        "carve",
        "early-stopping",
        "low-rank",
        "weight-decay",
    ),
}
"""Group → its methods, in the order of `grasp.settings.methods`."""

METHOD_NAMES = tuple(name for group in METHOD_GROUPS.values() for name in group)
