"""What a tool inserts takes no time: methods with credit over time give a conversation the credit of its decisions alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vantage
from tests.harness import context
from tests.methods.conversations import talk
from vantage.advantages.critic import FittedCritic
from vantage.core import Trajectories
from vantage.core.trajectories import own
from vantage.methods.credit.t_ppo import OutcomeCritic
from vantage.methods.rewards.grpo_lambda import BestSolvedShorter

TURNS = [[2, 2], [3, 1], [1, 2, 1]]
"""Three conversations of four tokens of the policy each."""


def conversations(inserted: int) -> Trajectories:
    batch = talk(TURNS, inserted=inserted)
    generator = torch.Generator().manual_seed(3)
    drawn = {
        name: torch.randn(12, generator=generator, dtype=torch.float64) for name in ("value", "next_value", "logp_ref")
    }
    columns = {name: torch.zeros_like(batch.reward).masked_scatter(batch.mask, drawn[name]) for name in drawn}
    score = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    last = torch.arange(batch.steps) == (batch.length - 1).unsqueeze(1)
    kept = torch.full_like(batch.reward, -1.0)
    return batch.replace(
        **columns,
        reward=last * score.unsqueeze(1),
        score=score,
        baseline=torch.zeros(3),
        logp_old=kept,
        group=torch.arange(3),
    )


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("reinforce-plus-plus", {}), ("reinforce", {"gamma": 0.9}), ("remax", {"gamma": 0.9}), ("ppo", {}), ("a2c", {"lam": 0.9}),
        ("trpo", {}), ("t-ppo", {"gamma": 0.9}), ("st-ppo", {"gamma": 0.9}), ("otc-ppo", {"lam": 0.9}),
    ],
)  # fmt: skip
def test_credit_is_that_of_the_decisions_alone(name: str, settings: dict[str, Any]) -> None:
    advantage = vantage.method(name, **settings).advantage

    def of(inserted: int) -> torch.Tensor:
        batch = conversations(inserted)
        found: Any = advantage(batch, context())
        found = found if isinstance(found, torch.Tensor) else found.advantage
        assert not found[~batch.mask].any()
        return found[batch.mask]

    alone = of(0)
    assert alone.abs().min() > 0
    torch.testing.assert_close(of(3), alone)


def test_reinforce_plus_plus_gives_questions_and_answers_of_a_conversation_the_same() -> None:
    batch = conversations(2)
    found = vantage.method("reinforce-plus-plus").advantage(batch, context()).advantage
    rows = [found[row][batch.mask[row]].tolist() for row in range(3)]
    high, low = 1 / 3 / (2 / 9) ** 0.5, -2 / 3 / (2 / 9) ** 0.5  # the variance of the population
    for row, expected in zip(rows, (high, low, high), strict=True):
        assert row == pytest.approx([expected] * 4, abs=1e-4)


def test_the_critic_of_t_ppo_learns_the_discounted_outcome_of_the_policys_tokens(monkeypatch: Any) -> None:
    given: list[Trajectories] = []
    monkeypatch.setattr(FittedCritic, "fit", lambda self, batch, context: given.append(batch))
    batch = conversations(2)
    learnt = batch.mask.clone()
    learnt[:, :2] = False  # tokens of an earlier window
    batch = batch.replace(ended=torch.tensor([True, False, True]), origin=(~own(batch)).to(torch.int8), mask=learnt)
    OutcomeCritic(gamma=0.5).fit(batch, context())
    (taught,) = given
    assert torch.equal(taught.mask, own(batch)[[0, 2]])
    for row in range(2):
        assert taught.returns[row][taught.mask[row]].tolist() == [0.125, 0.25, 0.5, 1.0]


def test_long_answers_of_a_tool_are_not_punished() -> None:
    """Three right answers of four tokens each: whatever the tool said, none is longer than another."""
    batch = conversations(5).replace(score=torch.ones(3), group=torch.zeros(3, dtype=torch.int64))
    assert batch.length.tolist() == [9, 9, 14]
    found = BestSolvedShorter(share=1.0, alpha=0.2)(batch, context()).score
    assert found.tolist() == pytest.approx([0.9] * 3)
