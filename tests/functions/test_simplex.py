from __future__ import annotations

import math

import pytest
import torch

from vantage.functions.simplex import power_policy

DOUBLE = torch.float64


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def hard(actions: int, power: int, rows: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Gains over 8 orders of size, weights over 16."""
    generator = torch.Generator().manual_seed(actions)
    gain = torch.rand(rows, actions, generator=generator, dtype=DOUBLE) * 10 ** (
        8 * torch.rand(rows, 1, dtype=DOUBLE) - 4
    )
    weight = 10 ** (-16 * torch.rand(rows, actions, generator=generator, dtype=DOUBLE))
    return gain, weight**power


@pytest.mark.parametrize(("actions", "power"), [(2, 1), (2, 2), (9, 1), (9, 2), (300, 1), (300, 2)])
def test_sums_to_one_by_bisection(actions: int, power: int) -> None:
    gain, weight = hard(actions, power)
    policy, z = power_policy(gain, weight, power)
    root = weight.pow(1 / power)
    low, high = (gain + root).amax(-1), gain.amax(-1) + weight.sum(-1).pow(1 / power) * 1.0000001
    for _ in range(200):
        middle = (low + high) / 2
        over = (weight / (middle.unsqueeze(-1) - gain).pow(power)).sum(-1) > 1
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    torch.testing.assert_close(z, low, rtol=1e-12, atol=1e-12)
    assert (policy >= 0).all()
    torch.testing.assert_close(policy.sum(-1), torch.ones(len(gain), dtype=DOUBLE))


def test_two_actions_of_power_one_in_closed_form() -> None:
    gain, weight = doubles(0.3, 0.8), doubles(0.2, 0.05)
    # (z - g0)(z - g1) = w0 (z - g1) + w1 (z - g0)
    half = (gain.sum() + weight.sum()) / 2
    z = half + (half**2 - gain.prod() - weight[0] * gain[1] - weight[1] * gain[0]).sqrt()
    found, root = power_policy(gain, weight, 1)
    assert math.isclose(float(root), float(z), rel_tol=1e-14)
    torch.testing.assert_close(found, weight / (z - gain))


def test_an_action_without_weight_has_no_probability() -> None:
    found, _ = power_policy(doubles(5.0, 1.0, float("inf"), 1.0), doubles(0.0, 1.0, 0.0, 1.0), 2)
    torch.testing.assert_close(found, doubles(0.0, 0.5, 0.0, 0.5))


def test_works_in_single_precision_and_carries_no_gradient() -> None:
    gain, weight = hard(5, 1)
    found, _ = power_policy(gain.float().requires_grad_(), weight.float(), 1)
    assert not found.requires_grad
    torch.testing.assert_close(
        found.double(), power_policy(gain.float().double(), weight.float().double(), 1)[0], atol=1e-5, rtol=0
    )
