"""Statistics of a score within groups of rows, and the advantages made of them. Nothing here carries gradient.

Groups are any rows that share a key; sizes may differ. A score that is missing (NaN) is left out of the statistics and its
row gets advantage 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vantage.core.averaging import group_index
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.trajectories import Trajectories, per_decision


def group_sums(score: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Return (sum, count) of each row's group, both [N] float32; missing scores (NaN) count nothing."""
    index, count = group_index(group)
    valid = ~torch.isnan(score)
    filled = torch.where(valid, score, 0.0).float()
    sums = torch.zeros(count, device=score.device).index_add_(0, index, filled)
    sizes = torch.zeros(count, device=score.device).index_add_(0, index, valid.float())
    return sums[index], sizes[index]


def group_level(score: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Return (level, flat), both [N]: one score of each row's group, and whether all its scores are exactly that one.

    A mean of equal numbers that was added up in float32 differs from them in the last place, which a division by a spread as
    small would turn into an advantage.
    """
    index, count = group_index(group)
    valid = ~torch.isnan(score)
    number = score.float()
    low = number.new_full((count,), torch.inf).scatter_reduce(0, index, number.masked_fill(~valid, torch.inf), "amin")
    high = number.new_full((count,), -torch.inf).scatter_reduce(
        0, index, number.masked_fill(~valid, -torch.inf), "amax"
    )
    return low[index], (low == high)[index]


def group_mean(score: Tensor, group: Tensor) -> Tensor:
    """Return each row's group mean [N], exact where all scores are equal; 0 for a group without scores."""
    sums, sizes = group_sums(score, group)
    level, flat = group_level(score, group)
    return torch.where(flat, level, sums / sizes.clamp(min=1))


def group_moments(
    score: Tensor, group: Tensor, ddof: int = 1, extra: tuple[float, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Return (mean, std) of each row's group, both [N]; the std of a group of one, or of equal scores, is exactly 0.

    Args:
        score: [N], may hold NaN for a missing score.
        group: [N] keys.
        ddof: 1 for the sample standard deviation, 0 for the population's.
        extra: (value, count): every group is taken to hold `count` further scores of this value.
    """
    sums, sizes = group_sums(score, group)
    value, count = extra if extra is not None else (0.0, 0)
    sizes = sizes + count
    mean = (sums + value * count) / sizes.clamp(min=1)
    level, flat = group_level(score, group)
    if count:
        flat = flat & (level == value)
    mean = torch.where(flat, level, mean)
    # Squares of the centred scores: the textbook form, exact where the difference of two large sums is not.
    squares, _ = group_sums((score.float() - mean).square(), group)
    squares = squares + count * (value - mean).square()
    std = (squares / (sizes - ddof).clamp(min=1)).sqrt()
    return mean, std


def group_median(score: Tensor, group: Tensor) -> Tensor:
    """Return the median of each row's group [N], the mean of the middle two for an even number; NaN is not expected."""
    index, count = group_index(group)
    order = torch.argsort(score, stable=True)
    order = order[torch.argsort(index[order], stable=True)]
    ranked = score.float()[order]
    sizes = torch.bincount(index, minlength=count)
    starts = sizes.cumsum(0) - sizes
    return ((ranked[starts + (sizes - 1) // 2] + ranked[starts + sizes // 2]) / 2)[index]


def rank_within(key: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return (rank, total) of keys [N] in [0, count): each element's place among equal keys [N], and sizes [count]."""
    total = torch.bincount(key, minlength=count)
    order = torch.argsort(key, stable=True)
    starts = total.cumsum(0) - total
    rank = torch.empty_like(key)
    rank[order] = torch.arange(len(key), device=key.device) - starts[key[order]]
    return rank, total


def standardize(centred: Tensor, std: Tensor, eps: float = 0.0) -> Tensor:
    """Return centred / (std + eps); exactly 0 where the scores do not differ (std up to 1e-6) or one is missing (NaN)."""
    flat = (std <= 1e-6) | torch.isnan(centred)
    return torch.where(flat, 0.0, centred / (std + eps).masked_fill(flat, 1.0))


def leave_one_out_mean(score: Tensor, group: Tensor) -> Tensor:
    """Return the mean of the other members of each row's group [N]; a group of one has 0."""
    sums, sizes = group_sums(score, group)
    own = torch.nan_to_num(score.float(), nan=0.0)
    others = sizes - (~torch.isnan(score)).float()
    level, flat = group_level(score, group)
    return torch.where(flat & (others > 0), level, (sums - own) / others.clamp(min=1))


@dataclass(frozen=True)
class GroupStandardized:
    """Advantage (score - mean) / (std + eps) within the group, the same for all decisions of a row.

    GRPO (arXiv 2402.03300, section 4.1.2). `scale="none"` leaves out the std (Dr. GRPO, arXiv 2503.20783), and
    `scale="batch"` divides by the std of the whole batch's scores.

    Attributes:
        scale: "group", "batch" or "none".
        ddof: 1 for the sample standard deviation.
        eps: added to the std.
    """

    scale: str = "group"
    ddof: int = 1
    eps: float = 1e-4

    def __post_init__(self) -> None:
        if self.scale not in ("group", "batch", "none"):
            raise UserError(f"GroupStandardized.scale={self.scale!r} is not known: 'group', 'batch' or 'none'")

    def __call__(self, batch: Trajectories, context: Context) -> Tensor:
        """Return the advantage [N, T]."""
        mean, std = group_moments(batch.score, batch.group, self.ddof)
        record_groups(std, batch.group, context)
        centred = torch.nan_to_num(batch.score - mean, nan=0.0)
        if self.scale == "group":
            centred = standardize(centred, std, self.eps)
        elif self.scale == "batch":
            centred = centred / (batch.score[~torch.isnan(batch.score)].std(correction=self.ddof) + self.eps)
        return per_decision(centred, batch.mask)


@dataclass(frozen=True)
class LeaveOneOut:
    """Advantage score - mean of the other members' scores (RLOO, arXiv 2402.14740, eq. 8); unbiased, no scaling."""

    def __call__(self, batch: Trajectories, context: Context) -> Tensor:
        """Return the advantage [N, T]."""
        _, std = group_moments(batch.score, batch.group)
        record_groups(std, batch.group, context)
        centred = torch.nan_to_num(batch.score - leave_one_out_mean(batch.score, batch.group), nan=0.0)
        return per_decision(centred, batch.mask)


def record_groups(std: Tensor, group: Tensor, context: Context) -> None:
    """Record the share of rows whose group teaches nothing because all its members score the same."""
    context.record("groups/without_variance", (std < 1e-6).float().mean())
    context.record("groups/std", std.mean())


def whiten(values: Tensor, mask: Tensor, eps: float = 1e-8, ddof: int = 1) -> Tensor:
    """Return (values - mean) / (std + eps) over the decisions where the mask holds; 0 elsewhere.

    Rows of one decision have no padding.
    """
    if mask.shape[1] == 1:
        std, mean = (
            torch.std_mean(values, correction=ddof) if len(values) > ddof else (values.new_zeros(()), values.mean())
        )
        return (values - mean) / (std + eps)
    count = mask.sum()
    mean = torch.where(mask, values, 0.0).sum() / count.clamp(min=1)
    centred = torch.where(mask, values - mean, 0.0)
    std = (centred.square().sum() / (count - ddof).clamp(min=1)).sqrt()
    return centred / (std + eps)
