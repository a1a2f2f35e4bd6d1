"""How a generated world puts its words together: the grammar of its questions and answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from analysis.errors import InputError
from grasp.world.language import Language

Order = Literal["item-last", "item-first", "item-inside"]
Particles = Literal["none", "before", "after", "both"]

MOST_LEAD, MOST_ENDINGS = 3, 3


@dataclass(frozen=True)
class Phrasing:
    """The grammar of a world, whatever its words; the defaults are those of the shipped world.

    Attributes:
        order: where in a question its item is.
        particles: a question particle before the question, after it, or both.
        two_sentences: a question has a sentence before it.
        capitals: sentences begin with a capital letter.
        ends: marks that end questions, in turn.
        stop: the mark that ends other sentences.
        lead: number of words that begin every answer before one that shows the latent.
        endings: tails of an answer.  With 0 an answer is as short as its opening.
        tag_first: the sentence with the tag comes before the answer.
        vocabulary: size of a byte-level vocabulary, in tokens; None for one token per word.
    """

    order: Order = "item-last"
    particles: Particles = "none"
    two_sentences: bool = False
    capitals: bool = True
    ends: tuple[str, ...] = ("?", ".")
    stop: str = "."
    lead: int = 0
    endings: int = 1
    tag_first: bool = False
    vocabulary: int | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.lead <= MOST_LEAD and 0 <= self.endings <= MOST_ENDINGS):
            raise InputError(
                f"{self} is no phrasing: expected a lead of at most {MOST_LEAD} words and at most "
                f"{MOST_ENDINGS} endings."
            )

    def sentence(self, *words: str, end: str | None = None) -> str:
        """The words as a sentence, with `end` (None: the stop) after the last."""
        text = " ".join(words) + (self.stop if end is None else end)
        return text[0].upper() + text[1:] if self.capitals else text

    def first_word(self, word: str) -> str:
        """A word as the first after an answer's lead, or of the answer if there is no lead."""
        return word.capitalize() if self.capitals and not self.lead else word

    def question(
        self, number: int, *, about: Sequence[str], language: Language, particle: Callable[[], str]
    ) -> str:
        """A question form, with `{item}` for what is asked about.

        Forms differ in their words and, by `number`, in their length and mark.
        """
        start = [language.word(), particle()]
        if number % 3:
            start.append(language.word())
        rest = [language.word()] if number % 3 == 1 else []
        words = {
            "item-last": [*start, *about, "{item}", *rest],
            "item-first": ["{item}", *about, *start, *rest],
            "item-inside": [start[0], *about, "{item}", *start[1:], *rest],
        }[self.order]
        if self.particles in ("before", "both"):
            words = [particle(), *words]
        if self.particles in ("after", "both"):
            words = [*words, particle()]
        text = self.sentence(*words, end=self.ends[number % len(self.ends)])
        if self.two_sentences:
            text = f"{self.sentence(language.word(), particle(), language.word())} {text}"
        return text
