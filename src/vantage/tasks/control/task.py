"""Control tasks: a Gymnasium environment with the policy, the engine and the evaluation that go with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vantage.core.context import Context
from vantage.core.errors import MissingLibrary, UserError, require
from vantage.core.protocols import Prompts
from vantage.core.trajectories import Trajectories
from vantage.policies.control import ControlPolicy
from vantage.policies.spaces import Actions, Observations
from vantage.rollouts.env_backends import EnvPool, envpool_spec, seeds_of
from vantage.rollouts.env_make import make_env
from vantage.rollouts.environments import EnvironmentEngine
from vantage.settings import read_settings
from vantage.tasks.control import policies
from vantage.tasks.control.evaluation import play, play_pool

SHORT_NAMES = {
    "cartpole": "CartPole-v1",
    "pendulum": "Pendulum-v1",
    "acrobot": "Acrobot-v1",
    "mountaincar": "MountainCar-v0",
    "hopper": "Hopper-v5",
    "halfcheetah": "HalfCheetah-v5",
    "grid": "vantage/Grid-v0",
    "two-goals": "vantage/TwoGoals-v0",
    "detour": "vantage/Detour-v0",
}
_POLICY_OPTIONS = ("hidden", "activation", "shared", "state_dependent_std", "squash", "log_std")
_ENGINE_OPTIONS = ("backend", "gamma")
EVALUATION = 2**31
"""Marks the seeds of evaluations, so that they do not meet those of training."""


class ControlTask:
    """Gymnasium environment as a task. Prompts are seeds of initial states, without limit.

    Args:
        env: a short name (`cartpole`, `hopper`, ...), a Gymnasium id, or with `backend="envpool"` one of EnvPool's.
        normalize_observations: whether the policy normalises observations; None: where actions are continuous.
        normalize_rewards: whether rewards are scaled in training; None: as the method asks, else where actions are continuous.
        clip_rewards: whether rewards are replaced by their signs in training; None: for Atari.
        stochastic_evaluation: evaluate sampled actions too, beside the most likely ones.
        parallel: environments that an evaluation steps in parallel.
        policy: 'distribution' (Gaussian or categorical), 'flow' or 'diffusion'; None: what the method asks for, or the first.
        warm_start: steps of behaviour cloning of the environment's demonstrations for a new policy, 0 for none.
        **options: of the policy (`hidden`, `activation`, `shared`, `state_dependent_std`, `squash`, `log_std`), of the engine
            (`backend`; `gamma` of the scaling, by default the method's), and of the environment (all others).

    Raises:
        UserError: the environment is not known or its spaces are not supported.
        MissingLibrary: a library that the environment needs is not installed; the message names the extra.
    """

    size = 0
    unit = "environment steps"
    default_steps = 100_000

    def __init__(
        self,
        env: str,
        *,
        normalize_observations: bool | None = None,
        normalize_rewards: bool | None = None,
        clip_rewards: bool | None = None,
        stochastic_evaluation: bool = False,
        parallel: int = 16,
        policy: str | None = None,
        warm_start: int = 0,
        **options: Any,
    ) -> None:
        self.env_id = SHORT_NAMES.get(env, env)
        self.name = env
        self.stochastic_evaluation = stochastic_evaluation
        self.parallel = parallel
        self.policy, self.warm_start = policy, warm_start
        offered = _POLICY_OPTIONS if policy is None else (*_POLICY_OPTIONS, *policies.PROCESS_OPTIONS)
        self.policy_options = {name: options.pop(name) for name in offered if name in options}
        self.engine_options = {name: options.pop(name) for name in _ENGINE_OPTIONS if name in options}
        self.env_options = options
        self.pooled = self.engine_options.get("backend") == "envpool"
        try:
            probe = envpool_spec(self.env_id, options) if self.pooled else make(self.env_id, options)
            self.observations = Observations.of(probe.observation_space)
            self.actions = Actions.of(probe.action_space)
        except MissingLibrary:
            raise
        except UserError as error:
            raise UserError(f"task {env}: {error}") from None
        limit = probe.max_episode_steps if self.pooled else getattr(probe.spec, "max_episode_steps", None)
        self.episode_limit: int | None = limit
        self.alternatives: tuple[str, ...] = () if self.pooled else getattr(probe.unwrapped, "alternatives", ())
        self.demonstrations = None if self.pooled else getattr(probe.unwrapped, "demonstrations", None)
        if warm_start and self.demonstrations is None:
            raise UserError(f"task {env}: warm_start={warm_start}: this environment has no demonstrations")
        if not self.pooled:
            probe.close()
        continuous = self.actions.kind == "continuous"
        numbers = self.observations.kind == "vector"
        if normalize_observations is None:
            normalize_observations = continuous and numbers
        self.policy_options.setdefault("normalize_observations", normalize_observations)
        self.normalize_rewards = normalize_rewards
        atari = env.startswith("ALE/") or (self.pooled and self.observations.kind == "image")
        self.engine_options["clip_rewards"] = atari if clip_rewards is None else clip_rewards

    def prompts(self, ids: Tensor) -> Prompts:
        """Return initial states; the id is the seed."""
        return Prompts(ids, ids.tolist())

    def score(self, batch: Trajectories, context: Context) -> dict[str, Tensor]:
        """Return no rewards: they come with the decisions."""
        return {}

    def make_policy(self, model: str | Path = "", seed: int = 0, **options: Any) -> ControlPolicy:
        """Return a new policy, or the saved one in the folder `model`.

        Options given here, such as a method asks for, override the task's own, except for the task's `policy`.

        Raises:
            UserError: the folder holds no policy, or one for other spaces, or an option does not fit.
        """
        if model:
            policy = policies.load_policy(model)
            made_for = getattr(policy, "made_for", policy.actions)
            if (policy.observations, made_for) != (self.observations, self.actions):
                raise UserError(
                    f"the policy in {model} was made for other observations or actions than {self.env_id} has"
                )
            return policy
        kind = self.policy or options.pop("policy", "distribution")
        options.pop("policy", None)
        made = policies.make_policy(kind, self.observations, self.actions, {**self.policy_options, **options}, seed)
        if self.warm_start:
            assert self.demonstrations is not None
            seen, done = self.demonstrations(100, seed)
            policies.clone(made, torch.from_numpy(seen), torch.from_numpy(done), self.warm_start, seed)
        return made

    def make_engine(
        self,
        policy: ControlPolicy,
        seed: int = 0,
        *,
        normalize_rewards: bool | None = None,
        gamma: float | None = None,
    ) -> EnvironmentEngine:
        """Return an engine that runs the policy in copies of the environment.

        Args:
            policy: samples the actions.
            seed: determines every copy's seed.
            normalize_rewards, gamma: what a method asks for; the task's own options, where given, override them.
        """
        if not self.pooled:
            prepare(self.env_id)
        settings = self.engine_settings(normalize_rewards, gamma)
        return EnvironmentEngine(self.env_id, options=self.env_options, seed=seed, **settings)

    def engine_settings(self, normalize_rewards: bool | None, gamma: float | None) -> dict[str, Any]:
        """Return the engine's settings: the task's options, else what a method asks for, else the defaults."""
        asked = {} if gamma is None else {"gamma": gamma}
        chosen = (self.normalize_rewards, normalize_rewards, self.actions.kind == "continuous")
        scaled = next(choice for choice in chosen if choice is not None)
        return {**asked, **self.engine_options, "normalize_rewards": scaled}

    def evaluate(self, policy: Any, *, samples: int, seed: int) -> dict[str, float]:
        """Run `samples` episodes in separate environments with the most likely actions; normalisation statistics are fixed.

        Returns:
            `return`, `return_std` (over episodes, ddof 0) and `length`, undiscounted and in the environment's own reward; with
            `stochastic_evaluation` also `return_sampled`, of the same number of episodes with sampled actions. Where the
            environment counts the ways in which its episodes ended, `share/...` of each, and `rarest`, the smallest share among
            equally good ones (of the sampled episodes, where there are any).
        """
        tally: Counter[str] = Counter()
        returns, lengths = self._play(policy, samples, seed, None, tally)
        metrics = {"return": float(returns.mean()), "return_std": float(returns.std()), "length": float(lengths.mean())}
        if self.stochastic_evaluation:
            generator = torch.Generator(next(policy.parameters()).device).manual_seed(seed)
            tally.clear()
            metrics["return_sampled"] = float(self._play(policy, samples, seed, generator, tally)[0].mean())
        for name in sorted(set(tally) - {"episodes"}):
            metrics[f"share/{name}"] = tally[name] / tally["episodes"]
        if self.alternatives:
            metrics["rarest"] = min(tally[name] for name in self.alternatives) / tally["episodes"]
        return metrics

    def _play(
        self, policy: Any, samples: int, seed: int, generator: torch.Generator | None, tally: Counter[str] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        count = min(samples, self.parallel)
        seeds = seeds_of(seed, samples, EVALUATION)
        if self.pooled:
            pool = EnvPool(self.env_id, count, self.env_options)
            return play_pool(pool, seeds[0], samples, policy, self.observations, generator)
        envs = [make(self.env_id, self.env_options) for _ in range(count)]
        scalar = self.actions.kind == "discrete"
        try:
            return play(envs, seeds, policy, scalar_actions=scalar, limit=self.episode_limit, generator=generator)
        finally:
            for env in envs:
                if tally is not None:
                    tally.update(getattr(env.unwrapped, "tally", {}))
                env.close()


def make(env_id: str, options: Mapping[str, Any]) -> Any:
    """Make a single environment, this package's own included; raises as `make_env` does."""
    prepare(env_id)
    return make_env(env_id, options)


def prepare(env_id: str) -> None:
    """Register this package's own environment of this id with Gymnasium."""
    require("gymnasium", "control")
    if env_id.startswith("vantage/"):
        from vantage.tasks.control import grid, point

        grid.register()
        point.register()


def task_from_spec(spec: str, options: Mapping[str, Any] | None = None) -> ControlTask:
    """Return the task of `cartpole`, `cartpole:max_episode_steps=100`, `gym:Hopper-v5` or `gym:Hopper-v5,key=value`."""
    name, _, rest = spec.partition(":")
    if name == "gym":
        name, _, rest = rest.partition(",")
        if not name:
            raise UserError("task gym: give the environment's id, as in gym:Hopper-v5")
    return ControlTask(name, **{**dict(options or {}), **read_settings(rest, f"task {spec}")})
