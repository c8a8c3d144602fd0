"""Advantages from a score within groups of rows. Nothing here carries gradient.

Groups are any rows that share a key; sizes may differ. A score that is missing (NaN) is left out of the statistics and its
row gets advantage 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from vantage.core import at_least, component
from vantage.core.context import Context
from vantage.core.trajectories import Trajectories
from vantage.functions.groups import group_moments, group_sums, leave_one_out_mean
from vantage.functions.rows import per_decision, value_at_last
from vantage.functions.whitening import masked_moments, standardize, whiten


@component
class GroupStandardized:
    """Advantage (score - mean) / (std + eps) within the group, the same for all decisions of a row.

    GRPO (arXiv 2402.03300, section 4.1.2). `scale="none"` leaves out the std (Dr. GRPO, arXiv 2503.20783), and
    `scale="batch"` divides by the std of the whole batch's scores.

    Attributes:
        scale: "group", "batch" or "none".
        ddof: 1 for the sample standard deviation.
        eps: added to the std.
    """

    scale: Literal["group", "batch", "none"] = "group"
    ddof: Annotated[int, at_least(0)] = 1
    eps: Annotated[float, at_least(0)] = 1e-4

    def __call__(self, batch: Trajectories, context: Context) -> Tensor:
        """Return the advantage [N, T]."""
        mean, std = group_moments(batch.score, batch.group, self.ddof)
        record_groups(std, batch.group, context)
        centred = torch.nan_to_num(batch.score - mean, nan=0.0)
        if self.scale == "group":
            centred = standardize(centred, std, self.eps)
        elif self.scale == "batch":
            scored = ~torch.isnan(batch.score)
            variance = masked_moments(batch.score.unsqueeze(-1), scored.unsqueeze(-1), self.ddof)[2]
            centred = standardize(centred, variance.sqrt().expand_as(centred), self.eps)
        return per_decision(centred, batch.mask)


@dataclass(frozen=True)
class LeaveOneOut:
    """Advantage score - mean of the other members' scores (RLOO, arXiv 2402.14740, eq. 8); unbiased, no scaling.

    Where a row's group has no other score there is no baseline, and the advantage is 0, as in TRL (verl: the bare score).
    """

    def __call__(self, batch: Trajectories, context: Context) -> Tensor:
        """Return the advantage [N, T]."""
        _, std = group_moments(batch.score, batch.group)
        record_groups(std, batch.group, context)
        centred = torch.nan_to_num(batch.score - leave_one_out_mean(batch.score, batch.group), nan=0.0)
        alone = group_sums(batch.score, batch.group)[1] < 2
        return per_decision(torch.where(alone, 0.0, centred), batch.mask)


@component
class ScoreLessBaseline:
    """Advantage score - baseline of a row, the same for all its decisions; 0 where either is missing (NaN). No gradient.

    Attributes:
        column: of the baseline: [N], or [N, T] with one value a row, which is read at its last decision.
        whiten: standardise over the batch's rows, as `functions.whitening.whiten`.
    """

    column: str = "value"
    whiten: bool = False

    def __call__(self, batch: Trajectories, context: Context) -> Tensor:
        """Return the advantage [N, T]."""
        record_groups(group_moments(batch.score, batch.group)[1], batch.group, context)
        baseline: Tensor = batch[self.column]
        excess = batch.score - (baseline if baseline.dim() == 1 else value_at_last(baseline, batch.length))
        context.record("advantage/zero", (excess.abs() < 1e-6).float().mean())
        if self.whiten:
            excess = whiten(excess.unsqueeze(-1), ~torch.isnan(excess).unsqueeze(-1)).squeeze(-1)
        return per_decision(torch.nan_to_num(excess, nan=0.0), batch.mask)


def record_groups(std: Tensor, group: Tensor, context: Context) -> None:
    """Record the share of rows whose group has no signal because all its members have the same score."""
    context.record("groups/without_variance", (std < 1e-6).float().mean())
    context.record("groups/std", std.mean())
