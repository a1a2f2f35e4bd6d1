"""A penalty's own step beside the optimiser's, so that it does not slow what the loss teaches.

Adam divides each weight's gradient by √v, the running mean of its squares.  Where a penalty's
gradient is added to the loss's, v grows by the penalty's, and what the loss teaches slowly is not
learnt in the same steps any more.  So the optimiser is shown the loss's gradient alone, and after
each of its steps w follows the penalty's gradient g by

    w ← w − η m̂ / (√(v̂ + û) + ε)

with Adam's own η, ε and bias-corrected v̂, and m̂ and û the same running means of g and g² as Adam
keeps of the loss's gradient: as far as it would go were it added to the loss's.

Source: Kingma & Ba 2015, arXiv:1412.6980, for m̂ and v̂; decoupling from the loss's gradient as in
Loshchilov & Hutter 2019, arXiv:1711.05101.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn


@dataclass
class _Moments:
    """m, and u, of one weight."""

    first: Tensor
    second: Tensor


class OwnStep:
    """Collects a penalty's gradients between two steps of an optimiser, and follows them.

    With an optimiser that is not torch's Adam or AdamW, gradients are added to the loss's.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._moments: dict[int, _Moments] = {}
        self._gathered: dict[int, Tensor] = {}
        self._count = 0
        self._steps = 0

    @property
    def weights(self) -> list[nn.Parameter]:
        """All weights of the optimiser, in its order."""
        return [weight for group in self._optimizer.param_groups for weight in group["params"]]

    def take(self, penalty: Tensor) -> Tensor:
        """Go backward through `penalty`, keep the gradient, and return the value without a graph.

        The gradients that the weights hold already are left as they are.
        """
        weights = self.weights
        held = [weight.grad for weight in weights]
        for weight in weights:
            weight.grad = None
        try:
            # Not torch.autograd.grad, which re-entrant checkpointing does not support.
            penalty.backward()
            for number, weight in enumerate(weights):
                if weight.grad is not None:
                    kept = self._gathered.get(number)
                    self._gathered[number] = weight.grad if kept is None else kept + weight.grad
        finally:
            for weight, gradient in zip(weights, held, strict=True):
                weight.grad = gradient
        self._count += 1
        return penalty.detach()

    def skip(self) -> None:
        """Count a batch without a penalty."""
        self._count += 1

    @torch.no_grad()
    def before(self) -> None:
        """Before a step of the optimiser: give it the gradients, unless it is Adam."""
        if not self._is_adam():
            weights = self.weights
            for number, mean in self._means().items():
                held = weights[number].grad
                weights[number].grad = mean if held is None else held + mean

    @torch.no_grad()
    def after(self) -> None:
        """After a step of the optimiser: the penalty's own."""
        means = self._means()
        if not means:
            return
        self._steps += 1
        number = 0
        for group in self._optimizer.param_groups:
            for weight in group["params"]:
                if number in means:
                    self._follow(number, weight, means[number], group)
                number += 1

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: the moments of each weight by its number, and the steps."""
        found = {"steps": torch.tensor(self._steps)}
        for number, moments in self._moments.items():
            found |= {f"{number}.first": moments.first, f"{number}.second": moments.second}
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state`."""
        weights = self.weights
        self._steps = int(state["steps"])
        for name, moment in state.items():
            number, _, kind = name.partition(".")
            if kind == "first":
                at = weights[int(number)].device
                second = state[f"{number}.second"].to(at)
                self._moments[int(number)] = _Moments(moment.to(at), second)

    def _follow(self, number: int, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self._optimizer.state[weight]
        (first, second), rate, least = group["betas"], group["lr"], group["eps"]
        moments = self._moments.setdefault(
            number, _Moments(torch.zeros_like(weight), torch.zeros_like(weight))
        )
        moments.first.lerp_(gradient, 1 - first)
        moments.second.lerp_(gradient.square(), 1 - second)
        # Adam has no state of a weight that never had a gradient of the loss.
        of_loss = state["exp_avg_sq"] / (1 - second ** float(state["step"])) if state else 0
        own = moments.second / (1 - second**self._steps)
        scale = (of_loss + own).sqrt() + least
        weight.addcdiv_(moments.first / (1 - first**self._steps), scale, value=-float(rate))

    def _is_adam(self) -> bool:
        return isinstance(self._optimizer, torch.optim.Adam)  # AdamW is one

    def _means(self) -> dict[int, Tensor]:
        """Mean gradients over the batches since the last step, and over processes; then none.

        Nothing else would keep the processes' weights the same, since DistributedDataParallel sees
        the loss's gradient alone.
        """
        several = distributed.is_available() and distributed.is_initialized()
        processes = distributed.get_world_size() if several else 1
        means = {n: self._gathered[n] / (self._count * processes) for n in sorted(self._gathered)}
        if processes > 1:
            for mean in means.values():
                distributed.all_reduce(mean)
        self._gathered.clear()
        self._count = 0
        return means
