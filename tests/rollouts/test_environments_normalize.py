"""Normalised observations and rewards against Stable-Baselines3's VecNormalize."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")
import gymnasium

from tests.rollouts.environment_tools import Counter, context_for, policy_for
from vantage.core.protocols import Prompts
from vantage.rollouts.env_batch import RewardScale
from vantage.rollouts.environments import EnvironmentEngine

LIMIT = 17


@pytest.mark.peers
@pytest.mark.parametrize(
    ("env_id", "rows"),
    [("Pendulum-v1", 1), ("Pendulum-v1", 3), ("MountainCarContinuous-v0", 2), ("InvertedPendulum-v5", 2)],
)
def test_streams_equal_stable_baselines(env_id: str, rows: int) -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    engine = EnvironmentEngine(env_id, options={"max_episode_steps": LIMIT}, normalize_rewards=True, gamma=0.97)
    env = gymnasium.make(env_id, max_episode_steps=LIMIT)
    policy = policy_for(env, normalize_observations=True)
    context = context_for(policy, engine)
    batches = [engine.advance(rows, 40, context) for _ in range(3)]

    peer = DummyVecEnv([lambda: gymnasium.make(env_id, max_episode_steps=LIMIT)] * rows)
    wrapped = VecNormalize(peer, clip_obs=10.0, clip_reward=10.0, gamma=0.97)
    peer._seeds = batches[0].prompt.tolist()
    seen = wrapped.reset()
    for batch in batches:
        finals: list[list[np.ndarray]] = [[] for _ in range(rows)]
        for t in range(40):
            np.testing.assert_allclose(batch.observation[:, t], seen, rtol=1e-5, atol=1e-6)
            seen, reward, done, infos = wrapped.step(policy.to_environment(batch.action[:, t].numpy()))
            np.testing.assert_allclose(batch.reward[:, t], reward, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal((batch.terminated | batch.truncated)[:, t], done)
            for row, info in enumerate(infos):
                if info["TimeLimit.truncated"]:
                    finals[row].append(info["terminal_observation"])
        np.testing.assert_allclose(batch.last_observation, seen, rtol=1e-5, atol=1e-6)
        assert (batch.terminated | batch.truncated).any(1).all()
        for row, cut in enumerate(finals):
            for k, observation in enumerate(cut):
                np.testing.assert_allclose(batch.final_observation[row, k], observation, rtol=1e-5, atol=1e-6)


@pytest.mark.peers
def test_reward_scale_equals_stable_baselines_on_any_rewards_and_ends() -> None:
    from stable_baselines3.common.running_mean_std import RunningMeanStd

    random = np.random.default_rng(1)
    reward, over = random.normal(1.0, 3.0, (200, 4)), random.random((200, 4)) < 0.1
    scale = RewardScale(4, 0.99)
    ours = np.concatenate(
        [scale.take(reward[s : s + 50], over[s : s + 50], np.ones((50, 4), bool)) for s in range(0, 200, 50)]
    )
    running, moments = np.zeros(4), RunningMeanStd(shape=())
    for t in range(200):
        running = running * 0.99 + reward[t]
        moments.update(running)
        np.testing.assert_allclose(ours[t], np.clip(reward[t] / np.sqrt(moments.var + 1e-8), -10, 10), atol=1e-6)
        running[over[t]] = 0.0
    np.testing.assert_allclose(scale.returns, running)


@pytest.mark.parametrize("truncated", [True, False])
def test_returns_restart_at_time_limits(truncated: bool) -> None:
    """Reward 1, ten-step episodes: R runs 1, 1.99, ..., 9.56, whose deviation is 2.73; without a restart it was 25.3."""

    class Tens(Counter):
        def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
            seen, _, over, cut, told = super().step(action)
            return seen, 1.0, (over or cut) and not truncated, (over or cut) and truncated, told

    engine = EnvironmentEngine(lambda: Tens(lengths=(10,)), normalize_rewards=True, gamma=0.99)
    context = context_for(policy_for(Tens()), engine)
    batch = engine.advance(1, 1000, context)
    assert engine._scale is not None
    assert engine._scale.var**0.5 == pytest.approx(2.73, abs=0.005)
    assert float(batch.reward[0, -1]) == pytest.approx(1 / 2.73, abs=1e-3)


@pytest.mark.parametrize("backend", ["single", "vector"])
def test_moments_take_in_the_observations_that_are_acted_on(backend: str) -> None:
    engine = EnvironmentEngine("CartPole-v1", backend=backend, options={"max_episode_steps": 12})
    policy = policy_for(gymnasium.make("CartPole-v1"), normalize_observations=True)
    batch = engine.advance(3, 50, context_for(policy, engine))
    assert policy.normalizer is not None
    waiting = 3 - int(engine._late.sum())
    assert float(policy.normalizer.count) == pytest.approx(int(batch.mask.sum()) + waiting, abs=0.01)


def loop(reward: np.ndarray, over: np.ndarray, mask: np.ndarray, gamma: float) -> np.ndarray:
    """Moments merged step by step, streams together."""
    running, mean, var, count = np.zeros(reward.shape[1]), 0.0, 1.0, 1e-4
    out = np.empty_like(reward)
    for t in range(len(reward)):
        on = mask[t]
        running[on] = running[on] * gamma + reward[t, on]
        values, n = running[on], on.sum()
        if n:
            delta, total = values.mean() - mean, count + n
            var = (var * count + values.var() * n + delta**2 * count * n / total) / total
            mean, count = mean + delta * n / total, total
        out[t] = np.clip(reward[t] / np.sqrt(var + 1e-8), -10, 10)
        running[over[t]] = 0.0
    return out


@pytest.mark.parametrize("gamma", [0.99, 1.0, 0.0])
def test_reward_scale_equals_its_loop(gamma: float) -> None:
    random = np.random.default_rng(0)
    reward = random.normal(1.0, 3.0, (90, 5))
    over, mask = random.random((90, 5)) < 0.05, random.random((90, 5)) < 0.9
    expected = loop(reward, over, mask, gamma)
    scale = RewardScale(5, gamma)
    parts = [scale.take(reward[s : s + 30], over[s : s + 30], mask[s : s + 30]) for s in (0, 30, 60)]
    np.testing.assert_allclose(np.concatenate(parts)[mask], expected[mask], rtol=1e-9)


def test_rewards_are_scaled_and_episodes_recorded_as_they_were() -> None:
    engine = EnvironmentEngine(lambda: Counter(scale=1000.0), normalize_rewards=True)
    policy = policy_for(Counter())
    context = context_for(policy, engine)
    batch = engine.advance(2, 3, context)
    assert context.metrics.collect()["episode/return"] == 6000.0
    assert batch.reward.abs().max() <= 10


def test_whole_episodes_are_normalised_and_streams_left_alone() -> None:
    env = gymnasium.make("Pendulum-v1")
    engine = EnvironmentEngine("Pendulum-v1", options={"max_episode_steps": 9}, normalize_rewards=True)
    policy = policy_for(env, normalize_observations=True)
    context = context_for(policy, engine)
    engine.advance(2, 7, context)
    assert engine._scale is not None
    before, count = engine._scale.returns.copy(), engine._scale.count
    batch = engine.sample(Prompts(torch.arange(3), [0, 1, 2]), 2, context)
    np.testing.assert_array_equal(engine._scale.returns, before)
    assert engine._scale.count == count + 6 * 9
    assert policy.normalizer is not None
    # Every observation that was acted on was counted once: 2 (1 + 7) in the streams, 6 * 9 in the episodes.
    assert float(policy.normalizer.count) == pytest.approx(16 + 54, abs=0.01)
    assert batch.reward.abs().max() < 10


def test_frozen_copies_keep_their_statistics() -> None:
    engine = EnvironmentEngine("Pendulum-v1")
    policy = policy_for(gymnasium.make("Pendulum-v1"), normalize_observations=True)
    context = context_for(policy, engine)
    engine.advance(2, 5, context)
    held = policy.frozen()
    engine.advance(2, 5, context)
    assert held.normalizer is not None
    assert policy.normalizer is not None
    assert float(held.normalizer.count) < float(policy.normalizer.count)
