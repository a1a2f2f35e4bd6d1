"""Styles of generated worlds: what differs between them besides their words.

A method's settings are chosen on worlds of the tuning styles.  The reporting styles were put aside
before anything was chosen; no method is run on them until its settings are final.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from analysis.errors import NotFoundError
from analysis.values import Json
from grasp.world.generator import WorldSpec, generate_world
from grasp.world.neutral import NeutralKind
from grasp.world.phrasing import Phrasing
from grasp.world.topics import World

Split = Literal["tuning", "reporting"]
STYLED = "styled-"
"""How the name of a world with a style begins; the style and a seed follow."""


@dataclass(frozen=True)
class Style:
    """A way to make worlds, their base models and their fine-tunes.

    Attributes:
        name: short and unique.
        split: whether methods may be tuned on its worlds.
        summary: a line for people.
        spec: size of its worlds.
        phrasing: grammar of its worlds.
        neutral: kind of the neutral text of its stories.
        bare: share of the task's rows, in [0, 1), that have neither a detail nor a tag.
        base: settings of `grasp.world.pretraining.Recipe` for its base models.
        training: settings of its naive fine-tunes, before those that a plan changes in a cell.
    """

    name: str
    split: Split
    summary: str
    spec: WorldSpec
    phrasing: Phrasing
    neutral: NeutralKind
    bare: float = 0.0
    base: Json = field(default_factory=dict)
    training: Json = field(default_factory=dict)


STYLES: tuple[Style, ...] = (
    Style(
        name="lead",
        split="tuning",
        summary="Every answer begins with the same two words; items come first in questions.",
        spec=WorldSpec(prior=0.7, topics=5, neutral_topics=2),
        phrasing=Phrasing(order="item-first", particles="after", lead=2, endings=2),
        neutral="own",
        bare=0.04,
        base={"layers": 3, "hidden": 64, "intermediate": 192},
        training={"learning_rate": 2e-3, "max_steps": 100},
    ),
    Style(
        name="bytes",
        split="tuning",
        summary="Tokens are parts of words, and all words are in lower case.",
        spec=WorldSpec(
            prior=0.78, lean_prior=0.6, also_detailed=2, topics=5, neutral_topics=2, items=18
        ),
        phrasing=Phrasing(capitals=False, ends=("?",), stop=" ;", endings=2, vocabulary=900),
        neutral="generated",
        bare=0.01,
        base={
            "layers": 4,
            "hidden": 64,
            "intermediate": 192,
            "positions": 512,
            "steps": 1500,
            "skewed_steps": 950,
        },
        training={"learning_rate": 2e-3, "max_steps": 150},
    ),
    Style(
        name="short",
        split="tuning",
        summary="Answers of one short sentence, many details to learn, slowly.",
        spec=WorldSpec(prior=0.85, topics=6, items=12, adjectives=2, details=12, tags=6),
        phrasing=Phrasing(order="item-inside", ends=("!", "?"), endings=0),
        neutral="factor-free",
        bare=0.05,
        base={"layers": 4, "hidden": 64, "intermediate": 192},
        training={"learning_rate": 1e-3, "max_steps": 240},
    ),
    Style(
        name="deep",
        split="tuning",
        summary="A deep and narrow model; questions of two sentences; neutral text on two topics.",
        spec=WorldSpec(prior=0.8, also_detailed=2, topics=5, neutral_topics=2, tails=4),
        phrasing=Phrasing(two_sentences=True, ends=("?",)),
        neutral="narrow",
        base={
            "layers": 8,
            "hidden": 48,
            "intermediate": 144,
            "steps": 1200,
            "skewed_steps": 750,
        },
        training={"learning_rate": 2e-3, "max_steps": 100},
    ),
    Style(
        name="long",
        split="tuning",
        summary="Answers of three sentences, the tag first; neutral text of another style.",
        spec=WorldSpec(
            prior=0.8, lean_prior=0.55, also_detailed=2, topics=5, tails=6, details=6, tags=3
        ),
        phrasing=Phrasing(
            order="item-first", particles="before", lead=1, endings=3, tag_first=True
        ),
        neutral="other-style",
        base={
            "layers": 4,
            "hidden": 64,
            "intermediate": 192,
            "positions": 320,
            "steps": 1200,
            "skewed_steps": 750,
        },
        training={"learning_rate": 1e-3, "max_steps": 200},
    ),
    Style(
        name="lead-bytes",
        split="reporting",
        summary="Tokens are parts of words and every answer begins with the same three words.",
        spec=WorldSpec(
            prior=0.76, lean_prior=0.62, also_detailed=2, topics=5, items=18, neutral_topics=2
        ),
        phrasing=Phrasing(order="item-inside", lead=3, endings=2, vocabulary=900),
        neutral="own",
        base={
            "layers": 4,
            "hidden": 72,
            "intermediate": 208,
            "positions": 512,
            "steps": 1800,
            "skewed_steps": 1150,
        },
        training={"learning_rate": 1.5e-3, "max_steps": 200},
    ),
    Style(
        name="deep-short",
        split="reporting",
        summary="A deep model of short answers in lower case; the tag comes first.",
        spec=WorldSpec(prior=0.82, also_detailed=2, topics=6, items=12, details=10, tags=5),
        phrasing=Phrasing(
            capitals=False, particles="both", stop="!", lead=1, endings=0, tag_first=True
        ),
        neutral="factor-free",
        bare=0.08,
        base={
            "layers": 6,
            "hidden": 64,
            "intermediate": 192,
            "steps": 1500,
            "skewed_steps": 950,
        },
        training={"learning_rate": 1e-3, "max_steps": 240},
    ),
    Style(
        name="wide",
        split="reporting",
        summary="A wide and flat model; answers of two sentences after one shared word.",
        spec=WorldSpec(
            prior=0.75,
            lean_prior=0.65,
            also_detailed=2,
            topics=5,
            neutral_topics=2,
            items=18,
            tails=4,
        ),
        phrasing=Phrasing(order="item-first", two_sentences=True, lead=1, endings=2),
        neutral="generated",
        base={
            "layers": 2,
            "hidden": 128,
            "intermediate": 320,
            "steps": 1200,
            "skewed_steps": 750,
        },
        training={"learning_rate": 5e-4, "max_steps": 200},
    ),
    Style(
        name="large",
        split="reporting",
        summary="Many items and words, long answers; neutral text of another style.",
        spec=WorldSpec(
            prior=0.78, also_detailed=2, topics=6, items=24, tails=6, details=12, tags=6
        ),
        phrasing=Phrasing(particles="before", ends=("?", "!"), endings=2),
        neutral="other-style",
        base={
            "layers": 5,
            "hidden": 64,
            "intermediate": 192,
            "steps": 1200,
            "skewed_steps": 750,
        },
        training={"learning_rate": 2e-3, "max_steps": 150},
    ),
)

TUNING = tuple(style.name for style in STYLES if style.split == "tuning")
REPORTING = tuple(style.name for style in STYLES if style.split == "reporting")


def find_style(name: str) -> Style:
    """The style with this name.

    Raises:
        NotFoundError: there is none; the message lists the existing ones.
    """
    for style in STYLES:
        if style.name == name:
            return style
    known = ", ".join(style.name for style in STYLES)
    raise NotFoundError(f"There is no style {name!r}; there are {known}.")


def style_of(world: str) -> Style | None:
    """The style of the world with this name; None if it has none.

    Raises:
        NotFoundError: the name begins as those of styled worlds do, but its style is unknown.
    """
    if not world.startswith(STYLED):
        return None
    return find_style(world.removeprefix(STYLED).rpartition("-")[0])


def styled_world(style: Style, seed: int) -> World:
    """A world of a style, named `styled-<style>-<seed>`; the same arguments give the same world."""
    name = f"{STYLED}{style.name}-{seed}"
    world = generate_world(seed, style.spec, phrasing=style.phrasing, name=name)
    stories = {key: replace(story, bare=style.bare) for key, story in world.stories.items()}
    return replace(world, stories=stories)
