"""Statistics of a score within groups of rows. Nothing here carries gradient.

Groups are any rows that share a key; sizes may differ. A score that is missing (NaN) is left out of the statistics. Every group is
computed relative to its smallest score, so that the mean of equal scores is that score and their spread exactly 0: a mean that was
added up in float32 differs from equal numbers in the last place, and divided by an equally small spread that is an advantage.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vantage.functions.checks import checked


@checked(group="N")
def group_index(group: Tensor) -> tuple[Tensor, int]:
    """Return each row's group as a number in [0, groups), in the order of the sorted keys, and the count.

    Args:
        group: [N] keys of any type that sorts.
    """
    keys, index = torch.unique(group, return_inverse=True)
    return index, int(keys.numel())


@checked(score="N", group="N")
def group_sums(score: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Return (sum, count) of each row's group, both [N] float32; missing scores (NaN) count nothing."""
    index, count = group_index(group)
    valid = ~torch.isnan(score)
    filled = torch.where(valid, score, 0.0).float()
    sums = torch.zeros(count, device=score.device).index_add_(0, index, filled)
    sizes = torch.zeros(count, device=score.device).index_add_(0, index, valid.float())
    return sums[index], sizes[index]


@checked(score="N", group="N")
def group_lowest(score: Tensor, group: Tensor) -> Tensor:
    """Return the smallest score of each row's group [N] float32; 0 for a group without scores."""
    index, count = group_index(group)
    number = score.float().masked_fill(torch.isnan(score), torch.inf)
    low = number.new_full((count,), torch.inf).scatter_reduce(0, index, number, "amin")
    return low.masked_fill(low == torch.inf, 0.0)[index]


@checked(score="N", group="N")
def group_mean(score: Tensor, group: Tensor) -> Tensor:
    """Return each row's group mean [N], exact where all scores are equal; 0 for a group without scores."""
    low = group_lowest(score, group)
    sums, sizes = group_sums(score.float() - low, group)
    return low + sums / sizes.clamp(min=1)


@checked(score="N", group="N")
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
    value, count = extra if extra is not None else (0.0, 0)
    low = group_lowest(score, group)
    sums, sizes = group_sums(score.float() - low, group)
    sizes = sizes + count
    mean = low + (sums + count * (value - low)) / sizes.clamp(min=1)
    # Squares of the centred scores: the textbook form, exact where the difference of two large sums is not.
    squares, _ = group_sums((score.float() - mean).square(), group)
    squares = squares + count * (value - mean).square()
    return mean, (squares / (sizes - ddof).clamp(min=1)).sqrt()


@checked(score="N", group="N")
def group_median(score: Tensor, group: Tensor) -> Tensor:
    """Return the median of each row's group [N], the mean of the middle two for an even number; 0 for a group without scores."""
    index, count = group_index(group)
    order = torch.argsort(score, stable=True)
    order = order[torch.argsort(index[order], stable=True)]
    # Missing scores are sorted behind the others of their group.
    ranked = score.float()[order]
    rows = torch.bincount(index, minlength=count)
    starts = rows.cumsum(0) - rows
    sizes = torch.bincount(index[~torch.isnan(score)], minlength=count)
    low, high = ((sizes - 1) // 2).clamp(min=0), (sizes // 2)
    middle = (ranked[starts + low] + ranked[starts + high]) / 2
    return torch.where(sizes > 0, middle, 0.0)[index]


@checked(score="N", group="N")
def leave_one_out_mean(score: Tensor, group: Tensor) -> Tensor:
    """Return the mean of the other members of each row's group [N]; a group of one has 0."""
    low = group_lowest(score, group)
    above = score.float() - low
    sums, sizes = group_sums(above, group)
    others = sizes - (~torch.isnan(score)).float()
    mean = low + (sums - torch.nan_to_num(above, nan=0.0)) / others.clamp(min=1)
    return torch.where(others > 0, mean, 0.0)


@checked(key="int N")
def rank_within(key: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return (rank, total) of keys [N] in [0, count): each element's position among equal keys [N], and sizes [count]."""
    total = torch.bincount(key, minlength=count)
    order = torch.argsort(key, stable=True)
    starts = total.cumsum(0) - total
    rank = torch.empty_like(key)
    rank[order] = torch.arange(len(key), device=key.device) - starts[key[order]]
    return rank, total


@checked(values="float N T", turn="int N T", mask="bool N T")
def turn_mean(values: Tensor, turn: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the values [N, T] over the decisions of each one's turn, 0 outside of the mask.

    Gradient flows through the values.

    Args:
        values: [N, T].
        turn: numbers of the turns [N, T], from 0.
        mask: [N, T], the decisions that count.
    """
    table = torch.zeros_like(values)  # there are no more turns than decisions
    sums = table.scatter_add(1, turn, torch.where(mask, values, 0.0))
    sizes = table.scatter_add(1, turn, mask.to(values.dtype))
    return torch.where(mask, (sums / sizes.clamp(min=1)).gather(1, turn), 0.0)
