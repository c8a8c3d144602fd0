"""Whole episodes in several single environments, each from its own seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vantage.policies.acting import chooser, draw_noise, noise_width
from vantage.policies.control import ControlPolicy
from vantage.policies.normalize import Moments
from vantage.rollouts.env_backends import OneByOne

Array = NDArray[Any]
CHUNK = 64
"""Number of steps for which memory is allocated at a time."""


def run_episodes(
    envs: OneByOne,
    seeds: Sequence[int],
    policy: ControlPolicy,
    moments: Moments | None,
    limit: int,
    generator: torch.Generator,
    greedy: bool = False,
) -> dict[str, Array]:
    """Run an episode in each environment until all have ended; finished ones are not stepped further.

    `greedy` takes the most likely action at each step.

    Returns:
        `observation`, `action`, `outputs` (of the actor), `reward`, `terminated`, `truncated` and `mask`, all [T, N, ...] with
        zeros after an episode's end, and `last` [N, ...], the observation at that end. An episode is truncated after `limit` steps.
    """
    rows, space = len(seeds), policy.observations
    kind = space.dtype if moments is None else np.float64
    raw = np.empty((rows, *space.shape), kind)
    envs.reset(seeds, raw)
    x = see(raw, moments)
    last = np.zeros((rows, *space.shape), space.dtype)
    active = np.arange(rows)
    chunks: list[dict[str, Array]] = []
    actor, choose = policy.actor_for(rows), chooser(policy)
    noise: Array = np.empty(0)
    steps = 0
    while len(active):
        t = steps % CHUNK
        if t == 0:
            # Without noise the choice is the distribution's mode.
            width = noise_width(policy)
            noise = np.zeros((CHUNK, rows, width), np.float32) if greedy else draw_noise(policy, CHUNK, rows, generator)
            chunks.append(_room(CHUNK, rows, policy))
        steps += 1
        n = len(active)
        outputs = np.empty((n, policy.actor.outputs), np.float32)
        action = np.empty((n, *policy.actions.stored_shape), policy.actions.dtype)
        actor(x, outputs)
        choose(outputs, noise[t, :n], action)
        raw, reward = np.empty((n, *space.shape), kind), np.empty(n)
        over, cut = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        envs.step_some(active.tolist(), policy.to_environment(action), raw, reward, over, cut)
        if steps == limit:
            cut |= ~over
        taken: dict[str, Any] = {
            "observation": x,
            "action": action,
            "outputs": outputs,
            "reward": reward,
            "terminated": over,
            "truncated": cut,
            "mask": True,
        }
        for name, values in taken.items():
            chunks[-1][name][t, active] = values
        ended = over | cut
        x = see(raw, moments, ~ended)
        if ended.any():
            last[active[ended]] = x[ended]
            active, x = active[~ended], x[~ended]
    ran = {name: np.concatenate([chunk[name] for chunk in chunks])[:steps] for name in chunks[0]}
    return ran | {"last": last}


def see(raw: Array, moments: Moments | None, acted_on: Array | None = None) -> Array:
    """Return normalised observations [n, *shape], after the moments are updated by those on which the policy acts.

    `acted_on` [n] bool leaves out the observations that end an episode, as OpenAI Baselines' and Stable-Baselines3's
    VecNormalize do; None: the policy acts on all.
    """
    if moments is None:
        return raw
    moments.update(raw if acted_on is None or acted_on.all() else raw[acted_on])
    return normalized(raw, moments)


def normalized(raw: Array, moments: Moments) -> Array:
    """Return observations [n, *shape] normalised by the present moments, float32."""
    seen = np.empty(raw.shape, np.float32)
    moments.normalize(raw, seen)
    return seen


def _room(steps: int, rows: int, policy: ControlPolicy) -> dict[str, Array]:
    space = policy.observations
    return {
        "observation": np.zeros((steps, rows, *space.shape), space.dtype),
        "action": np.zeros((steps, rows, *policy.actions.stored_shape), policy.actions.dtype),
        "outputs": np.zeros((steps, rows, policy.actor.outputs), np.float32),
        "reward": np.zeros((steps, rows)),
        "terminated": np.zeros((steps, rows), dtype=bool),
        "truncated": np.zeros((steps, rows), dtype=bool),
        "mask": np.zeros((steps, rows), dtype=bool),
    }
