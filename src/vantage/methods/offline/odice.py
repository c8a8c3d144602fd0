"""ODICE: a DICE value loss whose backward gradient is projected orthogonally to the forward one. (S204)

The temporal residual depends on V in the state and in the next state, and the two gradients often conflict. Each is computed
separately, with the target network on the other side, and only the orthogonal part of the backward one is kept:

    e_f = r + gamma (1 - done) V'(s') - V(s)         g_f = grad  lam mean f*(e_f)               through V(s)
    e_b = r + gamma (1 - done) V(s') - V'(s)         g_b = grad  lam eta mean f*(e_b)           through V(s')
    g   = (1 - lam) grad mean V(s) + g_f + ( g_b - <g_f, g_b> / <g_f, g_f> g_f )

over the parameters of both value networks together, whose residuals all enter the means; V' is the smaller of their targets. f*
is the conjugate of Pearson's chi-square: f*(y) = y + y^2 / 4 from -2 on, -1 below. The policy clones the data with the weight
mean over both networks of min(max(e_f, 0), 100), e_f of this step before V is updated (theory says max(e_f / 2 + 1, 0); the
authors' code, and this page, do not). Its weight decay is added to the gradient (L2). `gradient="semi"` leaves g_b out; "true"
differentiates one residual, with each network's own V in both places, through both, and the weight is computed from that one.

The surroundings are the task's and the policy's, and differ from the authors': the policy's mean is tanh of its network (there
`use_tanh: False`, an unbounded mean whose actions are cut at 1); states are standardised (`normalize=false` for theirs); rewards
are the data's (there times 1000 / (highest - lowest return) for locomotion, and -3 or 0 a step in antmaze: the task's
`reward_scale` and `reward_shift`); all networks have two layers of 256 (there the policy of 1024, the values of 256). There
antmaze has no layer normalisation, and on some sets one V. lam and eta are given per data set. arXiv 2402.00348.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from vantage.annotations import at_least, between
from vantage.core.component import component, memory
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.core.trajectories import Trajectories, declare
from vantage.functions.parameters import inner, project_out
from vantage.methods.claim import Claim
from vantage.methods.registry import Paper, method
from vantage.objectives.surrogates import PolicyGradient
from vantage.rollouts.offline import Transitions
from vantage.rollouts.plans import Shuffled
from vantage.updates.gradient import GradientUpdate
from vantage.updates.optimizers import Adam, CoupledAdam
from vantage.updates.targets import MoveTargets

declare("residual", "[N, T, 2]", "temporal difference under each value network", "the recipe's advantage")

PAPER = Paper(
    "ODICE: Revealing the Mystery of Distribution Correction Estimation via Orthogonal-gradient Update",
    "Liyuan Mao and Haoran Xu and Weinan Zhang and Xianyuan Zhan",
    2024,
    arxiv="2402.00348",
)


def conjugate(y: Tensor) -> Tensor:
    """Return f*(y) of Pearson's chi-square, elementwise; its derivative is max(y / 2 + 1, 0)."""
    held = y.clamp(min=-2.0)
    return held + held.square() / 4


