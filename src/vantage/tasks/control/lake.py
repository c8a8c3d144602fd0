"""Frozen lake in which the agent slips after its move: each transition has a known and a random stage (`vantage/Lake-v0`).

An action names a neighbour, and the agent moves to that target cell; at the edge it stays. Then the random stage: on ice, with
probability `slip`, the agent slides one cell further, in each of the four directions with equal probability. A hole ends the
episode with reward 0, the goal with reward 1. The state between the stages, the target cell, is the post-decision state, whose
value the second critic of post-decision PPO estimates (Felizardo et al., arXiv 2504.05150). In Gymnasium's frozen lake the slip
depends on the cell left and on the direction taken, so that the target cell does not determine the distribution of the next
state; moving first and slipping afterwards is the authors' form. Their lake also permutes the directions of each cell and
rewards every cell by its distance to the goal; here the expected return is the probability of reaching the goal, and dynamic
programming gives the optimum.

This module needs gymnasium (`pip install 'vantage[control]'`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from vantage.core import between, component, one_of
from vantage.core.context import Context
from vantage.core.protocols import Prompts
from vantage.core.trajectories import Trajectories
from vantage.policies.control import ControlPolicy
from vantage.rollouts.environments import EnvironmentEngine
from vantage.settings import read_settings
from vantage.tasks.control.task import ControlTask

ENV_ID = "vantage/Lake-v0"
LIMIT = 100
MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))
"""Left, down, right, up: rows and columns."""
MAPS = {
    4: ("SFFF", "FHFH", "FFFH", "HFFG"),
    8: ("SFFFFFFF", "FFFFFFFF", "FFFHFFFF", "FFFFFHFF", "FFFHFFFF", "FHHFFFHF", "FHFFHFHF", "FFFHFFFG"),
}
"""The two usual lakes: S start, F ice, H hole, G goal."""


def register() -> None:
    """Register the environment with Gymnasium; a second call changes nothing."""
    if ENV_ID not in gymnasium.registry:
        gymnasium.register(ENV_ID, entry_point=f"{__name__}:Lake", max_episode_steps=LIMIT)


@component(label="lake")
class Ice:
    """Transition model as tables over S = size^2 cells, numbered row by row.

    Attributes:
        size: 4 or 8.
        slip: probability of sliding one cell further, 0 to 1.
    """

    size: Annotated[int, one_of(MAPS)] = 4
    slip: Annotated[float, between(0, 1)] = 0.5

    @property
    def cells(self) -> str:
        """Letter of each cell, a string of length S."""
        return "".join(MAPS[self.size])

    @cached_property
    def over(self) -> Tensor:
        """Whether an episode ends in a cell, [S] bool."""
        return torch.tensor([letter in "HG" for letter in self.cells])

    @cached_property
    def goal(self) -> Tensor:
        """1 at the goal, [S] float64."""
        return torch.tensor([letter == "G" for letter in self.cells], dtype=torch.float64)

    @cached_property
    def aimed(self) -> Tensor:
        """Known stage: the target cell of each move from each cell, [S, 4] int64."""
        cell, edge = torch.arange(self.size**2), self.size - 1
        row, column = cell // self.size, cell % self.size
        moved = [((row + d).clamp(0, edge), (column + r).clamp(0, edge)) for d, r in MOVES]
        return torch.stack([down * self.size + right for down, right in moved], 1)

    @cached_property
    def chance(self) -> Tensor:
        """Random stage: probability of each next cell given the target cell, [S, S] float64, rows summing to 1."""
        count = self.size**2
        slid = torch.zeros(count, count, dtype=torch.float64)
        slid.scatter_add_(1, self.aimed, torch.full(self.aimed.shape, 0.25, dtype=torch.float64))
        stays = torch.eye(count, dtype=torch.float64)
        return torch.where(self.over.unsqueeze(1), stays, (1 - self.slip) * stays + self.slip * slid)

    def value(self, policy: Tensor, steps: int) -> Tensor:
        """Return the probability [S] of reaching the goal within `steps` moves from each cell; at the goal itself it is 1.

        Args:
            policy: probability of each move in each cell, [S, 4].
            steps: moves, at least 0.
        """
        policy, value = policy.double(), self.goal
        for _ in range(steps):
            # [S] of target cells, then [S, 4] of moves.
            ahead = (self.chance @ value)[self.aimed]
            value = torch.where(self.over, self.goal, (policy * ahead).sum(-1))
        return value

    def best(self, steps: int) -> Tensor:
        """Return `value` [S] of the optimal policy, which may depend on the moves left, by backward induction."""
        value = self.goal
        for _ in range(steps):
            value = torch.where(self.over, self.goal, (self.chance @ value)[self.aimed].amax(-1))
        return value


class Lake(gymnasium.Env[Any, Any]):
    """Environment that starts in the upper left corner. Observation: the cell's number; moves: left, down, right, up.

    Args:
        size, slip: as `Ice`.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium declares it so
    render_mode = None

    def __init__(self, size: int = 4, slip: float = 0.5) -> None:
        self.ice = Ice(size, slip)
        self.observation_space = spaces.Discrete(size * size)
        self.action_space = spaces.Discrete(4)
        self.cell = 0
        self._aimed: NDArray[np.int64] = self.ice.aimed.numpy()
        self._ends = self.ice.cells

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Start in the corner."""
        super().reset(seed=seed)
        self.cell = 0
        return self.cell, {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """Move to the target cell, then slide at random."""
        self.cell = int(self._aimed[self.cell, int(action)])
        if self._ends[self.cell] not in "HG" and self.np_random.random() < self.ice.slip:
            self.cell = int(self._aimed[self.cell, self.np_random.integers(4)])
        found = self._ends[self.cell] == "G"
        return self.cell, float(found), found or self._ends[self.cell] == "H", False, {}

    def state_dict(self) -> dict[str, Any]:
        """Return the position and the generator's state."""
        return {"cell": self.cell, "random": self.np_random.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`."""
        self.cell = int(state["cell"])
        self.np_random.bit_generator.state = state["random"]


class PostDecisionEngine(EnvironmentEngine):
    """`EnvironmentEngine` on a lake; its batches also hold what each decision fixes before chance acts, both [N, T].

    `post_observation` is the target cell of the decision, `post_reward` the reward that this cell is sure to give: 1 at the goal.
    """

    def __init__(self, ice: Ice, **options: Any) -> None:
        super().__init__(ENV_ID, options={"size": ice.size, "slip": ice.slip}, **options)
        self.ice = ice

    def advance(self, rows: int, steps: int, context: Context) -> Trajectories:
        """As `EnvironmentEngine.advance`."""
        return self._with_post(super().advance(rows, steps, context))

    def sample(self, prompts: Prompts, count: int, context: Context, *, greedy: bool = False) -> Trajectories:
        """As `EnvironmentEngine.sample`."""
        return self._with_post(super().sample(prompts, count, context, greedy=greedy))

    def _with_post(self, batch: Trajectories) -> Trajectories:
        aimed = self.ice.aimed.to(batch.device)[batch.observation.long(), batch.action.long()]
        sure = self.ice.goal.to(batch.device, batch.reward.dtype)[aimed]
        return batch.replace(post_observation=aimed, post_reward=torch.where(batch.mask, sure, 0.0))


class LakeTask(ControlTask):
    """Control task of the lake, which offers post-decision states and whose optimal policy is known.

    Args:
        size, slip: as `Ice`.
        **options: as `ControlTask`.

    Raises:
        UserError: an option is not known or out of range.
    """

    def __init__(self, size: int = 4, slip: float = 0.5, **options: Any) -> None:
        self.ice = Ice(size, slip)
        register()
        super().__init__(ENV_ID, size=size, slip=slip, **options)
        self.name = "lake"

    def make_engine(
        self, policy: ControlPolicy, seed: int = 0, *, normalize_rewards: bool | None = None, gamma: float | None = None
    ) -> PostDecisionEngine:
        """Return an engine that runs the policy in copies of the environment."""
        return PostDecisionEngine(self.ice, seed=seed, **self.engine_settings(normalize_rewards, gamma))

    @torch.no_grad()
    def evaluate(self, policy: Any, *, samples: int, seed: int) -> dict[str, float]:
        """As `ControlTask.evaluate`, with exact `success`, the probability of reaching the goal, and `gap` to the optimum.

        `success` and `gap` are of sampled moves; `success_greedy` is of the most likely ones.
        """
        metrics = super().evaluate(policy, samples=samples, seed=seed)
        distribution = policy.distribution_of(torch.arange(self.ice.size**2, device=policy.device))
        drawn = distribution.log_probs.exp().cpu()
        greedy = torch.nn.functional.one_hot(distribution.mode.cpu(), 4)
        best = float(self.ice.best(LIMIT)[0])
        metrics["success"], metrics["success_greedy"] = (
            float(self.ice.value(each, LIMIT)[0]) for each in (drawn, greedy)
        )
        metrics["gap"] = best - metrics["success"]
        return metrics


def task_from_spec(spec: str, options: Mapping[str, Any] | None = None) -> LakeTask:
    """Return the task of `lake` or `lake:size=8,slip=0.3`.

    Raises:
        UserError: an option is not known or out of range.
    """
    return LakeTask(**{**dict(options or {}), **read_settings(spec.partition(":")[2], f"task {spec}")})
