"""Log-ratios: levels, bounds, and what padding must not do."""

from __future__ import annotations

import math

import pytest
import torch

from vantage.core.errors import UserError
from vantage.functions.ratios import log_ratio, sampling_gap

MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_levels_are_the_token_the_mean_and_the_sum() -> None:
    logp = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, 9.0, 9.0]])
    old = torch.tensor([[-1.5, -2.0, -2.0], [-1.0, 0.0, 0.0]])
    assert log_ratio(logp, old, MASK).tolist() == [[0.5, 0.0, -1.0], [0.5, 0.0, 0.0]]
    assert log_ratio(logp, old, MASK, "product").tolist() == [[-0.5], [0.5]]
    assert log_ratio(logp, old, MASK, "sequence").flatten().tolist() == pytest.approx([-0.5 / 3, 0.5])
    with pytest.raises(UserError, match="level='word'"):
        log_ratio(logp, old, MASK, "word")


def test_bounds_are_verls() -> None:
    old = torch.zeros(2, 3)
    far, near = torch.full((2, 3), 90.0), torch.full((2, 3), 9.0)
    assert log_ratio(far, old, MASK)[MASK].tolist() == [20.0] * 4
    assert log_ratio(-far, old, MASK)[MASK].tolist() == [-20.0] * 4
    assert log_ratio(far, old, MASK, "sequence").tolist() == [[10.0], [10.0]]
    assert log_ratio(-far, old, MASK, "sequence").tolist() == [[-90.0], [-90.0]]
    assert log_ratio(far, old, MASK, "product").tolist() == [[20.0], [20.0]]
    assert log_ratio(near, old, MASK)[MASK].tolist() == [9.0] * 4
    assert log_ratio(near, old, MASK, "product").tolist() == [[20.0], [9.0]]


@pytest.mark.parametrize("level", ["token", "sequence", "product"])
@pytest.mark.parametrize("steps", [1, 3])
def test_padding_has_ratio_one_and_no_gradient_whatever_stands_there(level: str, steps: int) -> None:
    mask = torch.tensor([[True] * steps, [False] * steps, [True] + [False] * (steps - 1)])
    for junk in (math.nan, math.inf, -math.inf):
        logp = torch.where(mask, -1.0, junk).requires_grad_()
        old = torch.where(mask, -1.5, junk)
        log = log_ratio(logp, old, mask, level)
        ratio = log.exp()
        ratio.sum().backward()
        assert torch.isfinite(ratio).all()
        assert torch.isfinite(logp.grad).all()
        assert not logp.grad[~mask].any()
        assert (ratio[1] == 1).all()


def test_gap_of_the_sampler_is_bounded_and_zero_where_it_reported_nothing() -> None:
    old = torch.tensor([[-1.0, -2.0, -1.0]])
    drawn = torch.tensor([[-2.0, -90.0, -math.inf]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert sampling_gap(old, drawn, mask).tolist() == [[1.0, 20.0, 0.0]]
    assert sampling_gap(old, None, mask).tolist() == [[0.0, 0.0, 0.0]]
    assert sampling_gap(old, drawn, ~mask).tolist() == [[0.0, 0.0, 0.0]]
