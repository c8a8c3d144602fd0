"""Grid world with one reward, at the goal: single and native vector environment (`vantage/Grid-v0`).

An agent starts in a random cell of the top row of a size-by-size grid; reaching the bottom right corner gives reward 1 and
ends the episode, all else gives 0. Moves are up, right, down, left; one against a wall has no effect. With probability
`slip` a random move is taken instead. An episode is truncated after 100 steps.

This module needs gymnasium (`pip install 'vantage[control]'`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from vantage.core.errors import UserError

ENV_ID = "vantage/Grid-v0"
LIMIT = 100
MOVES = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])


def register() -> None:
    """Register the environment with Gymnasium; a second call changes nothing."""
    if ENV_ID not in gymnasium.registry:
        gymnasium.register(
            ENV_ID,
            entry_point="vantage.tasks.control.grid:Grid",
            vector_entry_point="vantage.tasks.control.grid:VectorGrid",
            max_episode_steps=LIMIT,
        )


def _check(size: int, slip: float) -> None:
    if size < 2:
        raise UserError(f"grid: size={size} is out of range: at least 2")
    if not 0 <= slip <= 1:
        raise UserError(f"grid: slip={slip} is out of range: 0 to 1")


class Grid(gymnasium.Env[Any, Any]):
    """Single environment. Observation: the cell's number, row * size + column. `size` at least 2, `slip` in [0, 1]."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium declares it so
    render_mode = None

    def __init__(self, size: int = 8, slip: float = 0.0) -> None:
        _check(size, slip)
        self.size, self.slip = size, slip
        self.observation_space = spaces.Discrete(size * size)
        self.action_space = spaces.Discrete(4)
        self.row = self.column = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Start in a random cell of the top row."""
        super().reset(seed=seed)
        self.row, self.column = 0, int(self.np_random.integers(self.size))
        return self.column, {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """Move once."""
        if self.slip and self.np_random.random() < self.slip:
            action = self.np_random.integers(4)
        down, right = MOVES[int(action)].tolist()
        edge = self.size - 1
        self.row = min(max(self.row + down, 0), edge)
        self.column = min(max(self.column + right, 0), edge)
        found = self.row == edge and self.column == edge
        return self.row * self.size + self.column, float(found), found, False, {}

    def state_dict(self) -> dict[str, Any]:
        """Return the position and the generator's state."""
        return {"row": self.row, "column": self.column, "random": self.np_random.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`."""
        self.row, self.column = state["row"], state["column"]
        self.np_random.bit_generator.state = state["random"]


class VectorGrid(VectorEnv[Any, Any, Any]):
    """Vector environment; a finished copy is reset in the next step (NEXT_STEP)."""

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int = 1, max_episode_steps: int = LIMIT, size: int = 8, slip: float = 0.0) -> None:
        _check(size, slip)
        self.num_envs = num_envs
        self.size, self.slip, self.limit = size, slip, max_episode_steps
        self.single_observation_space = spaces.Discrete(size * size)
        self.single_action_space = spaces.Discrete(4)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.place = np.zeros((num_envs, 2), dtype=np.int64)
        self.steps = np.zeros(num_envs, dtype=np.int64)
        self.over = np.zeros(num_envs, dtype=bool)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.int64], dict[str, Any]]:
        """Reset all copies."""
        super().reset(seed=seed)
        self._begin(np.ones(self.num_envs, dtype=bool))
        self.over[:] = False
        return self._cells(), {}

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Move once in every copy, or reset it where its episode has ended."""
        if self.slip:
            slipped = self.np_random.random(self.num_envs) < self.slip
            actions = np.where(slipped, self.np_random.integers(4, size=self.num_envs), actions)
        self.place = np.clip(self.place + MOVES[actions], 0, self.size - 1)
        self.steps += 1
        if self.over.any():
            self._begin(self.over)
        found = (self.place == self.size - 1).all(1) & ~self.over
        cut = (self.steps >= self.limit) & ~self.over
        self.over = found | cut
        return self._cells(), found.astype(np.float64), found, cut, {}

    def _begin(self, which: NDArray[np.bool_]) -> None:
        self.place[which, 0] = 0
        self.place[which, 1] = self.np_random.integers(self.size, size=int(which.sum()))
        self.steps[which] = 0

    def _cells(self) -> NDArray[np.int64]:
        return self.place[:, 0] * self.size + self.place[:, 1]

    def state_dict(self) -> dict[str, Any]:
        """Return positions, step counters and the generator's state."""
        held = {"place": self.place, "steps": self.steps, "over": self.over}
        return {**{name: array.copy() for name, array in held.items()}, "random": self.np_random.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`."""
        self.place, self.steps, self.over = state["place"], state["steps"], state["over"]
        self.np_random.bit_generator.state = state["random"]
