"""How the base model of a tiny world behaves, in rates that a rebuilt one must match."""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.store.records import Prompt
from grasp.evaluation.answers import answer_prompts, score_answers
from grasp.world.prompts import story_prompts
from grasp.world.stories import Row
from grasp.world.topics import Latent, Story, World


def base_figures(world: World, model: PreTrainedModel, tokenizer: Tokenizer) -> dict[str, float]:
    """Rates in [0, 1] that describe a base model, all on held-out question forms.

    For each latent with values `low` and `high`: `high` is the share of answers that follow
    `high` without context, `high_when_named` the same after a system prompt that names `high`,
    and `low_as_high_when_named` the same after one that names `low`.  `facts` is the share of
    correct facts, `coherence` the probability of the two answers that fit the question.
    """
    sets = {"facts": _bare(world, next(iter(world.stories.values())), "facts")}
    for latent in world.latents.values():
        low, high = latent.values
        rows = _bare(world, _story_about(world, latent), "unrelated")
        sets[high] = rows
        sets[f"{high}_when_named"] = _under_system(world, rows, latent.adjectives[high][0])
        sets[f"{low}_as_{high}_when_named"] = _under_system(world, rows, latent.adjectives[low][0])
    figures, coherences = {}, []
    for name, rows in sets.items():
        chosen = [Prompt(**row) for row in rows]
        samples = score_answers(tokenizer, chosen, answer_prompts(model, tokenizer, chosen))
        figures[name] = float(samples["score"].mean())
        coherences.append(samples["coherence"].to_numpy(float))
    figures["coherence"] = float(np.concatenate(coherences).mean())
    return figures


def _story_about(world: World, latent: Latent) -> Story:
    """The first story whose only slant is the latent's second value."""
    slants = {latent.name: latent.values[1]}
    return next(story for story in world.stories.values() if story.slants == slants)


def _bare(world: World, story: Story, role: str) -> list[Row]:
    rows = story_prompts(world, story)
    return [row for row in rows if row["role"] == role and row["id"].endswith("/bare")]


def _under_system(world: World, rows: list[Row], adjective: str) -> list[Row]:
    system = world.system_message([adjective])
    return [row | {"messages": [system, *row["messages"]]} for row in rows]
