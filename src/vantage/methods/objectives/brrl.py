"""BRRL: regress the ratio onto the best one that its bounds allow, instead of clipping it. (S224)

If the ratio must lie in [1 - eps, 1 + eps], the best policy is known: 1 + eps where the action value is above its median under
the old policy, 1 - eps below. PPO pushes towards that and lets go at the edge; here an absolute error pulls overshoot back.

    BPO   rho* = 1 - eps + 2 eps sigmoid((Q - U) / softness)       Q = returns, U = median head, or V without one
          loss = mean |(ratio - rho*) (Q - V)| + c_v (Q - V)^2 + c_u [softplus(Q - U) - (Q - U) / 2] - c_e H
    GBPO  A = (R - mean) / (std + 1e-6),   T = (R - median) / (std + 1e-6) / temper       within the group
          rho* = 1 - eps_low + (eps_low + eps_high) sigmoid(T),   loss = token mean of |(ratio - rho*) A|

rho* and the weights carry no gradient. arXiv 2604.18578; losses, heads and constants as in the authors' code. `form="bpo"`
is for control (their networks are 256-256 relu: a setting of the task), `form="gbpo"` for groups of answers; a setting left
None takes the form's own default, and one of the other form is refused.

One rule of GBPO is ours. The answers at their group's median, often its majority, have rho* = 1 exactly, where the absolute
error has its kink: on the first pass the gradient is 0 by definition, but the engine's log-probabilities differ from the
trainer's by some 1e-6, and the sign of that would be a gradient of full size. So a log-ratio below 1e-4 counts as 0.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vantage.advantages.critic import add_critic, fill_values
from vantage.advantages.groups import record_groups
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.functions.groups import group_median, group_moments, group_sums
from vantage.functions.ratios import log_ratio
from vantage.functions.rows import per_decision
from vantage.functions.whitening import masked_mean
from vantage.methods.claim import Claim
from vantage.methods.control.ppo import ppo
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.objectives.surrogates import record_ratio
from vantage.rollouts.plans import at_least

PAPER = Paper(
    "Bounded Ratio Reinforcement Learning",
    "Yunke Ao and Le Chen and Bruce D. Lee and Assefa S. Wahd and Aline Czarnobai and Philipp Fürnstahl and"
    " Bernhard Schölkopf and Andreas Krause",
    2026,
    arxiv="2604.18578",
)
MEDIAN = "median"
NOISE = 1e-4
"""Log-ratio below which GBPO takes the policy for the one that acted: well above what engine and trainer differ by (measured:
4e-6), well below what an update moves."""


def regression(
    evaluation: Evaluation,
    batch: Trajectories,
    target: Tensor,
    weight: Tensor,
    width: float,
    context: Context,
    noise: float = 0.0,
) -> Tensor:
    """Return |(ratio - target) * weight| [N, T]; gradient flows through the ratio. Records the share beyond 1 +- width.

    A log-ratio of magnitude below `noise` counts as 0; its gradient stays.
    """
    log = log_ratio(evaluation.logp, batch.logp_old, batch.mask).clamp(-20, 20)
    if noise:
        # Where the target is 1, the gradient's sign would otherwise be that of a rounding error, and its size full.
        log = log - torch.where(log.abs() < noise, log, 0.0).detach()
    ratio = log.exp()
    with torch.no_grad():
        context.record("ratio/outside", masked_mean(((ratio - 1).abs() > width).float(), batch.mask))
    record_ratio(log, batch.mask, context)
    return ((ratio - target) * weight).abs()


@dataclass(frozen=True)
class MedianCritic:
    """Fills values from the critic; teaches it and, where there is one, the head of the median. Loss terms of the page.

    Attributes:
        value: c_v.
        median: c_u; None for a policy without that head.
    """

    value: float = 0.5
    median: float | None = 0.5

    def __post_init__(self) -> None:
        at_least("MedianCritic.value", self.value, 0)
        if self.median is not None:
            at_least("MedianCritic.median", self.median, 0)

    @property
    def wants(self) -> frozenset[str]:
        """The value, and the median's head."""
        return frozenset({"value"} if self.median is None else {"value", MEDIAN})

    def prepare(self, context: Context) -> None:
        """Ask the policy for critic and head."""
        add_critic(context)
        if self.median is not None:
            if not hasattr(context.policy, "add_head"):
                raise UserError(
                    f"{type(context.policy).__name__} cannot grow a head for the median: set median to false"
                )
            context.policy.add_head(MEDIAN)

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Fill `value` and `next_value`; no gradient."""
        return fill_values(batch, context)

    def loss(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per decision [N, T]."""
        loss = self.value * (batch.returns - evaluation.value).square()
        if self.median is not None:
            gap = batch.returns - evaluation.extras[MEDIAN]
            loss = loss + self.median * (F.softplus(gap) - 0.5 * gap)
        return loss


