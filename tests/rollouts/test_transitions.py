"""Transitions: what followed each decision, and what is kept of it for off-policy methods."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("gymnasium")
import gymnasium

import vantage
from tests.harness import context as plain_context
from tests.rollouts.environment_tools import Counter, context_for, policy_for
from vantage.core import Prompts, Trajectories
from vantage.rollouts.environments import EnvironmentEngine
from vantage.rollouts.plans import Steps
from vantage.rollouts.transitions import ReplayedTransitions, TransitionBuffer


def test_next_observation_is_what_the_environment_gave_before_it_was_reset() -> None:
    """Episodes of 3, 2, 4 steps; observations are [episode, step]."""
    engine, policy = EnvironmentEngine(Counter), policy_for(Counter())
    batch = engine.advance(2, 7, context_for(policy, engine, values=False, columns=("next_observation",)))
    seen = [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [2, 0], [2, 1]]
    after = [[0, 1], [0, 2], [0, 3], [1, 1], [1, 2], [2, 1], [2, 2]]
    assert batch.observation.tolist() == [seen] * 2
    assert batch.next_observation.tolist() == [after] * 2
    assert "last_observation" not in batch


def test_it_is_there_for_whole_episodes_and_for_environments_that_reset_late() -> None:
    engine, policy = EnvironmentEngine(Counter), policy_for(Counter())
    where = context_for(policy, engine, columns=("next_observation",))
    batch = engine.sample(Prompts(torch.arange(2), [0, 1]), 1, where)
    inside = batch.mask
    expected = batch.observation[inside] + torch.tensor([0.0, 1.0])
    assert batch.next_observation[inside].tolist() == expected.tolist()
    engine = EnvironmentEngine("CartPole-v1", backend="vector", options={"max_episode_steps": 5})
    policy = policy_for(gymnasium.make("CartPole-v1"))
    batch = engine.advance(3, 30, context_for(policy, engine, columns=("next_observation",)))
    torch.testing.assert_close(batch.next_observation[:, :-1], batch.observation[:, 1:])
    torch.testing.assert_close(batch.next_observation[:, -1], batch.last_observation)


def test_it_is_normalised_as_it_is_seen() -> None:
    engine = EnvironmentEngine("Pendulum-v1", options={"max_episode_steps": 4})
    policy = policy_for(gymnasium.make("Pendulum-v1"), normalize_observations=True)
    batch = engine.advance(2, 8, context_for(policy, engine, columns=("next_observation",)))
    torch.testing.assert_close(batch.next_observation[:, 3], batch.final_observation[:, 0])
    torch.testing.assert_close(batch.next_observation[:, 0], batch.observation[:, 1])


def test_an_inventory_engine_gives_it_too() -> None:
    task = vantage.task("inventory:periods=4")
    policy = task.make_policy(seed=0)
    engine = task.make_engine(policy, seed=0)
    method: Any = context_for(policy, engine, columns=("next_observation",)).method
    where = plain_context(method=method, policy=policy, device=torch.device("cpu"))
    batch = engine.advance(2, 6, where)
    torch.testing.assert_close(batch.next_observation[:, :3], batch.observation[:, 1:4])
    torch.testing.assert_close(batch.next_observation[:, 3], batch.final_observation[:, 0])
    torch.testing.assert_close(batch.next_observation[:, 5], batch.last_observation)


def steps(numbers: list[float], mask: list[bool] | None = None) -> Trajectories:
    """A row of decisions whose observation is a number and whose next one is the number that follows."""
    seen = torch.tensor([numbers]).unsqueeze(-1)
    kept = torch.tensor([mask]) if mask is not None else torch.ones(1, len(numbers), dtype=torch.bool)
    none, zero = torch.zeros_like(kept), torch.zeros(kept.shape)
    table = {
        "observation": seen,
        "next_observation": seen + 1,
        "action": seen * 10,
        "mask": kept,
        "reward": seen[..., 0],
    }
    table |= {"terminated": none, "truncated": none, "logp_old": zero, "length": kept.sum(1)}
    return Trajectories(table, rows=1)


def held(buffer: TransitionBuffer, capacity: int) -> list[float]:
    drawn = buffer.draw(200, capacity, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.next_observation, drawn.observation + 1)
    torch.testing.assert_close(drawn.action, drawn.observation * 10)
    assert drawn.observation.shape == (200, 1, 1)
    return sorted(set(drawn.reward.flatten().tolist()))


def test_the_newest_transitions_are_kept_and_masked_decisions_left_out() -> None:
    buffer = TransitionBuffer()
    buffer.push(steps([1, 2, 3, 99], [True, True, True, False]), 5)
    assert held(buffer, 5) == [1, 2, 3]
    buffer.push(steps([4, 5, 6, 7]), 5)
    assert held(buffer, 5) == [3, 4, 5, 6, 7]
    restored = TransitionBuffer()
    restored.load_state_dict(buffer.state_dict())
    assert held(restored, 5) == [3, 4, 5, 6, 7]
    restored.push(steps([10, 11, 12, 13, 14, 15, 16]), 5)
    assert held(restored, 5) == [12, 13, 14, 15, 16]


def test_the_first_step_gathers_the_warm_up_and_the_others_the_plan() -> None:
    engine, policy = EnvironmentEngine("Pendulum-v1"), policy_for(gymnasium.make("Pendulum-v1"))
    plan = ReplayedTransitions(Steps(2, 5), rows=16, capacity=50, warmup=25)
    where = context_for(policy, engine, columns=("next_observation",))
    batch = plan(where)
    assert engine.taken == 30
    assert where.metrics.collect()["replay/kept"] == 30
    assert (len(batch), batch.steps) == (16, 1)
    assert batch.mask.all()
    plan(where)
    assert engine.taken == 40
    cost = plan.cost()
    assert (cost.rows, cost.tokens, cost.environment_steps) == (16, 16, 10)


@pytest.mark.parametrize("name", ["ppo", "a2c", "trpo", "fpo", "dppo", "brrl", "t-ppo", "otc-ppo"])
def test_methods_that_bootstrap_declare_it(name: str) -> None:
    assert {"last_observation", "final_observation"} <= vantage.method(name).declared("columns")


def test_a_method_with_values_that_does_not_bootstrap_gets_no_columns_for_it() -> None:
    assert "last_observation" not in vantage.method("pdppo").declared("columns")
