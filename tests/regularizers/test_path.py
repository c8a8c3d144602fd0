"""KL of the steps of a sampler to a reference."""

from __future__ import annotations

import pytest
import torch

import vantage
from tests.policies.test_flow import some
from vantage.core import UserError
from vantage.core.context import Context
from vantage.policies.flow import FlowPolicy
from vantage.regularizers.path import PathKL
from vantage.rollouts.denoising import Sampler


def test_it_is_the_kl_of_two_normals_per_dimension() -> None:
    torch.manual_seed(0)
    policy, reference = (FlowPolicy.new((3,), hidden=(8,), seed=seed) for seed in (1, 2))
    where = Context(
        vantage.method("flow-grpo"), policy, None, None, torch.Generator(), policies={"reference": reference.frozen()}
    )
    batch = some(policy, sampler=Sampler(4, stochastic=(0, 2, 3)))
    want = frozenset({"mean"})
    found = PathKL(0.5)(policy.evaluate(batch, want), batch, where)
    means = [p.evaluate(batch, want).extras["mean"] for p in (policy, reference)]
    std = (Sampler(4).sigmas() * 0.5).reshape(1, 4, 1)
    one, other = (torch.distributions.Normal(mean, std) for mean in means)
    expected = 0.5 * torch.distributions.kl_divergence(one, other).mean(-1)
    torch.testing.assert_close(found[:, [0, 2, 3]], expected[:, [0, 2, 3]])
    assert found[:, 1].abs().max() == 0
    # Four steps of length 1/4.
    torch.testing.assert_close(PathKL(0.5, by_length=True)(policy.evaluate(batch, want), batch, where), found / 4)
    found.sum().backward()
    assert next(policy.parameters()).grad.abs().max() > 0
    with pytest.raises(UserError, match="coefficient=-1"):
        PathKL(-1.0)
