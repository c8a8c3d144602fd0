from __future__ import annotations

import pytest
import torch

from vantage.advantages.quantiles import LEVELS, QuantileTracker


def test_the_first_batch_gives_empirical_quantiles() -> None:
    scores = torch.rand(101, generator=torch.Generator().manual_seed(0))
    tracker = QuantileTracker()
    assert not tracker.started
    tracker.update(torch.cat([scores, torch.tensor([float("nan")])]))
    for level in LEVELS:
        assert float(tracker.read(level)) == pytest.approx(float(torch.quantile(scores, level)))
    assert tracker.read(0.22) == tracker.read(0.2)


def test_a_step_below_and_above_all_scores() -> None:
    tracker = QuantileTracker(rate=0.1)
    tracker.update(torch.zeros(10))
    tracker.update(torch.full((7,), 5.0))  # all estimates are below every score
    assert float(tracker.read(0.2)) == pytest.approx(0.02)
    tracker.update(torch.full((3,), -9.0))  # and now above
    assert float(tracker.read(0.2)) == pytest.approx(0.02 - 0.1 * 0.8)


def test_ties_are_not_below() -> None:
    tracker = QuantileTracker(rate=1.0, levels=(0.5,))
    tracker.update(torch.zeros(4))
    tracker.update(torch.tensor([-1.0, 0.0, 0.0, 1.0]))
    assert float(tracker.read(0.5)) == pytest.approx(0.25)


def test_it_finds_the_quantiles_of_a_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    tracker = QuantileTracker(rate=0.02)
    tracker.update(torch.zeros(8))
    for _ in range(1500):
        tracker.update(torch.randn(32, generator=generator))
    for level, expected in ((0.1, -1.2816), (0.5, 0.0), (0.9, 1.2816)):
        assert float(tracker.read(level)) == pytest.approx(expected, abs=0.15)


def test_state_goes_through_a_checkpoint(tmp_path) -> None:
    tracker, again = QuantileTracker(), QuantileTracker()
    tracker.update(torch.arange(9.0))
    torch.save(tracker.state_dict(), tmp_path / "state.pt")
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for held in (tracker, again):
        held.update(torch.arange(5.0))
    assert again.read(0.3) == tracker.read(0.3)
