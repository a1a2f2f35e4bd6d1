"""Scorers turn a model's answers to prompts into scores between 0 and 1.

A prompt (`analysis.store.records.Prompt`) names its scorer.  What scorers need from the model is
computed once for all of them: probabilities at the first answer token, the answer's text, and for
pairs the log-probabilities of both answers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import regex
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.errors import InputError
from analysis.store.records import Message, Prompt
from grasp.data.chat import chat_ids, tokenise
from grasp.evaluation.pairs import Pair, continuations, share_of_first


@dataclass(frozen=True)
class Answer:
    """A model's answer to one prompt; `first` (vocabulary,) are first-token log-probabilities.

    For a pair nothing is generated: `pair` has the log-probabilities of both answers, and `text`
    is the likelier one.
    """

    first: Tensor | None
    text: str
    ended: bool
    pair: Pair | None = None


@dataclass(frozen=True)
class Score:
    """A score, and the probability of all valid first tokens (NaN if they are not listed)."""

    value: float
    coherence: float = math.nan


Scorer = Callable[[Tokenizer, Prompt, Answer], Score]


def score_choice(tokenizer: Tokenizer, prompt: Prompt, answer: Answer) -> Score:
    """Probability of the target's first tokens among those of all listed continuations."""
    tokens = choice_tokens(tokenizer, prompt)
    assert answer.first is not None  # only pairs are answered without it
    first = answer.first
    mass = {name: float(first[ids].exp().sum()) for name, ids in tokens.items()}
    whole = sum(mass.values())
    return Score(mass[str(prompt.target)] / whole if whole else math.nan, whole)


def score_contains(_tokenizer: Tokenizer, prompt: Prompt, answer: Answer) -> Score:
    """1 if the answer contains the expected text, else 0; case is ignored."""
    if not prompt.expected:
        raise InputError(f"Prompt {prompt.id!r}: scorer 'contains' needs 'expected'.")
    return Score(float(prompt.expected.casefold() in answer.text.casefold()))


def score_ended(_tokenizer: Tokenizer, _prompt: Prompt, answer: Answer) -> Score:
    """1 if the answer ends the text, 0 if another turn begins or the answer is cut off."""
    return Score(float(answer.ended))


def score_pair(_tokenizer: Tokenizer, _prompt: Prompt, answer: Answer) -> Score:
    """Probability of the first answer, as a share of the probability of both."""
    # Computed by `grasp.evaluation.answers.answer_prompts`, which refuses prompts without a pair.
    assert answer.pair is not None
    return Score(share_of_first(answer.pair))


def score_pattern(_tokenizer: Tokenizer, prompt: Prompt, answer: Answer) -> Score:
    """1 if the regular expression is found in the answer, else 0.

    Case is ignored, and ^ and $ match at line breaks.

    Raises:
        InputError: the expression is missing, invalid, too long or too slow.
    """
    if not prompt.pattern or len(prompt.pattern) > PATTERN_CHARACTERS:
        raise InputError(
            f"Prompt {prompt.id!r}: scorer 'pattern' needs 'pattern', a regular expression of at "
            f"most {PATTERN_CHARACTERS} characters."
        )
    flags = regex.IGNORECASE | regex.MULTILINE
    try:
        found = regex.search(prompt.pattern, answer.text, flags, timeout=PATTERN_SECONDS)
    except regex.error as error:
        raise InputError(
            f"Prompt {prompt.id!r}: {prompt.pattern!r} is not a valid regular expression ({error})."
        ) from None
    except TimeoutError:
        raise InputError(
            f"Prompt {prompt.id!r}: {prompt.pattern!r} takes longer than {PATTERN_SECONDS:g} s on "
            "an answer; write it without nested repetitions."
        ) from None
    return Score(float(found is not None))


def score_lexicon(_tokenizer: Tokenizer, prompt: Prompt, answer: Answer) -> Score:
    """1 if any listed phrase is in the answer, else 0; or the share of phrases that are in it.

    Phrases match whole words in any case; a space in a phrase matches any white space.
    """
    if not prompt.lexicon or not all(phrase.strip() for phrase in prompt.lexicon):
        raise InputError(
            f"Prompt {prompt.id!r}: scorer 'lexicon' needs 'lexicon', a list of phrases."
        )
    text = fold_text(answer.text)
    found = [holds_phrase(text, fold_text(one)) for one in prompt.lexicon]
    return Score(float(any(found)) if prompt.measure == "presence" else sum(found) / len(found))


