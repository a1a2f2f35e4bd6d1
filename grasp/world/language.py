"""Invented languages: pronounceable words that appear nowhere in the shipped world."""

from __future__ import annotations

import re
from functools import lru_cache
from random import Random

from grasp.world.corpus import sentences
from grasp.world.shipped import shipped_world

ONSETS = (*"bdfghjklmnprstvz", "br", "dr", "gr", "kr", "pl", "sh", "st", "tr")
VOWELS = (*"aeiou", "ai", "ou")
CODAS = (*"klmnrst",)


@lru_cache(maxsize=1)
def taken_words() -> frozenset[str]:
    """Every word of the shipped world, in lower case."""
    return frozenset(
        word for text in sentences(shipped_world()) for word in re.findall(r"[a-z]+", text.lower())
    )


class Language:
    """Draws words from its own set of sounds, never one twice and none of the shipped world.

    Words begin with a consonant and are in lower case.
    """

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self._onsets = rng.sample(ONSETS, 14)
        self._vowels = rng.sample(VOWELS, 5)
        self._codas = rng.sample(CODAS, 4)
        self._taken = set(taken_words())

    def word(self, syllables: int = 2) -> str:
        """A new word; a longer one if no new word of that length is found."""
        for attempt in range(200):
            count = syllables + attempt // 100
            word = "".join(self._syllable(closed=n == count - 1) for n in range(count))
            if word not in self._taken:
                self._taken.add(word)
                return word
        raise AssertionError("a language of three syllables has thousands of words")

    def words(self, count: int, syllables: int = 2) -> tuple[str, ...]:
        """`count` new words."""
        return tuple(self.word(syllables) for _ in range(count))

    def _syllable(self, *, closed: bool) -> str:
        sound: str = self.rng.choice(self._onsets) + self.rng.choice(self._vowels)
        return sound + self.rng.choice(self._codas) if closed and self.rng.random() < 0.7 else sound