@component
class DiceValue:
    """The page's V: fills `residual` [N, 1, 2] before the policy's update, and takes the projected step after it.

    Attributes:
        lam: weight of the residuals against the mean of V, 0 to 1.
        eta: weight of the backward gradient, at least 0.
        gamma: discount.
        gradient: "orthogonal", "semi" or "true".
        optimizer: of the values alone.
    """

    lam: Annotated[float, between(0, 1)] = 0.6
    eta: Annotated[float, at_least(0)] = 1.0
    gamma: Annotated[float, between(0, 1)] = 0.99
    gradient: Literal["orthogonal", "semi", "true"] = "orthogonal"
    optimizer: Any = field(default_factory=lambda: Adam(2e-4))
    _memory: dict[str, Any] = memory()
    needs = frozenset({"transitions"})

    def prepare(self, context: Context) -> None:
        """Add value networks and a learnable standard deviation to the policy."""
        policy: Any = context.policy
        if not hasattr(policy, "add_values"):
            raise UserError(f"odice: {type(policy).__name__} has no state values: take a task of the field offline")
        policy.add_values()
        policy.add_spread()
        self._memory["optimizer"] = self.optimizer.build(policy.value_nets.parameters())

    @torch.no_grad()
    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Fill the column: the residual under each value network, for the weight of cloning; no gradient."""
        policy: Any = context.policy
        # The true gradient uses no target network.
        live = self.gradient == "true"
        following = policy.v(batch.next_observation) if live else self._target(policy, batch.next_observation)
        left = self.gamma * (~batch.terminated).to(batch.reward.dtype)
        residual = batch.reward + left * following - policy.v(batch.observation)
        return batch.replace(residual=residual.movedim(0, -1))

    def fit(self, batch: Trajectories, context: Context) -> None:
        """Update V by the combined gradient."""
        policy: Any = context.policy
        parameters = list(policy.value_nets.parameters())
        gradient = self.combined(policy, batch, parameters, context)
        optimizer = self._memory["optimizer"]
        for parameter, part in zip(parameters, gradient, strict=True):
            parameter.grad = part
        optimizer.step()

    def combined(self, policy: Any, batch: Trajectories, parameters: list[Any], context: Context) -> list[Tensor]:
        """Return the gradient of the page, a tensor for each parameter."""
        left = self.gamma * (~batch.terminated).to(batch.reward.dtype)
        now = policy.v(batch.observation)
        if self.gradient == "true":
            residual = batch.reward + left * policy.v(batch.next_observation) - now
            loss = (1 - self.lam) * now.mean() + self.lam * conjugate(residual).mean()
            context.record("loss/value", loss)
            return list(torch.autograd.grad(loss, parameters))
        forward = self.lam * conjugate(batch.reward + left * self._target(policy, batch.next_observation) - now).mean()
        g_f = torch.autograd.grad(forward, parameters, retain_graph=True)
        push = torch.autograd.grad((1 - self.lam) * now.mean(), parameters)
        context.record("loss/value", forward)
        context.record("value/mean", now.detach().mean())
        total = torch._foreach_add(list(push), list(g_f))
        if self.gradient == "semi" or self.eta == 0:
            return list(total)
        before = self._target(policy, batch.observation)
        backward = (
            self.lam * self.eta * conjugate(batch.reward + left * policy.v(batch.next_observation) - before).mean()
        )
        g_b = torch.autograd.grad(backward, parameters)
        rest, _ = project_out(g_b, g_f)
        norms = (inner(g_f, g_f) * inner(g_b, g_b)).sqrt().clamp(min=1e-12)
        context.record("dice/cosine", inner(g_f, g_b) / norms)
        return list(torch._foreach_add(list(total), rest))

    @torch.no_grad()
    def _target(self, policy: Any, observation: Tensor) -> Tensor:
        smallest: Tensor = policy.v(observation, target=True).amin(0)
        return smallest


@component
class ResidualWeight:
    """Advantage: the mean over value networks of min(max(residual, 0), most), [N, 1]: the weight of cloning the row's action."""

    most: float = 100.0

    def __call__(self, batch: Trajectories, context: Context) -> Tensor:
        """Return the weights."""
        weight: Tensor = batch["residual"].clamp(0.0, self.most).mean(-1)
        context.record("weight/positive", (weight > 0).float().mean())
        return weight


@method(id="S204", papers=PAPER, needs="transitions", source="maoliyuan/ODICE-Pytorch@1692507 main_odice_rl.py")
def odice(
    rows: int = 256,
    lr: float = 2e-4,
    lam: float = 0.6,
    eta: float = 1.0,
    gamma: float = 0.99,
    tau: float = 0.005,
    gradient: Literal["orthogonal", "semi", "true"] = "orthogonal",
    weight_decay: float = 1e-4,
) -> Method:
    """rows: transitions a step; lr: of policy and values alike; lam: weight of the residuals against the mean of V;
    eta: weight of the backward gradient; gamma: discount; tau: share by which targets are updated; gradient: `orthogonal`,
    `semi` or `true`; weight_decay: of the policy, added to its gradient."""
    return Method(
        prompts=Shuffled(),
        rollout=Transitions(rows),
        rewards=(),
        values=DiceValue(lam, eta, gamma, gradient, Adam(lr)),
        advantage=ResidualWeight(),
        objective=PolicyGradient(),
        averaging="seq-mean-token-sum",
        controllers=(MoveTargets(tau),),
        update=GradientUpdate(optimizer=CoupledAdam(lr, weight_decay), unit="row", max_grad_norm=None),
    )


claim = (
    Claim(
        name="true",
        arena="offline-point",
        against="odice",
        against_settings={"gradient": "true"},
        note="The authors: better than the true gradient of the same loss.",
    ),
    Claim(
        name="semi",
        arena="offline-point",
        against="odice",
        against_settings={"gradient": "semi"},
        note="The authors: better than the semi-gradient, which has no backward part.",
    ),
    Claim(
        name="perturbed-starts",
        arena="offline-perturbed",
        against="odice",
        metric="score_perturbed",
        against_settings={"gradient": "semi"},
        note="The authors: the backward part regularises V in the states, so that the policy works where episodes begin elsewhere"
        " than in the data. There from perturbed initial states of larger tasks, without a figure known to us; here from places"
        " around the corner in which all recorded episodes begin.",
    ),
)
