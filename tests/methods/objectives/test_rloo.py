"""RLOO: the gradient of TRL's trainer on-policy, and the mean of the others as baseline."""

from __future__ import annotations

import pytest
import torch

import vantage
from tests.harness import loss_of, random_batch
from tests.methods.family import check_groups, credited, worked_case
from tests.peers import trl_rloo_loss

pytestmark = pytest.mark.peers


def test_gradient_equals_trl_on_policy() -> None:
    batch = random_batch(8, 6, size=4)
    method = vantage.method("rloo", beta=0.0)
    batch = credited(method, batch)
    ours = batch.logp_old.clone().requires_grad_()
    theirs = batch.logp_old.clone().requires_grad_()
    loss_of(method, batch, logp=ours).backward()
    row = (batch.advantage * batch.mask).sum(1) / batch.mask.sum(1)
    trl_rloo_loss(theirs, batch.logp_old, row.to(torch.float64), batch.mask, low=0.2, high=0.2).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-8)
    assert ours.grad.abs().sum() > 0


def test_advantage_is_the_centred_score_times_g_over_g_minus_one() -> None:
    others = worked_case(vantage.method("rloo"))
    assert others == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])
    assert others == pytest.approx([4 / 3 * value for value in worked_case(vantage.method("dr-grpo"))])
    check_groups(vantage.method("rloo"))


def test_the_divergence_is_taken_off_the_score_and_the_defaults_are_as_stated() -> None:
    method = vantage.method("rloo")
    assert [reward.coefficient for reward in method.rewards[1:]] == [0.03]
    assert len(vantage.method("rloo", beta=0.0).rewards) == 1
    assert (method.rollout.prompts, method.rollout.size) == (128, 4)
    assert (method.averaging, method.regularizers) == ("seq-mean-token-sum", ())
