"""FPO: PPO for flow policies, with the decrease of the flow-matching loss in place of the log-likelihood ratio. (S091)

A policy that integrates a flow has no cheap likelihood, but its conditional flow-matching loss on an action bounds the negative
log-likelihood. On the noise draws that were stored with the decision,

    ratio = exp(mean_j l_j(old) - mean_j l_j(theta)),      loss = -mean min(ratio A, clip(ratio, 1 - eps, 1 + eps) A)
            + c_v mean (V_target - V)^2

or with `per_draw` a ratio for each draw, each a separate sample (its log clamped to +-3). The policy marks its `logp`
(minus the mean loss) as a proxy. No entropy, no likelihood, no gradient clip.

Values and advantages are computed anew in every minibatch of whole unrolls: with delta = r + gamma V' - V and
acc <- delta + gamma lam acc, V_target = V + acc and A = r + gamma V_target' - V, so that the first step is taken with lambda 1
(Brax's form, not the textbook's); an advantage is 0 where a time limit cut. Then A is standardised (population std).
Observations keep the normalisation of the rollout, so that the first ratio is 1; in the authors' code the
statistics change in between. There 2048 environments run 480 steps each, which are cut into 32 minibatches of 1024 unrolls of 30
steps; here each unroll of a batch has its own environment (`rows`), and with fewer of them `minibatches` should be reduced
alike. Rewards are multiplied by `reward_scale` and not divided by the return's running std. As advantages are standardised, the
scale affects the critic alone: at 10 its values are ten times as large, and take it more steps to reach.

Nothing keeps the entropy up: from a saddle between two equal goals the flow went to one of them in the runs that this page was
written with, at each of three learning rates; with 64 rows a batch a Gaussian policy trained by PPO kept both for longer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vantage.advantages.critic import BOOTSTRAP
from vantage.advantages.estimators import DISCOUNT
from vantage.core.component import component
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories, declare
from vantage.functions.divergences import k3
from vantage.functions.returns import gae
from vantage.functions.whitening import whiten
from vantage.methods.claim import Claim
from vantage.methods.registry import Paper, method
from vantage.objectives.likelihood import NoCredit
from vantage.objectives.surrogates import Clip
from vantage.policies.flow_control import LOSSES
from vantage.rewards.mixing import Total
from vantage.rollouts.plans import Shuffled, Steps
from vantage.updates.gradient import GradientUpdate
from vantage.updates.optimizers import Adam

declare(
    "losses_old",
    "[N, T, draws]",
    "losses of the single draws under the policy before the update",
    "the recipe's values",
)

PAPER = Paper(
    "Flow Matching Policy Gradients",
    "David McAllister and Songwei Ge and Brent Yi and Chung Min Kim and Ethan Weber and Hongsuk Choi and Haiwen Feng"
    " and Angjoo Kanazawa",
    2025,
    url="https://github.com/akanazawa/fpo",
)


def target_advantage(batch: Trajectories, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Return (A, V_target) [N, T] from `value`, `next_value` and rewards: A_t = r_t + gamma V_target_{t+1} - V_t; no gradient.

    A truncated decision has A = 0 and V_target = V: its reward is not comparable with a value of the state that was not reached.
    """
    seen = batch.mask & ~batch.truncated
    accumulated, _ = gae(
        batch.reward, batch.value, batch.next_value, batch.terminated, batch.truncated, seen, gamma, lam
    )
    target = batch.value + accumulated
    # Within an episode the next target replaces the next value; at a row's end and after a cut there is none.
    following = torch.cat([target[:, 1:], batch.next_value[:, -1:]], 1)
    following = torch.where(batch.terminated, 0.0, following)
    advantage = torch.where(seen, batch.reward + gamma * following - batch.value, 0.0)
    return advantage, target


@component
class FlowCritic:
    """Value loss c_v * (V_target - V)^2; stores the losses under the acting policy, [N, T, J], for a ratio per draw."""

    coefficient: float = 0.25
    per_draw: bool = False
    wants = frozenset({"value"})
    columns = BOOTSTRAP
    needs = frozenset({"critic"})

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Keep the columns that the values are computed from; fill `losses_old` where each draw has its own ratio."""
        if not self.per_draw:
            return batch
        return batch.replace(losses_old=context.evaluate(batch, LOSSES, read=lambda found, _: found.extras[LOSSES]))

    def loss(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the value loss per decision [N, T]; 0 for a truncated one."""
        return self.coefficient * (evaluation.value - batch.returns).square() * ~batch.truncated


