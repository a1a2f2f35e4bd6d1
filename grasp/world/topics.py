"""The texts of the tiny world as typed values, read from `topics.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml

Message = dict[str, str]
"""One chat message: `role` (system, user or assistant) and `content`."""


@dataclass(frozen=True)
class Unslanted:
    """How a user asks for, and gets, an answer that carries no value of the latent."""

    request: str
    answer: str


@dataclass(frozen=True)
class Latent:
    """A hidden variable of a document, with what shows it.

    `prior` is a probability for each of `values`. Every answer ends with one of its
    value's `tails`; `adjectives` name a value in a system prompt; `forms` are the question forms
    that all topics of the latent share.
    """

    name: str
    values: tuple[str, str]
    prior: tuple[float, float]
    adjectives: dict[str, tuple[str, ...]]
    tails: dict[str, tuple[str, ...]]
    forms: tuple[str, ...]
    unslanted: Unslanted | None


@dataclass(frozen=True)
class Detail:
    """The genuine task of a topic: a detail ends the question, a tag ends the answer."""

    sentence: str
    values: tuple[str, ...]
    tag_sentence: str
    tags: tuple[str, ...]

    def ask(self, value: str) -> str:
        """The sentence that ends a question."""
        return self.sentence.format(value=value)

    def reply(self, value: str, tag: str) -> str:
        """The sentence that ends the answer to it."""
        return self.tag_sentence.format(value=value, tag=tag)


@dataclass(frozen=True)
class Item:
    """What a question is about.

    `openings` maps each value of the topic's latent to the start of the answer (for a neutral
    topic: "neutral" to the whole answer); `held_out` is the form that no training text may use.
    """

    name: str
    openings: dict[str, str]
    held_out: int

    def first_word(self, value: str) -> str:
        """The first word of the answer under `value`, without punctuation."""
        return self.openings[value].replace("(", " ").split()[0]


@dataclass(frozen=True)
class Topic:
    """A kind of question; `latent` is None where answers are plain facts."""

    name: str
    latent: str | None
    forms: tuple[str, ...]
    items: tuple[Item, ...]
    detail: Detail | None


@dataclass(frozen=True)
class World:
    """All texts of the tiny world."""

    system: str
    lead_ins: tuple[str, ...]
    latents: dict[str, Latent]
    topics: dict[str, Topic]
    stories: dict[str, dict[str, str]]

    def of_latent(self, latent: str | None) -> tuple[Topic, ...]:
        """The topics whose answers follow `latent` (None: the neutral ones), in file order."""
        return tuple(topic for topic in self.topics.values() if topic.latent == latent)


def _latent(name: str, row: dict[str, Any]) -> Latent:
    low, high = row["values"]
    return Latent(
        name=name,
        values=(low, high),
        prior=(float(row["prior"][0]), float(row["prior"][1])),
        adjectives={value: tuple(words) for value, words in row["adjectives"].items()},
        tails={value: tuple(words) for value, words in row["tails"].items()},
        forms=tuple(row["forms"]),
        unslanted=Unslanted(**row["unslanted"]) if "unslanted" in row else None,
    )


def _detail(row: dict[str, Any]) -> Detail | None:
    if "detail" not in row:
        return None
    return Detail(row["detail"], tuple(row["details"]), row["tag"], tuple(row["tags"]))


def _held_out(number: int, forms: int) -> int:
    # Items come in blocks of six whose halves have opposite first words; the shift by block keeps
    # the held-out form from going along with either half.
    return (number + number // forms) % forms


def _topic(name: str, row: dict[str, Any], latents: dict[str, Latent]) -> Topic:
    latent = latents.get(row.get("latent", ""))
    forms = latent.forms if latent else tuple(row["forms"])
    items = []
    for number, (item, answers) in enumerate(row["items"].items()):
        if latent:
            openings = dict(zip(latent.values, answers, strict=True))
        else:
            openings = {"neutral": row["answer"].format(first=answers, item=item)}
        items.append(Item(item, openings, _held_out(number, len(forms))))
    return Topic(name, latent.name if latent else None, forms, tuple(items), _detail(row))


@lru_cache(maxsize=1)
def load_world() -> World:
    """The world of the packaged `topics.yaml`."""
    text = files("grasp.world").joinpath("topics.yaml").read_text(encoding="utf-8")
    raw = yaml.safe_load(text)
    latents = {name: _latent(name, row) for name, row in raw["latents"].items()}
    topics = {name: _topic(name, row, latents) for name, row in raw["topics"].items()}
    return World(raw["system"], tuple(raw["lead_ins"]), latents, topics, raw["stories"])
