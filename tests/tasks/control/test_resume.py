"""A run that stopped and went on is the run that did not stop: policy, statistics, optimiser, environments, randomness."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("gymnasium")

from vantage.core.trainer import Schedule, Trainer
from vantage.methods.control.ppo import ppo
from vantage.tasks.control.task import ControlTask

STEPS, BROKEN_AT = 5, 2


def trainer(spec: str, rows: int, folder: Path) -> Trainer:
    task = ControlTask(spec)
    policy = task.make_policy(seed=3)
    method = ppo(rows=rows, length=40, epochs=2, minibatches=2)
    schedule = Schedule(STEPS, save_every=1, keep=10)
    return Trainer(method, task, policy, task.make_engine(policy, seed=3), schedule, seed=3, folder=folder)


@pytest.mark.parametrize(
    ("spec", "rows"), [("pendulum", 3), ("cartpole", 2), ("cartpole", 8), ("grid", 9), ("hopper", 2)]
)
def test_bit_for_bit(spec: str, rows: int, tmp_path: Path) -> None:
    if spec == "hopper":
        pytest.importorskip("mujoco")
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    whole = trainer(spec, rows, tmp_path / "whole")
    history = whole.run().history

    first = trainer(spec, rows, tmp_path / "broken")
    for _ in range(BROKEN_AT):
        first.step()
    first.save()
    second = trainer(spec, rows, tmp_path / "broken")
    assert second.restore() == BROKEN_AT
    rest = second.run().history
    assert rest == history[-(STEPS - BROKEN_AT) :]
    expected = whole.context.policy.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in second.context.policy.state_dict().items())
