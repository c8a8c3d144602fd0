"""Normalised observations and rewards against Gymnasium's wrappers, stacked as the one-file scripts stack them."""

from __future__ import annotations

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
@pytest.mark.parametrize("env_id", ["Pendulum-v1", "MountainCarContinuous-v0", "InvertedPendulum-v5"])
def test_one_stream_equals_the_wrappers(env_id: str) -> None:
    engine = EnvironmentEngine(env_id, options={"max_episode_steps": LIMIT}, normalize_rewards=True, gamma=0.97)
    env = gymnasium.make(env_id, max_episode_steps=LIMIT)
    policy = policy_for(env, normalize_observations=True)
    context = context_for(policy, engine)
    batches = [engine.advance(1, 40, context) for _ in range(3)]

    wrapped = gymnasium.wrappers.NormalizeObservation(gymnasium.wrappers.ClipAction(env))
    wrapped = gymnasium.wrappers.TransformObservation(wrapped, lambda x: np.clip(x, -10, 10), None)
    wrapped = gymnasium.wrappers.NormalizeReward(wrapped, gamma=0.97)
    wrapped = gymnasium.wrappers.TransformReward(wrapped, lambda r: np.clip(r, -10, 10))
    seen, _ = wrapped.reset(seed=int(batches[0].prompt[0]))
    finals = []
    for batch in batches:
        for t in range(40):
            np.testing.assert_allclose(batch.observation[0, t], seen, rtol=1e-5, atol=1e-5)
            seen, reward, terminated, truncated, _ = wrapped.step(batch.action[0, t].numpy())
            assert float(batch.reward[0, t]) == pytest.approx(float(reward), rel=1e-5, abs=1e-5)
            assert bool(batch.terminated[0, t]) == terminated
            if terminated or truncated:
                finals += [seen] if not terminated else []
                seen, _ = wrapped.reset()
        np.testing.assert_allclose(batch.last_observation[0], seen, rtol=1e-5, atol=1e-5)
        if finals:
            np.testing.assert_allclose(
                batch.final_observation[0, : len(finals)], np.stack(finals), rtol=1e-5, atol=1e-5
            )
        finals = []


def loop(reward: np.ndarray, terminated: np.ndarray, mask: np.ndarray, gamma: float) -> np.ndarray:
    """Moments merged step by step, streams together."""
    running, mean, var, count = np.zeros(reward.shape[1]), 0.0, 1.0, 1e-4
    out = np.empty_like(reward)
    for t in range(len(reward)):
        on = mask[t]
        running[on] = running[on] * gamma * ~terminated[t, on] + reward[t, on]
        values, n = running[on], on.sum()
        if n:
            delta, total = values.mean() - mean, count + n
            var = (var * count + values.var() * n + delta**2 * count * n / total) / total
            mean, count = mean + delta * n / total, total
        out[t] = np.clip(reward[t] / np.sqrt(var + 1e-8), -10, 10)
    return out


@pytest.mark.parametrize("gamma", [0.99, 1.0, 0.0])
def test_reward_scale_equals_its_loop(gamma: float) -> None:
    random = np.random.default_rng(0)
    reward = random.normal(1.0, 3.0, (90, 5))
    terminated, mask = random.random((90, 5)) < 0.05, random.random((90, 5)) < 0.9
    expected = loop(reward, terminated, mask, gamma)
    scale = RewardScale(5, gamma)
    parts = [scale.take(reward[s : s + 30], terminated[s : s + 30], mask[s : s + 30]) for s in (0, 30, 60)]
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
    # Every observation that came was counted once: 2 (1 + 7) in the streams, 6 (1 + 9) in the episodes.
    assert float(policy.normalizer.count) == pytest.approx(16 + 60, abs=0.01)
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
