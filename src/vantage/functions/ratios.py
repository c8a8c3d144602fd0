"""Importance ratios from log-probabilities, bounded in one place.

The bounds are verl's (`core_algos.compute_policy_loss_*`): without them a log-ratio of 90 overflows float32, and the infinite ratio
that a clip hides from the loss still makes its gradient NaN.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vantage.core.errors import UserError
from vantage.functions.checks import checked

Level = Literal["token", "sequence", "product"]
LIMIT = 20.0
"""Bound of |log ratio| of a decision, and of a row's product."""
SEQUENCE_LIMIT = 10.0
"""Upper bound of a row's mean log-ratio (GSPO)."""


def bounded(log: Tensor, limit: float = LIMIT) -> Tensor:
    """Return a log-ratio cut to [-limit, limit], any shape; beyond the bounds it carries no gradient."""
    return log.clamp(-limit, limit)


@checked(logp="float N T", logp_old="float N T", mask="bool N T")
def log_ratio(logp: Tensor, logp_old: Tensor, mask: Tensor, level: str = "token") -> Tensor:
    """Return the bounded log of the importance ratio, [N, T] or [N, 1]; padding has ratio 1. Gradient through both.

    Args:
        logp: log-probability of the decisions under the policy, [N, T].
        logp_old: under the policy that acted, [N, T].
        mask: [N, T].
        level: "token" each decision's own, within [-20, 20]; "sequence" the mean over the row, at most 10 (GSPO, arXiv
            2507.18071, eq. 7: the ratio of the row to the power 1 / length); "product" the sum over the row, within
            [-20, 20] (the row's true ratio).

    Raises:
        UserError: the level is not known.
    """
    # Padding becomes ratio 1, so that its values can neither overflow nor bring NaN into the gradient.
    difference = torch.where(mask, logp - logp_old, 0.0)
    if level == "token":
        return bounded(difference)
    total = difference.sum(-1, keepdim=True)
    if level == "product":
        return bounded(total)
    if level == "sequence":
        return (total / mask.sum(-1, keepdim=True).clamp(min=1)).clamp(max=SEQUENCE_LIMIT)
    raise UserError(f"level={level!r} is not known: token, sequence, product")


@checked(logp_old="float N T", logp_sampling="float N T", mask="bool N T")
def sampling_gap(logp_old: Tensor, logp_sampling: Tensor | None, mask: Tensor) -> Tensor:
    """Return log(policy / sampler) of each decision, [N, T], within [-20, 20]; no gradient.

    0 outside of the mask and where the sampler reported no number; 0 everywhere without `logp_sampling`, where the sampler was
    the policy.

    Args:
        logp_old: log-probability under the policy that learns, [N, T].
        logp_sampling: under the sampler that drew the decisions (an inference engine), [N, T], or None.
        mask: [N, T].
    """
    if logp_sampling is None:
        return torch.zeros_like(logp_old)
    gap = (logp_old - logp_sampling).detach()
    return bounded(torch.where(mask & gap.isfinite(), gap, 0.0))
