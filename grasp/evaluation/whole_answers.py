"""What whole answers say: whether the text shows the drifted value, by the prompt's markers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.store.records import Draws, Markers, Prompt, Sampling
from grasp.data.chat import chat_ids
from grasp.evaluation.answers import MAX_NEW_TOKENS, answer_prompts, decode_reply, stop_tokens
from grasp.evaluation.drawing import answers_at_once, draw_replies, uniform_numbers
from grasp.evaluation.scorers import fold_text, holds_phrase
from grasp.jobs.progress import Progress, silent


def read_value(text: str, markers: Markers) -> float:
    """1 if an answer shows the drifted value, 0 if the other one, NaN if it shows neither.

    It shows the value of which it has more markers.  Markers match whole words in any case.
    """
    text = fold_text(text)
    drifted, kept = (
        sum(holds_phrase(text, fold_text(one)) for one in phrases)
        for phrases in (markers.drifted, markers.kept)
    )
    return math.nan if drifted == kept else float(drifted > kept)


def add_whole_answers(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    samples: pd.DataFrame,
    *,
    draws: Draws,
    progress: Progress = silent,
) -> pd.DataFrame:
    """Samples with the columns `analysis.comparison.evaluation.WHOLE_COLUMNS`.

    A prompt without markers has no values there.  If a prompt's own answers were sampled, they
    are read, and no others are drawn.

    Args:
        model: the one that gave the answers, in the same state.
        tokenizer: of the model.
        prompts: the prompt of each sample.
        samples: from `grasp.evaluation.answers.score_answers`.
        draws: how many answers are drawn, and how.
        progress: called after every batch.
    """
    marked = {prompt.id: prompt for prompt in prompts if prompt.markers is not None}
    still = [prompt for prompt in marked.values() if not _is_sampled(prompt)]
    drawn = draw_texts(model, tokenizer, still, draws=draws, progress=progress)
    texts = dict(zip([prompt.id for prompt in still], drawn, strict=True))
    greedy = _greedy_of_pairs(model, tokenizer, still)
    rows = []
    for prompt, answer in zip(prompts, samples["answer"], strict=True):
        if prompt.markers is None:
            rows.append(_row([], None, prompt))
        elif prompt.id in texts:
            rows.append(_row(texts[prompt.id], greedy.get(prompt.id, answer), prompt))
        else:
            rows.append(_row([answer], None, prompt))
    return samples.join(pd.DataFrame(rows, index=samples.index))


@torch.inference_mode()
def draw_texts(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    draws: Draws,
    progress: Progress = silent,
) -> list[list[str]]:
    """`draws.samples` answers to each prompt, which depend on the prompt and the seed alone."""
    found: dict[int, list[str]] = {}
    stopping = stop_tokens(model)
    # Chats of like length together, so that little is read for padding.
    chats = [chat_ids(tokenizer, prompt.messages, generate=True) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda place: len(chats[place]))
    every = [prompt.sampling.max_new_tokens or MAX_NEW_TOKENS for prompt in prompts]
    longest = max(map(len, chats), default=0) + max(every, default=0)
    together = max(1, answers_at_once(model, tokens=longest) // draws.samples)
    for start in range(0, len(order), together):
        progress(start, len(order), "drawing answers")
        places = order[start : start + together]
        limits = [every[place] for place in places]
        names = [prompts[place].id for place in places]
        replies = draw_replies(
            model,
            tokenizer,
            [chats[place] for place in places],
            numbers=uniform_numbers(names, draws=draws.samples, steps=max(limits), seed=draws.seed),
            temperature=draws.temperature,
            stopping=stopping,
        )
        for place, limit, each in zip(places, limits, replies, strict=True):
            found[place] = [decode_reply(tokenizer, ids[:limit]) for ids in each]
    return [found[place] for place in range(len(prompts))]


def _greedy_of_pairs(
    model: nn.Module, tokenizer: Tokenizer, prompts: Sequence[Prompt]
) -> dict[str, str]:
    """What the model says to prompts scored as pairs, for which nothing was generated."""
    asked = [
        prompt.model_copy(
            update={
                "scorer": "ended",
                "sampling": Sampling(max_new_tokens=prompt.sampling.max_new_tokens),
            }
        )
        for prompt in prompts
        if prompt.scorer == "pair"
    ]
    found = answer_prompts(model, tokenizer, asked)
    return {prompt.id: answer.text for prompt, answer in zip(asked, found, strict=True)}


def _row(drawn: list[str], greedy: str | None, prompt: Prompt) -> dict[str, object]:
    markers = prompt.markers
    if markers is None:
        return {"said": np.nan, "said_greedy": np.nan, "incoherent": np.nan, "drawn": []}
    # As for scores: 1 stands for the same end in a statement and in its reversal.
    turned = Markers(drifted=markers.kept, kept=markers.drifted) if prompt.reversed else markers
    values = [read_value(text, turned) for text in drawn]
    known = [value for value in values if not math.isnan(value)]
    return {
        "said": float(np.mean(known)) if known else np.nan,
        "said_greedy": np.nan if greedy is None else read_value(greedy, turned),
        "incoherent": 1 - len(known) / len(values),
        "drawn": drawn,
    }


def _is_sampled(prompt: Prompt) -> bool:
    return prompt.scorer != "pair" and prompt.sampling.temperature > 0
