"""Counts, patterns and the projection onto a budget."""

from __future__ import annotations

import pytest
import torch

from vantage.core.errors import UserError
from vantage.fields.compression.masks import keep_largest, keep_pattern, project, pruned_count, share


def test_counts_are_safe_from_rounding() -> None:
    assert int(10 * (1 - 0.9)) == 0  # what floating point makes of it
    assert pruned_count(10, 1 - 0.9) == 1
    assert pruned_count(7, 0.5) == 3


def test_exactly_as_many_stay_and_of_equal_scores_the_first() -> None:
    score = torch.tensor([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert keep_largest(score, 2).tolist() == [[False, True, True, False], [True, True, False, False]]
    assert keep_largest(score, 0).sum() == 0
    with pytest.raises(UserError, match="count=5"):
        keep_largest(score, 5)


def test_a_pattern_keeps_its_share_of_every_group() -> None:
    score = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)).abs()
    mask = keep_pattern(score, 2, 4)
    assert (mask.view(3, 4, 4).sum(-1) == 2).all()
    grouped = score.view(3, 4, 4)
    assert torch.equal(mask.view(3, 4, 4), grouped >= grouped.sort(-1).values[..., 2:3])
    with pytest.raises(UserError, match="multiple of 5"):
        keep_pattern(score, 2, 5)


def test_projection_of_the_card() -> None:
    torch.testing.assert_close(project(torch.tensor([0.9, 0.8, 0.1]), 1.0), torch.tensor([0.55, 0.45, 0.0]))
    inside = torch.tensor([0.3, 0.2, 0.0])
    assert torch.equal(project(inside, 1.0), inside)
    assert torch.equal(project(torch.tensor([1.7, -0.5]), 2.0), torch.tensor([1.0, 0.0]))


def test_projection_is_the_nearest_point() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        raw = torch.randn(9, generator=generator, dtype=torch.float64) * 1.5 + 0.5
        budget = float(torch.rand((), generator=generator)) * 6
        found = project(raw, budget)
        assert float(found.sum()) <= budget + 1e-9
        assert float(found.min()) >= 0
        assert float(found.max()) <= 1
        torch.testing.assert_close(project(found, budget), found)
        # No feasible point is nearer: the angle between what is left and any feasible direction is not below 90 degrees.
        others = torch.rand(200, 9, generator=generator, dtype=torch.float64)
        others = others * (budget / others.sum(-1, keepdim=True)).clamp(max=1)
        assert float(((others - found) @ (raw - found)).max()) <= 1e-9


def test_a_budget_below_zero_and_a_share_of_one_are_refused() -> None:
    with pytest.raises(UserError, match="budget=-1"):
        project(torch.ones(2), -1)
    with pytest.raises(UserError, match=r"sparsity=1\.0"):
        share("sparsity", 1.0)
