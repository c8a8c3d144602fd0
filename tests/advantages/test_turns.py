"""Credit across turns: what the environment says takes no time."""

from __future__ import annotations

import torch

from tests.harness import context
from tests.methods.conversations import talk
from vantage.advantages.estimators import GAE, RewardToGo
from vantage.advantages.turns import AcrossTurns
from vantage.core import Trajectories
from vantage.functions.groups import turn_mean


def valued(batch: Trajectories) -> Trajectories:
    generator = torch.Generator().manual_seed(5)
    draw = [torch.randn(batch.mask.shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    reward = torch.where(batch.mask, draw[0], 7.0)  # outside of the mask: not counted
    return batch.replace(reward=reward, value=draw[1], next_value=draw[2])


def test_it_is_the_estimator_on_the_decisions_alone() -> None:
    batch = valued(talk([[3, 2, 1], [4], [1, 1]]))
    found = AcrossTurns(GAE(0.9, 0.8))(batch, context())
    for row in range(3):
        own = batch.mask[row]
        names = ("reward", "value", "next_value", "terminated", "truncated", "mask")
        short = Trajectories({name: batch[name][row, own].unsqueeze(0) for name in names})
        expected = GAE(0.9, 0.8)(short, context())
        torch.testing.assert_close(found.advantage[row, own], expected.advantage[0])
        torch.testing.assert_close(found.returns[row, own], expected.returns[0])
        assert not found.advantage[row, ~own].any()


def test_credit_of_the_last_turn_reaches_the_first() -> None:
    batch = talk([[2, 2]])
    reward = torch.zeros_like(batch.reward)
    reward[0, 5] = 1.0
    batch = batch.replace(reward=reward)
    across = AcrossTurns(RewardToGo(0.5))(batch, context()).advantage[0]
    assert across.tolist() == [0.125, 0.25, 0.0, 0.0, 0.5, 1.0]
    # The estimator alone ends its trace at what was put in.
    assert RewardToGo(0.5)(batch, context()).advantage[0].tolist() == [0.0, 0.0, 0.0, 0.0, 0.5, 1.0]


def test_without_insertions_nothing_changes() -> None:
    batch = valued(talk([[5], [3], [1]]))
    alone = GAE(0.99, 0.95, whiten=True)(batch, context())
    found = AcrossTurns(GAE(0.99, 0.95, whiten=True))(batch, context())
    torch.testing.assert_close(found.advantage[batch.mask], alone.advantage[batch.mask])


def test_means_of_turns_leave_out_what_was_put_in() -> None:
    batch = talk([[2, 1], [3]], inserted=1)
    values = torch.tensor([[1.0, 3.0, 99.0, 5.0], [1.0, 2.0, 6.0, 99.0]], requires_grad=True)
    found = turn_mean(values[:, : batch.steps], batch.turn, batch.mask)
    assert found.tolist() == [[2.0, 2.0, 0.0, 5.0], [3.0, 3.0, 3.0, 0.0]]
    found[0, 0].backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[0.5, 0.5, 0.0, 0.0], [0.0] * 4]
