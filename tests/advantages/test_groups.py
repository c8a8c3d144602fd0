"""Statistics within groups: exact where scores do not differ, whatever they are."""

from __future__ import annotations

import pytest
import torch

from tests.harness import context, random_batch
from vantage.advantages.groups import GroupStandardized, LeaveOneOut, ScoreLessBaseline
from vantage.functions.groups import group_mean, group_moments, leave_one_out_mean


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3, 0.7, 3.3, 12.7, 100.3, 1000.1])
@pytest.mark.parametrize("size", [2, 8, 13])
def test_equal_scores_teach_nothing(value: float, size: int) -> None:
    score = torch.cat([torch.full((size,), value), torch.rand(size, generator=torch.Generator().manual_seed(0))])
    group = torch.arange(2).repeat_interleave(size)
    mean, std = group_moments(score, group)
    assert torch.equal(mean[:size], score[:size])
    assert not std[:size].any()
    assert torch.equal(group_mean(score, group)[:size], score[:size])
    assert torch.equal(leave_one_out_mean(score, group)[:size], score[:size])
    torch.testing.assert_close(mean[size:], score[size:].mean().expand(size))
    torch.testing.assert_close(std[size:], score[size:].std().expand(size))
    batch = random_batch(2 * size).replace(score=score, group=group)
    for part in (GroupStandardized(eps=0.0), GroupStandardized(scale="none"), LeaveOneOut()):
        found = part(batch, context())
        assert not found[:size].any()
        assert found[size:].any()


@pytest.mark.parametrize("rows", [1, 4])
def test_the_spread_of_a_batch_of_one_or_of_equal_scores_divides_nothing(rows: int) -> None:
    batch = random_batch(rows, 3).replace(score=torch.full((rows,), 0.7), group=torch.arange(rows))
    found = GroupStandardized(scale="batch", eps=0.0)(batch, context())
    assert torch.equal(found, torch.zeros(rows, 3))


def test_the_spread_of_the_batch_is_that_of_its_scores() -> None:
    score = torch.tensor([1.0, 0.0, 3.0, 2.0, torch.nan, 5.0])
    batch = random_batch(6, 3).replace(score=score, group=torch.tensor([0, 0, 1, 1, 1, 2]))
    found = GroupStandardized(scale="batch", eps=1e-4)(batch, context())
    std = score[~score.isnan()].std() + 1e-4
    expected = torch.tensor([0.5, -0.5, 0.5, -0.5, 0.0, 0.0]) / std
    torch.testing.assert_close(found[:, 0].float(), expected)


def test_score_less_baseline_reads_a_row_or_its_last_decision_and_gives_zero_for_what_is_missing() -> None:
    score = torch.tensor([1.0, 0.0, torch.nan, 0.5])
    value = torch.tensor([0.25, 0.5, 0.1, torch.nan])
    batch = random_batch(4, 3).replace(score=score, held=value, value=value.unsqueeze(-1).expand(4, 3).clone())
    expected = torch.tensor([0.75, -0.5, 0.0, 0.0])
    for part in (ScoreLessBaseline(), ScoreLessBaseline("held")):
        assert torch.equal(part(batch, context()), torch.where(batch.mask, expected.unsqueeze(-1), 0.0))
    white = ScoreLessBaseline(whiten=True)(batch, context())[:, 0]
    half = 0.5 * 2**0.5  # two rows: their distance to the mean over the sample deviation
    assert white.tolist() == pytest.approx([half, -half, 0.0, 0.0], abs=1e-6)