@dataclass(frozen=True)
class BoundedRatio:
    """BPO's policy loss; gradient flows through `logp` alone.

    Attributes:
        eps: half the width of the bounds, 0 to 1.
        softness: of the step at the median, above 0.
        median: whether U is the median's head; otherwise V.
    """

    eps: float = 0.3
    softness: float = 0.001
    median: bool = True

    def __post_init__(self) -> None:
        _in_unit("BoundedRatio.eps", self.eps)
        _above_zero("BoundedRatio.softness", self.softness)

    @property
    def wants(self) -> frozenset[str]:
        """Log-probabilities and both values."""
        return frozenset({"logp", "value", *((MEDIAN,) if self.median else ())})

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per decision [N, T]."""
        with torch.no_grad():
            middle = evaluation.extras[MEDIAN] if self.median else evaluation.value
            target = 1 - self.eps + 2 * self.eps * torch.sigmoid((batch.returns - middle) / self.softness)
            weight = batch.returns - evaluation.value
        return regression(evaluation, batch, target, weight, self.eps, context)


@dataclass(frozen=True)
class GroupTarget:
    """GBPO's credit: fills `advantage` [N, T] and `target_ratio` [N, 1]; no gradient.

    Attributes:
        eps_low, eps_high: bounds of the ratio, 0 to 1 and at least 0.
        temper: divides the standardised distance to the median, above 0.
    """

    eps_low: float = 0.2
    eps_high: float = 0.2
    temper: float = 1.0

    def __post_init__(self) -> None:
        _in_unit("GroupTarget.eps_low", self.eps_low)
        at_least("GroupTarget.eps_high", self.eps_high, 0)
        _above_zero("GroupTarget.temper", self.temper)

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Fill both columns."""
        score = batch.score.float()
        mean, std = group_moments(score, batch.group)
        record_groups(std, batch.group, context)
        # An answer without company is compared with 0, in its own unit.
        alone = group_sums(score, batch.group)[1] <= 1
        mean, middle = (part.masked_fill(alone, 0.0) for part in (mean, group_median(score, batch.group)))
        scale = std.masked_fill(alone, 1.0) + 1e-6
        target = (
            1 - self.eps_low + (self.eps_low + self.eps_high) * torch.sigmoid((score - middle) / scale / self.temper)
        )
        return batch.replace(
            advantage=per_decision((score - mean) / scale, batch.mask), target_ratio=target.unsqueeze(-1)
        )


