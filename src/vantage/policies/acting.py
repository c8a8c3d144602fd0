"""Action sampling in rollouts: the noise of all steps is drawn at once, and actions are chosen in a few numpy calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vantage.policies.control import LOG_STD_RANGE, ControlPolicy

Array = NDArray[Any]
Chooser = Callable[[Array, Array, Array], None]


def draw_noise(policy: ControlPolicy, steps: int, rows: int, generator: torch.Generator) -> Array:
    """Draw the noise of `steps` actions in `rows` streams at once, [steps, rows, width] float32, on the CPU.

    It is standard normal for continuous actions and for policies with a `chooser` of their own, which declare the number of
    values as `noise_width`; for discrete actions it is the logarithm of exponential noise, whose negative is Gumbel noise, so
    that argmax(logits - noise) is a sample of softmax(logits).
    """
    noise = torch.empty(steps, rows, noise_width(policy))
    if policy.actions.kind == "continuous":
        return noise.normal_(generator=generator).numpy()
    return noise.exponential_(generator=generator).log_().numpy()


def noise_width(policy: ControlPolicy) -> int:
    """Return the number of random values per action."""
    return int(getattr(policy, "noise_width", policy.actions.width))


def chooser(policy: ControlPolicy) -> Chooser:
    """Return `(outputs [n, outputs], noise [n, width], action) -> None`, which writes the actions and overwrites the noise.

    The parameters that it needs besides the outputs are read once: make a new one for each rollout.
    """
    own = getattr(policy, "chooser", None)
    if own is not None:
        return own()
    if policy.actions.kind == "discrete":
        return _discrete
    if policy.actions.kind == "multidiscrete":
        ends = np.cumsum(policy.actions.sizes).tolist()
        return _multidiscrete(list(zip([0, *ends[:-1]], ends, strict=True)))
    if policy.log_std is not None:
        return _gaussian(policy.log_std.detach().exp().cpu().numpy())
    return _state_dependent(policy.actions.width, policy.config["log_std"])


def _discrete(outputs: Array, noise: Array, action: Array) -> None:
    np.subtract(outputs, noise, noise)
    noise.argmax(1, action)


def _multidiscrete(parts: list[tuple[int, int]]) -> Chooser:
    def choose(outputs: Array, noise: Array, action: Array) -> None:
        np.subtract(outputs, noise, noise)
        for k, (start, end) in enumerate(parts):
            action[:, k] = noise[:, start:end].argmax(1)

    return choose


def _gaussian(std: Array) -> Chooser:
    def choose(outputs: Array, noise: Array, action: Array) -> None:
        np.multiply(noise, std, action)
        np.add(action, outputs, action)

    return choose


def _state_dependent(width: int, shift: float) -> Chooser:
    def choose(outputs: Array, noise: Array, action: Array) -> None:
        std = np.exp(np.clip(outputs[:, width:] + np.float32(shift), *LOG_STD_RANGE))
        np.multiply(noise, std, action)
        np.add(action, outputs[:, :width], action)

    return choose
