"""Losses that imitate: the likelihood of given decisions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vantage.core.context import Context
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories


@dataclass(frozen=True)
class NegativeLogLikelihood:
    """-logp of the given decisions: supervised fine-tuning, behaviour cloning. Gradient flows through `logp`."""

    wants = frozenset({"logp"})

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per decision [N, T]."""
        context.record_mean("cross_entropy", -evaluation.logp, batch.mask)
        context.derive("perplexity", perplexity, "cross_entropy")
        return -evaluation.logp


def perplexity(cross_entropy: float) -> float:
    """Return exp of a mean cross-entropy in nats a decision, infinite above 700."""
    return math.inf if cross_entropy > 700 else math.exp(cross_entropy)


@dataclass(frozen=True)
class NoCredit:
    """Advantage for methods without one: zeros [N, T]."""

    def __call__(self, batch: Trajectories, context: Context) -> Tensor:
        """Return zeros."""
        return torch.zeros(batch.mask.shape, device=batch.device)
