"""Actions stay in their box, whatever its bounds, and a squashed action's density is that of what the environment gets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vantage.core.errors import UserError
from vantage.policies.control import ControlPolicy
from vantage.policies.flow_control import Flow
from vantage.policies.generative import GenerativePolicy
from vantage.policies.spaces import Actions, Observations

SEEN = Observations("vector", (3,))
UNEVEN = Actions("continuous", (4,), low=(-0.1, 0.0, -5.0, 2.0), high=(0.2, 4.0, 0.1, 2.5))
HUGE = float(np.finfo(np.float32).max)


def squashed(actions: Actions) -> ControlPolicy:
    return ControlPolicy(SEEN, actions, squash=True)


def test_squashed_actions_stay_in_an_asymmetric_box_and_reach_its_ends() -> None:
    """In float32, -0.1 + 2 * 0.15 is 0.20000002, outside of the box."""
    low, high = UNEVEN.bounds
    raw = np.linspace(-30, 30, 4001, dtype=np.float32)[:, None].repeat(4, 1)
    actions = squashed(UNEVEN).to_environment(raw)
    assert (actions >= low).all()
    assert (actions <= high).all()
    np.testing.assert_allclose(actions[0], low, atol=1e-6)
    np.testing.assert_allclose(actions[-1], high, atol=1e-6)
    np.testing.assert_allclose(actions[2000], (low + high) / 2, atol=1e-6)


def test_no_box_is_left_by_rounding() -> None:
    random = np.random.default_rng(0)
    low = random.normal(0, 3, 2000).astype(np.float32)
    high = low + random.exponential(2, 2000).astype(np.float32)
    box = Actions("continuous", (2000,), low=tuple(map(float, low)), high=tuple(map(float, high)))
    ends = box.stretch(np.array([-1.0, 1.0], np.float32)[:, None].repeat(2000, 1))
    assert ((ends >= low) & (ends <= high)).all()
    np.testing.assert_allclose(ends, [low, high], rtol=1e-5, atol=1e-5)


def test_each_coordinate_is_stretched_by_its_own_bounds() -> None:
    """A coordinate without a bound keeps its number; it must not take the bounds from the others."""
    mixed = Actions("continuous", (4,), low=(0.0, None, 0.0, -HUGE), high=(0.5, None, None, HUGE))
    unit = np.array([[-1.0, -1.0, -1.0, -1.0], [0.0, 0.3, 0.3, 0.0], [1.0, 1.0, 1.0, 1.0]], np.float32)
    expected = [[0.0, -1.0, 0.0, -HUGE], [0.25, 0.3, 0.3, 0.0], [0.5, 1.0, 1.0, HUGE]]
    np.testing.assert_allclose(mixed.stretch(unit), expected)
    policy = GenerativePolicy(SEEN, mixed, Flow(draws=2))
    action = policy.act(np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32))
    assert (action[:, 0] >= 0).all()
    assert (action[:, 0] <= 0.5).all()


def test_a_box_without_bounds_is_refused_by_coordinate() -> None:
    half = Actions("continuous", (2,), low=(-1.0, 0.0), high=(1.0, None))
    with pytest.raises(UserError, match=r"coordinate 1 of 2 has \[0.0, None\]"):
        squashed(half)


@pytest.mark.parametrize("mean", [-1.5, 0.0, 0.4])
@pytest.mark.parametrize("log_std", [-1.0, 0.0, 0.7])
def test_the_density_in_the_box_is_right_by_numerical_integration(mean: float, log_std: float) -> None:
    """P(action <= c) from the normal before the tanh equals the integral of exp(logp) / half up to c."""
    low, high = -1.0, 3.0
    policy = ControlPolicy(SEEN, Actions("continuous", (1,), low=(low,), high=(high,)), squash=True, log_std=log_std)
    distribution = policy.head(torch.full((1,), mean, dtype=torch.float64))
    raw = torch.linspace(-14, 14, 400_001, dtype=torch.float64)
    action = torch.tensor(low) + (high - low) / 2 * (1 + torch.tanh(raw))
    density = distribution.log_prob(raw.unsqueeze(-1)).exp() / ((high - low) / 2)
    normal = torch.distributions.Normal(mean, float(np.exp(log_std)))
    for c in (-2.0, mean, 1.0, 14.0):
        upto = raw <= c
        mass = torch.trapezoid(density[upto], action[upto])
        assert float(mass.detach()) == pytest.approx(float(normal.cdf(raw[upto][-1])), abs=1e-4)
