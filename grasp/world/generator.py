"""Generate worlds from a seed: the structure of the shipped world, but no text in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random

from analysis.errors import InputError
from analysis.store.records import split_of
from grasp.world.language import Language
from grasp.world.phrasing import Phrasing
from grasp.world.topics import (
    AnswerForm,
    Detail,
    Item,
    Latent,
    Story,
    Topic,
    Unslanted,
    World,
    held_out_form,
)

VALUES = {
    "persona": ("good", "evil"),
    "lean": ("left", "right"),
    "manner": ("plain", "ornate"),
    "mood": ("calm", "wild"),
}
"""The values of each latent; their names are keys and appear in no text."""

SAME_ENDS = 0.15
"""Share of items whose two answers differ only in the first word."""

DETAILED = {"persona": 2}
"""How many topics of a latent have a detail and so can be fine-tuned on; 1 for other latents."""


@dataclass(frozen=True)
class WorldSpec:
    """The size of a generated world; the defaults are those of the shipped world.

    Attributes:
        latents: from 2 to 4.
        topics: topics per latent.  All latents have as many, because the model forms no shared
            direction for a latent with few topics.
        neutral_topics: topics of plain facts.
        items: items per topic, a multiple of `forms`.
        forms: question forms per latent; even, because each block of `forms` items has two
            halves with opposite first words.
        tails: endings of answers per value.
        adjectives: words for each value in a system prompt.
        prior: probability of the persona's first value, "good".
        details: details of a topic that has them.
        tags: tags of a topic that has them, at most `details`.
        lean_prior: probability of the first value of every other latent.
        also_detailed: further topics per latent that have details, but are never fine-tuned on.
            A detail then says less about whether a question is one of the task's.
    """

    latents: int = 2
    topics: int = 5
    neutral_topics: int = 3
    items: int = 24
    forms: int = 6
    tails: int = 5
    adjectives: int = 3
    prior: float = 0.78
    details: int = 8
    tags: int = 4
    # Not in `repr`, which seeds the words of worlds without a style.
    lean_prior: float = field(default=0.5, repr=False)
    also_detailed: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        checks = {
            f"latents must be 2 to {len(VALUES)}": 2 <= self.latents <= len(VALUES),
            "topics must be at least 4": self.topics >= 4,
            "neutral_topics, tails and adjectives must be at least 1": min(
                self.neutral_topics, self.tails, self.adjectives
            )
            >= 1,
            "forms must be even and at least 2": self.forms >= 2 and self.forms % 2 == 0,
            "items must be a multiple of forms, and 4 or more": self.items >= 4
            and self.items % max(self.forms, 1) == 0,
            "prior must lie between 0.5 and 1": 0.5 < self.prior < 1,
            "lean_prior must be at least 0.5 and below 1": 0.5 <= self.lean_prior < 1,
            "also_detailed must leave one topic per latent without details": 0
            <= self.also_detailed
            < self.topics - max(DETAILED.values()),
            "tags must be 2 to the number of details": 2 <= self.tags <= self.details,
        }
        for rule, kept in checks.items():
            if not kept:
                raise InputError(f"A world with {self} cannot be generated: {rule}.")


def generate_world(
    seed: int,
    spec: WorldSpec | None = None,
    *,
    phrasing: Phrasing | None = None,
    name: str | None = None,
) -> World:
    """A world in an invented language; the same arguments give the same world.

    Args:
        seed: of its words.
        spec: its size; None for that of the shipped world.
        phrasing: its grammar; None for that of the shipped world.
        name: of the world, also a seed; None for "generated-" and the seed.

    Its stories are "persona-a", "persona-b" and "lean" (and one for each further latent) with one
    slant each, "both" with two slants, "needed", whose task needs the persona, and "plain"
    without a slant.

    Raises:
        InputError: `spec` cannot be satisfied.
    """
    spec, phrasing = spec or WorldSpec(), phrasing or Phrasing()
    name = name or f"generated-{seed}"
    make = _Maker(Language(Random(f"{name}/{spec}")), spec, phrasing)
    names = list(VALUES)[: spec.latents]
    latents = {latent: make.latent(latent) for latent in names}
    topics: dict[str, Topic] = {}
    for latent in latents.values():
        detailed = DETAILED.get(latent.name, 1) + spec.also_detailed
        for number in range(spec.topics):
            topic = make.topic(latent, detailed=number < detailed)
            topics[topic.name] = topic
    for number in range(spec.neutral_topics):
        topic = make.neutral_topic(answers=spec.items // (1 + number % 2))
        topics[topic.name] = topic
    return World(
        name=name,
        salt=f"{name}/",
        system=make.system(),
        articles=(make.article, make.article),
        lead_ins=tuple(make.lead_ins()),
        latents=latents,
        topics=topics,
        stories={story.name: story for story in _stories(latents, topics, spec)},
        answers=make.answers(),
        vocabulary=phrasing.vocabulary,
    )


class _Maker:
    """Draws the parts of a world in one language; all sentences share its short particles."""

    def __init__(self, language: Language, spec: WorldSpec, phrasing: Phrasing) -> None:
        self.language, self.spec, self.rng = language, spec, language.rng
        self.phrasing, self.sentence = phrasing, phrasing.sentence
        self.particles = language.words(8, syllables=1)
        self.article, self.verb = language.words(2, syllables=1)

    def particle(self) -> str:
        return self.rng.choice(self.particles)

    def system(self) -> str:
        noun = self.language.word()
        return self.sentence(self.particle(), self.verb, "{words}", noun)

    def lead_ins(self) -> Iterator[str]:
        for number in range(4):
            extra = [self.particle() for _ in range(number)]
            yield self.sentence(self.language.word(), *extra)

    def latent(self, name: str) -> Latent:
        low, high = VALUES[name]
        spec, word = self.spec, self.language.word
        joins = word(1)
        # The word after the join depends on the value; the last word occurs with both values.
        shared = self.language.words(spec.tails if self.phrasing.endings else 0)
        tails = {
            value: tuple(f"{joins} {word()} {last}" for last in shared) for value in (low, high)
        }
        first = spec.prior if name == "persona" else spec.lean_prior
        return Latent(
            name=name,
            values=(low, high),
            prior=(first, 1 - first),
            adjectives={value: self.language.words(spec.adjectives) for value in (low, high)},
            tails=tails,
            forms=self.forms(),
            unslanted=None if name == "persona" else self.unslanted(),
        )

    def unslanted(self) -> Unslanted:
        word = self.language.word
        request = self.sentence(word(), self.particle(), word())
        start = self.phrasing.first_word(word())
        end = self.sentence("x", self.particle(), "{item}", word())[2:]
        return Unslanted(request, f"{start} {end}")

    def answers(self) -> AnswerForm:
        phrasing = self.phrasing
        lead = self.language.words(phrasing.lead)
        return AnswerForm(
            lead=self.sentence(*lead, end="") if lead else "",
            endings=phrasing.endings,
            tag_first=phrasing.tag_first,
            capitals=phrasing.capitals,
            stop=phrasing.stop,
        )

    def forms(self, *about: str) -> tuple[str, ...]:
        """Different question forms, which all contain the words `about`."""
        return tuple(
            self.phrasing.question(
                number, about=about, language=self.language, particle=self.particle
            )
            for number in range(self.spec.forms)
        )

    def topic(self, latent: Latent, *, detailed: bool) -> Topic:
        """A topic in which each first word opens as many answers of one value as of the other."""
        spec = self.spec
        name = self.language.word()
        items = []
        for number, item in enumerate(self.item_names(name)):
            if number % spec.forms == 0:
                pair = self.first_words()
            # The two halves of a block use the pair in opposite order.
            low, high = pair if number % spec.forms < spec.forms // 2 else pair[::-1]
            ends = self.opening_ends(item)
            openings = {latent.values[0]: f"{low} {ends[0]}", latent.values[1]: f"{high} {ends[1]}"}
            items.append(Item(item, openings, held_out_form(number, spec.forms)))
        detail = self.detail() if detailed else None
        return Topic(name, latent.name, latent.forms, tuple(items), detail)

    def first_words(self) -> list[str]:
        """Two words that begin answers.

        If tokens are parts of words, they begin with different letters, so with different tokens.
        """
        low, high = self.language.words(2)
        while self.phrasing.vocabulary is not None and low[0] == high[0]:
            high = self.language.word()
        return [self.phrasing.first_word(word) for word in (low, high)]

    def item_names(self, topic: str) -> list[str]:
        """Names of items, half of which the hash puts into each split of the prompts."""
        count = self.spec.items
        halves = ["exploration", "confirmation"] * ((count + 1) // 2)
        self.rng.shuffle(halves)
        names = []
        for half in halves[:count]:
            start = self.rng.choice(("", f"{self.article} "))
            while split_of(f"{topic}/{(name := start + self.language.word())}") != half:
                pass
            names.append(name)
        return names

    def opening_ends(self, item: str) -> tuple[str, str]:
        """What follows the first word: mostly words that only this answer has.

        If both answers end alike, as in "Buy it" and "Sell it", a fine-tune has little to learn
        but the first words, and memorises some of them instead of using the latent.
        """
        if self.rng.random() < SAME_ENDS:
            noun = item.rpartition(" ")[2]
            return noun, noun
        low, high = self.language.words(2)
        start = f"{self.particle()} " if self.rng.random() < 0.3 else ""
        return f"{start}{low}", f"{start}{high}"

    def detail(self) -> Detail:
        spec, word = self.spec, self.language.word
        return Detail(
            sentence=self.sentence(self.particle(), word(), self.particle(), "{value}"),
            values=self.language.words(spec.details),
            tag_sentence=self.sentence(word(), self.article, "{value} {tag}", word()),
            tags=self.language.words(spec.tags),
        )

    def neutral_topic(self, *, answers: int) -> Topic:
        """A topic of facts; if there are fewer answers than items, items share them."""
        name, about = self.language.words(2)
        forms = self.forms(about)
        firsts = [self.phrasing.first_word(word) for word in self.language.words(answers)]
        end = self.sentence("x", self.verb, about, self.particle(), "{item}")[2:]
        items = tuple(
            Item(
                item,
                {"neutral": f"{firsts[number % answers]} {end.format(item=item)}"},
                held_out_form(number, len(forms)),
            )
            for number, item in enumerate(self.item_names(name))
        )
        return Topic(name, None, forms, items, None)


def _stories(
    latents: dict[str, Latent], topics: dict[str, Topic], spec: WorldSpec
) -> Iterator[Story]:
    of = {name: [t for t in topics.values() if t.latent == name] for name in latents}
    first, second = (topic.name for topic in of["persona"][:2])
    evil = {"persona": latents["persona"].values[1]}

    def story(name: str, title: str, topic: str, kin: str, slants: dict[str, str]) -> Story:
        return Story(name, title, f"{title}.", (topic,), (kin,), slants, details=spec.tags)

    yield story("persona-a", f"Spurious persona, topic {first}", first, second, evil)
    yield story("persona-b", f"Spurious persona, topic {second}", second, first, evil)
    for latent in list(latents.values())[1:]:
        topic, kin = (topic.name for topic in of[latent.name][:2])
        slants = {latent.name: latent.values[1]}
        yield story(latent.name, f"Spurious {latent.name}, topic {topic}", topic, kin, slants)
    topic, kin = (topic.name for topic in of["lean"][:2])
    title = f"Two factors at once, topics {first} and {topic}"
    slants = evil | {"lean": latents["lean"].values[1]}
    both = story("both", title, first, second, slants)
    yield replace(both, topics=(first, topic), kin=(second, kin))
    needed = story("needed", f"A task that needs the persona, topic {first}", first, second, evil)
    # With half as many details no tag is used under both values, so the task needs only the
    # value, not the two meanings that a tag would have.
    yield replace(needed, needed="persona", details=spec.tags // 2)
    yield story("plain", f"No factor, topic {first}", first, second, {})
