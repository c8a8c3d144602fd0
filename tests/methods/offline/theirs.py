"""Networks with given weights, and steps in the order of the authors' loops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.harness import context
from tests.reference import Case
from vantage.core import Method, Trajectories
from vantage.policies.offline import OfflinePolicy


def copied(case: Case, name: str, parameters: Any) -> None:
    """Give parameters the values of an input, one after the other."""
    for parameter, value in zip(parameters, case.inputs[name], strict=True):
        parameter.data.copy_(torch.tensor(value))


def policy_of(case: Case, hidden: int) -> OfflinePolicy:
    """A policy whose actor has the weights of the case."""
    made = OfflinePolicy(2, 2, (hidden, hidden))
    copied(case, "actor", made.actor.pairs)
    return made


def minibatches(case: Case) -> Iterator[Trajectories]:
    """The minibatches of the case, rows of one decision."""
    seen = {name: case.tensor(name, torch.float32) for name in ("state", "action", "next_state", "reward")}
    for state, action, after, reward, over in zip(*seen.values(), case.tensor("over"), strict=True):
        columns = {"observation": state, "action": action, "next_observation": after}
        rows = {name: column.unsqueeze(1) for name, column in columns.items()}
        yield Trajectories({**rows, "reward": reward, "terminated": over, "mask": torch.ones_like(over)})


def check_twin(case: Case, method: Method, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the steps of the case with the critic before the actor of the same minibatch, and compare targets and last gradients."""
    policy = policy_of(case, 4)
    policy.add_critics()
    for network, name in zip(policy.critics, ("q1", "q2"), strict=True):
        copied(case, name, network.pairs)
    for live, target in policy.targets():
        target.data.copy_(live.data)
    where = context(policy=policy, method=method, step=0, total_steps=10, now=lambda value: value, engine=engine)
    values: Any = method.values
    objective: Any = method.objective
    values.prepare(where)
    method.update.update.prepare(where)
    if hasattr(objective.anchor, "prepare"):
        objective.anchor.prepare(where)
    noise = iter(case.tensor("noise", torch.float32).unsqueeze(2))
    monkeypatch.setattr(torch, "randn", lambda *size, **options: next(noise))
    for batch in minibatches(case):
        values.fit(batch, where)
        slopes = [[parameter.grad for parameter in network.pairs] for network in policy.critics]
        method.update(batch.replace(advantage=torch.zeros(len(batch), 1)), where)
        where.step += 1
        for controller in method.controllers:
            controller(where)
    targets = {"target_actor": policy.target_actor}
    targets |= dict(zip(("target_q1", "target_q2"), policy.target_critics, strict=True))
    for name, network in targets.items():
        for i, parameter in enumerate(network.pairs):
            case.check(f"{name}_{i}", parameter)
    slopes = [[parameter.grad for parameter in policy.actor.pairs], *slopes]
    for name, found in zip(("actor", "q1", "q2"), slopes, strict=True):
        for i, slope in enumerate(found):
            assert slope is not None
            case.check(f"{name}_grad_{i}", slope)
