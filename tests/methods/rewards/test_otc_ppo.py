"""OTC-PPO: the factor without a group, credit by GAE over the turns of a conversation, and what the recipe composes."""

from __future__ import annotations

import math

import pytest
import torch

import vantage
from tests.harness import context
from tests.methods.conversations import talk
from tests.methods.family import of_episodes
from tests.reference import Case, cases
from vantage.advantages.critic import Critic
from vantage.advantages.estimators import GAE
from vantage.core import Trajectories, UserError
from vantage.methods import registry
from vantage.rewards.economy import CallEconomy


def rewarded(calls: list[int], score: list[float]) -> Trajectories:
    """Conversations with these numbers of calls, after the method's own rewards beyond the first, `Total`."""
    rows = talk([[2] * (count + 1) for count in calls])
    rows = rows.replace(score=torch.tensor(score, dtype=torch.float64))
    for reward in vantage.method("otc-ppo").rewards[1:]:
        rows = reward(rows, context())
    return rows


def test_the_factor_falls_from_the_first_call_on_and_is_a_half_at_c_calls() -> None:
    found = rewarded([0, 1, 4, 1], [1.0, 1.0, 1.0, 0.0]).score
    assert found.tolist() == pytest.approx([1.0, math.cos(math.pi / 6), 0.5, 0.0])


def test_a_group_does_not_matter() -> None:
    rows = rewarded([1, 2], [1.0, 1.0])
    apart = talk([[2, 2], [2, 2, 2]]).replace(score=torch.ones(2, dtype=torch.float64), group=torch.tensor([0, 1]))
    torch.testing.assert_close(CallEconomy(1.0, 4.0)(apart, context()).score, rows.score)


def test_credit_is_the_same_on_both_sides_of_what_the_tool_says() -> None:
    # Two rows of two turns of two tokens; without a critic's help and with lam 1 each decision gets its row's reward.
    rows = talk([[2, 2], [2, 2]])
    reward = torch.zeros_like(rows.reward)
    reward[0, 5] = 1.0
    zero = torch.zeros_like(reward)
    found = vantage.method("otc-ppo").advantage(rows.replace(reward=reward, value=zero, next_value=zero), context())
    assert isinstance(found, Trajectories)
    for row, sign in ((0, 1.0), (1, -1.0)):
        # Eight decisions, half of them 1 and half 0: mean 1/2, unbiased variance 2/7.
        assert found.advantage[row][rows.mask[row]].tolist() == pytest.approx([sign * 0.5 / math.sqrt(2 / 7)] * 4)
        assert not found.advantage[row][~rows.mask[row]].any()


def test_what_the_recipe_composes() -> None:
    made = vantage.method("otc-ppo", alpha=2.0, c=3.0, lam=0.9, lr=1e-4)
    assert made.rewards[1:] == (CallEconomy(2.0, 3.0),)
    assert made.values == Critic()
    assert made.advantage == GAE(1.0, 0.9, whiten=True)
    assert (made.averaging, made.regularizers, made.update.optimizer.lr) == ("token-mean", (), 1e-4)
    assert (made.rollout.prompts, made.rollout.size) == (16, 8)


@pytest.mark.parametrize(("settings", "message"), [({"c": 0.0}, "c=0.0"), ({"lam": 1.1}, "lam=1.1")])
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        vantage.method("otc-ppo", **settings)


@cases("otc-ppo")
def test_advantage_is_verls_over_a_tools_tokens_too(case: Case) -> None:
    made = registry.page("otc-ppo").make({"lam": case.settings["lam"]})
    found = made.advantage(of_episodes(case), context())
    case.check("advantages", found.advantage)
