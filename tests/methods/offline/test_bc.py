"""Behaviour cloning: half the squared distance, and nothing else of the data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

import vantage
from tests.harness import context, loss_of
from tests.methods.offline.theirs import policy_of
from tests.methods.offline.worlds import assert_resumes, batch_of, runner
from tests.reference import Case, cases
from vantage.core import Trajectories
from vantage.methods import registry


def test_loss_is_half_the_squared_distance() -> None:
    trainer = runner(vantage.method("bc"), 1)
    batch = batch_of(trainer)
    policy: Any = trainer.context.policy
    judged = policy.evaluate(batch, frozenset({"logp", "mean"}))
    loss = loss_of(vantage.method("bc"), batch, logp=judged.logp)
    distance = (judged.extras["mean"] - batch.action).square().sum(-1).mean()
    torch.testing.assert_close(loss, 0.5 * distance + math.log(2 * math.pi))


def test_rewards_are_not_read_and_it_learns_the_action() -> None:
    def train(scale: float) -> dict[str, torch.Tensor]:
        trainer = runner(
            vantage.method("bc", rows=64, lr=3e-3),
            150,
            spec=f"offline:steps=2000,good=1,noise=0,reward_scale={scale},hidden=32",
        )
        history = trainer.run().history
        assert history[-1]["loss/policy"] < history[1]["loss/policy"] - 0.2
        return dict(trainer.context.policy.state_dict())

    one, other = train(1.0), train(-7.0)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_resumed_run_is_the_run(tmp_path: Path) -> None:
    assert_resumes(tmp_path, vantage.method("bc", rows=16))


@cases("bc")
def test_steps_are_those_of_corl(case: Case) -> None:
    """Adam hides that the gradient is half as many times as large as an action has coordinates."""
    method = registry.page("bc").build()
    policy = policy_of(case, 4)
    where = context(policy=policy, method=method)
    method.update.prepare(where)
    ratio = case.settings["actions"] / 2
    for state, action in zip(case.tensor("state", torch.float32), case.tensor("action", torch.float32), strict=True):
        columns = {"observation": state.unsqueeze(1), "action": action.unsqueeze(1)}
        method.update.step(Trajectories({**columns, "mask": torch.ones(len(state), 1, dtype=torch.bool)}), where)
    for i, parameter in enumerate(policy.actor.pairs):
        assert parameter.grad is not None
        case.check(f"grad_{i}", parameter.grad / ratio)
        case.check(f"actor_{i}", parameter)
