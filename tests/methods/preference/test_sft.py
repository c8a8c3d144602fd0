"""SFT: OpenRLHF's loss, rate and optimiser."""

from __future__ import annotations

import pytest
import torch

from tests.harness import loss_of
from tests.reference import Case, cases
from vantage.core import Trajectories
from vantage.methods import registry


@cases("sft", "loss")
def test_loss_and_gradient_are_openrlhfs(case: Case) -> None:
    """One device's batch is the minibatch; a row without tokens counts nowhere."""
    mask = case.tensor("mask")
    logp = case.tensor("logp").requires_grad_()
    batch = Trajectories({"mask": mask, "length": mask.sum(1)})
    loss = loss_of(registry.page("sft").make(), batch, logp=logp)
    case.check("loss", loss)
    case.check("gradient", torch.autograd.grad(loss, logp)[0])


def test_the_rate_rises_and_falls_along_a_cosine_to_a_tenth() -> None:
    update = registry.page("sft").make().update
    factors = [update.schedule(step, 100) for step in (0, 2, 3, 51, 99)]
    assert factors == pytest.approx([1 / 3, 1.0, 1.0, 0.5572, 0.1002], abs=1e-3)
    built = update.optimizer.build([torch.nn.Parameter(torch.ones(1))])
    assert (built.defaults["lr"], built.defaults["betas"], built.defaults["weight_decay"]) == (5e-6, (0.9, 0.95), 0.0)
