"""Flow process for actions: an ordinary differential equation transforms noise (t = 1) into the action (t = 0).

Flow Policy Optimization (McAllister et al., 2025). A flow's likelihood is expensive; its conditional flow-matching loss on a
given action bounds the negative log-likelihood from above up to a constant, and its negative is the proxy for `logp`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from vantage.core import at_least, component
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.policies.processes import Networks

LOSSES = "flow_losses"
"""Name of the output [N, T, J] with the loss of each draw."""
FREQUENCIES = 4


@component(label="flow")
class Flow:
    """Flow process: Euler's method on a learned velocity v(x, t, s), and the flow-matching loss on draws stored with decisions.

        x <- x - v(x, t_k, s) / steps,  t_k = 1 - k / steps;      action = tanh(x) in [-1, 1]
        x_t = t eps + (1 - t) a;    loss = mean_d (v - (eps - a))^2               target "velocity"
                                    loss = mean_d (eps - x_t - (1 - t) v)^2       target "noise", (1 - t)^2 of the other

    A decision is stored as [eps_1 .. eps_J, t_1 .. t_J, a], with a before the tanh.

    Attributes:
        steps: steps of Euler's method, at least 1.
        draws: J, pairs (eps, t) per decision, at least 1.
        target: "noise" or "velocity".
        grid: t is drawn from the solver's grid 1/steps .. 1; otherwise uniformly from (0, 1).
        explore: standard deviation of the exploration noise that is added to sampled actions, at least 0.
    """

    steps: Annotated[int, at_least(1)] = 10
    draws: Annotated[int, at_least(1)] = 8
    target: Literal["noise", "velocity"] = "noise"
    grid: bool = True
    explore: float = 0.0
    kind = "flow"
    proxy = True
    outputs = frozenset({LOSSES})
    frozen_steps = 0
    own_numbers = 0
    time_features = 2 * FREQUENCIES

    def noise_width(self, width: int) -> int:
        """Return the number of noise values: x_1, the exploration noise, and the pairs."""
        return 2 * width + self.draws * (width + 1)

    def stored_width(self, width: int) -> int:
        """Return the size of the pairs and the action."""
        return self.draws * (width + 1) + width

    def sample(self, networks: Networks, observation: Tensor, noise: Tensor) -> Tensor:
        """Integrate from the noise; return the draws of the losses and the action, [n, stored]."""
        width = noise.shape[-1] - self.draws
        width //= self.draws + 2
        x, extra, eps, times = noise.split([width, width, self.draws * width, self.draws], -1)
        for k in range(self.steps):
            t = torch.full_like(x[:, :1], 1 - k / self.steps)
            x = x - networks.actor(x, time_features(t), observation) / self.steps
        # The normal distribution function maps normal numbers to uniform ones.
        t = 0.5 * (1 + torch.erf(times * 0.5**0.5))
        if self.grid:
            t = ((t * self.steps).floor() + 1).clamp(max=self.steps) / self.steps
        return torch.cat([eps, t, x + self.explore * extra], -1)

    def losses(self, networks: Networks, observation: Tensor, decision: Tensor) -> Tensor:
        """Return the flow-matching loss of each draw [..., J] of decisions [..., stored]; gradient flows to the network."""
        width = (decision.shape[-1] - self.draws) // (self.draws + 1)
        flat, t, action = decision.split([self.draws * width, self.draws, width], -1)
        eps, t, action = flat.unflatten(-1, (self.draws, width)), t.unsqueeze(-1), action.unsqueeze(-2)
        x = t * eps + (1 - t) * action
        seen = observation.unsqueeze(-2).expand(*x.shape[:-1], -1)
        v = networks.actor(x, time_features(t), seen)
        error = v - (eps - action) if self.target == "velocity" else eps - x - (1 - t) * v
        return error.square().mean(-1)

    def log_prob(self, networks: Networks, observation: Tensor, decision: Tensor) -> Tensor:
        """Return minus the mean loss over the draws, [...]."""
        return -self.losses(networks, observation, decision).mean(-1)

    def evaluate(
        self, networks: Networks, observation: Tensor, batch: Trajectories, want: frozenset[str]
    ) -> Evaluation:
        """Return `logp`, minus the mean loss, with the losses [N, T, J] in `extras`."""
        losses = self.losses(networks, observation, batch.action)
        extras = {LOSSES: losses} if LOSSES in want else {}
        return Evaluation(logp=-losses.mean(-1), extras=extras, proxy=True)

    def imitation(self, networks: Networks, observation: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        """Return the flow-matching loss [n] on the actions before the tanh, t uniform."""
        count, width = action.shape
        eps = torch.randn(count, self.draws * width, generator=generator, dtype=action.dtype)
        t = torch.rand(count, self.draws, generator=generator, dtype=action.dtype)
        before = torch.atanh(action.clamp(-0.999, 0.999))
        return self.losses(networks, observation, torch.cat([eps, t, before], -1)).mean(-1)

    def bounded(self, action: np.ndarray) -> np.ndarray:
        """Apply the tanh."""
        return np.asarray(np.tanh(action))


def time_features(t: Tensor) -> Tensor:
    """Return [cos(2^k t), sin(2^k t)] for k = 0 .. 3: [..., 8] of t [..., 1]."""
    angles = t * 2.0 ** torch.arange(FREQUENCIES, device=t.device, dtype=t.dtype)
    return torch.cat([angles.cos(), angles.sin()], -1)
