"""From decisions to rows and back."""

from __future__ import annotations

import math

import pytest
import torch

from vantage.functions.rows import at_last, per_decision, preferred, rounding_of, row_logp, value_at_last

MASK = torch.tensor([[True, True, False], [False, False, False], [True, True, True]])


def test_row_log_likelihood_is_the_sum_or_the_mean_over_the_mask() -> None:
    logp = torch.where(MASK, torch.tensor([[-1.0, -2.0, 0.0]]), math.nan).requires_grad_()
    assert row_logp(logp, MASK).tolist() == [-3.0, 0.0, -3.0]
    assert row_logp(logp, MASK, average=True).tolist() == [-1.5, 0.0, -1.0]
    row_logp(logp, MASK).sum().backward()
    assert torch.equal(logp.grad, MASK.float())


def test_a_value_per_row_is_spread_or_placed_at_the_last_decision() -> None:
    row = torch.tensor([2.0, math.nan, 4.0])
    assert per_decision(row, MASK).tolist() == [[2.0, 2.0, 0.0], [0.0, 0.0, 0.0], [4.0, 4.0, 4.0]]
    inside = torch.tensor([[True, True, False, True, False], [False] * 5, [True] * 5, [True] * 5])
    placed = at_last(torch.tensor([2.0, 3.0, 4.0, math.nan]), inside)
    assert placed.tolist() == [[0.0, 0.0, 0.0, 2.0, 0.0], [0.0] * 5, [0.0, 0.0, 0.0, 0.0, 4.0], [0.0] * 5]
    column = torch.tensor([[1.0, 2.0, 3.0]] * 3)
    assert value_at_last(column, torch.tensor([2, 0, 3])).tolist() == [2.0, 1.0, 3.0]


def test_placing_at_the_last_and_summing_gives_the_rows_back() -> None:
    row = torch.randn(5, generator=torch.Generator().manual_seed(0))
    length = torch.tensor([1, 2, 3, 4, 5])
    mask = torch.arange(5) < length.unsqueeze(1)
    assert torch.equal(at_last(row, mask).sum(-1), row)
    spread = per_decision(row, mask)
    assert (spread.sum(-1) / length).tolist() == pytest.approx(row.tolist())


def test_a_tie_within_rounding_counts_one_half() -> None:
    rounding = rounding_of(torch.where(MASK, -1.0, math.nan), MASK)
    ulp = 2.0**-23
    assert rounding.tolist() == [2 * 32 * 2 * ulp, 0.0, 3 * 32 * 2 * ulp]  # 32 units of 1 + |-1|, a decision
    assert rounding_of(torch.full((1, 3), -1.0), MASK[:1], average=True).tolist() == [64 * ulp]
    margin = torch.tensor([1e-5, -1e-5, 0.0, 3e-5, -3e-5])
    assert preferred(margin, torch.full((5,), 2e-5)).tolist() == [0.5, 0.5, 0.5, 1.0, 0.0]
