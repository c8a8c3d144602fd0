"""Estimates of the divergence between two policies from the log-probabilities of samples."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vantage.core.errors import UserError
from vantage.functions.checks import checked
from vantage.functions.ratios import bounded

Estimator = Literal["k1", "k2", "k3"]
LIMIT = 10.0
"""Bound of k3, as in verl (`core_algos.kl_penalty`) and in VinePPO's launch files."""


@checked(logp="float ...", logp_ref="float ...")
def divergence(logp: Tensor, logp_ref: Tensor, estimator: str, limit: float = LIMIT) -> Tensor:
    """Estimate KL(policy || reference) in nats from the log-probabilities of the policy's own samples (Schulman 2020).

    With u = logp_ref - logp: k1 = -u (unbiased), k2 = u^2 / 2, k3 = exp(u) - 1 - u (unbiased, non-negative). Gradient
    flows through `logp`. On-policy, the expected gradient of k2 is that of KL(policy || reference), that of k3 is the
    gradient of KL(reference || policy), and that of k1 is 0. For k3, u is cut to [-20, 20] and the estimate to at most
    `limit`, beyond which it carries no gradient: exp(90) would be infinite in float32.

    Args:
        logp: of the decisions under the policy, any shape.
        logp_ref: under the reference, the same shape.
        estimator: "k1", "k2" or "k3".
        limit: largest k3.

    Raises:
        UserError: the estimator is not known.
    """
    if estimator == "k1":
        return logp - logp_ref
    if estimator == "k2":
        return 0.5 * (logp - logp_ref).square()
    if estimator == "k3":
        return k3(logp_ref - logp).clamp(max=limit)
    raise UserError(f"estimator={estimator!r} is not known: k1, k2, k3")


def k3(log: Tensor) -> Tensor:
    """Return exp(log) - 1 - log of a log-ratio of any shape, cut to [-20, 20] first: at least 0, and 0 where the ratio is 1.

    Its mean over samples of q with log = log(p / q) estimates KL(q || p). Gradient flows through `log` within the bounds.
    """
    log = bounded(log)
    return torch.expm1(log) - log
