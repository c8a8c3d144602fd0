"""Truncated importance sampling: the card's numbers, the identity that it rests on, and its place in the loss."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.harness import recording
from vantage.core.errors import UserError
from vantage.core.loss import reduce, weighted
from vantage.core.trajectories import Trajectories
from vantage.functions.ratios import sampling_gap
from vantage.metrics import Metrics
from vantage.rollouts.mismatch import record_mismatch
from vantage.selection.importance import TruncatedImportance


def context() -> Any:
    metrics = Metrics()
    return SimpleNamespace(**recording(metrics))


def batch_of(ratio: list[list[float]], mask: list[list[bool]] | None = None, **columns: Any) -> Trajectories:
    policy = torch.tensor(ratio).log() - 1.0
    kept = torch.ones(policy.shape, dtype=torch.bool) if mask is None else torch.tensor(mask)
    return Trajectories(
        {"action": torch.zeros_like(policy), "mask": kept, "logp_old": policy,
         "logp_sampling": torch.full_like(policy, -1.0), **columns}
    )  # fmt: skip


def test_weights_are_the_ratio_up_to_the_limit() -> None:
    told = context()
    weighed = TruncatedImportance(limit=2.0)(batch_of([[0.5, 1.0, 3.0], [2.0, 2.5, 1.5]]), told)
    torch.testing.assert_close(weighed.weight, torch.tensor([[0.5, 1.0, 2.0], [2.0, 2.0, 1.5]]))
    assert not weighed.weight.requires_grad
    recorded = told.metrics.collect()
    assert recorded["importance/weight"] == pytest.approx(9 / 6)
    assert recorded["importance/truncated"] == pytest.approx(2 / 6)


def test_decisions_outside_of_the_mask_weigh_one_and_are_not_counted() -> None:
    told = context()
    batch = batch_of([[4.0, 9.0], [1.0, 0.0]], [[True, False], [True, False]])
    weighed = TruncatedImportance(limit=3.0)(batch, told)
    torch.testing.assert_close(weighed.weight, torch.tensor([[3.0, 1.0], [1.0, 1.0]]))
    record_mismatch(batch, told)
    recorded = told.metrics.collect()
    assert recorded["importance/truncated"] == 0.5
    assert recorded["mismatch/max"] == pytest.approx(1.3863, abs=1e-4)
    assert recorded["mismatch/logp"] == pytest.approx(1.3863 / 2, abs=1e-4)
    assert recorded["mismatch/kl"] == pytest.approx((4 - 1 - 1.3863) / 2, abs=1e-4)


@pytest.mark.parametrize("before", [torch.tensor([2.0, 0.5]), torch.tensor([[2.0, 2.0], [0.5, 0.5]])])
def test_an_existing_weight_is_multiplied(before: torch.Tensor) -> None:
    weighed = TruncatedImportance()(batch_of([[0.5, 3.0], [1.0, 1.0]], weight=before), context())
    torch.testing.assert_close(weighed.weight, torch.tensor([[1.0, 4.0], [0.5, 0.5]]))


def test_rows_that_the_policy_drew_itself_weigh_one() -> None:
    batch = batch_of([[3.0, 0.2]]).replace(logp_sampling=None)
    assert torch.equal(sampling_gap(batch.logp_old, None, batch.mask), torch.zeros(1, 2))
    assert torch.equal(TruncatedImportance()(batch, context()).weight, torch.ones(1, 2))


def test_without_a_limit_the_samplers_mean_is_the_policys() -> None:
    torch.manual_seed(0)
    policy, sampler = torch.randn(2, 7).double().log_softmax(-1)
    value = torch.randn(7).double()
    # One row per action, drawn as often as the sampler would.
    batch = Trajectories(
        {"action": torch.arange(7)[:, None], "mask": torch.ones(7, 1, dtype=torch.bool),
         "logp_old": policy[:, None], "logp_sampling": sampler[:, None]}
    )  # fmt: skip
    exact = (policy.exp() * value).sum()

    def mean(limit: float) -> torch.Tensor:
        return (sampler.exp() * TruncatedImportance(limit)(batch, context()).weight.squeeze(-1) * value).sum()

    torch.testing.assert_close(mean(1e9), exact)
    plain = (sampler.exp() * value).sum()
    assert float((plain - exact).abs()) > 0.01
    # What the limit cuts is the bias: the mass beyond it, times the value there.
    lost = ((policy.exp() - 1.5 * sampler.exp()).clamp(min=0) * value).sum()
    torch.testing.assert_close(mean(1.5), exact - lost)


def test_the_weight_scales_the_gradient_of_its_decision() -> None:
    batch = TruncatedImportance()(batch_of([[0.5, 3.0], [1.0, 1.0]]), context())
    logp = torch.zeros(2, 2, requires_grad=True)
    ready = weighted(batch, "token-mean")
    reduce(-logp, ready, ready, None)[0].backward()
    torch.testing.assert_close(logp.grad, -torch.tensor([[0.5, 2.0], [1.0, 1.0]]) / 4)


def test_a_limit_out_of_range_is_refused() -> None:
    with pytest.raises(UserError, match=r"limit=0.0"):
        TruncatedImportance(limit=0.0)
