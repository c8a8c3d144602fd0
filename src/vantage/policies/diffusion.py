"""Diffusion process for actions: a chain of Gaussian steps from noise to the action, each with a likelihood.

Diffusion Policy Policy Optimization (Ren et al., arXiv 2409.00588): a decision of the environment contains an inner chain,
whose last `tuned` steps are trained; a frozen copy of the network computes the earlier ones.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from vantage.core import at_least, component
from vantage.core.errors import UserError, out_of_range
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories, declare
from vantage.policies.distributions import LOG_SQRT_TWO_PI
from vantage.policies.processes import Networks

INNER = "inner"
"""Column [N, T] of a batch whose decisions are single denoising steps: 0 is the first trained one, tuned - 1 the last."""
declare(INNER, "[N, T]", "number of the denoising step", "the recipe dppo")
ETA = "eta"
"""Name of the output [N, T] with DDIM's noise as a share of DDPM's; 1 for DDPM."""
FREQUENCIES = 8


@component(label="diffusion")
class Diffusion:
    """DDPM or DDIM process with cosine noise levels and noise prediction; DDPM's diffusion time is t = steps - 1 .. 0.

        x0 = sqrt(1 / abar_t) x^t - sqrt(1 / abar_t - 1) eps(x^t, t, s), clamped to [-1, 1]
        mu = beta_t sqrt(abar_{t-1}) / (1 - abar_t) x0 + (1 - abar_{t-1}) sqrt(alpha_t) / (1 - abar_t) x^t
        x^{t-1} = mu + max(sqrt(var_t), noise) clip(n, -3, 3)
        logp = mean over coordinates of clamp(log N(x^{t-1}; mu, max(sqrt(var_t), noise)^2), -5, 2)

    DDIM (Song et al., arXiv 2010.02502, eq. 12 and 16) needs fewer steps of the same network: `ddim_steps` = S of them, at the
    times t = j (K // S), j = S - 1 .. 0. With abar' the level of the next one, 1 after the last,

        sig = eta sqrt((1 - abar') / (1 - abar) (1 - abar / abar'))          eta times DDPM's deviation
        mu = sqrt(abar') x0 + sqrt(1 - abar' - sig^2) e                      e: the noise that x^t holds beside x0

    and again max(sig, noise). `e` follows from the clamped x0, so that S = K and eta = 1 is DDPM; eta = 0 adds no noise.
    With `learn_eta` a parameter z of the actor, initially 0, is trained beside its weights:

        eta = least_eta + (most_eta - least_eta) (1 + tanh(z0 + z)) / 2,     z0 such that eta starts at `eta`

    A decision is stored as the chain [x^tuned, ..., x^0]. `logp` of a whole chain is the sum over its trained steps; in a batch
    with the column `inner`, `action` is [x^t, x^{t-1}] and `logp` that of the one step.

    Attributes:
        steps: K, at least 1: number of noise levels in training, and of DDPM's steps.
        tuned: K', number of last steps that are trained, 1 to K (with DDIM to S); a frozen copy computes the others.
        noise: smallest standard deviation of a step, in sampling and in the likelihood. Below 0.054 the log-density of a likely
            step exceeds 2, where the clamp removes its gradient. With DDIM it may be 0: sampling without a likelihood.
        exact: no clamps on the likelihood and the noise, and none on x0.
        ddim_steps: S, 1 to K; 0 for DDPM.
        eta: DDIM's eta, at least 0; 1 for the noise of DDPM.
        learn_eta: whether eta is trained; gradient flows to it through the means and standard deviations of the steps.
        least_eta, most_eta: bounds of a trained eta; `eta` lies between them.
    """

    steps: Annotated[int, at_least(1)] = 20
    tuned: Annotated[int, at_least(1)] = 10
    noise: Annotated[float, at_least(0)] = 0.1
    exact: bool = False
    ddim_steps: Annotated[int, at_least(0)] = 0
    eta: Annotated[float, at_least(0)] = 1.0
    learn_eta: bool = False
    least_eta: Annotated[float, at_least(0)] = 0.1
    most_eta: float = 2.0
    kind = "diffusion"
    proxy = False
    outputs = frozenset({ETA})
    time_features = 2 * FREQUENCIES

    def __post_init__(self) -> None:
        if self.ddim_steps > self.steps:
            raise out_of_range("diffusion: ddim_steps", self.ddim_steps, f"0 (DDPM) to steps={self.steps}")
        if self.tuned > self.length:
            name = "ddim_steps" if self.ddim_steps else "steps"
            raise out_of_range("diffusion: tuned", self.tuned, f"1 to {name}={self.length}")
        if self.noise == 0 and not self.ddim_steps:
            raise out_of_range("diffusion: noise", self.noise, "above 0, or give ddim_steps too")
        if not self.ddim_steps and (self.learn_eta or self.eta != 1):
            raise UserError("diffusion: eta is a setting of DDIM: give ddim_steps too")
        if self.learn_eta and not self.least_eta < self.eta < self.most_eta:
            raise UserError(
                f"diffusion: eta={self.eta} is trained from a value between its bounds, above least_eta={self.least_eta}"
                f" and below most_eta={self.most_eta}"
            )

    @property
    def length(self) -> int:
        """Number of steps of a chain, S or K."""
        return self.ddim_steps or self.steps

    @property
    def frozen_steps(self) -> int:
        """Number of steps before the last K'."""
        return self.length - self.tuned

    @property
    def own_numbers(self) -> int:
        """Number of parameters beside the network: 1 where eta is trained, else 0."""
        return int(self.learn_eta)

    @cached_property
    def _beta(self) -> Tensor:
        place = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        level = torch.cos((place + 0.008) / 1.008 * math.pi / 2).square()
        return (1 - level[1:] / level[:-1]).clamp(max=0.999)

    @cached_property
    def levels(self) -> Tensor:
        """Noise levels abar by t, [K] float64."""
        return (1 - self._beta).cumprod(0)

    @cached_property
    def times(self) -> Tensor:
        """Diffusion time t of each position in the chain, the last step's first: [S] or [K] int64."""
        return torch.arange(self.length) * (self.steps // self.length)

    @cached_property
    def schedule(self) -> Tensor:
        """Factors by position, [S or K, 6]: of x^t and eps in x0, of x0 and x^t in mu, the standard deviation, and abar."""
        if self.ddim_steps:
            return self.implicit(torch.tensor(self.eta, dtype=torch.float64))
        beta, kept = self._beta, self.levels
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

    def implicit(self, eta: Tensor) -> Tensor:
        """Return DDIM's `schedule` [S, 6] for an eta []; gradient flows to eta."""
        kept = self.levels[self.times]
        before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
        sig = eta * ((1 - before) / (1 - kept) * (1 - kept / before)).sqrt()
        # The bound keeps the root's gradient finite at the last step, where its argument is 0.
        along = (1 - before - sig.square()).clamp(min=1e-20).sqrt()
        from_x = along / (1 - kept).sqrt()
        columns = (
            (1 / kept).sqrt(),
            (1 / kept - 1).sqrt(),
            before.sqrt() - from_x * kept.sqrt(),
            from_x,
            sig.clamp(min=self.noise),
        )
        return torch.stack([*columns, kept], -1)

    def eta_of(self, networks: Networks) -> Tensor:
        """Return eta, [] float64; with gradient where it is trained."""
        if not self.learn_eta:
            return torch.tensor(self.eta, dtype=torch.float64)
        span = self.most_eta - self.least_eta
        start = math.atanh(2 * (self.eta - self.least_eta) / span - 1)
        return self.least_eta + span * (1 + torch.tanh(start + networks.actor.own[0].double())) / 2

    def table(self, networks: Networks) -> Tensor:
        """Return `schedule`, with the trained eta where there is one."""
        return self.implicit(self.eta_of(networks).cpu()) if self.learn_eta else self.schedule

    def noise_width(self, width: int) -> int:
        """Return the number of noise values: the chain's initial noise, and one per coordinate and step."""
        return (self.length + 1) * width

    def stored_width(self, width: int) -> int:
        """Return the size of the trained part of the chain."""
        return (self.tuned + 1) * width

    def step(self, networks: Networks, observation: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean [..., width] and standard deviation [..., 1] of x^{t-1} given x^t, at positions t [...] below `tuned`."""
        return self._step(networks.actor, self.table(networks), observation, x, t)

    def _step(
        self, network: torch.nn.Module, table: Tensor, observation: Tensor, x: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor]:
        row = table.to(x.device, x.dtype)[t].unsqueeze(-1)
        to_x0, to_eps, from_x0, from_x, std, _ = row.unbind(-2)
        eps = network(x, time_features(self.times.to(x.device)[t], x.dtype), observation)
        x0 = to_x0 * x - to_eps * eps
        if not self.exact:
            x0 = x0.clamp(-1, 1)
        return from_x0 * x0 + from_x * x, std

    def sample(self, networks: Networks, observation: Tensor, noise: Tensor) -> Tensor:
        """Run the chain and return its trained part [n, stored]."""
        draws = noise.unflatten(-1, (self.length + 1, -1)).unbind(1)
        x, table = draws[0], self.table(networks)
        chain: list[Tensor] = []
        for t, draw in zip(range(self.length - 1, -1, -1), draws[1:], strict=True):
            if t < self.tuned and not chain:
                chain.append(x)
            network = networks.actor if t < self.tuned or networks.early is None else networks.early
            mean, std = self._step(network, table, observation, x, torch.full((len(x),), t, device=x.device))
            x = mean + std * (draw if self.exact else draw.clamp(-3, 3))
            if t < self.tuned:
                chain.append(x)
        return torch.cat(chain, -1)

    def log_prob_of_step(self, networks: Networks, observation: Tensor, pair: Tensor, inner: Tensor) -> Tensor:
        """Return the mean log-density [...] of one step [x^t, x^{t-1}] [..., 2 width], at position t = tuned - 1 - inner [...].

        Raises:
            UserError: `noise` is 0, so that the last step has no density.
        """
        if not self.noise:
            raise UserError("diffusion: with noise=0 the last step has no likelihood; give a noise above 0")
        x, after = pair.chunk(2, -1)
        mean, std = self.step(networks, observation, x, self.tuned - 1 - inner)
        log = -0.5 * ((after - mean) / std).square() - std.log() - LOG_SQRT_TWO_PI
        return (log if self.exact else log.clamp(-5, 2)).mean(-1)

    def pairs(self, decision: Tensor) -> Tensor:
        """Return the steps [..., tuned, 2 width] of chains [..., stored]."""
        chain = decision.unflatten(-1, (self.tuned + 1, -1))
        return torch.cat([chain[..., :-1, :], chain[..., 1:, :]], -1)

    def log_prob(self, networks: Networks, observation: Tensor, decision: Tensor) -> Tensor:
        """Return the sum over the trained steps of a chain of their mean log-densities, [...]."""
        pairs = self.pairs(decision)
        seen = observation.unsqueeze(-2).expand(*pairs.shape[:-1], -1)
        inner = torch.arange(self.tuned, device=pairs.device).expand(pairs.shape[:-1])
        return self.log_prob_of_step(networks, seen, pairs, inner).sum(-1)

    def evaluate(
        self, networks: Networks, observation: Tensor, batch: Trajectories, want: frozenset[str]
    ) -> Evaluation:
        """Return `logp` of the chain, or with the column `inner` of the step; eta, the same for all [N, T], is in `extras`."""
        inner = batch.get(INNER)
        if inner is None:
            logp = self.log_prob(networks, observation, batch.action)
        else:
            logp = self.log_prob_of_step(networks, observation, batch.action, inner)
        return Evaluation(
            logp=logp, extras={ETA: self.eta_of(networks).to(logp).expand_as(logp)} if ETA in want else {}
        )

    def imitation(self, networks: Networks, observation: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        """Return the noise prediction loss [n] on the actions, t uniform over all steps."""
        t = torch.randint(self.steps, (len(action),), generator=generator)
        eps = torch.randn(action.shape, generator=generator, dtype=action.dtype)
        kept = self.levels.to(action.dtype)[t].unsqueeze(-1)
        x = kept.sqrt() * action + (1 - kept).sqrt() * eps
        return (networks.actor(x, time_features(t, x.dtype), observation) - eps).square().mean(-1)

    def bounded(self, action: np.ndarray) -> np.ndarray:
        """Clip to [-1, 1]."""
        return np.clip(action, -1.0, 1.0)


def time_features(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Return sines and cosines of t [...] at 8 geometrically spaced frequencies from 1 to 1e-4: [..., 16]."""
    rates = torch.exp(-math.log(1e4) / (FREQUENCIES - 1) * torch.arange(FREQUENCIES, device=t.device, dtype=dtype))
    angles = t.to(dtype).unsqueeze(-1) * rates
    return torch.cat([angles.sin(), angles.cos()], -1)
