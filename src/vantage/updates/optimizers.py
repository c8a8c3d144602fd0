"""Optimisers and learning-rate schedules as settings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated

import torch

from vantage.core import above, at_least, below, between, component


@component
class Adam:
    """Adam (arXiv 1412.6980), with decoupled weight decay where it is not 0 (AdamW, arXiv 1711.05101).

    Attributes:
        lr: learning rate, above 0.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled, at least 0.
    """

    lr: Annotated[float, above(0)] = 3e-4
    betas: tuple[Annotated[float, at_least(0), below(1)], Annotated[float, at_least(0), below(1)]] = (0.9, 0.999)
    eps: Annotated[float, at_least(0)] = 1e-8
    weight_decay: Annotated[float, at_least(0)] = 0.0

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimiser of these parameters; fused kernels, one launch for all."""
        kind = torch.optim.AdamW if self.weight_decay else torch.optim.Adam
        return kind(
            list(parameters), lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=True
        )


@component
class CoupledAdam:
    """Adam whose weight decay is added to the gradient (L2), as in torch's `Adam`; the `Adam` of this module decouples it."""

    lr: Annotated[float, above(0)]
    weight_decay: Annotated[float, at_least(0)] = 0.0

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimiser of these parameters."""
        return torch.optim.Adam(list(parameters), lr=self.lr, weight_decay=self.weight_decay)


@component
class SGD:
    """Stochastic gradient descent, with momentum where it is not 0."""

    lr: Annotated[float, above(0)] = 1e-2
    momentum: Annotated[float, at_least(0)] = 0.0
    weight_decay: Annotated[float, at_least(0)] = 0.0

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimiser of these parameters."""
        return torch.optim.SGD(list(parameters), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


@component
class RMSprop:
    """RMSprop (Tieleman and Hinton 2012): the gradient over the root of its running mean square."""

    lr: Annotated[float, above(0)] = 7e-4
    alpha: Annotated[float, between(0, 1)] = 0.99
    eps: Annotated[float, at_least(0)] = 1e-5

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimiser of these parameters."""
        return torch.optim.RMSprop(list(parameters), lr=self.lr, alpha=self.alpha, eps=self.eps)


@component
class Constant:
    """Constant learning rate, after an optional linear warm-up over `warmup` (share of the run, 0 to 1)."""

    warmup: Annotated[float, between(0, 1)] = 0.0

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the factor on the learning rate in the step after `step` steps of `total_steps`."""
        return _warm(step, total_steps, self.warmup)


@component
class Linear:
    """Learning rate that falls linearly to `final` times its value at the end of the run."""

    final: Annotated[float, at_least(0)] = 0.0
    warmup: Annotated[float, between(0, 1)] = 0.0

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the factor."""
        return _warm(step, total_steps, self.warmup) * (1 - (1 - self.final) * step / total_steps)


@component
class Cosine:
    """Learning rate that falls along half a cosine to `final` times its value at the end, with an optional linear warm-up.

    Attributes:
        final: share of the rate at the end, at least 0.
        warmup: share of the run over which the rate rises, 0 to 1.
        after: the cosine begins where the warm-up ends, at the full rate, as in transformers'
            `get_cosine_schedule_with_warmup`. Otherwise it spans the whole run and the warm-up is a factor on it, so that the rate
            has begun to fall before it is reached: the start models of the arenas were trained so.
    """

    final: Annotated[float, at_least(0)] = 0.0
    warmup: Annotated[float, between(0, 1)] = 0.0
    after: bool = False

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the factor."""
        start = self.warmup * total_steps if self.after else 0.0
        gone, whole = max(step - start, 0.0), total_steps - start
        wave = 0.5 * (1 + math.cos(math.pi * gone / whole)) if whole > 0 else 1.0
        return _warm(step, total_steps, self.warmup) * (self.final + (1 - self.final) * wave)


def _warm(step: int, total_steps: int, warmup: float) -> float:
    # The first step is not lost: it has 1 / (warm-up steps) of the rate, not 0.
    return min(1.0, (step + 1) / (warmup * total_steps)) if warmup > 0 else 1.0
