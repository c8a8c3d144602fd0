"""The update keeps what the averaging counts: rows of a policy without memory are not taken apart where rows count."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vantage
from tests.core.toy import ToyEngine, ToyPolicy, ToyTask, toy_method
from vantage.core import Schedule, Trainer, UserError
from vantage.core.averaging import AVERAGINGS
from vantage.core.loss import weighted
from vantage.tasks.registry import make_task
from vantage.updates.gradient import GradientUpdate
from vantage.updates.optimizers import SGD


@pytest.mark.parametrize("name", [*AVERAGINGS, "function"])
def test_the_gradient_is_that_of_whole_rows(name: str) -> None:
    how = AVERAGINGS["seq-mean-token-sum"] if name == "function" else name
    torch.manual_seed(0)
    task = make_task("cartpole")
    policy = task.make_policy(seed=0)
    method = vantage.method("grpo", prompts=2, group_size=4, lr=1e-9, beta=0.0)
    method = method.replace(averaging=how).adapt("update", max_grad_norm=None)
    where = Trainer(method, task, policy, task.make_engine(policy), Schedule(1), seed=3).context
    batch = where.verify(method.rollout(where))
    for part in method.rewards:
        batch = part(batch, where)
    batch = batch.replace(advantage=method.advantage(batch, where))
    assert len(set(batch.length.tolist())) > 3  # rows of unequal length
    ready = weighted(batch, how)
    loss = method.objective(policy.evaluate(ready, method.wants), ready, where)
    total = (torch.where(batch.mask, loss, 0.0) * ready["_weights"]).sum()
    parameters = [p for p in policy.parameters() if p.requires_grad]
    expected = torch.autograd.grad(total, parameters, allow_unused=True)
    method.update.prepare(where)
    method.update(batch, where)
    for parameter, gradient in zip(parameters, expected, strict=True):
        if gradient is None:
            assert parameter.grad is None or not parameter.grad.any()
        else:
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_a_unit_that_the_averaging_forbids_is_refused() -> None:
    task = make_task("cartpole")
    policy = task.make_policy(seed=0)
    method = vantage.method("grpo", prompts=2, group_size=4).adapt("update", unit="decision")
    trainer = Trainer(method, task, policy, task.make_engine(policy), Schedule(1), seed=3)
    with pytest.raises(UserError, match="needs whole: set 'row' or a larger unit"):
        trainer.run()


class Count:
    """A transform of the gradient that counts optimiser steps."""

    number = 0

    def __call__(self, parameters: Any, context: Any) -> None:
        self.number += 1


@pytest.mark.parametrize("limit", [0.0, 0.0004, 0.002, 1.0])
def test_target_kl_stops_after_the_same_pass_whatever_the_micro_batch(limit: float) -> None:
    """The passes have divergences 0.00002, 0.0004, 0.0014, 0.0024, ...; each is the mean over all of the pass's decisions."""
    found = {}
    for size in (None, 1, 3):
        policy = ToyPolicy()
        update = GradientUpdate(
            SGD(0.3), epochs=6, minibatches=2, micro_batch=size, target_kl=limit, transforms=(Count(),)
        )
        trainer = Trainer(toy_method(update=update), ToyTask(), policy, ToyEngine(policy), Schedule(1), seed=3)
        metrics = trainer.step()[0]
        found[size] = (trainer.context.method.update.transforms[0].number, metrics["kl/old"])
    (count, kl), *others = found.values()
    assert {0.0: 2, 0.0004: 4, 0.002: 8, 1.0: 12}[limit] == count
    for other in others:
        assert other == (count, pytest.approx(kl, rel=1e-5))
