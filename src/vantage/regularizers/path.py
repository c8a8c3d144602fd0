"""Divergence between two samplers of normal steps."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from vantage.core import at_least, component
from vantage.core.context import Context
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories


@component
class PathKL:
    """coefficient * KL(policy || reference) of each step, exact: two normals of one standard deviation s.

        |mu - mu_ref|^2 / (2 s^2), averaged over the sample's dimensions

    Gradient flows through mu. The reference is evaluated in the loss; its means are not stored. Steps without noise count 0.

    Attributes:
        coefficient: beta, at least 0.
        by_length: times the length -dt of the step, which leaves 2 sigma^2 below, s^2 = sigma^2 (-dt).
    """

    coefficient: Annotated[float, at_least(0)] = 0.04
    by_length: bool = False
    wants = frozenset({"mean"})
    policies = frozenset({"reference"})
    label = "kl"

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the term per decision [N, T]."""
        seen = batch.observation
        reference = context.evaluate(batch, "mean", context.named("reference"), lambda found, _: found.extras["mean"])
        length = seen["time"] - seen["next_time"]
        variance = seen["sigma"].square() * length
        noisy = variance > 0
        size = math.prod(reference.shape[2:])
        squares = (evaluation.extras["mean"] - reference).square().flatten(2).sum(-1)
        kl = torch.where(noisy, squares / (2 * size * torch.where(noisy, variance, 1.0)), 0.0)
        kl = kl * length if self.by_length else kl
        context.record_mean("kl/reference", kl, batch.mask)
        return self.coefficient * kl
