"""DPPO: PPO on the denoising steps of a diffusion policy, of which only the last few are trained. (S021)

The likelihood of a diffusion policy's action is intractable, but each denoising step is a Gaussian. The chain is a decision
process inside the environment's: every inner step i = 0 .. K' - 1 (the last one is K' - 1) of a decision gets the decision's
advantage, discounted by how early it is, and earlier steps have a narrower clip range:

    A_i = gamma_den^(K' - 1 - i) * standardised A
    eps_i = eps_base + (eps - eps_base) (e^(k u) - 1) / (e^k - 1),  u = i / (K' - 1)
    loss = mean over decisions and i of max(-A_i ratio_i, -A_i clip(ratio_i, 1 - eps_i, 1 + eps_i)) + value loss

with ratio_i = exp of the mean over coordinates of the Gaussian log-ratios. GAE runs over the environment's decisions (chunks
of actions) with a value of the observation alone. The first K - K' steps are a frozen copy's: pretrain, then
`policy.settle()`, as the task's option `warm_start` does. With K' = 1 the authors' u is 0 / 0; the width is then eps. The
critic is fitted separately, on each decision once a pass (the authors: in the actor's minibatches of inner steps); the first
`critic_warmup` iterations do not change the actor or a learnt eta. `target_kl` is compared after a whole pass with the pass's
mean, and ends the actor's passes alone: the critic always runs all of its own. The authors check after every minibatch, and stop
both. At a time limit credit ends here, with the value of the last state; their loop knows terminations alone, so that there the
next episode's first value stands in and credit flows on over the reset. What their last minibatch would not fill, they leave
out; here the minibatches share it. Their warm-up of the rates does nothing, as its bounds are equal.

`ddim_steps` takes fewer steps of the same pretrained network, by DDIM, with `eta` times DDPM's noise; `learn_eta` learns eta
between bounds, and `eta_coefficient` * mean eta is then subtracted from the loss, so that noise does not vanish too soon. It is
one number for all states and learns with the actor's optimiser; the authors' modules for it have an optimiser of their own, and
variants by state and by coordinate. Their variant of one number is read in a way that cuts its gradient, and starts
on a bound, where the slope is 0; here it starts inside the bounds and learns. arXiv 2409.00588.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vantage.advantages.critic import FittedCritic
from vantage.advantages.estimators import GAE
from vantage.core.component import component
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories, per_decision_column
from vantage.functions.ratios import log_ratio
from vantage.methods.claim import Claim
from vantage.methods.registry import Paper, method
from vantage.objectives.surrogates import recorded_clip
from vantage.policies.diffusion import ETA, INNER, Diffusion
from vantage.rewards.mixing import Total
from vantage.rollouts.plans import Shuffled, Steps
from vantage.updates.gradient import GradientUpdate
from vantage.updates.optimizers import Adam

PAPER = Paper(
    "Diffusion Policy Policy Optimization",
    "Allen Z. Ren and Justin Lidard and Lars L. Ankile and Anthony Simeonov and Pulkit Agrawal and Anirudha Majumdar"
    " and Benjamin Burchfiel and Hongkai Dai and Max Simchowitz",
    2024,
    arxiv="2409.00588",
)


@component
class DiffusionRollout(Steps):
    """`Steps` with a diffusion policy: `denoising_steps` of DDPM or `ddim_steps` of DDIM, the last `tuned` are trained."""

    denoising_steps: int = 20
    tuned: int = 10
    noise: float = 0.1
    ddim_steps: int = 0
    eta: float = 1.0
    learn_eta: bool = False
    needs = frozenset({"streams", "continuous"})

    @property
    def policy_options(self) -> frozenset[tuple[str, object]]:
        """Options of the task's policy where the user gives none."""
        options = {"policy": "diffusion", "steps": self.denoising_steps, "tuned": self.tuned, "noise": self.noise}
        if self.ddim_steps or self.learn_eta or self.eta != 1:
            options |= {"ddim_steps": self.ddim_steps, "eta": self.eta, "learn_eta": self.learn_eta}
        return frozenset(options.items())

    def prepare(self, context: Context) -> None:
        """Raise a UserError unless the policy is a diffusion."""
        _process(context)


def _process(context: Context) -> Diffusion:
    process = getattr(context.policy, "process", None)
    if not isinstance(process, Diffusion):
        raise UserError("dppo trains a policy that acts by diffusion: give the task the option policy=diffusion")
    return process


