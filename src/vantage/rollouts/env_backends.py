"""Several copies of an environment stepped together: one by one, by a native vector version, or by EnvPool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vantage.core.errors import UserError, nearest, require
from vantage.rollouts import env_state

Array = NDArray[Any]
NATIVE_FROM = 8
"""Number of copies from which a native vector version is used; below, it is slower than stepping one by one."""


class Backend(Protocol):
    """N copies of an environment. Arrays are written in place: row i is copy i's."""

    count: int
    late_reset: bool
    """Whether a finished copy resets by itself in its next step, whose action and reward are then meaningless."""

    def reset(self, seeds: Sequence[int], out: Array) -> None:
        """Start an episode in every copy."""
        ...

    def step(
        self, actions: Array, observation: Array, reward: Array, terminated: Array, truncated: Array
    ) -> Sequence[int]:
        """Step every copy; return those that ended and wait for `reset_some` (none where they reset themselves)."""
        ...

    def reset_some(self, which: Sequence[int], out: Array) -> None:
        """Start another episode in these copies; `out` has a row for each."""
        ...

    def save(self) -> list[Any]:
        """Return the copies' states.

        Raises:
            CannotSave: they cannot be saved.
        """
        ...

    def load(self, states: Sequence[Any]) -> None:
        """Restore what `save` returned."""
        ...


class OneByOne:
    """Single environments in a plain loop."""

    late_reset = False

    def __init__(self, envs: Sequence[Any], scalar_actions: bool) -> None:
        self.envs = list(envs)
        self.count = len(self.envs)
        self._steps = [env.step for env in self.envs]
        self._scalar = scalar_actions

    def reset(self, seeds: Sequence[int], out: Array) -> None:
        """Start an episode in every copy, each with its seed."""
        for i, (env, seed) in enumerate(zip(self.envs, seeds, strict=True)):
            out[i], _ = env.reset(seed=seed)

    def step(
        self, actions: Array, observation: Array, reward: Array, terminated: Array, truncated: Array
    ) -> Sequence[int]:
        """Step every copy; return those that ended."""
        ended: list[int] = []
        # Python's own integers pass the environments' checks faster than numpy's.
        chosen: Any = actions.tolist() if self._scalar else actions
        for i, step in enumerate(self._steps):
            observation[i], reward[i], over, cut, _ = step(chosen[i])
            if over or cut:
                terminated[i], truncated[i] = over, cut
                ended.append(i)
        return ended

    def step_some(
        self,
        which: Sequence[int],
        actions: Array,
        observation: Array,
        reward: Array,
        terminated: Array,
        truncated: Array,
    ) -> None:
        """Step these copies alone; row j of every array is that of copy which[j]."""
        chosen: Any = actions.tolist() if self._scalar else actions
        for j, i in enumerate(which):
            observation[j], reward[j], terminated[j], truncated[j], _ = self._steps[i](chosen[j])

    def reset_some(self, which: Sequence[int], out: Array) -> None:
        """Start another episode; the random generators continue."""
        for j, i in enumerate(which):
            out[j], _ = self.envs[i].reset()

    def save(self) -> list[Any]:
        """Return each copy's state."""
        return [env_state.save(env) for env in self.envs]

    def load(self, states: Sequence[Any]) -> None:
        """Restore what `save` returned."""
        for env, state in zip(self.envs, states, strict=True):
            env_state.load(env, state)


class Native:
    """An environment's own vector version, with Gymnasium's NEXT_STEP autoreset."""

    late_reset = True

    def __init__(self, env: Any) -> None:
        self.env = env
        self.count = int(env.num_envs)

    def reset(self, seeds: Sequence[int], out: Array) -> None:
        """Start an episode in every copy; the first seed determines all."""
        out[...], _ = self.env.reset(seed=int(seeds[0]))

    def step(
        self, actions: Array, observation: Array, reward: Array, terminated: Array, truncated: Array
    ) -> Sequence[int]:
        """Step every copy; those that ended reset in the next step."""
        observation[...], reward[...], terminated[...], truncated[...], _ = self.env.step(actions)
        return ()

    def reset_some(self, which: Sequence[int], out: Array) -> None:
        """Never called: the copies reset themselves."""
        raise AssertionError

    def save(self) -> list[Any]:
        """Return the state of all copies as one."""
        return [env_state.save(self.env)]

    def load(self, states: Sequence[Any]) -> None:
        """Restore what `save` returned."""
        env_state.load(self.env, states[0])


