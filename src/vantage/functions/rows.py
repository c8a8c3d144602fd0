"""Conversions between a value per row [N] and values per decision [N, T], and comparisons of rows by their likelihood."""

from __future__ import annotations

import torch
from torch import Tensor

from vantage.functions.checks import checked


@checked(logp="float N T", mask="bool N T")
def row_logp(logp: Tensor, mask: Tensor, average: bool = False) -> Tensor:
    """Return a row's log-likelihood [N]: the sum of logp [N, T] where the mask holds, with `average` the mean (0 of no decision).

    Gradient flows through `logp`.
    """
    total = torch.where(mask, logp, 0.0).sum(-1)
    return total / mask.sum(-1).clamp(min=1) if average else total


@checked(row="N", mask="bool N T")
def per_decision(row: Tensor, mask: Tensor) -> Tensor:
    """Spread a value per row [N] over its decisions [N, T]; 0 where the mask is False. Gradient flows through `row`."""
    return torch.where(mask, row.unsqueeze(-1), 0.0)


@checked(column="N T", length="int N")
def value_at_last(column: Tensor, length: Tensor) -> Tensor:
    """Return the value [N] at each row's last decision of a column [N, T]; of an empty row the first. T is at least 1."""
    return column.gather(1, (length - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)


@checked(row="N", mask="bool N T")
def at_last(row: Tensor, mask: Tensor) -> Tensor:
    """Place a value per row [N] where its mask holds last: [N, T] float32, 0 elsewhere.

    A row whose mask is empty, or whose value is missing (NaN), gives nothing.

    Args:
        row: [N].
        mask: decisions of the policy, [N, T] bool (`core.trajectories.own`).
    """
    after = mask.flip(1).cumsum(1).flip(1)
    return torch.where(mask & (after == 1) & ~torch.isnan(row).unsqueeze(-1), row.float().unsqueeze(-1), 0.0)


@checked(logp="float N T", mask="bool N T")
def rounding_of(logp: Tensor, mask: Tensor, average: bool = False) -> Tensor:
    """Return the rounding error [N] to expect of `row_logp(logp, mask, average)`: 32 units in the last place a decision.

    The unit is that of 1 + |logp|, for logits are larger than the log-probability of a likely decision. No gradient.
    """
    error = 32 * torch.finfo(logp.dtype).eps * (1 + logp.detach().abs())
    return row_logp(error, mask, average)


@checked(margin="float N", rounding="float N")
def preferred(margin: Tensor, rounding: Tensor) -> Tensor:
    """Return 1 where a margin [N] is above 0, 0 where it is below, and 0.5 where it is a tie: at most `rounding` [N] in size.

    Without the tolerance a tie would count as rounding has it, which changes with how many rows are computed at once.
    """
    return torch.where(margin.abs() <= rounding, 0.5, (margin > 0).to(margin.dtype))
