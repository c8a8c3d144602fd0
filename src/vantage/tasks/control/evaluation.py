"""Evaluation episodes in Gymnasium and EnvPool environments; neither weights nor normalisation statistics change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vantage.policies.spaces import Observations
from vantage.rollouts.env_backends import EnvPool

Floats = NDArray[np.float64]
LIMIT = 10_000
"""Steps after which an episode is cut where the environment has no limit of its own."""


def play(
    envs: Sequence[Any],
    seeds: Sequence[int],
    policy: Any,
    *,
    scalar_actions: bool,
    limit: int | None,
    generator: torch.Generator | None = None,
) -> tuple[Floats, Floats]:
    """Play one episode per seed, in parallel over the single environments.

    The policy takes the most likely action, or samples with `generator`.

    Returns:
        Return (undiscounted) and length of each episode, in the order of the seeds.
    """
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds))
    waiting = list(range(len(seeds)))[::-1]
    running = [(env, waiting.pop()) for env in envs[: len(seeds)]]
    seen = {episode: env.reset(seed=seeds[episode])[0] for env, episode in running}
    while running:
        observation = np.stack([seen[episode] for _, episode in running])
        actions = policy.act(observation, deterministic=generator is None, generator=generator)
        chosen = actions.tolist() if scalar_actions else actions
        going = []
        for (env, episode), action in zip(running, chosen, strict=True):
            seen[episode], reward, terminated, truncated, _ = env.step(action)
            returns[episode] += reward
            lengths[episode] += 1
            if terminated or truncated or lengths[episode] >= (limit or LIMIT):
                del seen[episode]
                if not waiting:
                    continue
                episode = waiting.pop()
                seen[episode] = env.reset(seed=seeds[episode])[0]
            going.append((env, episode))
        running = going
    return returns, lengths


def play_pool(
    pool: EnvPool, seed: int, episodes: int, policy: Any, space: Observations, generator: torch.Generator | None = None
) -> tuple[Floats, Floats]:
    """Play episodes in a pool, the same number in each copy, so that short ones are not over-represented.

    Returns:
        Return (undiscounted) and length of the first `episodes` of them: all copies' first ones, all second ones, ...
    """
    count = pool.count
    rounds = math.ceil(episodes / count)
    returns, lengths = np.zeros((rounds + 1, count)), np.zeros((rounds + 1, count))
    done = np.zeros(count, dtype=np.int64)
    seen = np.empty((count, *space.shape), space.dtype)
    reward = np.empty(count)
    over, cut, late = (np.zeros(count, dtype=bool) for _ in range(3))
    pool.reset([seed], seen)
    copies = np.arange(count)
    while done.min() < rounds:
        actions = policy.act(seen, deterministic=generator is None, generator=generator)
        pool.step(actions, seen, reward, over, cut)
        # A copy that has played its share continues into a row that is not read.
        returns[done, copies] += reward * ~late
        lengths[done, copies] += ~late
        ended = (over | cut) & ~late
        done = np.minimum(done + ended, rounds)
        late = ended
    return returns[:rounds].ravel()[:episodes], lengths[:rounds].ravel()[:episodes]
