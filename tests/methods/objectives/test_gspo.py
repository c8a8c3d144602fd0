"""GSPO: equality with verl and with TRL's sequence level, and the ratio of a row."""

from __future__ import annotations

import pytest
import torch

import vantage
from tests.harness import loss_of, new_logp, random_batch
from tests.methods.family import check_advantage, check_against_trl, check_groups, check_loss
from tests.reference import Case, cases


@pytest.mark.peers
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_and_gradient_equal_trl(seed: int) -> None:
    method = vantage.method("gspo", eps_low=0.05, eps_high=0.1)
    check_against_trl(method, "grpo", seed, low=0.05, high=0.1, level="sequence")
    check_groups(method)


def test_ratio_is_the_geometric_mean() -> None:
    batch = random_batch(4, 5, size=4)
    logp = new_logp(batch)
    mean = ((logp - batch.logp_old) * batch.mask).sum(1) / batch.mask.sum(1)
    batch = batch.replace(advantage=torch.ones(4, 1) * batch.mask)
    loss = loss_of(vantage.method("gspo", eps_low=10.0, eps_high=10.0), batch, logp=logp)
    assert float(loss.detach()) == pytest.approx(-float(mean.exp().mean().detach()), rel=1e-6)


@cases("gspo", "advantage")
def test_advantages(case: Case) -> None:
    check_advantage(case, vantage.method("gspo"))


@cases("gspo", "loss")
def test_loss_and_gradient_around_the_bounds_and_far_beyond(case: Case) -> None:
    low = case.settings.get("clip_ratio_low", case.settings.get("epsilon"))
    high = case.settings.get("clip_ratio_high", case.settings.get("epsilon_high"))
    check_loss(case, vantage.method("gspo", eps_low=low, eps_high=high))
