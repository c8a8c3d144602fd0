"""Masks of the weights or units to keep: exact counts, whatever the ties, and the projection of means onto a budget."""

from __future__ import annotations

import torch
from torch import Tensor

from vantage.core.errors import UserError


def share(name: str, value: float) -> float:
    """Return a share in [0, 1).

    Raises:
        UserError: the value is outside of the range.
    """
    if not 0 <= value < 1:
        raise UserError(f"{name}={value} is out of range: at least 0 and below 1")
    return value


def pruned_count(total: int, sparsity: float) -> int:
    """Return the number pruned of `total`: total * sparsity, rounded down but for rounding errors (10 * (1 - 0.9) is 1)."""
    return int(total * sparsity + 1e-9)


def keep_largest(score: Tensor, count: int) -> Tensor:
    """Return the mask [..., n] of the `count` largest scores of each row; of equal ones the first are kept. No gradient."""
    if not 0 <= count <= score.shape[-1]:
        raise UserError(f"count={count} is out of range: 0 to {score.shape[-1]}")
    order = torch.sort(score.detach(), dim=-1, descending=True, stable=True).indices[..., :count]
    return torch.zeros(score.shape, dtype=torch.bool, device=score.device).scatter_(-1, order, True)


def keep_all_but(score: Tensor, count: int, *, inclusive: bool = False) -> Tensor:
    """Return the mask [..., n] without the `count` smallest scores of each row; of equal ones the first are removed. No gradient.

    Args:
        score: [..., n].
        count: from 0 to n, below n if inclusive.
        inclusive: the (count + 1)-th smallest is removed too, with all that equal it.
    """
    rising = torch.sort(score.detach(), dim=-1, stable=True)
    if inclusive:
        return score > rising.values[..., count : count + 1]
    return torch.ones(score.shape, dtype=torch.bool, device=score.device).scatter_(
        -1, rising.indices[..., :count], False
    )


def keep_pattern(score: Tensor, kept: int, of: int) -> Tensor:
    """Return the mask [..., n] that keeps the `kept` largest of each `of` adjacent scores (2:4 sparsity: 2, 4).

    Raises:
        UserError: n is not a multiple of `of`, or `kept` is not in 0 .. `of`.
    """
    if of < 1 or score.shape[-1] % of:
        raise UserError(f"a pattern {kept}:{of} does not fit {score.shape[-1]} inputs: that must be a multiple of {of}")
    return keep_largest(score.unflatten(-1, (-1, of)), kept).flatten(-2)


def project(means: Tensor, budget: float) -> Tensor:
    """Return the point nearest to `means` [n] in {s: 0 <= s <= 1, sum s <= budget}: clip(means - v, 0, 1). No gradient.

    v is 0 where the clipped means already meet the budget; otherwise it solves sum clip(means - v, 0, 1) = budget, exactly: the
    sum is piecewise linear in v, with corners at the means and at the means less 1. O(n log n).
    """
    means = means.detach()
    return (means - threshold(means, budget)).clamp(0, 1)


def threshold(means: Tensor, budget: float) -> Tensor:
    """Return v >= 0 of `project`, a scalar tensor."""
    if budget < 0:
        raise UserError(f"budget={budget} is out of range: at least 0")
    rising = means.detach().double().sort().values
    # tail[i] is the sum of the i-th smallest mean and all above it.
    tail = torch.cat([rising.flip(0).cumsum(0).flip(0), rising.new_zeros(1)])

    def excess(v: Tensor) -> Tensor:
        """Return the sum of max(means - v, 0), for each v."""
        above = torch.searchsorted(rising, v, right=True)
        return tail[above] - (len(rising) - above) * v

    corners = torch.cat([rising, rising - 1, rising.new_zeros(1)]).clamp(min=0).sort().values
    mass = excess(corners) - excess(corners + 1)
    # The sum falls from corner to corner; the root lies between the last one above the budget and the next.
    last = (mass > budget).sum() - 1
    low, high = corners[last.clamp(min=0)], corners[(last + 1).clamp(max=len(corners) - 1)]
    top, bottom = mass[last.clamp(min=0)], mass[(last + 1).clamp(max=len(corners) - 1)]
    root = low + (top - budget) / (top - bottom).clamp(min=1e-300) * (high - low)
    return torch.where(last < 0, 0.0, root).to(means.dtype)
