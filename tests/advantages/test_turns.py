"""Credit over conversations: what the environment inserted takes no time; resets and ends stop it."""

from __future__ import annotations

import pytest
import torch

from tests.harness import context
from tests.methods.conversations import talk
from vantage.advantages.estimators import GAE, RewardToGo
from vantage.core import Trajectories
from vantage.core.trajectories import ENVIRONMENT, GUIDE, credit_flows, exists, own
from vantage.functions.groups import turn_mean
from vantage.functions.rows import at_last


def bits(*rows: str) -> torch.Tensor:
    """Masks written as digits: bits("1101") is [[True, True, False, True]]."""
    return torch.tensor([[digit == "1" for digit in row] for row in rows])


def valued(batch: Trajectories) -> Trajectories:
    generator = torch.Generator().manual_seed(5)
    draw = [torch.randn(batch.mask.shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    reward = torch.where(batch.mask, draw[0], 7.0)  # outside of the mask: not counted
    return batch.replace(reward=reward, value=draw[1], next_value=draw[2])


def test_it_is_the_estimator_on_the_decisions_alone() -> None:
    batch = valued(talk([[3, 2, 1], [4], [1, 1]]))
    found = GAE(0.9, 0.8)(batch, context())
    for row in range(3):
        mine = batch.mask[row]
        names = ("reward", "value", "next_value", "terminated", "truncated", "mask")
        short = Trajectories({name: batch[name][row, mine].unsqueeze(0) for name in names})
        expected = GAE(0.9, 0.8)(short, context())
        torch.testing.assert_close(found.advantage[row, mine], expected.advantage[0])
        torch.testing.assert_close(found.returns[row, mine], expected.returns[0])
        assert not found.advantage[row, ~mine].any()


def test_credit_of_the_last_turn_reaches_the_first() -> None:
    batch = talk([[2, 2]])
    reward = torch.zeros_like(batch.reward)
    reward[0, 5] = 1.0
    batch = batch.replace(reward=reward)
    assert RewardToGo(0.5)(batch, context()).advantage[0].tolist() == [0.125, 0.25, 0.0, 0.0, 0.5, 1.0]


def test_whitened_credit_is_alike_before_and_behind_an_insertion() -> None:
    """Mask 1 1 0 0 1 1, reward 1 at the end, and a row with 0: verl's whitening gives sqrt(7 / 8) = 0.94 on all four."""
    mask, last = bits("110011", "110011"), bits("000001", "000001")
    batch = Trajectories(
        {
            "mask": mask,
            "length": torch.tensor([6, 6]),
            "reward": last * torch.tensor([[1.0], [0.0]]),
            "terminated": last,
            "truncated": torch.zeros_like(last),
        }
    )
    found = RewardToGo(1.0, whiten=True)(batch, context()).advantage
    assert found[0].tolist() == pytest.approx([0.9354, 0.9354, 0, 0, 0.9354, 0.9354], abs=1e-4)
    assert found[1].tolist() == pytest.approx([-0.9354, -0.9354, 0, 0, -0.9354, -0.9354], abs=1e-4)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.8)])
def test_the_value_of_the_next_decision_is_bootstrapped_past_an_insertion(gamma: float, lam: float) -> None:
    value = torch.tensor([[0.5, 0.25, 9.0, 0.125]])
    columns = {
        "mask": bits("1101"), "length": torch.tensor([4]), "value": value, "next_value": torch.tensor([[0.25, 0.125, 9.0, 0.0]]),
        "reward": torch.tensor([[0.0, 0.0, 0.0, 1.0]]), "terminated": bits("0001"), "truncated": bits("0000"),
    }  # fmt: skip
    found = GAE(gamma, lam)(Trajectories(columns), context())
    third = 1 - 0.125
    second = gamma * 0.125 - 0.25 + gamma * lam * third
    first = gamma * 0.25 - 0.5 + gamma * lam * second
    assert found.advantage[0].tolist() == pytest.approx([first, second, 0, third])


@pytest.mark.parametrize(("terminated", "truncated", "bootstrap"), [(1, 0, 0.0), (0, 1, 4.0), (1, 1, 0.0)])
def test_credit_stops_at_a_reset(terminated: int, truncated: int, bootstrap: float) -> None:
    """A stream whose second step ends an episode and whose third is the step in which the environment resets."""
    end = bits("01000")
    batch = Trajectories(
        {
            "mask": bits("11011"),
            "length": torch.tensor([5]),
            "reward": torch.tensor([[1.0, 1.0, 0.0, 1.0, 1.0]]),
            "value": torch.zeros(1, 5),
            "next_value": torch.tensor([[0.0, 4.0, 0.0, 0.0, 8.0]]),
            "terminated": end & bool(terminated),
            "truncated": end & bool(truncated),
        }
    )
    assert credit_flows(batch).tolist() == bits("11011").tolist()
    found = GAE(0.5, 1.0)(batch, context()).advantage[0].tolist()
    # The row itself is cut: its last decision bootstraps 0.5 * 8.
    assert found == [1 + 0.5 * (1 + 0.5 * bootstrap), 1 + 0.5 * bootstrap, 0.0, 1 + 0.5 * 5, 5.0]


def test_who_produced_a_position() -> None:
    batch = Trajectories({"mask": bits("11001100", "11110000"), "length": torch.tensor([6, 4])})
    assert exists(batch).tolist() == bits("11111100", "11110000").tolist()
    # Nothing says that anything was inserted: what is outside of the mask is the policy's and not learnt from.
    assert own(batch).tolist() == exists(batch).tolist()
    origin = torch.zeros(2, 8, dtype=torch.int8)
    origin[0, 2], origin[0, 3] = ENVIRONMENT, GUIDE
    assert own(batch.replace(origin=origin)).tolist() == bits("11001100", "11110000").tolist()
    learnt = batch.replace(origin=origin, mask=bits("01111100", "00110000"))
    assert own(learnt).tolist() == bits("11001100", "11110000").tolist()
    turn = torch.zeros(2, 8, dtype=torch.int64)
    assert own(batch.replace(turn=turn)).tolist() == bits("11001100", "11110000").tolist()
    assert own(Trajectories({"mask": bits("10")})).tolist() == [[True, True]]


def test_padding_carries_no_credit_and_may_hold_anything() -> None:
    batch = talk([[2], [1, 1]])
    reward = torch.where(exists(batch), 1.0, float("nan"))
    found = RewardToGo(1.0)(batch.replace(reward=reward), context()).advantage
    assert found.tolist() == [[2, 1, 0, 0], [2, 0, 0, 1]]


def test_a_reward_of_a_row_is_paid_at_the_policys_last_decision() -> None:
    mask = bits("1100", "1111", "0000")
    assert at_last(torch.tensor([2.0, float("nan"), 3.0]), mask)[[0, 2]].tolist() == [[0, 2, 0, 0], [0, 0, 0, 0]]


def test_means_of_turns_leave_out_what_was_put_in() -> None:
    batch = talk([[2, 1], [3]], inserted=1)
    values = torch.tensor([[1.0, 3.0, 99.0, 5.0], [1.0, 2.0, 6.0, 99.0]], requires_grad=True)
    found = turn_mean(values[:, : batch.steps], batch.turn, batch.mask)
    assert found.tolist() == [[2.0, 2.0, 0.0, 5.0], [3.0, 3.0, 3.0, 0.0]]
    found[0, 0].backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[0.5, 0.5, 0.0, 0.0], [0.0] * 4]
