"""Simulated labels for stories with several latents, given by what a factor does.

A person would read answers; here a factor is labelled with the latent on whose exploration
prompts its off-task effect is largest.  The labels are ordinary events in the cell's database.
"""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from analysis.errors import GraspError
from analysis.store.factor_table import read_run_factors
from analysis.store.labels import Claim, add_label
from analysis.store.layout import adapter_of
from analysis.store.workspace import Workspace
from grasp.bench.plan.cells import NAIVE, latents_of, topic_latents
from grasp.bench.plan.plan import Cell, Plan
from grasp.bench.plan.tasks import ALL
from grasp.jobs.progress import Progress
from grasp.prompts.sets import read_prompts

LABELS = "bench/labels.json"
ANNOTATOR = "benchmark (simulated)"
LOOKED_AT = 6
"""How many significant factors are labelled, best-ranked first."""


def label_latents(workspace: Workspace, plan: Plan, cell: Cell, *, progress: Progress) -> None:
    """Label the naive run's significant factors, each with the latent it affects most.

    Writes the labels, and `bench/labels.json`: factor → latent → share of the change on that
    latent's unrelated exploration prompts that is undone when the factor is set back.
    """
    latents = list(latents_of(plan, cell))
    found = read_run_factors(workspace, NAIVE)
    table = found.table
    ids = list(table.loc[table["significant"].astype(bool), "id"][:LOOKED_AT])
    shares = {
        latent: _shares(workspace, cell, latent, ids, progress=progress)
        for latent in (latents if ids else ())
    }
    effects = {
        factor: {latent: float(shares[latent][row]) for latent in latents}
        for row, factor in enumerate(ids)
    }
    for factor, by_latent in effects.items():
        name = max(by_latent, key=lambda latent: by_latent[latent])
        said = ", ".join(f"{latent} {share:.2f}" for latent, share in by_latent.items())
        add_label(
            workspace.database,
            factor=f"{NAIVE}/{factor}",
            claim=Claim(name, spurious=True, note=f"share of the off-task change: {said}"),
            annotator=ANNOTATOR,
            direction=found.sha256(factor),
        )
    text = json.dumps(effects, indent=2)
    (workspace.root / LABELS).write_text(text, encoding="utf-8")


def labelled_factors(workspace: Workspace, latent: str) -> list[str]:
    """The best-ranked factor labelled with a latent; with ALL, one for each latent.

    Raises:
        GraspError: no significant factor has that label.
    """
    effects: dict[str, dict[str, float]] = json.loads((workspace.root / LABELS).read_text())
    best: dict[str, str] = {}
    for factor, by_latent in effects.items():  # best-ranked first
        best.setdefault(max(by_latent, key=lambda name: by_latent[name]), factor)
    every = {name for by_latent in effects.values() for name in by_latent}
    wanted = sorted(every) if latent == ALL else [latent]
    missing = [name for name in wanted if name not in best]
    if missing or not wanted:
        raise GraspError(
            f"No significant factor is labelled {' or '.join(missing) or latent}, so this arm has "
            f"nothing to protect; the factors' off-task effects are {effects}."
        )
    return [best[name] for name in wanted]


def _shares(
    workspace: Workspace, cell: Cell, latent: str, ids: list[str], *, progress: Progress
) -> NDArray[np.float64]:
    """(k,) share of the change on one latent's unrelated prompts that each factor carries."""
    from grasp.identification.effects import set_back_effects
    from grasp.identification.generated import answer_greedily
    from grasp.identification.identify import MAX_PROMPTS, run_effect_inputs
    from grasp.model.loading import load_adapted

    folder = workspace.folder("runs", NAIVE)
    inputs = run_effect_inputs(workspace, folder)
    assert inputs is not None  # every story has prompts
    of_topic = topic_latents(cell)
    chosen = [
        prompt
        for prompt in read_prompts(inputs.prompts)
        if prompt.split == "exploration"
        and prompt.role == "unrelated"
        and of_topic.get(prompt.group) == latent
    ][:MAX_PROMPTS]
    found = read_run_factors(workspace, NAIVE)
    directions = np.stack([found.direction(name) for name in ids]).astype(np.float64)
    loaded = load_adapted(inputs.base, adapter_of(folder))
    answered = answer_greedily(loaded.model, loaded.tokenizer, chosen)
    return set_back_effects(loaded.model, answered, directions, progress=progress).shares
