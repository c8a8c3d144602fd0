"""Actions by denoising diffusion: a chain of Gaussian steps from noise to the action, each with a likelihood of its own.

Diffusion Policy Policy Optimization (Ren et al., arXiv 2409.00588): an outer decision of the environment holds an inner chain,
whose last `tuned` steps learn; a frozen copy of the network takes the earlier ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vantage.core.errors import UserError
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.policies.distributions import LOG_SQRT_TWO_PI
from vantage.policies.generative import Networks

INNER = "inner"
"""Column [N, T] of a batch whose decisions are single denoising steps: 0 is the first that learns, tuned - 1 the last."""
FREQUENCIES = 8


@dataclass(frozen=True)
class Diffusion:
    """DDPM with cosine noise levels and noise prediction; diffusion time t = steps - 1 .. 0.

        x0 = sqrt(1 / abar_t) x^t - sqrt(1 / abar_t - 1) eps(x^t, t, s), clamped to [-1, 1]
        mu = beta_t sqrt(abar_{t-1}) / (1 - abar_t) x0 + (1 - abar_{t-1}) sqrt(alpha_t) / (1 - abar_t) x^t
        x^{t-1} = mu + max(sqrt(var_t), noise) clip(n, -3, 3)
        logp = mean over coordinates of clamp(log N(x^{t-1}; mu, max(sqrt(var_t), noise)^2), -5, 2)

    A decision is kept as the chain [x^tuned, ..., x^0]. `logp` of a whole chain is the sum over its learned steps; in a batch
    with the column `inner`, `action` is [x^t, x^{t-1}] and `logp` that of the one step.

    Attributes:
        steps: K, at least 1.
        tuned: K', last steps that learn, 1 to K; the others are a frozen copy's.
        noise: least standard deviation of a step, in sampling and in the likelihood. Below 0.054 the log-density of a likely step
            is above 2, where the clamp takes its gradient away.
        exact: no clamps on the likelihood and the noise, and none on x0.
    """

    steps: int = 20
    tuned: int = 10
    noise: float = 0.1
    exact: bool = False
    kind = "diffusion"
    proxy = False
    outputs = frozenset[str]()
    time_features = 2 * FREQUENCIES

    def __post_init__(self) -> None:
        if not 1 <= self.tuned <= self.steps:
            raise UserError(f"diffusion: tuned={self.tuned} is out of range: 1 to steps={self.steps}")
        if not self.noise > 0:
            raise UserError(f"diffusion: noise={self.noise} is out of range: above 0")

    @property
    def frozen_steps(self) -> int:
        """K - K'."""
        return self.steps - self.tuned

    @cached_property
    def schedule(self) -> Tensor:
        """By t, [K, 5]: factors of x^t and eps in x0, of x0 and x^t in mu, and the standard deviation."""
        place = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        level = torch.cos((place + 0.008) / 1.008 * math.pi / 2).square()
        beta = (1 - level[1:] / level[:-1]).clamp(max=0.999)
        kept = (1 - beta).cumprod(0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
        var = beta * (1 - before) / (1 - kept)
        columns = (
            (1 / kept).sqrt(),
            (1 / kept - 1).sqrt(),
            beta * before.sqrt() / (1 - kept),
            (1 - before) * (1 - beta).sqrt() / (1 - kept),
            var.clamp(min=1e-20).sqrt().clamp(min=self.noise),
        )
        return torch.stack([*columns, kept], -1)

    def noise_width(self, width: int) -> int:
        """x^K and a draw a step."""
        return (self.steps + 1) * width

    def stored_width(self, width: int) -> int:
        """The learned part of the chain."""
        return (self.tuned + 1) * width

    def step(self, networks: Networks, observation: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean [..., width] and standard deviation [..., 1] of x^{t-1} given x^t, at times t [...] below `tuned`."""
        return self._step(networks.actor, observation, x, t)

    def _step(self, network: torch.nn.Module, observation: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        table = self.schedule.to(x.device, x.dtype)[t].unsqueeze(-1)
        to_x0, to_eps, from_x0, from_x, std, _ = table.unbind(-2)
        eps = network(x, time_features(t, x.dtype), observation)
        x0 = to_x0 * x - to_eps * eps
        if not self.exact:
            x0 = x0.clamp(-1, 1)
        return from_x0 * x0 + from_x * x, std

    def sample(self, networks: Networks, observation: Tensor, noise: Tensor) -> Tensor:
        """Run the chain; keep its learned part."""
        draws = noise.unflatten(-1, (self.steps + 1, -1)).unbind(1)
        x = draws[0]
        chain: list[Tensor] = []
        for t, draw in zip(range(self.steps - 1, -1, -1), draws[1:], strict=True):
            if t < self.tuned and not chain:
                chain.append(x)
            network = networks.actor if t < self.tuned or networks.early is None else networks.early
            mean, std = self._step(network, observation, x, torch.full((len(x),), t, device=x.device))
            x = mean + std * (draw if self.exact else draw.clamp(-3, 3))
            if t < self.tuned:
                chain.append(x)
        return torch.cat(chain, -1)

    def log_prob_of_step(self, networks: Networks, observation: Tensor, pair: Tensor, inner: Tensor) -> Tensor:
        """Return the mean log-density [...] of one step [x^t, x^{t-1}] [..., 2 width], with t = tuned - 1 - inner [...]."""
        x, after = pair.chunk(2, -1)
        mean, std = self.step(networks, observation, x, self.tuned - 1 - inner)
        log = -0.5 * ((after - mean) / std).square() - std.log() - LOG_SQRT_TWO_PI
        return (log if self.exact else log.clamp(-5, 2)).mean(-1)

    def pairs(self, decision: Tensor) -> Tensor:
        """Cut chains [..., stored] into their steps [..., tuned, 2 width]."""
        chain = decision.unflatten(-1, (self.tuned + 1, -1))
        return torch.cat([chain[..., :-1, :], chain[..., 1:, :]], -1)

    def log_prob(self, networks: Networks, observation: Tensor, decision: Tensor) -> Tensor:
        """Return the sum over the learned steps of a chain of their mean log-densities, [...]."""
        pairs = self.pairs(decision)
        seen = observation.unsqueeze(-2).expand(*pairs.shape[:-1], -1)
        inner = torch.arange(self.tuned, device=pairs.device).expand(pairs.shape[:-1])
        return self.log_prob_of_step(networks, seen, pairs, inner).sum(-1)

    def evaluate(
        self, networks: Networks, observation: Tensor, batch: Trajectories, want: frozenset[str]
    ) -> Evaluation:
        """`logp` of the chain, or with the column `inner` of the step."""
        inner = batch.get(INNER)
        if inner is None:
            return Evaluation(logp=self.log_prob(networks, observation, batch.action))
        return Evaluation(logp=self.log_prob_of_step(networks, observation, batch.action, inner))

    def imitation(self, networks: Networks, observation: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        """Noise prediction on the actions, t uniform over all steps."""
        t = torch.randint(self.steps, (len(action),), generator=generator)
        eps = torch.randn(action.shape, generator=generator, dtype=action.dtype)
        kept = self.schedule.to(action.dtype)[t, -1:]
        x = kept.sqrt() * action + (1 - kept).sqrt() * eps
        return (networks.actor(x, time_features(t, x.dtype), observation) - eps).square().mean(-1)

    def bounded(self, action: np.ndarray) -> np.ndarray:
        """The clip."""
        return np.clip(action, -1.0, 1.0)


def time_features(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Return sines and cosines of t [...] at 8 geometrically spaced frequencies from 1 to 1e-4: [..., 16]."""
    rates = torch.exp(-math.log(1e4) / (FREQUENCIES - 1) * torch.arange(FREQUENCIES, device=t.device, dtype=dtype))
    angles = t.to(dtype).unsqueeze(-1) * rates
    return torch.cat([angles.sin(), angles.cos()], -1)
