"""Metrics of the difference between the sampler's distribution and the policy."""

from __future__ import annotations

from vantage.core.context import Context
from vantage.core.trajectories import Trajectories
from vantage.functions.divergences import k3
from vantage.functions.ratios import sampling_gap


def record_mismatch(batch: Trajectories, context: Context) -> None:
    """Record the difference between sampler and policy, over the decisions in the mask.

    `mismatch/logp` is the mean and `mismatch/max` the largest |logp_old - logp_sampling|; `mismatch/kl` is the estimate k3,
    mean(ratio - 1 - log ratio) with ratio = policy / sampler, of KL(sampler || policy): at least 0.
    """
    gap = sampling_gap(batch.logp_old, batch.get("logp_sampling"), batch.mask)
    count = batch.mask.sum().clamp(min=1)
    context.record("mismatch/logp", gap.abs().sum() / count)
    context.record("mismatch/kl", k3(gap).sum() / count)
    context.record("mismatch/max", gap.abs().max() if gap.numel() else 0.0)
