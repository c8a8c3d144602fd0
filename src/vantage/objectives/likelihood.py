"""Losses that imitate: the likelihood of given decisions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vantage.core.context import Context
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.functions.whitening import masked_mean


@dataclass(frozen=True)
class NegativeLogLikelihood:
    """-logp of the given decisions: supervised fine-tuning, behaviour cloning. Gradient flows through `logp`."""

    wants = frozenset({"logp"})

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per decision [N, T]."""
        context.record("perplexity", masked_mean(-evaluation.logp.detach(), batch.mask).exp())
        return -evaluation.logp


@dataclass(frozen=True)
class NoCredit:
    """Advantage for methods that give none: zeros [N, T]."""

    def __call__(self, batch: Trajectories, context: Context) -> Tensor:
        """Return zeros."""
        return torch.zeros(batch.mask.shape, device=batch.device)
