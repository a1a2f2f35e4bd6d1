"""The task's own tokens: what the base model makes of each training batch.

The adapted side comes from the loss's own forward pass, by hooks; there is no second one.  The
base's coordinates, a few numbers a token, are kept from the first epoch on; see
`grasp.guard.coordinate_cache`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

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

_NO_INPUT = ("labels", "use_cache", "num_items_in_batch", "return_dict", "logits_to_keep")


class TaskText:
    """Watches the forward passes of training, and says how far they are from the base model's.

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
        self._watching = False
        self._real = self._chosen = torch.empty(0)
        self._reference: list[Tensor] = []
        self._outputs: dict[int, Tensor] = {}
        self._logits: tuple[Tensor, Tensor] | None = None

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
            if logits:
                stack.callback(plain.register_forward_hook(self._keep_logits).remove)
            if clamped:
                stack.enter_context(edited_outputs(self._model, self._clamp(clamped)))
            if coordinates:
                stack.enter_context(edited_outputs(self._model, self._keep_output))
            stack.callback(self.forget)
            yield

    def drift_squared(self, scale: Sequence[Tensor]) -> Tensor | None:
        """Mean over the site's tokens of ‖Λ_ℓ^(−1/2)(c_ℓ − c⁰_ℓ)‖² / k_ℓ: (layers,).

        Of the last forward pass, and part of its graph; None where there was none.  `scale` are
        the diagonals of Λ_ℓ, (k_ℓ,) each.
        """
        if len(self._outputs) < len(self._bases) or not self._chosen.any():
            return None
        inside = self._chosen[self._real]
        by_layer = []
        for layer, basis in enumerate(self._bases):
            now = coordinates(self._outputs[layer], basis, self._chosen)
            moved = now - self._reference[layer][inside]
            by_layer.append((moved.square() / scale[layer]).mean())
        return torch.stack(by_layer)

    def divergence(self) -> Tensor | None:
        """KL(base ‖ adapted) at the site's tokens of the last forward pass; None without one."""
        if self._logits is None or not self._chosen.any():
            return None
        return divergence(*self._logits, self._chosen)

    def forget(self) -> None:
        """Let the last forward pass go."""
        self._outputs, self._reference, self._logits = {}, [], None
        self._watching = False

    def _before(self, *, coordinates: bool, logits: bool) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[object, ...], given: Json) -> None:
            if is_measuring():
                return
            self.forget()
            if not torch.is_grad_enabled():
                return
            inputs = {k: v for k, v in given.items() if v is not None and k not in _NO_INPUT}
            if args or "input_ids" not in inputs:
                raise InputError("The model was called without input_ids by name; pass them so.")
            self._real, self._chosen = _masks(inputs, given.get("labels"), self._site)
            # Under the autocast of this very pass, so made anew.
            forward = Forward(self._model)
            if coordinates:
                self._reference = self._base_coordinates(forward, inputs)
            if logits:
                with torch.no_grad(), without_adapter(self._model):
                    base = forward.logits(inputs)
                self._logits = (base, base)
            self._watching = True

        return hook

    def _base_coordinates(self, forward: Forward, inputs: Batch) -> list[Tensor]:
        """c⁰_ℓ (real tokens, k_ℓ) of every layer, for all rows at once."""
        keys = row_keys(inputs, self._real)
        if keys is None:
            every = self._computed(forward, inputs, self._real)
        else:
            found = self._kept.get(keys)
            missing = [row for row, known in enumerate(found) if known is None]
            if missing:
                some, real = _rows(inputs, missing, of=len(keys)), self._real[missing]
                parts = torch.split(self._computed(forward, some, real), real.sum(dim=1).tolist())
                for row, part in zip(missing, parts, strict=True):
                    found[row] = part
                    self._kept.keep(keys[row], part)
            every = torch.cat([part.to(self._real.device) for part in found if part is not None])
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
            if is_measuring() or not self._watching:
                return hidden
            basis = self._bases[layer]
            with without_autocast(hidden.device):
                now = hidden.float() @ basis
                moved = torch.zeros_like(now)
                moved[self._real] = now[self._real] - self._reference[layer]
                return (hidden.float() - share * moved @ basis.T).to(hidden.dtype)

        return edit

    def _keep_output(self, layer: int, hidden: Tensor) -> Tensor:
        if self._watching and not is_measuring():
            self._outputs[layer] = hidden
        return hidden

    def _keep_logits(self, _module: nn.Module, _args: object, output: WithLogits) -> None:
        if self._watching and not is_measuring() and self._logits is not None:
            self._logits = (self._logits[0], output.logits)


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
