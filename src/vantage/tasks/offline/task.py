"""Offline task: recorded transitions, their minibatches, and the normalised score in the environment that they come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from vantage.core import between, component, one_of
from vantage.core.context import Context
from vantage.core.errors import UserError, nearest, require
from vantage.core.protocols import Prompts
from vantage.core.trajectories import Trajectories
from vantage.policies.offline import OfflinePolicy
from vantage.rewards.specs import build, parse
from vantage.tasks.offline.dataset import Recorded, action_bound, read_minari, record
from vantage.tasks.offline.worlds import WORLDS, World, play, references


@component(label="offline")
class Offline:
    """Settings of `offline:...`.

    Attributes:
        world: "point" or "pendulum", in which data is recorded and policies are evaluated; "" for the data's own environment.
        data: folder of a Minari data set; "" records data in `world`.
        steps: number of transitions to record.
        good: share of the episodes that follow a good controller, 0 to 1; the others are random walks.
        noise: standard deviation of the noise on its actions.
        normalize: standardise observations, (s - mean) / (std + 1e-3), by the data's moments.
        reward_scale, reward_shift: rewards of training are scale * reward + shift.
        hidden: width of the two hidden layers of every network.
        seed: seed of the data.
    """

    world: Annotated[str, one_of(WORLDS)] | Literal[""] = ""
    data: str = ""
    steps: Annotated[int, between(1, 10**9)] = 20_000
    good: Annotated[float, between(0, 1)] = 0.1
    noise: float = 0.3
    normalize: bool = True
    reward_scale: float = 1.0
    reward_shift: float = 0.0
    hidden: Annotated[int, between(1, 100_000)] = 256
    seed: int = 0

    def __call__(self, name: str) -> OfflineTask:
        """Make the task."""
        return OfflineTask(name, self)


class OfflineTask:
    """Recorded transitions as a task; `size` counts them.

    Args:
        name: as on the command line.
        settings: see `Offline`.

    Raises:
        UserError: the data cannot be read, or it does not fit the world.
    """

    default_steps = 10_000

    def __init__(self, name: str, settings: Offline) -> None:
        self.name, self.settings = name, settings
        self.world: World | None = None
        if settings.world or not settings.data:
            self.world = WORLDS[settings.world or "point"]()
        if settings.data:
            self.data = read_minari(settings.data)
        else:
            assert self.world is not None
            self.data = record(self.world, settings.steps, settings.good, settings.noise, settings.seed)
        self.size = len(self.data)
        self.bound = action_bound(self.data.metadata)
        widths = (self.data.observation.shape[1], self.data.action.shape[1])
        if self.world is not None and widths != (self.world.observations, self.world.actions):
            raise UserError(f"task {name}: the data's widths {widths} are not those of the world {self.world.name!r}")
        seen = self.data.observation
        self.mean, self.std = torch.zeros(widths[0]), torch.ones(widths[0])
        if settings.normalize:
            low = seen.amin(0)  # relative to it, so that a constant coordinate is standardised to exactly 0
            std, mean = torch.std_mean(seen - low, 0, correction=0)
            self.mean, self.std = low + mean, std + 1e-3

    def prompts(self, ids: Tensor) -> Prompts:
        """Return the numbers of transitions as prompts."""
        return Prompts(ids, ids.tolist())

    def score(self, batch: Trajectories, context: Context) -> dict[str, Tensor]:
        """Return no rewards: they are in the data."""
        return {}

    def make_policy(self, model: str | Path = "", seed: int = 0) -> OfflinePolicy:
        """Return a new policy, or the saved one in the folder `model`.

        Raises:
            UserError: the folder holds no policy, or one of other widths.
        """
        shape = (self.data.observation.shape[1], self.data.action.shape[1])
        if model:
            policy = OfflinePolicy.load(model)
            if policy.shape != shape:
                raise UserError(f"the policy in {model} has the widths {policy.shape}, not {shape}")
            return policy
        hidden = (self.settings.hidden,) * 2
        return OfflinePolicy(*shape, hidden=hidden, seed=seed, mean=self.mean, std=self.std, bound=self.bound)

    def make_engine(self, policy: OfflinePolicy, seed: int = 0) -> OfflineEngine:
        """Return an engine that reads the data."""
        return OfflineEngine(self.name, self._table().to(policy.mean.device))

    def _table(self) -> Trajectories:
        """Return all transitions as rows of one decision, observations normalised, actions in [-1, 1]."""
        data, settings = self.data, self.settings
        ones = torch.ones(len(data), 1, dtype=torch.bool)
        return Trajectories(
            {
                "observation": ((data.observation - self.mean) / self.std).unsqueeze(1),
                "next_observation": ((data.next_observation - self.mean) / self.std).unsqueeze(1),
                "action": (data.action / self.bound).clamp(-1, 1).unsqueeze(1),
                "reward": (settings.reward_scale * data.reward + settings.reward_shift).unsqueeze(1),
                "terminated": data.terminated.unsqueeze(1),
                "truncated": data.truncated.unsqueeze(1),
                "mask": ones,
                "length": ones.long().squeeze(1),
                "prompt": torch.arange(len(data)),
                "group": torch.arange(len(data)),
            }
        )

    def evaluate(self, policy: OfflinePolicy, *, samples: int, seed: int) -> dict[str, float]:
        """Run `samples` episodes with the actor's mean action.

        Returns:
            `return`, undiscounted and in the environment's own reward, and `length`; `score`, 100 at the controller's return (or
            the data set's `ref_max_score`) and 0 at that of random actions (`ref_min_score`); and in this package's worlds
            `return_far` and `score_far`, from the initial states farthest from the goal, on the same scale.
        """
        if self.world is None:
            return self._in_gymnasium(policy, samples, seed)
        generator = torch.Generator().manual_seed(seed)
        low, high = references(self.world.name)
        world, device = self.world, policy.mean.device

        def act(state: Tensor) -> Tensor:
            chosen: Tensor = policy.act(world.observe(state).to(device)) / policy.bound
            return chosen.cpu()

        returns, lengths = play(world, act, world.reset(samples, generator))
        from_far, _ = play(world, act, world.reset(samples, generator, far=True))
        return {
            "score": 100 * (float(returns.mean()) - low) / (high - low),
            "return": float(returns.mean()),
            "length": float(lengths.mean()),
            "score_far": 100 * (float(from_far.mean()) - low) / (high - low),
            "return_far": float(from_far.mean()),
        }

    def _in_gymnasium(self, policy: OfflinePolicy, samples: int, seed: int) -> dict[str, float]:
        """Evaluate in the environment that the data set names."""
        from vantage.tasks.control.evaluation import play as play_envs

        gymnasium = require("gymnasium", "control")
        said = self.data.metadata.get("env_spec")
        if not said:
            raise UserError(f"task {self.name}: the data set names no environment: give world=...")
        spec = gymnasium.envs.registration.EnvSpec.from_json(said)
        envs = [gymnasium.make(spec.id, **spec.kwargs) for _ in range(min(samples, 16))]
        try:
            seeds = list(range(seed, seed + samples))
            returns, lengths = play_envs(envs, seeds, policy, scalar_actions=False, limit=spec.max_episode_steps)
        finally:
            for env in envs:
                env.close()
        metrics = {"return": float(returns.mean()), "length": float(lengths.mean())}
        low, high = (self.data.metadata.get(name) for name in ("ref_min_score", "ref_max_score"))
        if low is not None and high is not None:
            metrics["score"] = 100 * (metrics["return"] - low) / (high - low)
        return metrics


class OfflineEngine:
    """Engine that reads recorded transitions; it cannot act.

    Args:
        name: name of the task.
        table: all transitions, [M, 1, ...].
    """

    max_length = 1

    def __init__(self, name: str, table: Trajectories) -> None:
        self.name, self.table = name, table

    def read(self, ids: Tensor, context: Context) -> Trajectories:
        """Return the transitions with these ids [B]."""
        return self.table.select(ids.to(self.table.device))

    def sample(self, prompts: Prompts, count: int, context: Context, *, greedy: bool = False) -> Trajectories:
        """Raise UserError: recorded data cannot be sampled."""
        raise self._refusal()

    def advance(self, rows: int, steps: int, context: Context) -> Trajectories:
        """Raise UserError: recorded data cannot be sampled."""
        raise self._refusal()

    def _refusal(self) -> UserError:
        return UserError(
            f"the task {self.name!r} is recorded data, which cannot be sampled: take a method of the family offline"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return no state: random numbers are the run's."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore nothing: there is no state."""


def task_from_spec(spec: str, options: Mapping[str, Any] | None = None) -> OfflineTask:
    """Make the task of `offline`, `offline:world=pendulum,good=0.3` or `offline:data=DIR`."""
    name, settings = parse("task", spec, {"offline": Offline}, {})
    known = Offline.__dataclass_fields__
    for key, value in dict(options or {}).items():
        if key not in known:
            raise UserError(f"task {name}: no option {key!r}{nearest(key, known)} (options: {', '.join(known)})")
        settings[key] = str(value)
    made: OfflineTask = build("task", name, Offline, settings)(spec)
    return made


def recorded(spec: str = "offline") -> Recorded:
    """Return the data of a task specification."""
    return task_from_spec(spec).data