@component
class InnerSteps:
    """Makes K' decisions of each, its denoising steps: `action` [x^t, x^{t-1}], `inner` their index, other columns repeated."""

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Return a batch of [N, T * K'] decisions, with `logp_old` of the single steps under the present policy."""
        process = _process(context)
        rows, steps, count = len(batch), batch.steps, process.tuned

        def repeated(name: str, column: Any) -> Any:
            decided = isinstance(column, Tensor) and per_decision_column(name, column, steps)
            return column.repeat_interleave(count, 1) if decided else column

        table = {name: repeated(name, column) for name, column in batch.items()}
        inner = torch.arange(count, device=batch.device).repeat(rows, steps)
        pairs = process.pairs(batch.action).flatten(1, 2)
        unrolled = Trajectories({**table, "action": pairs, INNER: inner, "length": batch.length * count}, rows=rows)
        return unrolled.replace(logp_old=context.evaluate(unrolled))


@component
class InnerClip:
    """PPO's clipped surrogate with the discount and clip range of the denoising step.

    Attributes:
        eps, base, curve: clip ranges of the last and of the first step, and k, how late the range widens.
        discount: gamma_den, 0 to 1.
        warmup: iterations in which only the critic learns.
    """

    eps: float = 0.01
    base: float = 0.001
    curve: float = 3.0
    discount: float = 0.99
    warmup: int = 0
    wants = frozenset({"logp"})

    def width(self, inner: Tensor, tuned: int) -> Tensor:
        """Return the clip width of inner steps [...]."""
        if tuned == 1:
            return torch.full(inner.shape, self.eps, device=inner.device)
        grown = torch.expm1(self.curve * inner / (tuned - 1)) / math.expm1(self.curve)
        return self.base + (self.eps - self.base) * grown

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per inner step [N, T]."""
        inner, tuned = batch[INNER], _process(context).tuned
        width = self.width(inner, tuned)
        weighed = batch.replace(advantage=batch.advantage * self.discount ** (tuned - 1 - inner))
        log = log_ratio(evaluation.logp, batch.logp_old, batch.mask)
        loss = recorded_clip(log, weighed, 1 - width, 1 + width, None, context)
        return loss * float(context.step >= self.warmup)


@component
class EtaBonus:
    """-coefficient * eta at each inner step; gradient flows to a learnt eta, but not in the first `warmup` iterations."""

    coefficient: float = 0.01
    warmup: int = 0
    wants = frozenset({ETA})
    label = "eta"

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the term per inner step [N, T]."""
        eta = evaluation.extras[ETA]
        context.record_mean("eta", eta, batch.mask)
        return -self.coefficient * eta * float(context.step >= self.warmup)


@component
class DecisionCritic(FittedCritic):
    """`FittedCritic` on one inner step a decision: the others repeat its observation."""

    def fit(self, batch: Trajectories, context: Context) -> None:
        """Fit to `returns`."""
        super().fit(batch.select(batch.mask.any(-1)).replace(mask=batch.mask & (batch[INNER] == 0)), context)


@method(
    id="S021", kind="framework", papers=PAPER, needs=("streams", "continuous", "critic"),
    source="irom-princeton/dppo@cc7234a cfg/gym/finetune/hopper-v2/ft_ppo_diffusion_mlp.yaml",
)  # fmt: skip
def dppo(
    rows: int = 40,
    length: int = 500,
    epochs: int = 5,
    minibatches: int = 4,
    lr: float = 1e-4,
    critic_lr: float = 1e-3,
    critic_minibatch: int = 5000,
    gamma: float = 0.99,
    lam: float = 0.95,
    eps: float = 0.01,
    eps_base: float = 0.01,
    curve: float = 3.0,
    denoising_discount: float = 0.99,
    denoising_steps: int = 20,
    tuned: int = 10,
    noise: float = 0.1,
    critic_warmup: int = 0,
    target_kl: float | None = 1.0,
    ddim_steps: int = 0,
    eta: float = 1.0,
    learn_eta: bool = False,
    eta_coefficient: float = 0.0,
) -> Method:
    """rows: parallel environments; length: steps of each before an update; epochs: passes over a batch, of
    actor and critic; minibatches: optimiser steps a pass; lr: the actor's; critic_lr: the critic's;
    critic_minibatch: decisions of one of its steps; gamma: discount; lam: lambda of GAE; eps: clip range of the
    last inner step; eps_base: of the first; curve: k, how late the range widens; denoising_discount: gamma_den;
    denoising_steps: K of DDPM; tuned: K', the last steps that learn; noise: least standard deviation of a step;
    critic_warmup: iterations in which only the critic learns; target_kl: divergence that ends the passes, none
    for no limit; ddim_steps: of DDIM, 0 takes DDPM's; eta: of DDIM; learn_eta: eta is learnt; eta_coefficient: weight
    of the bonus for eta. The defaults are those of the Gym experiments, which take DDPM's steps and one clip range
    for all of them."""
    return Method(
        prompts=Shuffled(),
        rollout=DiffusionRollout(rows, length, denoising_steps, tuned, noise, ddim_steps, eta, learn_eta),
        rewards=(Total(),),
        values=DecisionCritic(epochs, critic_minibatch, critic_lr),
        advantage=GAE(gamma, lam),
        selection=(InnerSteps(),),
        objective=InnerClip(eps, eps_base, curve, denoising_discount, critic_warmup),
        averaging="token-mean",
        regularizers=(EtaBonus(eta_coefficient, critic_warmup),) if learn_eta else (),
        update=GradientUpdate(
            optimizer=Adam(lr),
            epochs=epochs,
            minibatches=minibatches,
            normalize_advantage=True,
            max_grad_norm=None,
            target_kl=target_kl,
        ),
    )


_OURS = {
    "rows": 16, "length": 25, "minibatches": 4, "denoising_steps": 10, "tuned": 5, "critic_minibatch": 100, "lr": 3e-4,
    "eps": 0.03, "eps_base": 0.01, "critic_warmup": 3,
}  # fmt: skip
_THEIRS = {"rows": 16, "length": 25, "epochs": 5, "minibatches": 4, "lr": 1e-3}
_RATES = " Each side's rate is the best of 1e-4, 3e-4 and 1e-3 by the metric in 7,000 steps of one further seed"

claim = (
    Claim(
        name="return",
        arena="detour",
        against="ppo",
        settings=_OURS,
        against_settings=_THEIRS,
        note="Both start from policies cloned from the same slow demonstrations of two routes; arriving and speed are rewarded."
        + _RATES
        + " (DPPO: 0.763, 0.777, 0.751; PPO: 0.755, 0.761, 0.778).",
    ),
    Claim(
        name="on route",
        arena="detour",
        against="ppo",
        metric="mean:share/strayed",
        direction="lower",
        settings=_OURS,
        against_settings=_THEIRS,
        note="Share of visited places farther than 0.1 from both demonstrated routes, over the whole run."
        + _RATES
        + " (DPPO: 0.076, 0.071, 0.119; PPO: 0.040, 0.038, 0.029).",
    ),
)  # fmt: skip
