"""What a factor does in the model: effects of setting it back, and the tokens it writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from analysis.projection import top_tokens
from analysis.records import Prompt
from grasp.data import padded
from grasp.evaluate import BATCH, chat_ids, generate, stop_tokens
from grasp.hooks import clamp, edited_outputs, layer_outputs
from grasp.models import device_of
from grasp.progress import Progress, silent


@torch.inference_mode()
def set_back_effects(
    model: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    directions: NDArray[np.floating],
    *,
    progress: Progress = silent,
) -> NDArray[np.float64]:
    """How much of the fine-tune's change in its own answers each factor carries.

    For the adapted model's greedy answer, token by token: with p the adapted model's
    distribution, p⁰ the base's, and p_q the adapted one's with the coordinate along q set back
    to the base's at every layer, let d = TV(p, p⁰) and d_q = TV(p, p_q), total variation
    distances.  The effect is Σ d d_q / Σ d² over answer tokens and prompts: the slope of d_q
    on d, so that the tokens count at which fine-tuning changed what is said.

    Args:
        model: PeftModel.
        tokenizer: of the base model.
        prompts: chats; neither choices nor expected answers are looked at.
        directions: (k, d_model) unit rows.
        progress: called for every batch and factor.

    Returns:
        (k,) effects: 0 changes nothing, 1 as much as taking the whole adapter away.
    """
    moved, whole = np.zeros(len(directions)), 0.0
    batches = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
    total = len(batches) * len(directions)
    for number, chunk in enumerate(batches):
        batch, answer = _answered(model, tokenizer, chunk)
        adapted = _probabilities(model, batch, answer)
        with model.disable_adapter(), layer_outputs(model) as reference:
            changed = _distances(adapted, _probabilities(model, batch, answer))
        whole += float(changed.square().sum())
        reference = list(reference)
        for k, direction in enumerate(directions):
            progress(number * len(directions) + k, total, "setting factors back")
            q = torch.as_tensor(direction, dtype=torch.float32, device=device_of(model))
            with edited_outputs(model, clamp(q[:, None], reference)):
                back = _distances(adapted, _probabilities(model, batch, answer))
            moved[k] += float((changed * back).sum())
    progress(total, total, "setting factors back")
    return moved / whole if whole > 0 else np.full(len(directions), np.nan)


def promoted_tokens(
    model: Any, tokenizer: Tokenizer, directions: NDArray[np.floating], *, n: int = 10
) -> tuple[list[list[str]], list[list[str]]]:
    """Tokens whose logits a step along, and against, each direction (k, d_model) raises most.

    `analysis.projection.top_tokens` through the base model's final norm and unembedding.
    """
    base = model.get_base_model()
    norm = getattr(_final_norm(base), "weight", None)
    found = top_tokens(
        directions,
        _array(base.get_output_embeddings().weight),
        n=n,
        gain=None if norm is None else _array(norm),
    )
    return _words(tokenizer, found.promoted), _words(tokenizer, found.suppressed)


def _array(weight: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = weight.detach().float().cpu().numpy()
    return array


def _words(tokenizer: Tokenizer, ids: NDArray[np.intp]) -> list[list[str]]:
    return [[tokenizer.decode([token]) for token in row] for row in ids.tolist()]


def _final_norm(base: Any) -> Any:
    for owner in (getattr(base, "model", None), getattr(base, "transformer", None)):
        for name in ("norm", "ln_f", "final_layer_norm"):
            if hasattr(owner, name):
                return getattr(owner, name)
    return None


def _answered(
    model: Any, tokenizer: Tokenizer, prompts: Sequence[Prompt]
) -> tuple[dict[str, Tensor], Tensor]:
    """Prompts with the adapted model's greedy answers, and where a word of them is predicted.

    The token that ends an answer is left out: what is measured is what is said, not whether
    another turn follows, which a fine-tune on single turns changes everywhere.
    """
    chats = [chat_ids(tokenizer, prompt.messages) for prompt in prompts]
    replies, _ = generate(model, tokenizer, chats)
    whole = [chat + reply for chat, reply in zip(chats, replies, strict=True)]
    batch = {k: v.to(device_of(model)) for k, v in padded(tokenizer, whole).items()}
    answer = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    stopping = stop_tokens(model)
    for row, (chat, reply) in enumerate(zip(chats, replies, strict=True)):
        ended = bool(reply) and reply[-1] in stopping
        answer[row, len(chat) - 1 : len(chat) - 1 + len(reply) - ended] = True
    return batch, answer


def _probabilities(model: Any, batch: dict[str, Tensor], answer: Tensor) -> Tensor:
    return torch.softmax(model(**batch, use_cache=False).logits[answer].float(), dim=-1)


def _distances(p: Tensor, q: Tensor) -> Tensor:
    """Total variation of each row (tokens,)."""
    return 0.5 * (p - q).abs().sum(dim=-1)
