"""Behaviour cloning: half the squared distance, and nothing else of the data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

import vantage
from tests.harness import loss_of
from tests.methods.offline.worlds import assert_resumes, batch_of, runner


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
