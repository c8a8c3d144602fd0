"""What a generative process is to a policy that acts by one, and the networks that it runs on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.policies.networks import MLP


class Process(Protocol):
    """How noise becomes an action of `width` numbers."""

    kind: str
    proxy: bool
    """Whether `logp` is a bound or surrogate instead of a log-probability."""
    outputs: frozenset[str]
    """Further outputs that `evaluate` offers."""

    @property
    def time_features(self) -> int:
        """Inputs of the network that say how far the process is."""
        ...

    @property
    def frozen_steps(self) -> int:
        """First steps of the process that a frozen copy of the network takes; 0 for none."""
        ...

    @property
    def own_numbers(self) -> int:
        """Numbers that the process learns beside the network, 0 at first; it finds them in `Denoiser.own`."""
        ...

    def noise_width(self, width: int) -> int:
        """Standard normal numbers that one decision needs."""
        ...

    def stored_width(self, width: int) -> int:
        """Numbers that are kept of one decision; the action itself is the last `width` of them."""
        ...

    def sample(self, networks: Networks, observation: Tensor, noise: Tensor) -> Tensor:
        """Turn noise [n, noise_width] into decisions [n, stored_width]."""
        ...

    def evaluate(
        self, networks: Networks, observation: Tensor, batch: Trajectories, want: frozenset[str]
    ) -> Evaluation:
        """Judge decisions for encoded observations [N, T, W]: `logp` [N, T] and what `outputs` names."""
        ...

    def log_prob(self, networks: Networks, observation: Tensor, decision: Tensor) -> Tensor:
        """Return `logp` [...] of decisions [..., stored_width]."""
        ...

    def imitation(self, networks: Networks, observation: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        """Return the loss [n] that teaches the process to make these actions [n, width]."""
        ...

    def bounded(self, action: np.ndarray) -> np.ndarray:
        """Bring an action into [-1, 1]."""
        ...


class Denoiser(nn.Module):
    """A perceptron of (noisy action, time features, observation); its output, [..., width], is scaled by `scale`.

    `own` holds the `own` numbers that the process learns beside it, where there are any.
    """

    own: Tensor

    def __init__(
        self,
        observation: int,
        width: int,
        times: int,
        hidden: Sequence[int],
        activation: str,
        scale: float,
        generator: torch.Generator,
        own: int = 0,
    ) -> None:
        super().__init__()
        if own:
            self.register_parameter("own", nn.Parameter(torch.zeros(own)))
        self.mlp = MLP([width + times + observation, *hidden, width], activation, 1.0, generator)
        self.scale = scale
        self.outputs = observation
        """What a rollout keeps of a decision beside it: the encoded observation, from which its likelihood is computed."""

    def forward(self, x: Tensor, time: Tensor, observation: Tensor) -> Tensor:
        """Map x [..., width], time features [..., times] and observation [..., W], all of the same leading shape."""
        return self.mlp(torch.cat([x, time, observation], -1)) * self.scale


@dataclass(frozen=True)
class Networks:
    """The network that learns, and the frozen one that takes the first steps of the process, where there is one."""

    actor: Denoiser
    early: Denoiser | None = None
