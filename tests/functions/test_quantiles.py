"""Empirical quantiles and their tracking."""

from __future__ import annotations

import pytest
import torch

from vantage.functions.quantiles import quantiles, tracked_quantiles

LEVELS = torch.tensor([0.25, 0.5, 0.9])


def test_quantiles_leave_out_what_is_missing() -> None:
    scores = torch.tensor([4.0, float("nan"), 0.0, 1.0, 3.0, 2.0])
    assert quantiles(scores, LEVELS).tolist() == pytest.approx([1.0, 2.0, 3.6])


def test_a_step_moves_by_the_level_less_the_share_below() -> None:
    scores = torch.tensor([0.0, 1.0, 2.0, 3.0, float("nan")])
    found = tracked_quantiles(torch.tensor([0.5, 2.0, 9.0]), scores, LEVELS, rate=0.1)
    assert found.tolist() == pytest.approx([0.5, 2.0, 9.0 - 0.01])


def test_tracking_settles_at_the_quantiles() -> None:
    generator = torch.Generator().manual_seed(0)
    held = torch.zeros(3)
    for step in range(4000):
        held = tracked_quantiles(held, torch.rand(32, generator=generator), LEVELS, rate=1 / (step + 10) ** 0.7)
    assert held.tolist() == pytest.approx(LEVELS.tolist(), abs=0.02)
