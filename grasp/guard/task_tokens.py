"""The task's own tokens: what the base model makes of each training batch.

The adapted side comes from the loss's own forward passes, by hooks; a second one is taken only of
logits, where the loss keeps none.  The base's coordinates, a few numbers a token, are kept from the
first epoch on; see `grasp.guard.coordinate_cache`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from peft import PeftModel
from torch import Tensor, nn

from analysis.errors import InputError
from analysis.values import Json
from grasp.data.sites import START
from grasp.guard.coordinate_cache import KeptRows, row_keys
from grasp.guard.divergence import divergence
from grasp.model.coordinates import coordinates
from grasp.model.forward import Batch, Forward, is_measuring, without_adapter
from grasp.model.hooks import edited_outputs, without_autocast
from grasp.model.parts import WithLogits
from grasp.settings.protection import Site

IGNORED = -100
"""Label of a token that the loss leaves out (PyTorch's cross entropy)."""

_NO_INPUT = (
    "labels",
    "shift_labels",
    "use_cache",
    "num_items_in_batch",
    "return_dict",
    "logits_to_keep",
    "fused_lm_head",  # TRL's, which gives probabilities of the labels in place of logits
    "output_router_logits",
)


@dataclass(eq=False)
class _Pass:
    """One forward pass of the loss, beside the base model's of the same tokens.

    `real` and `chosen` (batch, tokens) of bool are the tokens but for padding, and those of the
    site; `reference` is c⁰_ℓ (real tokens, k_ℓ) of every layer and `outputs` h_ℓ.  `base` and
    `logits` are (batch, tokens, vocabulary); `logits` is None where the loss keeps none.
    """

    inputs: Batch
    real: Tensor
    chosen: Tensor
    forward: Forward
    reference: list[Tensor] = field(default_factory=list)
    outputs: dict[int, Tensor] = field(default_factory=dict)
    base: Tensor | None = None
    logits: Tensor | None = None


class TaskText:
    """Watches the forward passes of training, and says how far they are from the base model's.

    A loss may take several passes with gradients, all of which count, and others without, none of
    which does.

    Args:
        model: base model with an adapter that can be disabled.
        bases: Q_ℓ (d_model, k_ℓ), one for each decoder layer; none where only logits are compared.
        site: the tokens at which they are compared.
    """

    def __init__(self, model: PeftModel, bases: Sequence[Tensor], *, site: Site) -> None:
        self._model = model
        self._bases = bases
        self._site: Site = site
        self._widths = [basis.shape[1] for basis in bases]
        self._kept = KeptRows()
        self._labels: Tensor | None = None
        self._passes: list[_Pass] = []
        self._now: _Pass | None = None
        self._keeping = False
        self._paused = False

    @contextmanager
    def watch(self, *, coordinates: bool, logits: bool, clamped: float = 0.0) -> Iterator[None]:
        """Follow forward passes that take gradients.

        Args:
            coordinates: keep c_ℓ beside the base's.
            logits: keep the logits beside the base's.
            clamped: share of c_ℓ − c⁰_ℓ that is taken away at every layer's output.
        """
        plain = self._model.get_base_model()
        before = self._before(coordinates=coordinates or clamped > 0, logits=logits)
        with ExitStack() as stack:
            handle = plain.register_forward_pre_hook(before, with_kwargs=True)
            stack.callback(handle.remove)
            stack.callback(plain.register_forward_hook(self._after, always_call=True).remove)
            if clamped:
                stack.enter_context(edited_outputs(self._model, self._clamp(clamped)))
            if coordinates:
                stack.enter_context(edited_outputs(self._model, self._keep_output))
            stack.callback(self.forget)
            yield

    def label(self, labels: Tensor | None) -> None:
        """Say where the answers of the next loss are, for a trainer that keeps that from the model.

        Labels that a pass is given itself count before these.
        """
        self._labels = labels

    def take(self) -> list[_Pass]:
        """The passes with gradients since the last call, or since a step; each counts once.

        Raises:
            InputError: there was none.
        """
        taken, self._passes, self._keeping = self._passes, [], False
        if not taken:
            raise InputError(
                "The protection looks at the loss's own forward pass, and there was none to be "
                "seen: the loss runs parts of the model by themselves, or took no gradients. Use a "
                "loss that calls the model (with TRL: use_liger_kernel=False), or a protection on "
                "neutral text, such as the method grasp."
            )
        return taken

    def drift_squared(self, scale: Sequence[Tensor]) -> Tensor | None:
        """Mean over the site's tokens of ‖Λ_ℓ^(−1/2)(c_ℓ − c⁰_ℓ)‖² / k_ℓ: (layers,).

        Of the passes that `take` gives, and part of their graph; None without a token of the site.
        `scale` are the diagonals of Λ_ℓ, (k_ℓ,) each.

        Raises:
            InputError: as `take`.
        """
        taken = [one for one in self.take() if one.chosen.any()]
        if not taken:
            return None
        by_layer = []
        for layer, basis in enumerate(self._bases):
            moved = [
                coordinates(one.outputs[layer], basis, one.chosen)
                - one.reference[layer][one.chosen[one.real]]
                for one in taken
            ]
            by_layer.append((torch.cat(moved).square() / scale[layer]).mean())
        return torch.stack(by_layer)

    def divergence(self) -> Tensor | None:
        """KL(base ‖ adapted) at the site's tokens of what `take` gives; None without any.

        Where the loss kept no logits, they are computed here.

        Raises:
            InputError: as `take`.
        """
        taken = [one for one in self.take() if one.chosen.any()]
        if not taken:
            return None
        found, counts = [], []
        for one in taken:
            assert one.base is not None
            whole = one.logits is not None and one.logits.shape == one.base.shape
            logits = one.logits if whole else one.forward.logits(one.inputs)
            assert logits is not None
            found.append(divergence(one.base, logits, one.chosen))
            counts.append(one.chosen.sum())
        weights = torch.stack(counts).to(found[0])
        return (torch.stack(found) * weights).sum() / weights.sum()

    def forget(self) -> None:
        """Let all forward passes go."""
        self._passes, self._now, self._labels = [], None, None
        self._keeping = self._paused = False

    def _before(self, *, coordinates: bool, logits: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[object, ...], given: Json) -> None:
            if is_measuring():
                return
            self._paused = not torch.is_grad_enabled()
            if self._paused:
                return
            named = inspect.signature(module.forward).parameters
            given = dict(zip(named, args, strict=False)) | given
            inputs = {k: v for k, v in given.items() if v is not None and k not in _NO_INPUT}
            if "input_ids" not in inputs:
                raise InputError(
                    "The model was called without input_ids, so its tokens cannot be given to the "
                    "base model; pass token ids, not embeddings."
                )
            real, chosen = _masks(inputs, self._answers(given, inputs), self._site)
            # Under the autocast of this very pass, so made anew.
            one = _Pass(inputs, real, chosen, Forward(self._model))
            if coordinates:
                one.reference = self._base_coordinates(one)
            if logits:
                with torch.no_grad(), without_adapter(self._model):
                    one.base = one.forward.logits(inputs)
            self._now, self._keeping = one, True

        return hook

    def _after(self, _module: nn.Module, _args: object, output: WithLogits | None) -> None:
        """Count the pass that has ended; `output` is None where it failed."""
        if is_measuring():
            return
        if self._now is not None and not self._paused and output is not None:
            self._now.logits = getattr(output, "logits", None)
            self._passes.append(self._now)
        self._paused = False

    def _answers(self, given: Json, inputs: Batch) -> Tensor | None:
        """The labels of a pass, which say where its answers are.

        Raises:
            InputError: the site is at the answers, and there are none.
        """
        ids = inputs["input_ids"]
        for labels in (given.get("labels"), self._labels):
            if isinstance(labels, Tensor) and labels.shape == ids.shape:
                return labels
        if self._site != "all":
            raise InputError(
                f"The protection looks at the site {self._site!r} of the task's tokens, and the "
                "loss gives the model no labels, which say where the answers are; use "
                "`site: all`, or a loss that passes labels."
            )
        return None

    def _base_coordinates(self, one: _Pass) -> list[Tensor]:
        """c⁰_ℓ (real tokens, k_ℓ) of every layer, for all rows at once."""
        keys = row_keys(one.inputs, one.real)
        if keys is None:
            every = self._computed(one.forward, one.inputs, one.real)
        else:
            found = self._kept.get(keys)
            missing = [row for row, known in enumerate(found) if known is None]
            if missing:
                some, real = _rows(one.inputs, missing, of=len(keys)), one.real[missing]
                parts = torch.split(
                    self._computed(one.forward, some, real), real.sum(dim=1).tolist()
                )
                for row, part in zip(missing, parts, strict=True):
                    found[row] = part
                    self._kept.keep(keys[row], part)
            every = torch.cat([part.to(one.real.device) for part in found if part is not None])
        return list(torch.split(every, self._widths, dim=1))

    @torch.no_grad()
    def _computed(self, forward: Forward, inputs: Batch, real: Tensor) -> Tensor:
        """c⁰ (tokens of `real`, Σ k_ℓ) as the base model has it now."""
        with without_adapter(self._model):
            outputs = forward.residual_stream(inputs)
        found = [coordinates(h, q, real) for h, q in zip(outputs, self._bases, strict=True)]
        return torch.cat(found, dim=-1)

    def _clamp(self, share: float) -> Callable[[int, Tensor], Tensor]:
        def edit(layer: int, hidden: Tensor) -> Tensor:
            one = self._now
            if is_measuring() or self._paused or one is None:
                return hidden
            basis = self._bases[layer]
            with without_autocast(hidden.device):
                now = hidden.float() @ basis
                moved = torch.zeros_like(now)
                moved[one.real] = now[one.real] - one.reference[layer]
                return (hidden.float() - share * moved @ basis.T).to(hidden.dtype)

        return edit

    def _keep_output(self, layer: int, hidden: Tensor) -> Tensor:
        one = self._now
        if one is not None and self._keeping and not self._paused and not is_measuring():
            one.outputs[layer] = hidden
        return hidden


def _rows(inputs: Batch, rows: list[int], *, of: int) -> Batch:
    """Some rows of every input that has one for each of `of` rows."""
    whole = list(range(of)) == rows
    return {
        name: value[rows] if isinstance(value, Tensor) and len(value) == of and not whole else value
        for name, value in inputs.items()
    }


def _masks(inputs: Batch, labels: Tensor | None, site: Site) -> tuple[Tensor, Tensor]:
    """Real tokens (batch, tokens) of bool, and those of the site; labels say where answers are."""
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    # Masks of more dimensions say who attends to whom, and nothing of padding.
    real = torch.ones_like(ids).bool() if mask is None or mask.dim() != 2 else mask.bool()
    if labels is None or site == "all":
        return real, real
    answer = labels != IGNORED
    before = _shifted(answer, -1) & ~answer
    reached = before | answer
    started = before.clone()
    for tokens in range(1, START + 1):
        started |= _shifted(before, tokens)
    chosen = {"prompt-end": before, "answer-start": started & reached, "answer": reached}
    return real, real & chosen[site]


def _shifted(mask: Tensor, by: int) -> Tensor:
    """A mask (batch, tokens) moved `by` tokens to the right, False where nothing comes in."""
    moved = torch.zeros_like(mask)
    if by > 0:
        moved[:, by:] = mask[:, :-by]
    else:
        moved[:, :by] = mask[:, -by:]
    return moved
