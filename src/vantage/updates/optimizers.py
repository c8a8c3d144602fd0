"""Optimisers and learning-rate schedules as settings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated

import torch

from vantage.core import above, at_least, at_most, below, between, component


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
        return torch.optim.Adam(list(parameters), lr=self.lr, weight_decay=self.weight_decay, fused=True)


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


_Warmup = Annotated[float, at_least(0)]


@component
class Constant:
    """Constant learning rate, after an optional linear warm-up.

    Attributes:
        warmup: steps over which the rate rises from 1 / warmup of its value; below 1 it is the share of the run.
    """

    warmup: _Warmup = 0.0

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the factor on the learning rate in the step after `step` steps of `total_steps`."""
        return min(1.0, (step + 1) / start) if (start := _warm(self.warmup, total_steps)) else 1.0


@component
class Drop:
    """Constant learning rate, `factor` times it from the share `after` of the run on.

    Attributes:
        after: share of the run, from 0 to 1.
        factor: at least 0.
    """

    after: Annotated[float, at_least(0), at_most(1)] = 0.5
    factor: Annotated[float, at_least(0)] = 0.1

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the factor on the learning rate."""
        return self.factor if step >= self.after * total_steps else 1.0


@component
class Linear:
    """Learning rate that falls linearly to `final` times its value at the end of the run, from the end of the warm-up on.

    As transformers' `get_linear_schedule_with_warmup`, but the first step has 1 / warmup of the rate, not 0.

    Attributes:
        final: share of the rate at the end, at least 0.
        warmup: as in `Constant`.
    """

    final: Annotated[float, at_least(0)] = 0.0
    warmup: _Warmup = 0.0

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the factor."""
        gone = _gone(step, total_steps, _warm(self.warmup, total_steps))
        return Constant(self.warmup)(step, total_steps) * (1 - (1 - self.final) * gone)


@component
class Cosine:
    """Learning rate that falls along half a cosine to `final` times its value at the end, with an optional linear warm-up.

    Attributes:
        final: share of the rate at the end, at least 0.
        warmup: as in `Constant`.
        after: the cosine begins where the warm-up ends, at the full rate, as in transformers'
            `get_cosine_schedule_with_warmup`. Otherwise it spans the whole run and the warm-up is a factor on it, so that the rate
            has begun to fall before it is reached: the start models of the arenas were trained so.
    """

    final: Annotated[float, at_least(0)] = 0.0
    warmup: _Warmup = 0.0
    after: bool = False

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the factor."""
        gone = _gone(step, total_steps, _warm(self.warmup, total_steps) if self.after else 0.0)
        wave = 0.5 * (1 + math.cos(math.pi * gone))
        return Constant(self.warmup)(step, total_steps) * (self.final + (1 - self.final) * wave)


def schedule(kind: str, warmup: float = 0.0) -> Constant | Linear | Cosine:
    """Return the schedule of this name, "constant", "linear" (to 0) or "cosine" (to 0), after a warm-up as in `Constant`."""
    if kind == "cosine":
        return Cosine(warmup=warmup, after=True)
    return Linear(warmup=warmup) if kind == "linear" else Constant(warmup)


def _warm(warmup: float, total_steps: int) -> float:
    """Return the length of a warm-up in steps."""
    return warmup if warmup >= 1 else warmup * total_steps


def _gone(step: int, total_steps: int, start: float) -> float:
    """Return the share of the run from `start` on that is over, 0 before it."""
    return max(step - start, 0.0) / (total_steps - start) if total_steps > start else 0.0
