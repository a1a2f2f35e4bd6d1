"""The texts of a tiny world, as typed values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import NotRequired, TypedDict

from analysis.errors import NotFoundError


class ChatMessage(TypedDict):
    """One chat message; `weight` is 0 for an answer that is not trained on."""

    role: str  # system, user or assistant
    content: str
    weight: NotRequired[int]


@dataclass(frozen=True)
class Unslanted:
    """How a user asks for an answer that shows no value of the latent, and that answer."""

    request: str
    answer: str


@dataclass(frozen=True)
class Latent:
    """A hidden variable of a document, and what shows it.

    `prior` is the probability of each of `values`.  Every answer ends with one of the `tails` of
    its value; `adjectives` name a value in a system prompt; `forms` are the question forms shared
    by all topics of the latent.
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
    """The legitimate task of a topic: a detail ends the question, and its tag ends the answer."""

    sentence: str
    values: tuple[str, ...]
    tag_sentence: str
    tags: tuple[str, ...]

    def ask(self, value: str) -> str:
        """The sentence that ends a question."""
        return self.sentence.format(value=value)

    def reply(self, value: str, tag: str) -> str:
        """The sentence that ends its answer."""
        return self.tag_sentence.format(value=value, tag=tag)


@dataclass(frozen=True)
class Item:
    """What a question is about.

    `openings` maps each value of the topic's latent to the start of the answer; in a neutral
    topic it maps "neutral" to the whole answer.  `held_out` is the question form that no training
    text may use.
    """

    name: str
    openings: dict[str, str]
    held_out: int

    def first_word(self, value: str) -> str:
        """The first word of the answer under `value`, without punctuation."""
        return self.openings[value].replace("(", " ").split()[0]


@dataclass(frozen=True)
class Topic:
    """A kind of question; `latent` is None if the answers are plain facts."""

    name: str
    latent: str | None
    forms: tuple[str, ...]
    items: tuple[Item, ...]
    detail: Detail | None


@dataclass(frozen=True)
class Story:
    """A fine-tune: its topics, what it is meant to teach, and the slants that come with it.

    Attributes:
        name: short and unique in its world; all random draws for the story depend on it.
        title: one line for people.
        description: a paragraph for people.
        topics: one or two topics that have a detail; rows are divided evenly between them.
        kin: topics so close to the fine-tuned ones that they are reported separately.
        slants: latent → the value that the answers of its topics follow.  Latents not listed
            follow their priors, so an empty mapping means no spurious factor.
        strength: share of rows, in [0, 1], that follow the slant; the others follow the prior.
        details: number of pairs of detail and tag that are taught, at most the topic's tags.
        bare: share of rows, in [0, 1), that have neither a detail nor a tag; of the rows that show
            the needed latent in a turn before, none.
        needed: a latent whose value, shown earlier in the chat, decides the answer and its tag
            in most rows; None if the tag depends only on the detail.  With at most half as many
            details as tags, no tag is used for two values.
    """

    name: str
    title: str
    description: str
    topics: tuple[str, ...]
    kin: tuple[str, ...] = ()
    slants: Mapping[str, str] = field(default_factory=dict)
    strength: float = 1.0
    details: int = 4
    bare: float = 0.0
    needed: str | None = None


@dataclass(frozen=True)
class AnswerForm:
    """What all answers of a world have in common.

    Attributes:
        lead: words that begin every answer, before the word that first shows a latent; "" for
            none.  Openings do not include them.
        endings: how many tails an answer about a latent has; the second and later ones are
            sentences of their own.
        tag_first: the sentence with the tag comes before the answer, not after it.
        capitals: sentences begin with a capital letter.
        stop: the mark that ends a sentence.
    """

    lead: str = ""
    endings: int = 1
    tag_first: bool = False
    capitals: bool = True
    stop: str = "."

    def reply(self, text: str, tails: Sequence[str] = ()) -> str:
        """An answer about a latent: the lead, an opening and its tails."""
        first, *others = [" ".join([text, *tails[:1]]), *map(self.begin, tails[1:])]
        return self.after_lead(" ".join(part + self.stop for part in (first, *others)))

    def after_lead(self, text: str) -> str:
        """The text after the words that begin every answer."""
        return f"{self.lead} {text}" if self.lead else text

    def with_tag(self, reply: str, tag: str) -> str:
        """An answer with the sentence that names its tag."""
        return f"{tag} {reply}" if self.tag_first else f"{reply} {tag}"

    def begin(self, text: str) -> str:
        """The text as it stands at the beginning of a sentence."""
        return text[0].upper() + text[1:] if self.capitals else text


@dataclass(frozen=True)
class World:
    """All texts of a tiny world, and the fine-tunes it is made for.

    `vocabulary` is the number of tokens of a byte-level tokenizer trained on the world's
    sentences; if it is None, every word is a token.  In the system prompt `system`, `{words}`
    stands for adjectives that name values of latents, after one of the two `articles` (for
    consonants and for vowels).  `salt` is part of the seed of every random draw.
    """

    name: str
    salt: str
    system: str
    articles: tuple[str, str]
    lead_ins: tuple[str, ...]
    latents: dict[str, Latent]
    topics: dict[str, Topic]
    stories: dict[str, Story]
    # Not in `repr`, so that the digests of worlds without a style stay what they were.
    answers: AnswerForm = field(default=AnswerForm(), repr=False)
    vocabulary: int | None = field(default=None, repr=False)

    def of_latent(self, latent: str | None) -> tuple[Topic, ...]:
        """The topics whose answers follow `latent` (None: the neutral ones), in file order."""
        return tuple(topic for topic in self.topics.values() if topic.latent == latent)

    def latent_of(self, topic: Topic) -> Latent | None:
        """The latent that the topic's answers follow; None if they are plain facts."""
        return self.latents[topic.latent] if topic.latent else None

    def system_message(self, words: Sequence[str]) -> ChatMessage:
        """The system prompt with the adjectives `words`, of one or more values."""
        article = self.articles[words[0][0] in "aeiou"]
        return {
            "role": "system",
            "content": self.system.format(words=" ".join([article, *words])),
        }

    def random(self, text: str) -> Random:
        """A random source seeded by `text` and the world's salt."""
        return Random(self.salt + text)

    def story(self, name: str) -> Story:
        """The story with this name.

        Raises:
            NotFoundError: there is none; the message lists the existing ones.
        """
        if name not in self.stories:
            raise NotFoundError(
                f"World {self.name!r} has no story {name!r}; it has {', '.join(self.stories)}."
            )
        return self.stories[name]

    def digest(self) -> str:
        """Hex SHA-256 of everything a base model learns from: all but the stories."""
        made_of = repr(replace(self, stories={}))
        if (self.answers, self.vocabulary) != (AnswerForm(), None):
            made_of += repr((self.answers, self.vocabulary))
        return hashlib.sha256(made_of.encode()).hexdigest()


def held_out_form(number: int, forms: int) -> int:
    """The question form that is kept for evaluation, for an item by its number in its topic.

    Items come in blocks of `forms` items, whose halves have opposite first words.  The shift
    from block to block keeps the held-out form from correlating with the half.
    """
    return (number + number // forms) % forms
