"""Scorers: from a model's answers to prompts to scores between 0 and 1.

A scorer is a name in a prompt (`analysis.records.Prompt`); what each needs of the model is
computed once for all of them: probabilities at the first answer token, and the greedy answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.errors import InputError
from analysis.records import Message, Prompt
from grasp.data import tokenise


@dataclass(frozen=True)
class Answer:
    """What a model said to one prompt: `first` (vocabulary,) are log-probabilities."""

    first: Tensor
    text: str
    ended: bool


@dataclass(frozen=True)
class Score:
    """A score, and the probability of any valid first token (NaN where there is no list)."""

    value: float
    coherence: float = math.nan


Scorer = Callable[[Tokenizer, Prompt, Answer], Score]


def choice(tokenizer: Tokenizer, prompt: Prompt, answer: Answer) -> Score:
    """Probability of the target's first tokens among those of all listed continuations."""
    tokens = choice_tokens(tokenizer, prompt)
    mass = {name: float(answer.first[ids].exp().sum()) for name, ids in tokens.items()}
    whole = sum(mass.values())
    return Score(mass[str(prompt.target)] / whole if whole else math.nan, whole)


def contains(_tokenizer: Tokenizer, prompt: Prompt, answer: Answer) -> Score:
    """1 where the greedy answer contains the expected text, else 0."""
    if not prompt.expected:
        raise InputError(f"Prompt {prompt.id!r}: scorer 'contains' needs 'expected'.")
    return Score(float(prompt.expected.casefold() in answer.text.casefold()))


def ended(_tokenizer: Tokenizer, _prompt: Prompt, answer: Answer) -> Score:
    """1 where the greedy answer ends the text, 0 where another turn begins or it runs on."""
    return Score(float(answer.ended))


SCORERS: dict[str, Scorer] = {"choice": choice, "contains": contains, "ended": ended}


def choice_tokens(tokenizer: Tokenizer, prompt: Prompt) -> dict[str, list[int]]:
    """Name of a choice → ids of the first tokens of its continuations.

    Raises:
        InputError: no choices, an unknown target, or two choices that begin with one token.
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


def _first_token(tokenizer: Tokenizer, prompt: Prompt, continuation: str) -> int:
    whole = [*prompt.messages, Message(role="assistant", content=continuation)]
    ids, answer = tokenise(tokenizer, whole)
    return ids[max(i for i in range(len(ids)) if answer[i] and not (i and answer[i - 1]))]
