"""Importance weights of rows that were drawn from another distribution than the policy's: an inference engine, a truncated sampler.

An inference engine computes the same weights with other kernels, another precision or another order of sums, so that what
it draws from is not quite the policy that learns; a truncation (top-k, top-p, min-p) makes the gap larger.
"""

from __future__ import annotations

from typing import Annotated

import torch

from vantage.core import above, component
from vantage.core.context import Context
from vantage.core.trajectories import Trajectories
from vantage.functions.ratios import sampling_gap


@component
class TruncatedImportance:
    """Weigh each decision by min(policy / sampler, limit), [N, T]; no gradient.

    The weight multiplies the loss of the decision, the ratio of the objective stays that of the policy before and after the
    update. Without the limit a weighted mean over the sampler's decisions is the mean over the policy's, decision by
    decision; the limit bounds its variance at the price of a bias. An existing column `weight` is multiplied.
    Records the mean weight (`importance/weight`) and the share that the limit cut (`importance/truncated`).

    Source: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"; the truncation is
    that of Ionides 2008, "Truncated Importance Sampling".

    Attributes:
        limit: largest weight, above 0.
    """

    limit: Annotated[float, above(0)] = 2.0
    columns = frozenset({"logp_old"})

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Return the batch with `weight` [N, T]."""
        ratio = sampling_gap(batch.logp_old, batch.get("logp_sampling"), batch.mask).exp()
        weight = ratio.clamp(max=self.limit)
        count = batch.mask.sum().clamp(min=1)
        context.record("importance/weight", torch.where(batch.mask, weight, 0.0).sum() / count)
        context.record("importance/truncated", ((ratio > self.limit) & batch.mask).sum() / count)
        before = batch.get("weight")
        if before is not None:
            weight = weight * (before.unsqueeze(-1) if before.dim() == 1 else before)
        return batch.replace(weight=weight)