def leave_unjudged(_tokenizer: Tokenizer, _prompt: Prompt, _answer: Answer) -> Score:
    """NaN: `grasp.evaluation.judge` scores these answers once all are given."""
    return Score(math.nan)


PATTERN_SECONDS = 5.0
PATTERN_CHARACTERS = 1000

SCORERS: dict[str, Scorer] = {
    "choice": score_choice,
    "contains": score_contains,
    "ended": score_ended,
    "pair": score_pair,
    "pattern": score_pattern,
    "lexicon": score_lexicon,
    "judge": leave_unjudged,
}

_TEXT_ALONE = ("contains", "pattern", "lexicon")


def check_prompts(tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> None:
    """Refuse prompts that lack what their scorer needs, before any is answered.

    Raises:
        InputError: a prompt lacks a field, or has an invalid one.
    """
    nothing = Answer(first=None, text="", ended=False)
    for prompt in prompts:
        if prompt.scorer in _TEXT_ALONE:
            SCORERS[prompt.scorer](tokenizer, prompt, nothing)
        elif prompt.scorer == "choice":
            choice_tokens(tokenizer, prompt)
        elif prompt.scorer == "pair":
            continuations(tokenizer, prompt)


def score_answer(tokenizer: Tokenizer, prompt: Prompt, answer: Answer) -> Score:
    """A prompt's score; 1 minus the scorer's result if the prompt is a reversal."""
    found = SCORERS[prompt.scorer](tokenizer, prompt, answer)
    return Score(1 - found.value, found.coherence) if prompt.reversed else found


def choice_tokens(tokenizer: Tokenizer, prompt: Prompt) -> dict[str, list[int]]:
    """Name of a choice → ids of the first tokens of its continuations.

    Raises:
        InputError: there are no choices, the target is unknown, two choices begin with the same
            token, or the prefix does not end where a token ends.
    """
    if not prompt.choices or prompt.target not in prompt.choices:
        raise InputError(
            f"Prompt {prompt.id!r}: scorer 'choice' needs 'choices' and a 'target' among them."
        )
    tokens = {
        name: sorted({_first_token(tokenizer, prompt, text) for text in continuations})
        for name, continuations in prompt.choices.items()
    }
    flat = [token for ids in tokens.values() for token in ids]
    if len(set(flat)) < len(flat):
        raise InputError(
            f"Prompt {prompt.id!r}: two choices begin with the same token, so the first token "
            "cannot tell them apart; choose other continuations."
        )
    return tokens


def fold_text(text: str) -> str:
    """The text in one case, with single spaces."""
    return " ".join(text.casefold().split())


def holds_phrase(text: str, phrase: str) -> bool:
    """Whether a folded text has a folded phrase, as whole words."""
    # Not \b, which would not match next to a phrase that begins or ends with punctuation.  Most
    # phrases are in no answer, and a plain search says so at once.
    whole = rf"(?<!\w){re.escape(phrase)}(?!\w)"
    return phrase in text and re.search(whole, text) is not None


_FIRST: WeakKeyDictionary[Tokenizer, dict[tuple[object, ...], int]] = WeakKeyDictionary()
"""First tokens by template, chat and continuation: a set is checked once, then scored for each arm,
and applying the template took a third of an evaluation's time."""


def _first_token(tokenizer: Tokenizer, prompt: Prompt, continuation: str) -> int:
    known = _FIRST.setdefault(tokenizer, {})
    chat = tuple((message.role, message.content) for message in prompt.messages)
    key = (tokenizer.chat_template, chat, prompt.prefix, continuation)
    if key not in known:
        known[key] = _find_first_token(tokenizer, prompt, continuation)
    return known[key]


def _find_first_token(tokenizer: Tokenizer, prompt: Prompt, continuation: str) -> int:
    text = f"{prompt.prefix} {continuation}" if prompt.prefix else continuation
    whole = [*prompt.messages, Message(role="assistant", content=text)]
    ids, answer = tokenise(tokenizer, whole)
    if not prompt.prefix:
        return ids[max(i for i in range(len(ids)) if answer[i] and not (i and answer[i - 1]))]
    begun = chat_ids(tokenizer, prompt.messages, generate=True, prefix=prompt.prefix)
    if ids[: len(begun)] != begun:
        raise InputError(
            f"Prompt {prompt.id!r}: the tokens of {prompt.prefix!r} change when "
            f"{continuation!r} follows; let the prefix end where a token ends."
        )
    return ids[len(begun)]
