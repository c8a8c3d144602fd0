"""The engine: shared scenarios, streams that restart and resume, and replays that equal what was rolled out."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.harness import reader
from vantage.advantages.critic import BOOTSTRAP
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.tasks.registry import make_task


def setting(spec: str, seed: int = 0) -> tuple[Any, Any, Context]:
    task = make_task(spec)
    policy = task.make_policy(seed=1)
    engine = task.make_engine(policy, seed=3)
    method = reader(*BOOTSTRAP, "next_observation")
    return task, engine, Context(method, policy, engine, task, torch.Generator().manual_seed(seed))


def test_rows_of_a_prompt_share_start_and_demand() -> None:
    task, engine, context = setting("inventory:periods=7")
    batch = engine.sample(task.prompts(torch.tensor([4, 9])), 3, context)
    assert batch.mask.shape == (6, 7)
    assert torch.equal(batch.demand[0], batch.demand[2])
    assert torch.equal(batch.start[3], batch.start[5])
    assert not torch.equal(batch.demand[0], batch.demand[3])
    assert not torch.equal(batch.action[0], batch.action[1])
    assert batch.truncated.sum(1).tolist() == [1] * 6
    again = engine.sample(task.prompts(torch.tensor([9])), 1, context)
    assert torch.equal(again.demand[0], batch.demand[3])


def test_a_replay_equals_the_greedy_rollout() -> None:
    task, engine, context = setting("inventory:periods=9,lead_time=3,lost=true")
    batch = engine.sample(task.prompts(torch.arange(5)), 1, context, greedy=True)
    torch.testing.assert_close(task.replay(context.policy, batch).detach(), batch.reward)


def test_streams_restart_and_go_on_after_a_resume() -> None:
    task, engine, context = setting("lot-sizing:periods=5")
    first = engine.advance(3, 12, context)
    assert first.truncated[0].nonzero().flatten().tolist() == [4, 9]
    assert first.final_observation.shape == (3, 2, 5)
    torch.testing.assert_close(first.last_observation, task.system.observe(engine.state_dict()["state"]))
    state, random = engine.state_dict(), context.generator.get_state()
    following = engine.advance(3, 6, context)
    _, other, elsewhere = setting("lot-sizing:periods=5", seed=8)
    other.load_state_dict(state)
    elsewhere.generator.set_state(random)
    resumed = other.advance(3, 6, elsewhere)
    for name in ("observation", "action", "demand", "reward", "truncated"):
        assert torch.equal(following[name], resumed[name])


class Snowball(torch.nn.Module):
    """Orders half as much again as it has and 15 more, which 50 periods are too few to punish with an overflow."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.share = torch.nn.Parameter(torch.full((outputs,), 1.5))

    def distribution_of(self, observation: torch.Tensor) -> Any:
        return SimpleNamespace(mode=(observation.clamp(min=0).sum(-1, keepdim=True) + 10) * self.share)


@pytest.mark.parametrize(
    ("spec", "outputs"),
    [("inventory:lost=true", 1), ("inventory:lead_time=2", 1), ("inventory:stores=2,policy=symmetry-aware", 3)],
)
def test_a_policy_that_feeds_on_its_stock_is_judged_by_a_large_number(spec: str, outputs: int) -> None:
    """1.5 to the power of 1100 periods is no float: without a limit on orders inf - inf, and a score that is not a number."""
    judged = make_task(spec).evaluate(Snowball(outputs), samples=4, seed=0)
    assert all(math.isfinite(value) for value in judged.values())
    assert judged["cost"] > 10_000


def test_ordinary_orders_are_rounded_and_not_limited() -> None:
    store = make_task("inventory").system
    decisions = torch.tensor([[-9.0], [11.4], [4990.0], [6000.0]])
    assert store.whole(torch.zeros(4, 3), decisions)[:, 0].tolist() == [0, 12, 4991, 5000]


def test_rows_with_an_end_inside_are_not_replayed() -> None:
    task, engine, context = setting("inventory:periods=4")
    with pytest.raises(UserError, match="whole episodes"):
        task.replay(context.policy, engine.advance(2, 6, context))
