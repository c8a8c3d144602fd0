"""Statistics within groups against their definitions, group by group."""

from __future__ import annotations

import pytest
import torch

from vantage.functions.groups import (
    group_index,
    group_lowest,
    group_mean,
    group_median,
    group_moments,
    group_sums,
    leave_one_out_mean,
    rank_within,
    turn_mean,
)

GROUP = torch.tensor([7, 3, 7, 7, 9, 3, 3, 3])
SCORE = torch.randn(8, generator=torch.Generator().manual_seed(0))


def rows(key: int) -> torch.Tensor:
    return (key == GROUP).nonzero().squeeze(1)


def test_each_groups_statistics_are_those_of_its_rows_alone() -> None:
    index, count = group_index(GROUP)
    assert (index.tolist(), count) == ([1, 0, 1, 1, 2, 0, 0, 0], 3)
    for key in (3, 7, 9):
        at = rows(key)
        own = SCORE[at]
        sums, sizes = group_sums(SCORE, GROUP)
        torch.testing.assert_close(sums[at], own.sum().expand(len(at)))
        assert sizes[at].tolist() == [len(at)] * len(at)
        torch.testing.assert_close(group_mean(SCORE, GROUP)[at], own.mean().expand(len(at)))
        assert torch.equal(group_lowest(SCORE, GROUP)[at], own.min().expand(len(at)))
        torch.testing.assert_close(group_median(SCORE, GROUP)[at], own.double().quantile(0.5).float().expand(len(at)))
        for ddof in (0, 1):
            mean, std = group_moments(SCORE, GROUP, ddof)
            torch.testing.assert_close(mean[at], own.mean().expand(len(at)))
            expected = own.std(correction=ddof) if len(at) > 1 else torch.tensor(0.0)
            torch.testing.assert_close(std[at], expected.expand(len(at)))
        others = (own.sum() - own) / max(len(at) - 1, 1) if len(at) > 1 else torch.zeros(1)
        torch.testing.assert_close(leave_one_out_mean(SCORE, GROUP)[at], others)


def test_what_every_group_is_taken_to_hold_besides_counts_as_its_own() -> None:
    mean, std = group_moments(SCORE, GROUP, extra=(0.5, 2))
    for key in (3, 7, 9):
        own = torch.cat([SCORE[rows(key)], torch.tensor([0.5, 0.5])])
        torch.testing.assert_close(mean[rows(key)], own.mean().expand(len(own) - 2))
        torch.testing.assert_close(std[rows(key)], own.std().expand(len(own) - 2))


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_a_spread_far_from_zero_is_not_lost(offset: float) -> None:
    score = torch.tensor([0.0, 1.0, 2.0, 3.0]) + offset
    mean, std = group_moments(score, torch.zeros(4, dtype=torch.int64))
    assert mean.tolist() == pytest.approx([1.5 + offset] * 4)
    assert std.tolist() == pytest.approx([1.2909944] * 4)


def test_missing_scores_are_left_out() -> None:
    score = torch.tensor([torch.nan, 2.0, 2.0, torch.nan, 1.0])
    group = torch.tensor([0, 0, 0, 1, 2])
    mean, std = group_moments(score, group)
    assert mean.tolist() == [2.0, 2.0, 2.0, 0.0, 1.0]
    assert std.tolist() == [0.0] * 5
    assert leave_one_out_mean(score, group).tolist() == [2.0, 2.0, 2.0, 0.0, 0.0]
    # Further scores of a value of their own: a group is flat with them alone.
    mean, std = group_moments(score, group, extra=(2.0, 2))
    assert mean.tolist() == pytest.approx([2.0, 2.0, 2.0, 2.0, 5 / 3])
    assert std.tolist() == pytest.approx([0.0, 0.0, 0.0, 0.0, (1 / 3) ** 0.5])
    assert group_mean(score, group).tolist() == [2.0, 2.0, 2.0, 0.0, 1.0]
    assert group_sums(score, group)[1].tolist() == [2.0, 2.0, 2.0, 0.0, 1.0]


def test_rank_within_counts_equal_keys_in_order() -> None:
    rank, total = rank_within(torch.tensor([1, 0, 1, 1, 3, 0]), 5)
    assert rank.tolist() == [0, 0, 1, 2, 0, 1]
    assert total.tolist() == [2, 3, 0, 1, 0]


def test_the_mean_over_a_turn_carries_gradient_inside_of_the_mask_alone() -> None:
    mask = torch.tensor([[True, True, False, True, True, False]])
    turn = torch.tensor([[0, 0, 0, 1, 1, 1]])
    values = torch.where(mask, torch.tensor([[1.0, 3.0, 0.0, 5.0, 5.0, 0.0]]), torch.nan).requires_grad_()
    found = turn_mean(values, turn, mask)
    assert found.tolist() == [[2.0, 2.0, 0.0, 5.0, 5.0, 0.0]]
    (found * torch.tensor([[1.0, 0.0, 9.0, 2.0, 2.0, 9.0]])).sum().backward()
    assert values.grad.tolist() == [[0.5, 0.5, 0.0, 2.0, 2.0, 0.0]]