class EnvPool:
    """A pool of C++ environments (`pip install 'vantage[envpool]'`); it resets late and its state cannot be saved.

    Raises:
        UserError: EnvPool has no such environment, or it takes no such options.
        ImportError: EnvPool is not installed.
    """

    late_reset = True

    def __init__(self, env_id: str, count: int, options: dict[str, Any]) -> None:
        self._envpool = require("envpool", "envpool")
        self.count = count
        self._make: Callable[[int], Any] = lambda seed: self._envpool.make(
            env_id, env_type="gymnasium", num_envs=count, seed=seed, **options
        )
        self._env: Any = None
        self.spec = envpool_spec(env_id, options)
        self._dtype = self.spec.action_space.dtype

    def reset(self, seeds: Sequence[int], out: Array) -> None:
        """Start an episode in every copy; a pool is seeded when it is made, so a new one is made."""
        if self._env is not None:
            self._env.close()
        self._env = self._make(int(seeds[0]) % 2**31)
        out[...], _ = self._env.reset()

    def step(
        self, actions: Array, observation: Array, reward: Array, terminated: Array, truncated: Array
    ) -> Sequence[int]:
        """Step every copy; those that ended reset in the next step."""
        chosen = actions.astype(self._dtype, copy=False)
        observation[...], reward[...], terminated[...], truncated[...], _ = self._env.step(chosen)
        return ()

    def reset_some(self, which: Sequence[int], out: Array) -> None:
        """Never called: the copies reset themselves."""
        raise AssertionError

    def save(self) -> list[Any]:
        """Raise CannotSave."""
        raise env_state.CannotSave("EnvPool does not expose the states of its environments")

    def load(self, states: Sequence[Any]) -> None:
        """Never called: nothing was saved."""
        raise AssertionError


def envpool_spec(env_id: str, options: Mapping[str, Any]) -> Any:
    """Return EnvPool's specification of an environment: `observation_space`, `action_space` and `config`.

    Raises:
        UserError: EnvPool has no such environment, or it takes no such options.
        ImportError: EnvPool is not installed.
    """
    envpool = require("envpool", "envpool")
    known = envpool.list_all_envs()
    if env_id not in known:
        raise UserError(f"EnvPool has no environment {env_id!r}{nearest(env_id, known)}")
    try:
        spec = envpool.make_spec(env_id, **options)
    except Exception as error:
        raise UserError(f"{env_id} does not take the options {dict(options)} in EnvPool: {error}") from None
    # The spec's own spaces are Gym's; these are Gymnasium's.
    return SimpleNamespace(
        observation_space=spec.gymnasium_observation_space,
        action_space=spec.gymnasium_action_space,
        max_episode_steps=int(spec.config.max_episode_steps),
    )


def has_native(env_id: str) -> bool:
    """Whether Gymnasium registers a vector version of this environment that can be built without further libraries."""
    import gymnasium

    spec = gymnasium.registry.get(env_id)
    entry = getattr(spec, "vector_entry_point", None)
    return entry is not None and not (isinstance(entry, str) and ".phys2d" in entry)


def native(env_id: str, count: int, options: dict[str, Any]) -> Native:
    """Build the environment's own vector version.

    Raises:
        UserError: the environment has no vector version, or one that does not reset in the next step.
    """
    import gymnasium
    from gymnasium.vector import AutoresetMode

    if not has_native(env_id):
        raise UserError(f"{env_id} has no vector version of its own: take backend='auto' or 'single'")
    env = gymnasium.make_vec(env_id, count, vectorization_mode="vector_entry_point", **options)
    mode = env.metadata.get("autoreset_mode")
    if mode not in (AutoresetMode.NEXT_STEP, AutoresetMode.NEXT_STEP.value):
        raise UserError(f"the vector version of {env_id} resets by {mode}, not NEXT_STEP: take backend='single'")
    return Native(env)


def seeds_of(seed: int, count: int, round_: int = 0) -> list[int]:
    """Return seeds of `count` copies, different from those of another run's seed or round."""
    return [
        int(np.random.SeedSequence([seed % 2**63, round_, i]).generate_state(1, np.uint64)[0] >> np.uint64(33))
        for i in range(count)
    ]