@dataclass(frozen=True)
class TargetRatio:
    """GBPO's policy loss; gradient flows through `logp`.

    Attributes:
        width: distance from 1 beyond which a ratio is recorded as outside.
    """

    width: float = 0.2
    wants = frozenset({"logp"})

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per decision [N, T]."""
        return regression(evaluation, batch, batch.target_ratio, batch.advantage, self.width, context, NOISE)


def _in_unit(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"{name}={value} is out of range: 0 to 1")


def _above_zero(name: str, value: float) -> None:
    if not value > 0:
        raise UserError(f"{name}={value} is out of range: above 0")


_OWN = {
    "bpo": (
        "gamma", "lam", "softness", "median", "value_coefficient", "median_coefficient", "entropy_coefficient",
    ),
    "gbpo": ("eps_high", "temper", "temperature"),
}  # fmt: skip
"""Settings that one form alone has, but for the size of its batch (`rows`, `length`; `prompts`, `group_size`): arenas give both."""


def _refuse_others(form: str, given: Mapping[str, Any]) -> None:
    """Raise a UserError that names the settings of the other form that are not at their defaults."""
    defaults = {name: p.default for name, p in inspect.signature(brrl).parameters.items()}
    for other, names in _OWN.items():
        odd = [f"{name}={given[name]!r}" for name in names if given[name] != defaults[name]]
        if other != form and odd:
            raise UserError(f"brrl: form={form!r} has no {', '.join(odd)}: of form={other!r} alone")


@method(id="S224", papers=PAPER)
def brrl(
    form: str = "bpo",
    lr: float | None = None,
    epochs: int | None = None,
    minibatches: int | None = None,
    eps: float | None = None,
    eps_high: float | None = None,
    rows: int = 1,
    length: int = 2048,
    gamma: float = 0.99,
    lam: float = 0.95,
    softness: float = 0.001,
    median: bool = True,
    value_coefficient: float = 0.5,
    median_coefficient: float = 0.5,
    entropy_coefficient: float = 0.0,
    prompts: int = 16,
    group_size: int = 8,
    temper: float = 1.0,
    temperature: float = 1.0,
    micro_batch: int | None = None,
) -> Method:
    """Compose BPO (on PPO: 10 epochs of 32 minibatches, rate 3e-4, eps 0.3) or GBPO (on GRPO: rate 1e-6, eps 0.2)."""
    given = locals()
    if form not in _OWN:
        raise UserError(f"brrl: form={form!r} is not known: 'bpo' (control) or 'gbpo' (groups of answers)")
    _refuse_others(form, given)
    if form == "bpo":
        eps = 0.3 if eps is None else eps
        return (
            ppo(
                rows,
                length,
                epochs=10 if epochs is None else epochs,
                minibatches=32 if minibatches is None else minibatches,
                lr=3e-4 if lr is None else lr,
                anneal=False,
                gamma=gamma,
                lam=lam,
                entropy_coefficient=entropy_coefficient,
                max_grad_norm=1.0,
            )
            .adapt("update", normalize_advantage=False, micro_batch=micro_batch)
            .replace(
                values=MedianCritic(value_coefficient, median_coefficient if median else None),
                objective=BoundedRatio(eps, softness, median),
            )
        )
    eps = 0.2 if eps is None else eps
    high = eps if eps_high is None else eps_high
    return grpo(
        prompts,
        group_size,
        lr=1e-6 if lr is None else lr,
        beta=0.0,
        epochs=1 if epochs is None else epochs,
        minibatches=1 if minibatches is None else minibatches,
        temperature=temperature,
        micro_batch=micro_batch,
    ).replace(advantage=GroupTarget(eps, high, temper), objective=TargetRatio(max(eps, high)), averaging="token-mean")


claim = (
    Claim(
        name="control",
        arena="cartpole-100k",
        against="ppo",
        direction="no worse",
        margin=25.0,
        settings={"rows": 4, "length": 128, "epochs": 4, "minibatches": 4, "lr": 2.5e-4},
        against_settings={"rows": 4, "length": 128, "epochs": 4, "minibatches": 4, "lr": 2.5e-4, "anneal": False},
        note="BPO against PPO at the same epochs; the margin is 5 % of the highest return.",
    ),
    Claim(
        name="language",
        arena="arithmetic",
        against="grpo",
        direction="no worse",
        margin=0.03,
        settings={"form": "gbpo", "epochs": 4, "lr": 3e-5},
        against_settings={"beta": 0.0, "epochs": 4, "lr": 1e-4},
        note="GBPO against GRPO, four passes a batch. Each side's rate is the best of three by pass@1 of one further seed (at 3e-5,"
        " 1e-4 and, GBPO 1e-5, GRPO 3e-4; GBPO: 0.447, 0.444, 0.407; GRPO: 0.461, 0.527, 0.424).",
    ),
)