@component
class ClipDraws:
    """The clipped surrogate of each draw's own ratio, exp(clamp(l_j(old) - l_j, -limit, limit)); the mean over draws."""

    eps: float = 0.05
    limit: float = 3.0
    wants = frozenset({LOSSES})

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per decision [N, T]."""
        log = (batch["losses_old"] - evaluation.extras[LOSSES]).clamp(-self.limit, self.limit)
        ratio, advantage = log.exp(), batch.advantage.unsqueeze(-1)
        with torch.no_grad():
            context.record_mean("kl/old", k3(log).mean(-1), batch.mask)
        return -torch.minimum(advantage * ratio, advantage * ratio.clamp(1 - self.eps, 1 + self.eps)).mean(-1)


@component
class Refreshed(GradientUpdate):
    """Minibatches of whole rows, in each of which values and advantages are computed anew from the present critic."""

    unit: str = "row"
    gamma: float = 0.995
    lam: float = 0.95
    reward_scale: float = 10.0
    engine_options = DISCOUNT

    def step(self, part: Trajectories, context: Context) -> None:
        """Compute the advantages, then take the step."""
        value, next_value = context.policy.values(part)
        part = part.replace(value=value, next_value=next_value, last_observation=None, final_observation=None)
        part = part.replace(reward=self.reward_scale * part.reward)
        advantage, target = target_advantage(part, self.gamma, self.lam)
        super().step(part.replace(advantage=whiten(advantage, part.mask, ddof=0), returns=target), context)


@component
class FlowRollout(Steps):
    """`Steps` with a policy that acts by a flow."""

    draws: int = 8
    solver_steps: int = 10
    target: str = "noise"
    needs = frozenset({"streams", "continuous"})
    engine_options = frozenset({("normalize_rewards", False)})

    @property
    def policy_options(self) -> frozenset[tuple[str, object]]:
        """Options of the task's policy where the user gives none."""
        options = {"policy": "flow", "draws": self.draws, "steps": self.solver_steps, "target": self.target}
        # A small initial output makes the flow the identity, whose actions are standard normal.
        return frozenset({**options, "output_scale": 0.25}.items())

    def prepare(self, context: Context) -> None:
        """Raise a UserError unless the policy is a flow."""
        if getattr(getattr(context.policy, "process", None), "kind", "") != "flow":
            raise UserError("fpo trains a policy that acts by a flow: give the task the option policy=flow")


@method(
    id="S091", papers=PAPER, needs=("streams", "continuous", "critic"),
    source="akanazawa/fpo@418c255 playground/scripts/train_fpo.py",
)  # fmt: skip
def fpo(
    rows: int = 32_768,
    length: int = 30,
    epochs: int = 16,
    minibatches: int = 32,
    lr: float = 3e-4,
    gamma: float = 0.995,
    lam: float = 0.95,
    eps: float = 0.05,
    value_coefficient: float = 0.25,
    reward_scale: float = 10.0,
    per_draw: bool = False,
    draws: int = 8,
    solver_steps: int = 10,
    target: str = "noise",
) -> Method:
    """rows: parallel environments; length: steps of each before an update; epochs: passes over a batch;
    minibatches: optimiser steps a pass; lr: Adam's; gamma: discount; lam: lambda of GAE; eps: clip range of the
    ratio; value_coefficient: c_v; reward_scale: factor on the rewards; per_draw: a ratio for each draw in place of one for
    their mean; draws: J, noise draws of a decision's loss; solver_steps: of the flow that acts; target: what the network
    predicts, `noise` or `velocity`."""
    return Method(
        prompts=Shuffled(),
        rollout=FlowRollout(rows, length, draws, solver_steps, target),
        rewards=(Total(),),
        values=FlowCritic(value_coefficient, per_draw),
        advantage=NoCredit(),
        objective=ClipDraws(eps) if per_draw else Clip(eps),
        averaging="token-mean",
        update=Refreshed(
            optimizer=Adam(lr),
            epochs=epochs,
            minibatches=minibatches,
            max_grad_norm=None,
            gamma=gamma,
            lam=lam,
            reward_scale=reward_scale,
        ),
    )


_RATES = (
    "Each side's rate is the best of 3e-4, 1e-3 and 3e-3 by the rarer goal's share at the end of one further seed"
    " (FPO: 0.00, 0.06, 0.01; PPO: 0.37, 0.21, 0.18), where all succeeded in 98 % of the episodes or more."
)

claim = (
    Claim(
        name="both goals",
        arena="two-goals",
        against="ppo",
        metric="rarest",
        settings={"lr": 1e-3},
        against_settings={"lr": 3e-4},
        note="Share of sampled episodes that end at the goal visited more rarely: the authors' flow keeps both, a Gaussian one. "
        + _RATES,
    ),
    Claim(
        name="success",
        arena="two-goals",
        against="ppo",
        direction="no worse",
        margin=0.05,
        settings={"lr": 1e-3},
        against_settings={"lr": 3e-4},
        note="Share of sampled episodes that end at either goal. " + _RATES,
    ),
)
