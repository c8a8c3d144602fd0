"""Rollouts of flow models' samplers: from noise to a sample in T steps, all or some of them, or resumed from a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any

import torch
from torch import Tensor

from vantage.core import above, at_least, component, one_of
from vantage.core.context import Context
from vantage.core.costs import Cost, episodes
from vantage.core.errors import UserError
from vantage.core.protocols import Prompts
from vantage.core.trajectories import Trajectories, declare
from vantage.policies.flow import FlowPolicy, normal_logp, over, transition

declare(
    "mean_old",
    "[N, T, ...]",
    "mean of the step under the policy that acted",
    "the denoising engine, for a component that declares it",
)

KINDS = ("ratio", "constant")
OUTCOMES = ("state", "prediction")


@component
class Sampler:
    """Times and noise levels of a sampler of flow models.

    Times are 1 = s_0 > s_1 > .. > s_T = 0, equally spaced, then shifted: s <- shift s / (1 + (shift - 1) s).

        ratio     sigma = noise sqrt(t / (1 - t)), at t = 1 with s_1 inside 1 - t        Flow-GRPO, arXiv 2505.05470
        constant  sigma = noise                                                          DanceGRPO, arXiv 2505.07818

    Attributes:
        steps: T, at least 1.
        noise: noise level, at least 0; 0 is the ODE.
        kind: "ratio" or "constant".
        shift: above 0; above 1 more of the steps are near the noise.
        stochastic: steps (from 0) that add noise; None for all. The others are steps of the ODE.
        outcome: output that is scored: the last "state", or the noise-free "prediction" x - t v of the last step.
    """

    steps: Annotated[int, at_least(1)] = 10
    noise: Annotated[float, at_least(0)] = 0.7
    kind: Annotated[str, one_of(KINDS)] = "ratio"
    shift: Annotated[float, above(0)] = 1.0
    stochastic: tuple[int, ...] | None = None
    outcome: Annotated[str, one_of(OUTCOMES)] = "state"

    def times(self) -> Tensor:
        """Return the times [T + 1], from 1 to 0."""
        plain = torch.linspace(1.0, 0.0, self.steps + 1, dtype=torch.float64)
        return (self.shift * plain / (1 + (self.shift - 1) * plain)).float()

    def sigmas(self) -> Tensor:
        """Return the diffusion sigma of each step [T]."""
        now = self.times()[:-1].double()
        if self.kind == "constant":
            sigma = torch.full_like(now, self.noise)
        else:
            # Where 1 - t is 0 the second time is used; with a single step, 1/2.
            second = float(now[1]) if self.steps > 1 else 0.5
            sigma = self.noise * (now / (1 - torch.where(now == 1, second, now))).sqrt()
        if self.stochastic is not None:
            keep = torch.zeros(self.steps, dtype=torch.bool)
            keep[[step for step in self.stochastic if 0 <= step < self.steps]] = True
            sigma = torch.where(keep, sigma, 0.0)
        return sigma.float()


@component
class Denoise:
    """Rollout: `size` samples from each of `prompts` prompts, every step is a decision; the samples of a prompt are a group.

    Attributes:
        prompts: prompts a step, at least 1.
        size: samples a prompt (G), at least 1.
        sampler: times and noise.
        same_noise: whether the samples of a prompt start from the same noise.
    """

    prompts: Annotated[int, at_least(1)] = 48
    size: Annotated[int, at_least(1)] = 24
    sampler: Sampler = field(default_factory=Sampler)
    same_noise: bool = False
    needs = frozenset({"flow"})

    def cost(self, episode: int | None = None) -> Cost:
        """Return the cost of a step."""
        return episodes(self.prompts * self.size, self.sampler.steps)

    def __call__(self, context: Context) -> Trajectories:
        """Sample the next prompts."""
        engine: Any = denoising_engine(context, "Denoise")
        prompts = context.next_prompts(self.prompts)
        found: Trajectories = engine.sample(
            prompts, self.size, context, sampler=self.sampler, same_noise=self.same_noise
        )
        return found


def denoising_engine(context: Context, who: str) -> Any:
    """Return the run's engine, which must sample with a `Sampler`.

    Raises:
        UserError: the engine has no samplers; the message names the component.
    """
    engine: Any = context.engine
    if not isinstance(getattr(engine, "sampler", None), Sampler):
        raise UserError(
            f"{who} samples a flow model step by step, which {type(engine).__name__} does not: give a task of a flow model"
            " (flow2d, digits)"
        )
    return engine


class DenoisingEngine:
    """Engine that samples from a flow policy and can resume from any step (`PrefixEngine`).

    A prompt's item is its label, or None. Rows hold, besides the columns of any rollout, `outcome` [N, 1, *shape],
    the output that is scored, and, where a component of the method declares it in `columns`, `mean_old` [N, T,
    *shape], the mean of each step under the policy that acted. The state before step i is the one after step i - 1:
    both are views of one tensor.

    Args:
        policy: flow policy.
        sampler: default where a plan has none.
    """

    def __init__(self, policy: FlowPolicy, sampler: Sampler | None = None) -> None:
        self.policy = policy
        self.sampler = sampler or Sampler()

    @property
    def max_length(self) -> int:
        """T of the engine's own sampler."""
        return self.sampler.steps

    @torch.no_grad()
    def sample(
        self,
        prompts: Prompts,
        count: int,
        context: Context,
        *,
        greedy: bool = False,
        limit: int | None = None,
        sampler: Sampler | None = None,
        same_noise: bool = False,
    ) -> Trajectories:
        """Generate `count` samples of each prompt; `greedy` takes the ODE. `limit` steps at most (0: the noise alone)."""
        chosen = sampler or self.sampler
        rows, steps, shape = len(prompts) * count, chosen.steps, self.policy.shape
        device = context.device
        generator = _generator(context, device)
        chain = torch.zeros(rows, steps + 1, *shape, device=device)
        if same_noise:
            start = torch.randn(len(prompts), *shape, generator=generator, device=device).repeat_interleave(count, 0)
        else:
            start = torch.randn(rows, *shape, generator=generator, device=device)
        chain[:, 0] = start
        times, sigmas = chosen.times().to(device), chosen.sigmas().to(device)
        seen = {
            "time": times[:-1].expand(rows, -1),
            "next_time": times[1:].expand(rows, -1),
            "sigma": (torch.zeros_like(sigmas) if greedy else sigmas).expand(rows, -1),
        }
        if self.policy.classes:
            label = torch.tensor([int(item) for item in prompts.items], device=device).repeat_interleave(count)
            seen["label"] = label.unsqueeze(-1).expand(-1, steps)
        first = torch.zeros(rows, dtype=torch.int64, device=device)
        rest = {
            "group": torch.arange(len(prompts), device=device).repeat_interleave(count),
            "prompt": prompts.ids.to(device).repeat_interleave(count),
        }
        return self._go_on(chain, seen, first, limit, rest, None, chosen, 1.0, generator, context)

    @torch.no_grad()
    def resume(
        self,
        batch: Trajectories,
        rows: Tensor,
        positions: Tensor,
        count: int,
        context: Context,
        *,
        limit: int | None = None,
        sampler: Sampler | None = None,
        noise_scale: float = 1.0,
    ) -> Trajectories:
        """Continue `count` times from the state before step `positions[i]` of row `rows[i]`; see `PrefixEngine.resume`.

        The first new step's noise is multiplied by `noise_scale`; `logp_old` remains that of the policy's own step.
        Times and noise levels are the row's; of `sampler` only `outcome` is used.
        """
        device = context.device
        parent = rows.to(device).repeat_interleave(count)
        kept = batch.select(parent)
        seen = dict(kept.observation.items())
        chain = torch.cat([seen.pop("x")[:, :1], kept.action], 1)
        rest = {
            "group": torch.arange(len(rows), device=device).repeat_interleave(count),
            "prompt": kept.prompt,
            "parent": parent,
        }
        first = positions.to(device).repeat_interleave(count)
        generator = _generator(context, device)
        return self._go_on(
            chain, seen, first, limit, rest, kept, sampler or self.sampler, noise_scale, generator, context
        )

    def _go_on(
        self,
        chain: Tensor,
        seen: dict[str, Tensor],
        first: Tensor,
        limit: int | None,
        rest: dict[str, Tensor],
        kept: Trajectories | None,
        sampler: Sampler,
        noise_scale: float,
        generator: torch.Generator,
        context: Context,
    ) -> Trajectories:
        """Take the steps from `first` [N] on, overwriting `chain` [N, T + 1, *shape]."""
        total, steps = len(chain), chain.shape[1] - 1
        last = torch.full_like(first, steps) if limit is None else (first + limit).clamp(max=steps)
        logp = torch.zeros(total, steps, device=chain.device) if kept is None else kept.logp_old.clone()
        means = None
        if "mean_old" in context.method.declared("columns"):
            means = torch.zeros_like(chain[:, 1:]) if kept is None else kept["mean_old"].clone()
        outcome = torch.zeros_like(chain[:, 0])
        low, high = (int(first.min()), int(last.max())) if total else (0, 0)
        together = total == 0 or (int(first.max()) == low and int(last.min()) == high)
        for step in range(low, high):
            rows = slice(None) if together else ((first <= step) & (step < last)).nonzero().squeeze(-1)
            x, time = chain[rows, step], seen["time"][rows, step]
            label = seen["label"][rows, step] if "label" in seen else None
            velocity = self.policy.velocity(x, time, label)
            mean, std = transition(x, velocity, time, seen["next_time"][rows, step], seen["sigma"][rows, step])
            noise = torch.randn(x.shape, generator=generator, device=x.device)
            if noise_scale != 1.0:
                noise = noise * over(torch.where(first[rows] == step, noise_scale, 1.0), noise)
            after = mean + over(std, mean) * noise
            chain[rows, step + 1] = after
            logp[rows, step] = normal_logp(after, mean, std)
            if means is not None:
                means[rows, step] = mean
            if step == steps - 1:
                outcome[rows] = after if sampler.outcome == "state" else x - over(time, x) * velocity.float()
        place = torch.arange(steps, device=chain.device)
        new = (place >= first.unsqueeze(-1)) & (place < last.unsqueeze(-1))
        end = place == (last - 1).unsqueeze(-1)
        columns = {
            "observation": {"x": chain[:, :-1], **seen},
            "action": chain[:, 1:],
            "mask": new,
            "length": last,
            "logp_old": logp,
            "terminated": end & (last == steps).unsqueeze(-1),
            "truncated": end & (last < steps).unsqueeze(-1),
            "outcome": outcome.unsqueeze(1),
            **rest,
        }
        if means is not None:
            columns["mean_old"] = means
        return Trajectories(columns, rows=total)

    def advance(self, rows: int, steps: int, context: Context) -> Trajectories:
        """Raise a UserError: a sample ends after T steps, so there are no streams to continue."""
        raise UserError(
            "a flow model has no streams of steps: the method needs whole samples, with rollout=Groups(...) or Denoise(...)"
        )

    def texts(self, batch: Trajectories) -> list[Any]:
        """Return each row's sample as nested lists of numbers."""
        return list(batch["outcome"].squeeze(1).tolist())

    def state_dict(self) -> dict[str, Any]:
        """Return {}: all randomness is the run's."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore nothing: there is no state."""


def _generator(context: Context, device: torch.device) -> torch.Generator:
    """Return a generator on the device, seeded from the run's."""
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=context.generator)))
