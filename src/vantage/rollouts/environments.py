"""Engine of Gymnasium environments: continuing streams of decisions, and whole episodes from given seeds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vantage.core.context import Context
from vantage.core.errors import UserError, nearest, require
from vantage.core.protocols import Prompts
from vantage.core.trajectories import Trajectories
from vantage.policies.acting import chooser, draw_noise
from vantage.policies.control import ControlPolicy
from vantage.policies.normalize import Moments
from vantage.rollouts import env_backends
from vantage.rollouts.env_backends import Backend, OneByOne, seeds_of
from vantage.rollouts.env_batch import Episodes, Final, RewardScale, final_column, following, rows_first
from vantage.rollouts.env_episodes import normalized, run_episodes, see
from vantage.rollouts.env_make import make_env
from vantage.rollouts.env_state import CannotSave

Array = NDArray[Any]
BACKENDS = ("auto", "single", "vector", "envpool")


class EnvironmentEngine:
    """Engine that runs a `ControlPolicy` in copies of an environment.

    Batches hold `action`, `mask`, `length`, `logp_old`, `reward`, `terminated`, `truncated`, `group`, `prompt` (the seed) and
    `observation` (normalised, where the policy normalises). For a component that declares it in `columns` there is also
    `next_observation` [N, T, ...], at an episode's end the one before the reset; for one that declares `last_observation`
    that [N, ...] and, unless the environments reset late, `final_observation` [N, K, ...], from which `ControlPolicy.values`
    bootstraps. A late reset is a decision outside the mask.

    The policy acts step by step; the log-probabilities are computed afterwards, for the whole batch. The critic is not
    evaluated. Returns and lengths of finished episodes, in the environment's own reward, are recorded as `episode/return`,
    `episode/length` and `episode/count`.

    Args:
        env: a Gymnasium id, or a function that makes one single environment.
        options: keyword arguments of the environment.
        seed: determines every copy's seed.
        backend: 'single' steps copies one by one; 'vector' takes the environment's own vector version; 'envpool' takes
            EnvPool's; 'auto' takes the vector version from 8 copies on, where there is one.
        normalize_rewards: divide rewards by the standard deviation of the running discounted return (clip +-10).
        clip_rewards: replace rewards by their signs, as is usual for Atari; not together with `normalize_rewards`.
        gamma: discount of the running return.
        max_episode_steps: steps after which an episode of `sample` is truncated, for environments without a limit of their own.

    Raises:
        UserError: the environment or backend is not known.
        ImportError: a library is not installed; the message names the extra.
    """

    def __init__(
        self,
        env: str | Callable[[], Any],
        *,
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
        backend: str = "auto",
        normalize_rewards: bool = False,
        clip_rewards: bool = False,
        gamma: float = 0.99,
        max_episode_steps: int = 10_000,
    ) -> None:
        if backend not in BACKENDS:
            raise UserError(
                f"backend={backend!r} is not known{nearest(backend, BACKENDS)} (known: {', '.join(BACKENDS)})"
            )
        if backend in ("vector", "envpool") and not isinstance(env, str):
            raise UserError(f"backend={backend!r} needs the id of an environment, not a function that makes one")
        if normalize_rewards and clip_rewards:
            raise UserError("normalize_rewards and clip_rewards exclude each other: set one of them to false")
        if not 0 <= gamma <= 1:
            raise UserError(f"gamma={gamma} is out of range: 0 to 1")
        if max_episode_steps < 1:
            raise UserError(f"max_episode_steps={max_episode_steps} is out of range: at least 1")
        self.env = env
        self.options = dict(options or {})
        self.seed = seed
        self.backend = backend
        self.normalize_rewards = normalize_rewards
        self.clip_rewards = clip_rewards
        self.gamma = gamma
        self.max_episode_steps = max_episode_steps
        self.resume_notes: list[str] = []
        """Environment states that `load_state_dict` could not restore."""
        self.taken = 0
        """Number of environment steps taken."""
        self._resets = 0
        self._loaded: Mapping[str, Any] | None = None
        """A loaded state that is not yet restored into environments."""
        self._streams: Backend | None = None
        self._pool: list[Any] = []
        self._seeds: list[int] = []
        self._seen: Array = np.empty(0)
        self._late: NDArray[np.bool_] = np.empty(0, dtype=bool)
        self._episodes = Episodes(0)
        self._scale: RewardScale | None = None

    # streams -------------------------------------------------------------------------------------------------------

    def advance(self, rows: int, steps: int, context: Context) -> Trajectories:
        """Take `steps` more decisions in each of `rows` streams, which reset whenever an episode ends.

        Raises:
            UserError: `rows` differs from the number of streams.
        """
        policy = _control(context.policy)
        with ExitStack() as stack:
            moments = None if policy.normalizer is None else stack.enter_context(policy.normalizer.on_host())
            if self._seeds and rows != len(self._seeds):
                raise UserError(
                    f"rows={rows}: this engine has {len(self._seeds)} streams, and their number cannot change"
                )
            if self._streams is None:
                self._open(rows, policy, moments)
            self.taken += rows * steps
            return self._advance(steps, context, policy, moments)

    def _open(self, rows: int, policy: ControlPolicy, moments: Moments | None) -> None:
        """Build the streams, and reset them or restore the loaded state."""
        self._streams = streams = self._make_backend(rows, policy)
        if self._loaded is not None and self._loaded["envs"] is not None:
            streams.load(self._loaded["envs"])
        else:
            space = policy.observations
            raw = np.empty((rows, *space.shape), space.dtype if moments is None else np.float64)
            self._seeds = self._seeds or seeds_of(self.seed, rows)
            streams.reset(self._seeds, raw)
            self._seen = see(raw, moments)
            self._late = np.zeros(rows, dtype=bool)
            self._episodes = Episodes(rows)
        if self.normalize_rewards:
            self._scale = self._scale or RewardScale(rows, self.gamma)
            if len(self._scale.returns) != rows:
                self._scale.returns = np.zeros(rows)
        self._loaded = None

    def _advance(self, steps: int, context: Context, policy: ControlPolicy, moments: Moments | None) -> Trajectories:
        streams = self._streams
        assert streams is not None
        rows, space = streams.count, policy.observations
        seen = np.empty((steps + 1, rows, *space.shape), space.dtype)
        seen[0] = self._seen
        raw = seen[0] if moments is None else np.empty((rows, *space.shape))
        noise = draw_noise(policy, steps, rows, context.generator)
        outputs = np.empty((steps, rows, policy.actor.outputs), np.float32)
        actions = np.empty((steps, rows, *policy.actions.stored_shape), policy.actions.dtype)
        reward: Array = np.empty((steps, rows))
        terminated = np.zeros((steps, rows), dtype=bool)
        truncated = np.zeros((steps, rows), dtype=bool)
        finals: list[Final] = []
        actor, choose, to_environment = policy.actor_for(rows), chooser(policy), policy.to_environment
        for t in range(steps):
            actor(seen[t], outputs[t])
            choose(outputs[t], noise[t], actions[t])
            if moments is None:
                raw = seen[t + 1]
            ended = streams.step(to_environment(actions[t]), raw, reward[t], terminated[t], truncated[t])
            if ended:
                fresh = np.empty((len(ended), *space.shape), raw.dtype)
                streams.reset_some(ended, fresh)
                ends = raw[ended]
                raw[ended] = fresh
            if moments is not None:
                acted_on = ~(terminated[t] | truncated[t]) if streams.late_reset else None
                seen[t + 1] = see(raw, moments, acted_on)
            if ended:  # normalised as what came after them: with the moments after this step
                last = ends if moments is None else normalized(ends, moments)
                finals.extend((i, t, end) for i, end in zip(ended, last, strict=True))
        self._seen = seen[-1].copy()
        mask = np.ones((steps, rows), dtype=bool)
        over = terminated | truncated
        if streams.late_reset:
            mask[0] = ~self._late
            mask[1:] = ~over[:-1]
            self._late = over[-1].copy()
            over &= mask
            terminated &= mask
            truncated &= mask
            reward *= mask
        self._record(*self._episodes.take(reward, over, mask), context)
        if self._scale is not None:
            reward = self._scale.take(reward, over, mask)
        elif self.clip_rewards:
            reward = np.sign(reward)
        columns = {
            "observation": rows_first(seen[:-1]),
            "action": rows_first(actions),
            "mask": rows_first(mask),
            "length": torch.full((rows,), steps),
            "reward": rows_first(reward.astype(np.float32)),
            "terminated": rows_first(terminated),
            "truncated": rows_first(truncated),
            "group": torch.arange(rows),
            "prompt": torch.tensor(self._seeds),
        }
        if context.asks_for("next_observation"):
            after = seen[1:].copy()
            for row, step, end in finals:
                after[step, row] = end
            columns["next_observation"] = rows_first(after)
        if context.asks_for("last_observation"):
            columns["last_observation"] = torch.from_numpy(self._seen)
            if not streams.late_reset:
                cut = [final for final in finals if not terminated[final[1], final[0]]]
                columns["final_observation"] = final_column(cut, rows, space.shape, space.dtype)
        return _finish(columns, rows_first(outputs), policy)

    # episodes ------------------------------------------------------------------------------------------------------

    def sample(self, prompts: Prompts, count: int, context: Context, *, greedy: bool = False) -> Trajectories:
        """Run `count` whole episodes from each initial state; an item of `prompts` is its seed.

        `greedy` takes the most likely action at each step.

        Rows of a prompt share its seed, and so the random numbers of a stochastic environment. They are padded to the
        longest, with the mask False after an episode's end; an episode that ended is not stepped further.
        """
        policy = _control(context.policy)
        seeds = [int(seed) for seed in prompts.items for _ in range(count)]
        while len(self._pool) < len(seeds):
            self._pool.append(self._make_single())
        envs = OneByOne(self._pool[: len(seeds)], policy.actions.kind == "discrete")
        with ExitStack() as stack:
            moments = None if policy.normalizer is None else stack.enter_context(policy.normalizer.on_host())
            ran = run_episodes(envs, seeds, policy, moments, self.max_episode_steps, context.generator, greedy)
        mask, reward = ran["mask"], ran["reward"]
        self.taken += int(mask.sum())
        self._record(reward.sum(0), mask.sum(0), context)
        if self.normalize_rewards:
            if self._scale is None:
                self._scale = RewardScale(0, self.gamma)
            reward = self._scale.take(reward, ran["terminated"] | ran["truncated"], mask, fresh=True) * mask
        elif self.clip_rewards:
            reward = np.sign(reward)
        columns = {name: rows_first(ran[name]) for name in ("observation", "action", "mask", "terminated", "truncated")}
        columns["reward"] = rows_first(reward.astype(np.float32))
        columns["length"] = columns["mask"].sum(-1)
        columns["group"] = torch.arange(len(prompts)).repeat_interleave(count)
        columns["prompt"] = prompts.ids.repeat_interleave(count)
        last = torch.from_numpy(ran["last"])
        if context.asks_for("next_observation"):
            columns["next_observation"] = following(columns["observation"], columns["mask"], last)
        if context.asks_for("last_observation"):
            columns |= {"last_observation": last, "final_observation": last.unsqueeze(1)}
        return _finish(columns, rows_first(ran["outputs"]), policy)

    def _record(self, returns: Array, lengths: Array, context: Context) -> None:
        count = len(returns)
        if count:
            context.record("episode/return", float(returns.mean()), count)
            context.record("episode/length", float(lengths.mean()), count)
        context.metrics.add("episode/count", count)

    # environments --------------------------------------------------------------------------------------------------

    def _make_single(self) -> Any:
        if callable(self.env):
            return self.env()
        return make_env(self.env, self.options)

    def _make_backend(self, rows: int, policy: ControlPolicy) -> Backend:
        if isinstance(self.env, str):
            if self.backend == "envpool":
                return env_backends.EnvPool(self.env, rows, self.options)
            require("gymnasium", "control")
            wanted = self.backend == "vector"
            if self.backend == "auto":
                wanted = rows >= env_backends.NATIVE_FROM and env_backends.has_native(self.env)
            if wanted:
                return env_backends.native(self.env, rows, self.options)
        envs = [self._make_single() for _ in range(rows)]
        return OneByOne(envs, policy.actions.kind == "discrete")

    # saving --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the streams' environments, current observations and running sums, as tensors and plain values.

        For an environment whose state cannot be saved, the seed with which it will be reset.
        """
        if self._loaded is not None:
            return dict(self._loaded)
        state: dict[str, Any] = {"rows": 0, "resets": self._resets, "scale": None}
        if self._scale is not None:
            state["scale"] = self._scale.state_dict()
        if self._streams is None:
            return state
        envs, reason = None, ""
        try:
            envs = self._streams.save()
        except CannotSave as error:
            reason = str(error)
        return state | {
            "rows": len(self._seeds),
            "seeds": list(self._seeds),
            "envs": envs,
            "reason": reason,
            "seen": torch.from_numpy(self._seen),
            "late": torch.from_numpy(self._late),
            "returns": torch.from_numpy(self._episodes.returns.copy()),
            "lengths": torch.from_numpy(self._episodes.lengths.copy()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`; the streams open with the next `advance`.

        Environments whose state was not saved are reset then, with seeds that the run's determines; `resume_notes` and a
        warning report it.
        """
        self._streams = None
        self._resets = int(state["resets"])
        self.resume_notes = []
        self._scale = None
        if state["scale"] is not None:
            self._scale = RewardScale(0, self.gamma)
            self._scale.load_state_dict(state["scale"])
        if not state["rows"]:
            return
        self._seeds = list(state["seeds"])
        self._seen = state["seen"].numpy().copy()
        self._late = state["late"].numpy().copy()
        self._episodes = Episodes(state["rows"])
        self._episodes.returns = state["returns"].numpy().copy()
        self._episodes.lengths = state["lengths"].numpy().copy()
        self._loaded = state
        if state["envs"] is None:
            self._resets += 1
            self._seeds = seeds_of(self.seed, state["rows"], self._resets)
            if self._scale is not None:
                self._scale.returns[:] = 0.0
            note = (
                f"{state['reason']}: the {state['rows']} environments begin new episodes, with seeds "
                f"{', '.join(map(str, self._seeds[:8]))}{', ...' if state['rows'] > 8 else ''}; from here on the run differs "
                "from an uninterrupted one"
            )
            self.resume_notes.append(note)
            warnings.warn(note, stacklevel=2)


def _control(policy: Any) -> ControlPolicy:
    if not isinstance(policy, ControlPolicy):
        raise UserError(f"environments are run by a ControlPolicy, not by {type(policy).__name__}")
    return policy


def _finish(columns: dict[str, torch.Tensor], outputs: torch.Tensor, policy: ControlPolicy) -> Trajectories:
    """Move the columns to the policy's device and add the log-probabilities, from the outputs of the actor."""
    device = policy.device
    if device.type != "cpu":
        columns = {name: column.to(device, non_blocking=True) for name, column in columns.items()}
        outputs = outputs.to(device)
    with torch.no_grad():
        columns["logp_old"] = policy.head(outputs).log_prob(columns["action"])
    return Trajectories(columns, rows=len(outputs))
