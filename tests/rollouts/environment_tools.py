"""Small environments whose every number is known, and a context to run them in."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from tests.harness import reader
from vantage.advantages.critic import BOOTSTRAP
from vantage.core.context import Context
from vantage.policies.control import ControlPolicy
from vantage.policies.spaces import Actions, Observations
from vantage.rollouts.environments import EnvironmentEngine


class Counter(gymnasium.Env):
    """Observation [episode, step]; reward 10 * episode + step; episode k has `lengths[k]` steps, cut where k is odd."""

    def __init__(self, lengths: tuple[int, ...] = (3, 2, 4), scale: float = 1.0) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,))
        self.action_space = spaces.Discrete(2)
        self.lengths, self.scale = lengths, scale
        self.episode, self.moment = -1, 0
        self.seeds: list[int | None] = []
        self.stepped_after_end = False
        self.over = True

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.episode, self.moment, self.over = self.episode + 1, 0, False
        return self._see(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.stepped_after_end |= self.over
        self.moment += 1
        ends = self.moment >= self.lengths[self.episode % len(self.lengths)]
        self.over = ends
        cut = self.episode % 2 == 1
        return self._see(), self.scale * (10 * self.episode + self.moment), ends and not cut, ends and cut, {}

    def _see(self) -> np.ndarray:
        return self.scale * np.array([self.episode, self.moment], dtype=np.float32)


class Echo(gymnasium.Env):
    """Pays what it was told to do, so that what reaches the environment is seen; one step an episode."""

    def __init__(self, action_space: Any) -> None:
        self.observation_space = spaces.Box(-1, 1, (1,))
        self.action_space = action_space
        self.heard: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.heard.append(action)
        assert self.action_space.contains(np.asarray(action) if not np.isscalar(action) else action), action
        return np.zeros(1, np.float32), 1.0, True, False, {}


def policy_for(env: Any, **options: Any) -> ControlPolicy:
    return ControlPolicy(Observations.of(env.observation_space), Actions.of(env.action_space), **options)


def context_for(
    policy: ControlPolicy, engine: EnvironmentEngine, seed: int = 0, values: bool = True, columns: tuple[str, ...] = ()
) -> Context:
    method = reader(*BOOTSTRAP, *columns) if values else reader(*columns)
    task: Any = None
    return Context(method, policy, engine, task, torch.Generator().manual_seed(seed))
