"""Losses per decision against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from vantage.functions.ratios import log_ratio
from vantage.functions.surrogates import clipped_surrogate, surrogate, value_loss

MASK = torch.tensor([[True, True, True, True]])


def test_clip_and_dual_clip_by_hand() -> None:
    log = torch.tensor([[1.5, 1.5, 0.5, 20.0]]).log()
    advantage = torch.tensor([[2.0, -2.0, 2.0, -1.0]])
    loss, removed = clipped_surrogate(log, advantage, MASK, 0.8, 1.2)
    assert loss[0].tolist() == pytest.approx([-2.4, 3.0, -1.0, 20.0])
    assert removed.tolist() == [[True, False, False, False]]
    loss, _ = clipped_surrogate(log, advantage, MASK, 0.8, 1.2, dual=3.0)
    assert loss[0].tolist() == pytest.approx([-2.4, 3.0, -1.0, 3.0])
    assert surrogate(log, advantage, MASK)[0].tolist() == pytest.approx([-3.0, 3.0, -1.0, 20.0])


@pytest.mark.parametrize("level", ["token", "sequence", "product"])
@pytest.mark.parametrize("steps", [1, 4])
def test_nan_outside_of_the_mask_reaches_neither_loss_nor_gradient(level: str, steps: int) -> None:
    mask = torch.tensor([[True] + [False] * (steps - 1), [False] * steps])
    old = torch.where(mask, -1.5, math.nan)
    advantage = torch.where(mask, 2.0, math.nan)
    for loss_of in (
        lambda log: surrogate(log, advantage, mask),
        lambda log: clipped_surrogate(log, advantage, mask, 0.8, 1.2, 3.0)[0],
    ):
        logp = torch.where(mask, -1.4, math.nan).requires_grad_()
        loss = loss_of(log_ratio(logp, old, mask, level))
        loss.sum().backward()
        assert float(loss.detach().sum()) == pytest.approx(-2 * math.exp(0.1))
        assert logp.grad[mask].tolist() == pytest.approx([-2 * math.exp(0.1)])
        assert logp.grad[~mask].tolist() == [0.0] * (2 * steps - 1)


def test_value_loss_and_its_clip() -> None:
    value, old, returns = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]), torch.tensor([0.5, 2.0])
    assert value_loss(value, returns).tolist() == [0.125, 0.5]
    assert value_loss(value, returns, old, clip=0.2).tolist() == pytest.approx([0.125, 0.5 * 1.8**2])
