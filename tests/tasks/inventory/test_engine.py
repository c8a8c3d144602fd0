"""The engine: shared scenarios, streams that restart and resume, and replays that equal what was rolled out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.tasks.registry import make_task


def setting(spec: str, seed: int = 0) -> tuple[Any, Any, Context]:
    task = make_task(spec)
    policy = task.make_policy(seed=1)
    engine = task.make_engine(policy, seed=3)
    method: Any = SimpleNamespace(values=object())
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


def test_rows_with_an_end_inside_are_not_replayed() -> None:
    task, engine, context = setting("inventory:periods=4")
    with pytest.raises(UserError, match="whole episodes"):
        task.replay(context.policy, engine.advance(2, 6, context))
