"""Regression of the probability ratio onto a target, instead of clipping it. arXiv 2604.18578."""

from __future__ import annotations

import torch
from torch import Tensor

from vantage.core.context import Context
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.functions.ratios import log_ratio
from vantage.objectives.surrogates import record_ratio


def ratio_regression(
    evaluation: Evaluation,
    batch: Trajectories,
    target: Tensor,
    weight: Tensor,
    width: float,
    context: Context,
    noise: float = 0.0,
) -> Tensor:
    """Return |(ratio - target) * weight| [N, T]; gradient flows through the ratio alone. The log-ratio is bounded at +-20.

    Args:
        evaluation: holds `logp` [N, T].
        batch: holds `logp_old` [N, T].
        target: ratio aimed at, broadcasts to [N, T]; no gradient.
        weight: of each decision, broadcasts to [N, T]; no gradient.
        width: `ratio/outside` records the share of ratios beyond 1 +- width.
        context: for the metrics.
        noise: a log-ratio of magnitude below this counts as 0; its gradient stays.
    """
    log = log_ratio(evaluation.logp, batch.logp_old, batch.mask)
    if noise:
        # Where the target is 1, the gradient's sign would otherwise be that of a rounding error, and its size full.
        log = log - torch.where(log.abs() < noise, log, 0.0).detach()
    ratio = log.exp()
    with torch.no_grad():
        context.record_mean("ratio/outside", ((ratio - 1).abs() > width).float(), batch.mask)
    record_ratio(log, batch.mask, context)
    return ((ratio - target) * weight).abs()
