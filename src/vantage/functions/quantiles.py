"""Quantiles of a sample, and one step of their tracking by stochastic approximation. Nothing here carries gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from vantage.functions.checks import checked


@checked(scores="float M", levels="float L")
def quantiles(scores: Tensor, levels: Tensor) -> Tensor:
    """Return the empirical quantiles [L] (linear interpolation) of scores [M]; missing ones (NaN) are left out.

    Args:
        scores: [M], one at least that is not missing.
        levels: [L], each in [0, 1].
    """
    return torch.quantile(scores[~torch.isnan(scores)].detach().float(), levels)


@checked(held="float L", scores="float M", levels="float L")
def tracked_quantiles(held: Tensor, scores: Tensor, levels: Tensor, rate: float) -> Tensor:
    """Return q_a + rate * (a - share of the scores below q_a) for each level a, [L], whose fixed point is P(score < q_a) = a.

    Args:
        held: the estimates q, [L], in the unit of the scores.
        scores: a batch of them, [M]; missing ones (NaN) are left out.
        levels: a, [L].
        rate: of the step, in the unit of the scores.
    """
    scores = scores[~torch.isnan(scores)].detach().float()
    # Sorted once: a bisection for each level instead of a comparison of every score with every level.
    below = torch.searchsorted(scores.sort().values, held) / max(len(scores), 1)
    return held + rate * (levels - below)
