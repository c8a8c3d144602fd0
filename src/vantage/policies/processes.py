"""Interface of a generative process, and its networks."""

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
    """Interface of a process that transforms noise into an action of `width` numbers."""

    kind: str
    proxy: bool
    """Whether `logp` is a bound or surrogate instead of a log-probability."""
    outputs: frozenset[str]
    """Further outputs of `evaluate`."""

    @property
    def time_features(self) -> int:
        """Number of the network's inputs for the process's time."""
        ...

    @property
    def frozen_steps(self) -> int:
        """Number of first steps that a frozen copy of the network computes; 0 for none."""
        ...

    @property
    def own_numbers(self) -> int:
        """Number of trained parameters beside the network, initially 0; they are in `Denoiser.own`."""
        ...

    def noise_width(self, width: int) -> int:
        """Return the number of standard normal values per decision."""
        ...

    def stored_width(self, width: int) -> int:
        """Return the number of values stored per decision; the last `width` of them are the action."""
        ...

    def sample(self, networks: Networks, observation: Tensor, noise: Tensor) -> Tensor:
        """Transform noise [n, noise_width] into decisions [n, stored_width]."""
        ...

    def evaluate(
        self, networks: Networks, observation: Tensor, batch: Trajectories, want: frozenset[str]
    ) -> Evaluation:
        """Evaluate decisions for encoded observations [N, T, W]: `logp` [N, T] and the `outputs`; with gradient."""
        ...

    def log_prob(self, networks: Networks, observation: Tensor, decision: Tensor) -> Tensor:
        """Return `logp` [...] of decisions [..., stored_width]."""
        ...

    def imitation(self, networks: Networks, observation: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        """Return the behaviour cloning loss [n] of these actions [n, width]."""
        ...

    def bounded(self, action: np.ndarray) -> np.ndarray:
        """Map an action into [-1, 1]."""
        ...


class Denoiser(nn.Module):
    """Perceptron of (noisy action, time features, observation); its output, [..., width], is scaled by `scale`.

    `own` holds the process's trained parameters beside the network, where there are any.
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
        """Width of the encoded observation, which a rollout stores with a decision for the likelihood."""

    def forward(self, x: Tensor, time: Tensor, observation: Tensor) -> Tensor:
        """Map x [..., width], time features [..., times] and observation [..., W], all of the same leading shape."""
        return self.mlp(torch.cat([x, time, observation], -1)) * self.scale


@dataclass(frozen=True)
class Networks:
    """Trained network, and the frozen one that computes the first steps of the process, where there is one."""

    actor: Denoiser
    early: Denoiser | None = None
